//! Orders of channels that leave what a model computes as it is.
//!
//! A channel that is written in one place and read in another may be moved if all who write and read it follow: that of
//! the residual stream (norms see all channels alike), of an MLP's inside, of a head's values (the columns of the
//! attention's output read them), and heads themselves. Queries and keys meet in a dot product, so they may share an order
//! inside a head; but not under rotary embedding, which turns feature `i` with feature `i + D/2` at a speed that belongs to
//! the place `i`: no two places are alike, so none may be exchanged. Query heads that share keys and values share their
//! order and move together.

use lacuna_core::Permutation;
use lacuna_format::{Checkpoint, Error, Result};

use crate::config::{BlockConfig, BlockNames, Config, DecoderConfig, Qkv, TextConfig, View, VisionConfig};

/// What a dimension of a tensor ranges over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// channels of the residual stream
    Residual,
    /// channels inside the MLP of a block
    Inner(usize),
    /// query features of all heads of a block
    Queries(usize),
    /// key features of all heads of a block
    Keys(usize),
    /// value features of all heads of a block
    Values(usize),
    /// queries, keys and values in one weight
    Together(usize),
    /// what the heads of a block make of values: as many features as there are of queries
    Mixed(usize),
    /// something that stays where it is: tokens, classes, pixels
    Fixed,
}

/// Orders of the channels inside a block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockOrders {
    /// of the MLP's inside
    pub inner: Permutation,
    /// of key/value heads, each with its query heads
    pub heads: Permutation,
    /// of the features of queries and keys in each key/value head
    pub keys: Vec<Permutation>,
    /// of the features of values in each key/value head
    pub values: Vec<Permutation>,
}

impl BlockOrders {
    /// Everything where it is.
    pub fn identity(config: &BlockConfig) -> Self {
        let features = vec![Permutation::identity(config.head_dim); config.kv_heads];
        Self {
            inner: Permutation::identity(config.intermediate_size),
            heads: Permutation::identity(config.kv_heads),
            keys: features.clone(),
            values: features,
        }
    }
}

/// Orders of all channels of a model that leave what it computes as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelOrders {
    config: BlockConfig,
    residual: Permutation,
    blocks: Vec<BlockOrders>,
}

impl ChannelOrders {
    /// Refuses orders of other lengths than the model's, and other orders of rotated keys than the one they have.
    pub fn new(config: &BlockConfig, residual: Permutation, blocks: Vec<BlockOrders>) -> lacuna_core::Result<Self> {
        let length = |what, got: usize, want: usize| {
            if got == want { Ok(()) } else { Err(lacuna_core::Error::Length { what, want, got }) }
        };
        length("order of the residual stream", residual.len(), config.hidden_size)?;
        length("orders of blocks", blocks.len(), config.layers)?;
        for block in &blocks {
            length("order of an MLP", block.inner.len(), config.intermediate_size)?;
            length("order of heads", block.heads.len(), config.kv_heads)?;
            length("orders of keys", block.keys.len(), config.kv_heads)?;
            length("orders of values", block.values.len(), config.kv_heads)?;
            for features in block.keys.iter().chain(&block.values) {
                length("order of a head", features.len(), config.head_dim)?;
            }
            if config.rotates() {
                let moved = block.keys.iter().flat_map(|order| order.as_slice().iter().enumerate());
                let moved = moved.filter(|&(place, &old)| place != old as usize).count();
                length("order of keys under rotary embedding (places that differ)", moved, 0)?;
            }
        }
        Ok(Self { config: config.clone(), residual, blocks })
    }

    /// Everything where it is.
    pub fn identity(config: &BlockConfig) -> Self {
        let blocks = vec![BlockOrders::identity(config); config.layers];
        Self { config: config.clone(), residual: Permutation::identity(config.hidden_size), blocks }
    }

    /// Of the residual stream.
    pub fn residual(&self) -> &Permutation {
        &self.residual
    }

    /// Of each block.
    pub fn blocks(&self) -> &[BlockOrders] {
        &self.blocks
    }

    /// The order along an axis; none where everything stays.
    pub fn along(&self, axis: Axis) -> Option<Permutation> {
        let BlockConfig { heads, kv_heads, head_dim, .. } = self.config;
        // Features of all heads, where `per` of them share a key/value head whose features have an order.
        let features = |block: usize, per: usize, of: fn(&BlockOrders) -> &[Permutation]| {
            let block = &self.blocks[block];
            let head = |&kv: &u32| {
                let order = of(block)[kv as usize].as_slice();
                (0..per).flat_map(move |i| order.iter().map(move |&f| (kv as usize * per + i) * head_dim + f as usize))
            };
            block.heads.as_slice().iter().flat_map(head).map(|feature| feature as u32).collect::<Vec<u32>>()
        };
        let group = heads / kv_heads;
        let (queries, keys) = ((heads * head_dim) as u32, (kv_heads * head_dim) as u32);
        let order = match axis {
            Axis::Fixed => return None,
            Axis::Residual => return Some(self.residual.clone()),
            Axis::Inner(block) => return Some(self.blocks[block].inner.clone()),
            Axis::Queries(block) => features(block, group, |block| &block.keys),
            Axis::Keys(block) => features(block, 1, |block| &block.keys),
            Axis::Values(block) => features(block, 1, |block| &block.values),
            Axis::Mixed(block) => features(block, group, |block| &block.values),
            Axis::Together(block) => {
                let q = features(block, group, |block| &block.keys);
                let k = features(block, 1, |block| &block.keys).into_iter().map(|f| queries + f);
                let v = features(block, 1, |block| &block.values).into_iter().map(|f| queries + keys + f);
                q.into_iter().chain(k).chain(v).collect()
            }
        };
        Some(Permutation::new(order).expect("orders of heads and of features in them are bijections"))
    }
}

impl BlockConfig {
    /// Whether positions are told by rotating queries and keys.
    pub fn rotates(&self) -> bool {
        matches!(self.view, View::Past { .. })
    }

    /// What the dimensions of a block's tensor range over, by its name without the block's.
    fn axes(&self, layer: usize, own: &str) -> Option<Vec<Axis>> {
        let (module, part) = own.rsplit_once('.')?;
        let BlockNames { norms, qkv, o, gate, up, down, .. } = &self.names;
        if norms.contains(&module) {
            return ["weight", "bias"].contains(&part).then(|| vec![Axis::Residual]);
        }
        let projections = match qkv {
            Qkv::Apart([q, k, v]) => {
                vec![(*q, Axis::Queries(layer)), (*k, Axis::Keys(layer)), (*v, Axis::Values(layer))]
            }
            Qkv::Together(all) => vec![(*all, Axis::Together(layer))],
        };
        let into = projections.into_iter().chain(gate.map(|gate| (gate, Axis::Inner(layer))));
        let into = into.chain([(*up, Axis::Inner(layer))]).map(|(name, rows)| (name, rows, Axis::Residual));
        let out = [(*o, Axis::Residual, Axis::Mixed(layer)), (*down, Axis::Residual, Axis::Inner(layer))];
        let (_, rows, cols) = into.chain(out).find(|(name, ..)| *name == module)?;
        match part {
            "weight" => Some(vec![rows, cols]),
            "bias" => Some(vec![rows]),
            _ => None,
        }
    }
}

impl Config {
    /// What each dimension of a tensor ranges over. Refuses a tensor that this crate does not know: what reads and writes
    /// its channels is not known either.
    pub fn axes(&self, checkpoint: &Checkpoint, name: &str) -> Result<Vec<Axis>> {
        let blocks = self.blocks();
        let axes = match blocks.layer_of(name) {
            Some(layer) => {
                let own = name.strip_prefix(&blocks.block_name(layer)).and_then(|rest| rest.strip_prefix('.'));
                own.and_then(|own| blocks.axes(layer, own))
            }
            None => match self {
                Self::Decoder(_) => decoder_axes(name),
                Self::Text(config) => text_axes(config, checkpoint, name),
                Self::Vision(config) => vision_axes(config, name),
            }
            .map(<[Axis]>::to_vec),
        };
        let unknown = "is not known, so channels that it may read cannot be moved; remove it if nothing needs it";
        let axes = axes.ok_or_else(|| Error::tensor(name, unknown))?;
        let dimensions = checkpoint.info(name)?.shape.len();
        if axes.len() == dimensions || axes.iter().all(|&axis| axis == Axis::Fixed) {
            return Ok(axes);
        }
        let problem = format!("has {dimensions} dimensions instead of {}; the checkpoint is damaged", axes.len());
        Err(Error::tensor(name, problem))
    }

    /// Whether what the model gives out has features of its own: not those of the residual stream, whose order is seen.
    pub fn hides_residual(&self) -> bool {
        match self {
            Self::Decoder(_) => true,
            Self::Text(_) => false,
            Self::Vision(config) => !config.names.heads.is_empty(),
        }
    }
}

const STREAM: &[Axis] = &[Axis::Residual];
const TABLE: &[Axis] = &[Axis::Fixed, Axis::Residual];
const TOKEN: &[Axis] = &[Axis::Fixed, Axis::Fixed, Axis::Residual];
const SQUARE: &[Axis] = &[Axis::Residual, Axis::Residual];
const PATCHES: &[Axis] = &[Axis::Residual, Axis::Fixed, Axis::Fixed, Axis::Fixed];
const FIXED: &[Axis] = &[Axis::Fixed];

/// Outside the blocks of a decoder.
fn decoder_axes(name: &str) -> Option<&'static [Axis]> {
    match name {
        DecoderConfig::EMBEDDING | "lm_head.weight" | "score.weight" => Some(TABLE),
        "model.norm.weight" => Some(STREAM),
        "lm_head.bias" => Some(FIXED),
        _ => None,
    }
}

/// Outside the blocks of a text encoder: the embedding, and the heads that Hugging Face puts on BERT and RoBERTa. What
/// predicts words ends in the embedding's own space, so its features keep to the stream's order.
fn text_axes(config: &TextConfig, checkpoint: &Checkpoint, name: &str) -> Option<&'static [Axis]> {
    let pooler = format!("{}pooler.dense.weight", config.prefix);
    match name.strip_prefix(&config.prefix).unwrap_or(name) {
        "embeddings.word_embeddings.weight"
        | "embeddings.position_embeddings.weight"
        | "embeddings.token_type_embeddings.weight"
        | "pooler.dense.weight" => return Some(TABLE),
        "embeddings.LayerNorm.weight" | "embeddings.LayerNorm.bias" => return Some(STREAM),
        "embeddings.position_ids" | "embeddings.token_type_ids" | "pooler.dense.bias" => return Some(FIXED),
        _ => {}
    }
    match name {
        "cls.predictions.transform.dense.weight" | "lm_head.dense.weight" => Some(SQUARE),
        "cls.predictions.transform.dense.bias"
        | "cls.predictions.transform.LayerNorm.weight"
        | "cls.predictions.transform.LayerNorm.bias"
        | "lm_head.dense.bias"
        | "lm_head.layer_norm.weight"
        | "lm_head.layer_norm.bias" => Some(STREAM),
        "cls.predictions.decoder.weight"
        | "lm_head.decoder.weight"
        | "classifier.dense.weight"
        | "qa_outputs.weight" => Some(TABLE),
        // Behind a pooler the features are the pooler's.
        "classifier.weight" => Some(if checkpoint.has(&pooler) { FIXED } else { TABLE }),
        "cls.predictions.decoder.bias"
        | "cls.predictions.bias"
        | "cls.seq_relationship.weight"
        | "cls.seq_relationship.bias"
        | "lm_head.decoder.bias"
        | "lm_head.bias"
        | "classifier.dense.bias"
        | "classifier.out_proj.weight"
        | "classifier.out_proj.bias"
        | "classifier.bias"
        | "qa_outputs.bias" => Some(FIXED),
        _ => None,
    }
}

/// Outside the blocks of an image classifier.
fn vision_axes(config: &VisionConfig, name: &str) -> Option<&'static [Axis]> {
    let names = &config.names;
    let prefix = names.positions.strip_suffix("embeddings.position_embeddings");
    if names.tokens.iter().any(|token| token == name) || names.positions == name {
        return Some(TOKEN);
    }
    let own = prefix.and_then(|prefix| name.strip_prefix(prefix));
    match own {
        Some("embeddings.mask_token") => return Some(TOKEN),
        Some("pooler.dense.weight") => return Some(TABLE),
        Some("pooler.dense.bias") => return Some(FIXED),
        _ => {}
    }
    let (module, part) = name.rsplit_once('.')?;
    match part {
        "weight" if module == names.patches => Some(PATCHES),
        "bias" if module == names.patches => Some(STREAM),
        "weight" | "bias" if module == names.norm => Some(STREAM),
        "weight" if names.heads.iter().any(|head| head == module) => Some(TABLE),
        "bias" if names.heads.iter().any(|head| head == module) => Some(FIXED),
        _ => None,
    }
}
