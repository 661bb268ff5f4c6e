//! What every command that writes a checkpoint does alike: where it may write, the index, the files beside the weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lacuna_format::{Checkpoint, Staging};
use serde_json::json;

use crate::UsageError;

/// Files that a checkpoint carries beside its weights and that stay as they are.
const COMPANIONS: [&str; 15] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "preprocessor_config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "modules.json",
    "1_Pooling/config.json",
];

/// Refuses to write over, into or around the source, and over anything at all without `force`.
pub(crate) fn check_output(source: &Path, output: &Path, force: bool) -> Result<()> {
    if output.exists() && !force {
        let problem = format!("{} already exists; choose another output or pass --force", output.display());
        return Err(UsageError(problem).into());
    }
    let (source, output) = (real_path(source)?, real_path(output)?);
    if output.starts_with(&source) || source.starts_with(&output) {
        let problem =
            format!("output {} and input {} must be different directories", output.display(), source.display());
        return Err(UsageError(problem).into());
    }
    // A slip must not cost a home directory: only what looks like a checkpoint is replaced.
    if output.is_dir() && !output.join("config.json").is_file() && std::fs::read_dir(&output)?.next().is_some() {
        let problem = format!("{} is no checkpoint, so --force does not replace it; remove it first", output.display());
        return Err(UsageError(problem).into());
    }
    Ok(())
}

/// Where a path leads; what does not exist yet stays as it is written.
fn real_path(path: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(path).with_context(|| path.display().to_string())?;
    let found = whole.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    Ok(match found {
        Some((ancestor, real)) => real.components().chain(whole.strip_prefix(ancestor)?.components()).collect(),
        None => whole,
    })
}

/// model.safetensors.index.json over shards that are all written.
pub(crate) fn write_index(staging: &Staging, shards: impl Iterator<Item = String>) -> Result<()> {
    let (mut map, mut total) = (BTreeMap::new(), 0);
    for shard in shards {
        let written = Checkpoint::of_shard(&staging.dir().join(&shard), None)?;
        for (name, info) in written.tensors() {
            map.insert(name.clone(), shard.clone());
            total += info.len;
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    Ok(staging.write_file("model.safetensors.index.json", serde_json::to_string_pretty(&index)?.as_bytes())?)
}

/// Tokenizer and the like, as they are.
pub(crate) fn copy_companions(staging: &Staging, source: &Path) -> Result<()> {
    for name in COMPANIONS {
        staging.copy_file(source, name)?;
    }
    Ok(())
}
