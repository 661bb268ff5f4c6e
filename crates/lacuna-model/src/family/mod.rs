//! Model families: from config.json, and where that leaves it open the names of the tensors, to a [`Config`]. One file a
//! family, one line of [`FAMILIES`] a `model_type`.

mod bert;
mod encoder;
mod keys;
mod llama;
mod timm;
mod vit;

use lacuna_format::{Checkpoint, Error, Result};
use serde_json::Value;

use crate::{Config, DecoderConfig, TextConfig, VisionConfig};

/// Reads a family's config.json; the error is a sentence without the file's name.
type Parse = fn(&Checkpoint) -> std::result::Result<Config, String>;

/// `model_type` of every supported architecture; those of timm have none, but an `architecture` that begins so.
pub static FAMILIES: &[(&str, Parse)] = &[
    ("llama", llama::llama),
    ("mistral", llama::mistral),
    ("qwen2", llama::qwen2),
    ("bert", bert::bert),
    ("roberta", bert::roberta),
    ("xlm-roberta", bert::roberta),
    ("vit", vit::vit),
    ("deit", vit::vit),
];

/// The config of a checkpoint. Refuses architectures that are not in the table, by name.
pub fn config(checkpoint: &Checkpoint) -> Result<Config> {
    let path = checkpoint.config_path();
    let name = |key: &str| checkpoint.config().get(key).and_then(Value::as_str);
    let known = || FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let parsed = match (name("model_type"), name("architecture")) {
        (Some(model_type), _) => match FAMILIES.iter().find(|(name, _)| *name == model_type) {
            Some((_, parse)) => parse(checkpoint),
            None => Err(format!("model_type {model_type} is not supported; supported are {}", known())),
        },
        (None, Some(architecture)) => timm::timm(checkpoint, architecture),
        (None, None) => Err(format!("has no model_type; supported are {}", known())),
    };
    let config = parsed.map_err(|problem| Error::file(&path, problem))?;
    match unknown_tensor(checkpoint, &config) {
        None => Ok(config),
        Some(name) => Err(Error::tensor(name, "is no part of a block of this architecture as it is run here")),
    }
}

/// The config of a checkpoint that must be a decoder's.
pub fn decoder(checkpoint: &Checkpoint) -> Result<DecoderConfig> {
    match config(checkpoint)? {
        Config::Decoder(config) => Ok(config),
        other => Err(wrong_purpose(checkpoint, &other, "writes text")),
    }
}

/// The config of a checkpoint that must be a text encoder's.
pub fn text_encoder(checkpoint: &Checkpoint) -> Result<TextConfig> {
    match config(checkpoint)? {
        Config::Text(config) => Ok(config),
        other => Err(wrong_purpose(checkpoint, &other, "embeds text")),
    }
}

/// The config of a checkpoint that must be an image classifier's.
pub fn image_classifier(checkpoint: &Checkpoint) -> Result<VisionConfig> {
    match config(checkpoint)? {
        Config::Vision(config) => Ok(config),
        other => Err(wrong_purpose(checkpoint, &other, "classifies images")),
    }
}

fn wrong_purpose(checkpoint: &Checkpoint, config: &Config, wanted: &str) -> Error {
    let problem = format!("this model {}; give one that {wanted}", config.purpose());
    Error::file(&checkpoint.config_path(), problem)
}

/// A tensor inside a block that would not be used: whatever it does, results without it would be wrong.
fn unknown_tensor<'a>(checkpoint: &'a Checkpoint, config: &Config) -> Option<&'a str> {
    let blocks = config.blocks();
    let known = |name: &str, layer: usize| {
        let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
        let own = module.strip_prefix(&blocks.block_name(layer)).and_then(|rest| rest.strip_prefix('.'));
        own.is_some_and(|own| blocks.names.norms.contains(&own))
            || blocks.linears(layer).iter().any(|l| l.name == module)
    };
    let names = checkpoint.tensors().keys().map(String::as_str);
    names
        .filter_map(|name| Some((name, blocks.layer_of(name)?)))
        .find(|&(name, layer)| !known(name, layer))
        .map(|(name, _)| name)
}
