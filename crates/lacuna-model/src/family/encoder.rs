//! The blocks of an encoder by Hugging Face's keys, whose names and defaults `BertConfig`, `ViTConfig` and their relatives
//! share.

use serde_json::Value;

use super::keys::{activation, even_head_dim, layers_or, number, optional};
use crate::{BlockConfig, BlockNames, NormKind, NormPlace, View};

/// Blocks of config.json; what families differ in is given.
pub(super) fn blocks(
    config: &Value,
    norm_place: NormPlace,
    qkv_bias: bool,
    names: BlockNames,
) -> Result<BlockConfig, String> {
    let size = |key: &str, default| Ok::<_, String>(optional(config, key)?.unwrap_or(default));
    let (hidden_size, heads) = (size("hidden_size", 768)?, size("num_attention_heads", 12)?);
    Ok(BlockConfig {
        hidden_size,
        intermediate_size: size("intermediate_size", 3072)?,
        heads,
        kv_heads: heads,
        head_dim: even_head_dim(hidden_size, heads)?,
        norm: NormKind::Layer,
        norm_eps: number(config, "layer_norm_eps", 1e-12)? as f32,
        norm_place,
        activation: activation(config)?,
        view: View::All,
        qkv_bias,
        o_bias: true,
        mlp_bias: true,
        layers: layers_or(config, 12)?,
        names,
    })
}
