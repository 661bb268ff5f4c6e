//! LLaMA and its relatives: RMSNorm, RoPE, grouped-query attention, SwiGLU. They differ in biases, windows and defaults.
//!
//! Defaults of missing keys are those of Hugging Face transformers' `LlamaConfig`, `MistralConfig`, `Qwen2Config`.

use lacuna_format::Checkpoint;
use serde_json::Value;

use super::keys::{even_head_dim, flag, layers, number, optional, required, token_ids};
use crate::rope::RopeConfig;
use crate::{Activation, BlockConfig, BlockNames, Config, DecoderConfig, NormKind, NormPlace, Qkv, View};

type Result<T> = std::result::Result<T, String>;

/// LLaMA 1 to 3.
pub(super) fn llama(checkpoint: &Checkpoint) -> Result<Config> {
    let config = checkpoint.config();
    let windows = vec![None; layers(config)?];
    let mut decoder = common(config, None, windows)?;
    decoder.blocks.qkv_bias = flag(config, "attention_bias", false)?;
    decoder.blocks.o_bias = decoder.blocks.qkv_bias;
    decoder.blocks.mlp_bias = flag(config, "mlp_bias", false)?;
    Ok(Config::Decoder(decoder))
}

/// Mistral: LLaMA with an optional sliding window on every layer.
pub(super) fn mistral(checkpoint: &Checkpoint) -> Result<Config> {
    let config = checkpoint.config();
    let window = match config.get("sliding_window") {
        None => Some(4096),
        Some(_) => optional(config, "sliding_window")?,
    };
    common(config, Some(8), vec![window; layers(config)?]).map(Config::Decoder)
}

/// Qwen2: biases on q, k, v, and an optional sliding window on some layers.
pub(super) fn qwen2(checkpoint: &Checkpoint) -> Result<Config> {
    let config = checkpoint.config();
    let mut windows = vec![None; layers(config)?];
    if flag(config, "use_sliding_window", false)? {
        let window = Some(optional(config, "sliding_window")?.unwrap_or(4096));
        let first = optional(config, "max_window_layers")?.unwrap_or(28);
        let types = config.get("layer_types").and_then(Value::as_array);
        for (layer, slot) in windows.iter_mut().enumerate() {
            let slides = match types {
                Some(types) => types.get(layer).and_then(Value::as_str) == Some("sliding_attention"),
                None => layer >= first,
            };
            *slot = if slides { window } else { None };
        }
    }
    let mut decoder = common(config, Some(32), windows)?;
    decoder.blocks.qkv_bias = true;
    Ok(Config::Decoder(decoder))
}

/// What all of them share. Without `num_key_value_heads` there are `default_kv_heads`, or as many as query heads.
fn common(config: &Value, default_kv_heads: Option<usize>, windows: Vec<Option<usize>>) -> Result<DecoderConfig> {
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
        None => even_head_dim(hidden_size, heads)?,
    };
    if head_dim % 2 != 0 {
        return Err(format!("head_dim {head_dim} is odd; rotary embedding needs pairs"));
    }
    let max_positions = optional(config, "max_position_embeddings")?.unwrap_or(2048);
    Ok(DecoderConfig {
        blocks: BlockConfig {
            hidden_size,
            intermediate_size: required(config, "intermediate_size")?,
            heads,
            kv_heads,
            head_dim,
            norm: NormKind::Rms,
            norm_eps: number(config, "rms_norm_eps", 1e-6)? as f32,
            norm_place: NormPlace::BeforeSublayer,
            activation: Activation::Silu,
            layers: windows.len(),
            view: View::Past { rope: RopeConfig::from_config(config, max_positions)?, windows },
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            names: BlockNames {
                prefix: "model.layers".to_owned(),
                norms: ["input_layernorm", "post_attention_layernorm"],
                qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
                o: "self_attn.o_proj",
                gate: Some("mlp.gate_proj"),
                up: "mlp.up_proj",
                down: "mlp.down_proj",
            },
        },
        vocab_size: required(config, "vocab_size")?,
        max_positions,
        tied: flag(config, "tie_word_embeddings", false)?,
        bos_token_id: token_ids(config, "bos_token_id")?.first().copied(),
        eos_token_ids: token_ids(config, "eos_token_id")?,
    })
}
