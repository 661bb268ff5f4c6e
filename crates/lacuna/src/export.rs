//! Export: a pruned checkpoint as plain dense safetensors that every loader takes, zeros and all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_core::{Packed, ValueType};
use lacuna_format::{Checkpoint, OutTensor, SPARSITY_KEY, Staging};
use lacuna_model::family;
use serde::Serialize;
use serde_json::{Value, json};

use crate::output::{check_output, copy_companions, write_index};

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// the new checkpoint
    pub output: PathBuf,
    /// bytes of all its weights
    pub bytes: u64,
}

/// Writes `output` as a dense checkpoint: removed weights are +0, kept ones have the type they were stored in, or where
/// that was an integer the type of the embedding, rounded to nearest.
pub fn export_dense(source: &Path, output: &Path, force: bool, progress: &ProgressBar) -> Result<Exported> {
    let checkpoint = Checkpoint::open(source)?;
    let Some(sparsity) = checkpoint.sparsity() else {
        bail!("{}: not a pruned checkpoint; it is dense already", source.display());
    };
    // Never pruned and in every checkpoint that runs, so its type is still that of the original.
    let embedding = family::config(&checkpoint)?.embedding();
    // A layer goes where its values are: without them it would be left out silently.
    for layer in sparsity.layers.keys() {
        checkpoint.info(&format!("{layer}.values"))?;
    }
    check_output(source, output, force)?;
    let fingerprint = json!({ "export": "dense", "source": source.canonicalize()?, "sparsity": sparsity });
    let mut staging = Staging::open(output, force, &fingerprint)?;

    // Shard by shard as they are; a packed layer goes where its values were.
    let mut shards: BTreeMap<&Path, BTreeSet<String>> = BTreeMap::new();
    for (name, info) in checkpoint.tensors() {
        let layer = name.rsplit_once('.').filter(|(layer, _)| sparsity.layers.contains_key(*layer));
        let name = match layer {
            Some((layer, "values")) => format!("{layer}.weight"),
            Some((_, "columns" | "positions" | "row_order" | "scales")) => continue,
            _ => name.clone(),
        };
        shards.entry(checkpoint.file_of(info)).or_default().insert(name);
    }
    progress.set_length(shards.len() as u64);
    let mut names = vec![];
    for (path, tensors) in &shards {
        let shard = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if staging.finished(&shard).is_none() {
            write_shard(&checkpoint, &embedding, &mut staging, &shard, tensors)?;
        }
        names.push(shard);
        progress.inc(1);
    }
    let mut config = checkpoint.config().clone();
    if let Some(config) = config.as_object_mut() {
        config.shift_remove(SPARSITY_KEY);
    }
    write_index(&staging, names.into_iter())?;
    staging.write_file("config.json", serde_json::to_string_pretty(&config)?.as_bytes())?;
    copy_companions(&staging, source)?;
    let bytes = Checkpoint::open(staging.dir())?.weight_bytes();
    staging.finish()?;
    Ok(Exported { output: output.to_owned(), bytes })
}

fn write_shard(
    checkpoint: &Checkpoint,
    embedding: &str,
    staging: &mut Staging,
    shard: &str,
    names: &BTreeSet<String>,
) -> Result<()> {
    let mut raw = vec![];
    let mut tensors = vec![];
    for name in names {
        match name.strip_suffix(".weight").map(|layer| checkpoint.packed(layer)).transpose()?.flatten() {
            Some(packed) => {
                tensors.push((name.clone(), dense(checkpoint, embedding, name, &packed)?));
            }
            None => raw.push((name.clone(), checkpoint.raw(name)?)),
        }
    }
    for (name, tensor) in &raw {
        tensors.push((name.clone(), OutTensor::new(tensor.info.dtype, tensor.info.shape.clone(), tensor.bytes())));
    }
    Ok(staging.write_shard(shard, &tensors, Value::Null)?)
}

fn dense(checkpoint: &Checkpoint, embedding: &str, name: &str, packed: &Packed) -> Result<OutTensor<'static>> {
    let weight = packed.unpack();
    let dtype = match packed.values().value_type() {
        ValueType::Float(dtype) => dtype,
        ValueType::Int(..) => checkpoint.dtype(embedding)?,
    };
    // A rounded scale can carry the largest weights of f16 past its end.
    if let Some(i) = weight.data().iter().position(|&w| !dtype.holds(w)) {
        let (row, value, dtype) = (i / weight.cols(), weight.data()[i], dtype.name());
        let ways = "prune again with --values f16, bf16 or f32 and export that";
        bail!("tensor {name}: row {row} holds {value}, which does not fit {dtype}, the type of {embedding}; {ways}");
    }
    Ok(OutTensor::matrix(&weight, dtype))
}
