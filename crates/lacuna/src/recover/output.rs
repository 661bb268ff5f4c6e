//! Writing what was recovered: the pruned checkpoint with other values, shard by shard; log and curves beside it, and adapters
//! that were not merged in PEFT's layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;
use lacuna_core::{Dtype, Matrix};
use lacuna_format::{Checkpoint, OutTensor, SPARSITY_KEY, Staging, pack_tensors};
use lacuna_train::{Trainer, Trains};
use serde_json::{Value, json};

use super::Job;
use super::curves;
use super::progress::Log;
use crate::calibrate::Calibration;
use crate::output::{copy_companions, write_index};

/// Writes the whole checkpoint.
pub(super) fn write(job: &Job, trainer: &Trainer, log: &Log, output: &Path) -> Result<()> {
    let mut staging = Staging::open(output, job.options.force, &json!({ "recovered": job.fingerprint()? }))?;
    let mut shards: BTreeMap<&Path, BTreeSet<&String>> = BTreeMap::new();
    for (name, info) in job.pruned.tensors() {
        shards.entry(job.pruned.file_of(info)).or_default().insert(name);
    }
    let mut names = vec![];
    for (path, tensors) in shards {
        let shard = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        write_shard(&job.pruned, trainer, &mut staging, &shard, &tensors)?;
        names.push(shard);
    }
    write_index(&staging, names.into_iter())?;
    let mut config = job.pruned.config().clone();
    if job.options.recipe.ends
        && let Some(embeddings) = job.config.token_embeddings(&job.pruned)?
        && job.config.ending(&job.pruned)?.1.iter().any(|head| head.weight != embeddings)
    {
        // Trained apart, however alike they were.
        config["tie_word_embeddings"] = json!(false);
    }
    let recipe = &mut config[SPARSITY_KEY]["recipe"];
    let mut recovery = json!({
        "method": job.options.method,
        "recipe": job.options.recipe,
        "steps": job.options.steps,
        "batch": job.options.batch,
        "seed": job.options.seed,
        "soup": job.options.soup,
        "data": job.options.data.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    // Whoever evaluates must leave out what a training saw, as what calibration saw.
    if let Some(split) = Calibration::split(&job.config) {
        recovery["split"] = json!(split);
        if !recipe["calibration"].is_object() {
            recipe["calibration"] = json!({});
        }
        recipe["calibration"]["split"] = json!(split);
    }
    recipe["recovery"] = recovery;
    staging.write_file("config.json", serde_json::to_string_pretty(&config)?.as_bytes())?;
    copy_companions(&staging, job.pruned.dir())?;
    staging.write_file("recovery.jsonl", log.text().as_bytes())?;
    staging.write_file("recovery.svg", curves::draw(log, 0).as_bytes())?;
    write_adapters(job, trainer, &mut staging)?;
    Ok(staging.finish()?)
}

fn write_shard(
    pruned: &Checkpoint,
    trainer: &Trainer,
    staging: &mut Staging,
    shard: &str,
    names: &BTreeSet<&String>,
) -> Result<()> {
    let (mut tensors, mut raw, mut pruned_layers) = (vec![], vec![], vec![]);
    for &name in names {
        let (layer, part) = name.rsplit_once('.').unwrap_or((name, ""));
        if let Some(values) = trainer.values(name)? {
            let matrix = OutTensor::matrix(&Matrix::new(1, values.len(), values)?, pruned.dtype(name)?);
            let info = pruned.info(name)?;
            tensors.push((name.clone(), OutTensor::new(info.dtype, info.shape.clone(), matrix.data().to_vec())));
        } else if part != "bias" && trainer.has(layer) {
            if part == "values"
                && let Some(packed) = trainer.packed(layer)?
            {
                pruned_layers.push((layer, packed));
            }
        } else {
            raw.push((name.clone(), pruned.raw(name)?));
        }
    }
    tensors.extend(pruned_layers.iter().flat_map(|(layer, packed)| pack_tensors(layer, packed)));
    for (name, tensor) in &raw {
        tensors.push((name.clone(), OutTensor::new(tensor.info.dtype, tensor.info.shape.clone(), tensor.bytes())));
    }
    Ok(staging.write_shard(shard, &tensors, Value::Null)?)
}

/// `adapter_config.json` and `adapter_model.safetensors` as PEFT reads them.
fn write_adapters(job: &Job, trainer: &Trainer, staging: &mut Staging) -> Result<()> {
    let Trains::Adapters { rank, alpha, beside: true } = job.options.recipe.trains else { return Ok(()) };
    let mut tensors = vec![];
    let adapters = trainer.adapters()?;
    for (layer, parts) in &adapters {
        for (part, matrix) in ["A", "B"].iter().zip(parts) {
            let name = format!("base_model.model.{layer}.lora_{part}.weight");
            tensors.push((name, OutTensor::matrix(matrix, Dtype::F32)));
        }
    }
    let modules: BTreeSet<&str> = adapters.keys().filter_map(|layer| layer.rsplit('.').next()).collect();
    let config = json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": modules, "base_model_name_or_path": null, "inference_mode": true,
    });
    staging.write_shard("adapter_model.safetensors", &tensors, Value::Null)?;
    Ok(staging.write_file("adapter_config.json", serde_json::to_string_pretty(&config)?.as_bytes())?)
}
