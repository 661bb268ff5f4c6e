//! LLaMA and its relatives: RMSNorm, RoPE, grouped-query attention, SwiGLU. They differ in biases, windows and defaults.
//!
//! Defaults of missing keys are those of Hugging Face transformers' `LlamaConfig`, `MistralConfig`, `Qwen2Config`.

use serde_json::Value;

use crate::DecoderConfig;
use crate::rope::RopeConfig;

type Result<T> = std::result::Result<T, String>;

/// LLaMA 1 to 3.
pub(super) fn llama(config: &Value) -> Result<DecoderConfig> {
    let mut decoder = common(config, None)?;
    decoder.qkv_bias = flag(config, "attention_bias", false)?;
    decoder.o_bias = decoder.qkv_bias;
    decoder.mlp_bias = flag(config, "mlp_bias", false)?;
    Ok(decoder)
}

/// Mistral: LLaMA with an optional sliding window on every layer.
pub(super) fn mistral(config: &Value) -> Result<DecoderConfig> {
    let mut decoder = common(config, Some(8))?;
    let window = match config.get("sliding_window") {
        None => Some(4096),
        Some(_) => optional(config, "sliding_window")?,
    };
    decoder.windows = vec![window; decoder.layers()];
    Ok(decoder)
}

/// Qwen2: biases on q, k, v, and an optional sliding window on some layers.
pub(super) fn qwen2(config: &Value) -> Result<DecoderConfig> {
    let mut decoder = common(config, Some(32))?;
    decoder.qkv_bias = true;
    if flag(config, "use_sliding_window", false)? {
        let window = Some(optional(config, "sliding_window")?.unwrap_or(4096));
        let first = optional(config, "max_window_layers")?.unwrap_or(28);
        let types = config.get("layer_types").and_then(Value::as_array);
        for (layer, slot) in decoder.windows.iter_mut().enumerate() {
            let slides = match types {
                Some(types) => types.get(layer).and_then(Value::as_str) == Some("sliding_attention"),
                None => layer >= first,
            };
            *slot = if slides { window } else { None };
        }
    }
    Ok(decoder)
}

/// What all of them share. Without `num_key_value_heads` there are `default_kv_heads`, or as many as query heads.
fn common(config: &Value, default_kv_heads: Option<usize>) -> Result<DecoderConfig> {
    let activation = config.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
    if activation != "silu" {
        return Err(format!("hidden_act {activation} is not supported; this family runs with silu"));
    }
    let hidden_size = required(config, "hidden_size")?;
    let heads = required(config, "num_attention_heads")?;
    let kv_heads = optional(config, "num_key_value_heads")?.or(default_kv_heads).unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(format!("num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"));
    }
    let head_dim = match optional(config, "head_dim")? {
        Some(dim) => dim,
        None if hidden_size % heads == 0 => hidden_size / heads,
        None => return Err(format!("hidden_size {hidden_size} is no multiple of num_attention_heads {heads}")),
    };
    if head_dim % 2 != 0 {
        return Err(format!("head_dim {head_dim} is odd; rotary embedding needs pairs"));
    }
    let layers = required(config, "num_hidden_layers")?;
    if layers > MAX_LAYERS {
        return Err(format!("num_hidden_layers is {layers}; it must be at most {MAX_LAYERS}"));
    }
    let max_positions = optional(config, "max_position_embeddings")?.unwrap_or(2048);
    Ok(DecoderConfig {
        hidden_size,
        intermediate_size: required(config, "intermediate_size")?,
        vocab_size: required(config, "vocab_size")?,
        heads,
        kv_heads,
        head_dim,
        max_positions,
        norm_eps: number(config, "rms_norm_eps", 1e-6)? as f32,
        rope: RopeConfig::from_config(config, max_positions)?,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        tied: flag(config, "tie_word_embeddings", false)?,
        windows: vec![None; layers],
        bos_token_id: token_ids(config, "bos_token_id")?.first().copied(),
        eos_token_ids: token_ids(config, "eos_token_id")?,
    })
}

/// Largest size any key may have: keeps products of two of them inside 64 bits.
const MAX_SIZE: u64 = 1 << 28;
/// Far beyond any model, near enough to be refused at once.
const MAX_LAYERS: usize = 1 << 14;

fn optional(config: &Value, key: &str) -> Result<Option<usize>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(Some(n as usize)),
            _ => Err(format!("{key} is {value}; it must be a whole number from 1 to {MAX_SIZE}")),
        },
    }
}

fn required(config: &Value, key: &str) -> Result<usize> {
    optional(config, key)?.ok_or_else(|| format!("{key} is missing"))
}

fn flag(config: &Value, key: &str, default: bool) -> Result<bool> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| format!("{key} is {value}; it must be true or false")),
    }
}

fn number(config: &Value, key: &str, default: f64) -> Result<f64> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| format!("{key} is {value}; it must be a number")),
    }
}

/// One id, a list of them, or null.
fn token_ids(config: &Value, key: &str) -> Result<Vec<u32>> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| format!("{key} holds {value}; it must be a token id"))
    };
    match config.get(key) {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Array(ids)) => ids.iter().map(one).collect(),
        Some(value) => one(value).map(|id| vec![id]),
    }
}
