//! What a decoder looks like, whatever its family called it.

use crate::rope::RopeConfig;

/// Sizes and switches of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// width of the residual stream
    pub hidden_size: usize,
    /// width of the MLP
    pub intermediate_size: usize,
    /// tokens in the vocabulary
    pub vocab_size: usize,
    /// query heads
    pub heads: usize,
    /// key/value heads; each serves `heads / kv_heads` query heads
    pub kv_heads: usize,
    /// features of a head
    pub head_dim: usize,
    /// longest sequence the model was made for
    pub max_positions: usize,
    /// epsilon of the norms
    pub norm_eps: f32,
    /// rotary embedding
    pub rope: RopeConfig,
    /// biases of q, k and v
    pub qkv_bias: bool,
    /// bias of the attention's output
    pub o_bias: bool,
    /// biases of the MLP
    pub mlp_bias: bool,
    /// whether the head may be the embedding
    pub tied: bool,
    /// attention window of each layer, in tokens, the current one included; one entry a layer
    pub windows: Vec<Option<usize>>,
    /// first token of a text
    pub bos_token_id: Option<u32>,
    /// tokens that end a text
    pub eos_token_ids: Vec<u32>,
}

/// A linear layer as config.json implies it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSpec {
    /// module name, without `.weight`
    pub name: String,
    /// out_features
    pub rows: usize,
    /// in_features
    pub cols: usize,
    /// whether it has a bias
    pub bias: bool,
}

impl DecoderConfig {
    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.windows.len()
    }

    /// Module name of a block.
    pub fn block_name(layer: usize) -> String {
        format!("model.layers.{layer}")
    }

    /// The linear layers of a block, in the order of a forward pass: q, k, v, o, gate, up, down.
    pub fn block_linears(&self, layer: usize) -> [LinearSpec; 7] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let spec = |module: &str, rows, cols, bias| {
            let name = format!("{}.{module}", Self::block_name(layer));
            LinearSpec { name, rows, cols, bias }
        };
        [
            spec("self_attn.q_proj", queries, hidden, self.qkv_bias),
            spec("self_attn.k_proj", keys, hidden, self.qkv_bias),
            spec("self_attn.v_proj", keys, hidden, self.qkv_bias),
            spec("self_attn.o_proj", hidden, queries, self.o_bias),
            spec("mlp.gate_proj", inner, hidden, self.mlp_bias),
            spec("mlp.up_proj", inner, hidden, self.mlp_bias),
            spec("mlp.down_proj", hidden, inner, self.mlp_bias),
        ]
    }

    /// The head. It has a weight of its own only where the checkpoint has one under this name.
    pub fn head(&self) -> LinearSpec {
        LinearSpec { name: "lm_head".to_owned(), rows: self.vocab_size, cols: self.hidden_size, bias: false }
    }
}
