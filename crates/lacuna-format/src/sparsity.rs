//! The block that a pruned checkpoint carries in its config.json.

use std::collections::BTreeMap;

use lacuna_core::{Pattern, ScaleGroup};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Key of the block in config.json: where loaders of compressed checkpoints look.
pub const SPARSITY_KEY: &str = "quantization_config";
/// Value of `quant_method` that marks the block as ours.
pub const METHOD: &str = "lacuna";
/// Version of the format written, and the newest one read.
pub const VERSION: u32 = 1;

/// What was pruned, how, and from what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sparsity {
    /// Always [`METHOD`].
    pub quant_method: String,
    /// Version of the format, see `docs/format.md`.
    pub version: u32,
    /// Pattern of every layer that names no other.
    #[serde(serialize_with = "to_text", deserialize_with = "from_text")]
    pub pattern: Pattern,
    /// Kept values that share a scale, where values are integers. Their tensors tell int8 from int4.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "to_number",
        deserialize_with = "from_number"
    )]
    pub scale_group: Option<ScaleGroup>,
    /// Criterion that scored the weights.
    pub criterion: String,
    /// Every setting that shaped the result.
    pub recipe: serde_json::Value,
    /// SHA-256 of each weight file of the original, by file name.
    pub source_sha256: BTreeMap<String, String>,
    /// The sparse layers by module name.
    pub layers: BTreeMap<String, LayerSparsity>,
}

/// One sparse layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSparsity {
    /// `[out_features, in_features]`
    pub shape: [usize; 2],
    /// Pattern, where it is not the checkpoint's.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "to_text_opt",
        deserialize_with = "from_text_opt"
    )]
    pub pattern: Option<Pattern>,
}

impl Sparsity {
    /// The pattern of a layer, and its shape; `None` if the layer is dense.
    pub fn layer(&self, name: &str) -> Option<(Pattern, [usize; 2])> {
        self.layers.get(name).map(|layer| (layer.pattern.unwrap_or(self.pattern), layer.shape))
    }

    /// Reads the block of a config, if it is there and ours. The error is a sentence without the file's name.
    pub fn from_config(config: &serde_json::Value) -> Result<Option<Self>, String> {
        let Some(block) = config.get(SPARSITY_KEY).filter(|block| !block.is_null()) else { return Ok(None) };
        let method = block.get("quant_method").and_then(serde_json::Value::as_str).unwrap_or("without a name");
        if method != METHOD {
            return Err(format!("the checkpoint is quantised ({method}); start from the unquantised checkpoint"));
        }
        let version = block.get("version").and_then(serde_json::Value::as_u64);
        match version {
            Some(v) if v == u64::from(VERSION) => {}
            Some(v) if v > u64::from(VERSION) => {
                return Err(format!(
                    "packed format version {v} is newer than this lacuna reads ({VERSION}); update it"
                ));
            }
            _ => return Err(format!("{SPARSITY_KEY}.version is missing or unknown (this lacuna reads {VERSION})")),
        }
        serde_json::from_value(block.clone()).map(Some).map_err(|e| format!("{SPARSITY_KEY}: {e}"))
    }
}

fn to_text<S: Serializer>(pattern: &Pattern, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(pattern)
}

fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[allow(clippy::ref_option)] // the signature is serde's
fn to_text_opt<S: Serializer>(pattern: &Option<Pattern>, serializer: S) -> Result<S::Ok, S::Error> {
    match pattern {
        Some(pattern) => serializer.collect_str(pattern),
        None => serializer.serialize_none(),
    }
}

fn from_text_opt<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Pattern>, D::Error> {
    from_text(deserializer).map(Some)
}

#[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref)] // the signature is serde's
fn to_number<S: Serializer>(group: &Option<ScaleGroup>, serializer: S) -> Result<S::Ok, S::Error> {
    group.map(ScaleGroup::values).serialize(serializer)
}

fn from_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ScaleGroup>, D::Error> {
    let values = usize::deserialize(deserializer)?;
    let group = ScaleGroup::new(values);
    group.map(Some).ok_or_else(|| serde::de::Error::custom(format!("scale_group is {values}, not 32, 64 or 128")))
}
