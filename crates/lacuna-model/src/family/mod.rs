//! Model families: from config.json to a [`DecoderConfig`]. One file a family, one line of [`FAMILIES`] a `model_type`.

mod llama;

use lacuna_format::{Checkpoint, Error, Result};
use serde_json::Value;

use crate::DecoderConfig;

/// Reads a family's config.json; the error is a sentence without the file's name.
type Parse = fn(&Value) -> std::result::Result<DecoderConfig, String>;

/// `model_type` of every supported architecture.
pub static FAMILIES: &[(&str, Parse)] =
    &[("llama", llama::llama), ("mistral", llama::mistral), ("qwen2", llama::qwen2)];

/// The config of a checkpoint. Refuses architectures that are not in the table, by name.
pub fn config(checkpoint: &Checkpoint) -> Result<DecoderConfig> {
    let path = checkpoint.config_path();
    let config = checkpoint.config();
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
    let Some((_, parse)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        let known: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let problem = format!("model_type {model_type} is not supported; supported are {}", known.join(", "));
        return Err(Error::file(&path, problem));
    };
    parse(config).map_err(|problem| Error::file(&path, problem))
}
