//! A checkpoint with its channels in other orders: the same files, tensors and types, values moved and never changed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use lacuna_core::Permutation;
use lacuna_format::{Checkpoint, Error, OutTensor, Staging};
use lacuna_model::{Axis, ChannelOrders, Config};
use serde_json::{Value, json};

use crate::output::{check_output, copy_companions, write_index};

const INDEX: &str = "model.safetensors.index.json";

/// Writes `output`, a file at a time.
pub fn rewrite(
    checkpoint: &Checkpoint,
    config: &Config,
    orders: &ChannelOrders,
    output: &Path,
    force: bool,
) -> Result<()> {
    let source = checkpoint.dir();
    check_output(source, output, force)?;
    let mut staging = Staging::open(output, force, &fingerprint(checkpoint, orders)?)?;
    let mut files: BTreeMap<&Path, Vec<&String>> = BTreeMap::new();
    for (name, info) in checkpoint.tensors() {
        files.entry(checkpoint.file_of(info)).or_default().push(name);
    }
    let mut shards = vec![];
    for (path, names) in files {
        let shard = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if staging.finished(&shard).is_none() {
            write_shard(checkpoint, config, orders, &mut staging, &shard, &names)?;
        }
        shards.push(shard);
    }
    if source.join(INDEX).is_file() {
        write_index(&staging, shards.into_iter())?;
    }
    staging.copy_file(source, "config.json")?;
    copy_companions(&staging, source)?;
    Ok(staging.finish()?)
}

fn write_shard(
    checkpoint: &Checkpoint,
    config: &Config,
    orders: &ChannelOrders,
    staging: &mut Staging,
    shard: &str,
    names: &[&String],
) -> Result<()> {
    let raw = names.iter().map(|name| Ok((*name, checkpoint.finite(name)?))).collect::<Result<Vec<_>>>()?;
    let mut tensors = vec![];
    for (name, tensor) in &raw {
        let shape = &tensor.info.shape;
        let mut bytes = Cow::Borrowed(tensor.bytes());
        for (dimension, order) in orders_of(checkpoint, config, orders, name)?.into_iter().enumerate() {
            let Some(order) = order else { continue };
            if shape[dimension] != order.len() {
                let problem = format!("shape {shape:?} contradicts config.json, which has {} there", order.len());
                return Err(Error::tensor(name, problem).into());
            }
            bytes = Cow::Owned(reordered(&bytes, shape, dimension, &order));
        }
        tensors.push(((*name).clone(), OutTensor::new(tensor.info.dtype, shape.clone(), bytes)));
    }
    Ok(staging.write_shard(shard, &tensors, Value::Null)?)
}

/// The order along each dimension of a tensor that has another one than before.
fn orders_of(
    checkpoint: &Checkpoint,
    config: &Config,
    orders: &ChannelOrders,
    name: &str,
) -> Result<Vec<Option<Permutation>>> {
    let stays = |order: &Permutation| *order == Permutation::identity(order.len());
    // What is outside the blocks has only the stream to follow: if that stays, it need not be known.
    if config.blocks().layer_of(name).is_none() && stays(orders.residual()) {
        return Ok(vec![]);
    }
    let axes: Vec<Axis> = config.axes(checkpoint, name)?;
    Ok(axes.into_iter().map(|axis| orders.along(axis).filter(|order| !stays(order))).collect())
}

/// The bytes of a tensor whose entry `i` along a dimension becomes entry `order[i]`.
fn reordered(bytes: &[u8], shape: &[usize], dimension: usize, order: &Permutation) -> Vec<u8> {
    let outer: usize = shape[..dimension].iter().product();
    let entry = bytes.len() / outer.max(1) / order.len().max(1);
    let mut out = Vec::with_capacity(bytes.len());
    for slab in bytes.chunks_exact((entry * order.len()).max(1)) {
        for &old in order.as_slice() {
            out.extend_from_slice(&slab[old as usize * entry..(old as usize + 1) * entry]);
        }
    }
    out
}

/// What must be equal for a run to go on where another one stopped: the source's files and every order.
fn fingerprint(checkpoint: &Checkpoint, orders: &ChannelOrders) -> Result<Value> {
    let mut files = vec![];
    for path in checkpoint.files() {
        let meta = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        files.push(json!([path.canonicalize()?, meta.len(), modified.map(|t| t.as_nanos().to_string())]));
    }
    let blocks = orders.blocks().iter().flat_map(|block| {
        let features = block.keys.iter().chain(&block.values);
        [&block.inner, &block.heads].into_iter().chain(features)
    });
    let entries = [orders.residual()].into_iter().chain(blocks).flat_map(Permutation::as_slice);
    let step = |hash: u64, &entry: &u32| (hash ^ u64::from(entry)).wrapping_mul(0x0100_0000_01b3);
    let digest = entries.fold(0xcbf2_9ce4_8422_2325, step);
    Ok(json!({ "permute": format!("{digest:016x}"), "files": files }))
}
