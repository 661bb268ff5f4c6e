//! A decoder-only transformer: an embedding, blocks with a cache each, a head.

use lacuna_core::{Matrix, Values};
use lacuna_format::{Checkpoint, Error, Result};

use crate::attention::LayerCache;
use crate::block::{Block, Positions};
use crate::config::DecoderConfig;
use crate::linear::{Execution, Linear};
use crate::norm::Norm;
use crate::ops::select_columns;

const EMBEDDING: &str = DecoderConfig::EMBEDDING;
const HEAD: &str = "lm_head.weight";
/// Module name of the last norm.
pub(crate) const FINAL_NORM: &str = "model.norm";

/// Keys and values of one sequence in all layers.
#[derive(Debug, Clone)]
pub struct Cache {
    layers: Vec<LayerCache>,
    len: usize,
}

impl Cache {
    /// An empty sequence.
    pub fn new(config: &DecoderConfig) -> Self {
        Self { layers: vec![LayerCache::new(&config.blocks); config.blocks.layers], len: 0 }
    }

    /// Tokens seen.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A whole decoder in memory.
pub struct Decoder {
    config: DecoderConfig,
    /// `[vocab, H]`
    embedding: Values,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
}

impl Decoder {
    /// Reads all weights.
    pub fn load(checkpoint: &Checkpoint, config: &DecoderConfig, execution: Execution) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.blocks.hidden_size);
        let embedding = checkpoint.values(embedding_name(checkpoint, config)?, &[vocab, hidden])?;
        let head = load_head(checkpoint, config, &embedding, execution)?;
        let blocks = (0..config.blocks.layers)
            .map(|layer| Block::load(checkpoint, &config.blocks, layer, execution))
            .collect::<Result<_>>()?;
        let norm = Norm::load(checkpoint, &config.blocks, FINAL_NORM)?;
        Ok(Self { config: config.clone(), embedding, blocks, norm, head })
    }

    /// Sizes and switches.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The blocks, so that layers can be replaced.
    pub fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// Runs new tokens of some sequences, each after what its cache has seen. The result is `[H, T]` after the last
    /// norm, the tokens of the sequences side by side.
    ///
    /// # Panics
    /// If a token is not in the vocabulary.
    pub fn forward(&self, batch: &mut [(&[u32], &mut Cache)]) -> Matrix {
        // One thread of the pool leads through all layers: from outside, each product would be handed over to the pool
        // and back, which takes longer than some of them.
        rayon::scope(|_| self.forward_in_pool(batch))
    }

    fn forward_in_pool(&self, batch: &mut [(&[u32], &mut Cache)]) -> Matrix {
        let tokens: Vec<u32> = batch.iter().flat_map(|(tokens, _)| tokens.iter().copied()).collect();
        let hidden_size = self.config.blocks.hidden_size;
        let embedded = |k: usize| tokens.iter().map(move |&id| self.embedding.get(id as usize * hidden_size + k));
        let data = (0..hidden_size).flat_map(embedded).collect();
        let mut hidden = Matrix::new(hidden_size, tokens.len(), data).expect("one column a token");
        let sequences: Vec<(usize, usize)> = batch.iter().map(|(tokens, cache)| (cache.len, tokens.len())).collect();
        let positions = Positions::new(&self.config.blocks, &sequences);
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut caches: Vec<&mut LayerCache> =
                batch.iter_mut().map(|(_, cache)| &mut cache.layers[layer]).collect();
            block.forward(&mut hidden, &positions, Some(&mut caches), &mut |_, _| {});
        }
        for (tokens, cache) in batch {
            cache.len += tokens.len();
        }
        self.norm.apply(&hidden)
    }

    /// Logits `[vocab, n]` of the given columns of [`Self::forward`]'s result.
    pub fn logits(&self, hidden: &Matrix, columns: &[usize]) -> Matrix {
        self.head.forward(&select_columns(hidden, columns))
    }
}

/// Whether the head has a weight of its own. It wins even where the config says tied: it may differ, and then it was
/// trained so.
pub(crate) fn has_own_head(checkpoint: &Checkpoint, config: &DecoderConfig) -> bool {
    let packed = checkpoint.sparsity().is_some_and(|s| s.layers.contains_key(&config.head().name));
    packed || checkpoint.has(HEAD) && checkpoint.has(EMBEDDING)
}

/// The head, which may be the embedding.
fn load_head(
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    embedding: &Values,
    execution: Execution,
) -> Result<Linear> {
    let spec = config.head();
    if has_own_head(checkpoint, config) {
        Linear::load(checkpoint, spec, execution)
    } else if config.tied {
        Linear::dense(checkpoint, spec, embedding.clone(), execution)
    } else {
        Err(Error::tensor(HEAD, "missing, and config.json does not tie it to the embedding"))
    }
}

/// The last norm and the head.
pub(crate) fn ending(checkpoint: &Checkpoint, config: &DecoderConfig, execution: Execution) -> Result<(Norm, Linear)> {
    let name = embedding_name(checkpoint, config)?;
    let embedding = checkpoint.values(name, &[config.vocab_size, config.blocks.hidden_size])?;
    let head = load_head(checkpoint, config, &embedding, execution)?;
    Ok((Norm::load(checkpoint, &config.blocks, FINAL_NORM)?, head))
}

/// The last norm: what the head sees of the residual stream `hidden[H, T]`.
pub(crate) fn final_norm(checkpoint: &Checkpoint, config: &DecoderConfig, hidden: &Matrix) -> Result<Matrix> {
    Ok(Norm::load(checkpoint, &config.blocks, FINAL_NORM)?.apply(hidden))
}

/// The tensor that holds the embedding: tied checkpoints may store it under the head's name.
pub(crate) fn embedding_name(checkpoint: &Checkpoint, config: &DecoderConfig) -> Result<&'static str> {
    let name = if config.tied && !checkpoint.has(EMBEDDING) && checkpoint.has(HEAD) { HEAD } else { EMBEDDING };
    checkpoint.check_shape(name, &[config.vocab_size, config.blocks.hidden_size]).map(|()| name)
}

/// Embeds tokens without holding the table: `[H, T]`.
pub(crate) fn embed(checkpoint: &Checkpoint, config: &DecoderConfig, tokens: &[u32]) -> Result<Matrix> {
    Ok(checkpoint.rows(embedding_name(checkpoint, config)?, tokens, config.blocks.hidden_size)?.transposed())
}
