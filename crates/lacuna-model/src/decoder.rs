//! A decoder-only transformer, block by block, so that pruning can hold one block at a time.

use lacuna_core::{Matrix, Values};
use lacuna_format::{Checkpoint, Error, Result};

use crate::attention::{LayerCache, Span, attend};
use crate::buffers::give;
use crate::linear::{Execution, Linear};
use crate::ops::{add, rms_norm, select_columns, silu_mul};
use crate::rope::Angles;
use crate::{DecoderConfig, LinearSpec};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const FINAL_NORM: &str = "model.norm.weight";

/// Is shown the input `[K, T]` of linear layers before they run, with the layers that share it.
pub type Observer<'a> = dyn FnMut(&[&LinearSpec], &Matrix) + 'a;

/// Where the tokens of a batch stand in their sequences.
pub struct Positions {
    lengths: Vec<usize>,
    angles: Angles,
}

impl Positions {
    /// For each sequence, how many tokens it already has and how many come now.
    pub fn new(config: &DecoderConfig, sequences: &[(usize, usize)]) -> Self {
        let positions: Vec<usize> = sequences.iter().flat_map(|&(past, len)| past..past + len).collect();
        Self {
            lengths: sequences.iter().map(|&(_, len)| len).collect(),
            angles: config.rope.angles(config.head_dim, &positions),
        }
    }
}

/// One transformer block.
pub struct Block {
    config: DecoderConfig,
    window: Option<usize>,
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
    /// q, k, v, o, gate, up, down
    linears: [Linear; 7],
}

impl Block {
    /// Reads block `layer`.
    pub fn load(checkpoint: &Checkpoint, config: &DecoderConfig, layer: usize, execution: Execution) -> Result<Self> {
        let name = DecoderConfig::block_name(layer);
        let norm = |part: &str| checkpoint.floats(&format!("{name}.{part}.weight"), &[config.hidden_size]);
        let linears: Vec<Linear> = config
            .block_linears(layer)
            .into_iter()
            .map(|spec| Linear::load(checkpoint, spec, execution))
            .collect::<Result<_>>()?;
        Ok(Self {
            config: config.clone(),
            window: config.windows[layer],
            input_norm: norm("input_layernorm")?,
            post_norm: norm("post_attention_layernorm")?,
            linears: linears.try_into().ok().expect("seven linear layers"),
        })
    }

    /// Runs the tokens `hidden[H, T]` of a batch through the block, in place; one cache a sequence.
    pub fn forward(
        &self,
        hidden: &mut Matrix,
        positions: &Positions,
        caches: &mut [&mut LayerCache],
        observe: &mut Observer,
    ) {
        debug_assert_eq!(hidden.cols(), positions.angles.tokens());
        let [q, k, v, o, gate, up, down] = &self.linears;
        let eps = self.config.norm_eps;

        let x = rms_norm(hidden, &self.input_norm, eps);
        observe(&[q.spec(), k.spec(), v.spec()], &x);
        let (mut queries, mut keys, values) = (q.forward(&x), k.forward(&x), v.forward(&x));
        give(x);
        positions.angles.rotate(&mut queries);
        positions.angles.rotate(&mut keys);
        let spans = caches.iter_mut().zip(&positions.lengths).map(|(cache, &len)| Span { len, cache });
        let mut spans: Vec<Span> = spans.collect();
        let mixed = attend(&self.config, self.window, &queries, &keys, &values, &mut spans);
        [queries, keys, values].into_iter().for_each(give);
        observe(&[o.spec()], &mixed);
        let out = o.forward(&mixed);
        add(hidden, &out);
        [mixed, out].into_iter().for_each(give);

        let x = rms_norm(hidden, &self.post_norm, eps);
        observe(&[gate.spec(), up.spec()], &x);
        let (mut inner, factor) = (gate.forward(&x), up.forward(&x));
        silu_mul(&mut inner, &factor);
        observe(&[down.spec()], &inner);
        let out = down.forward(&inner);
        add(hidden, &out);
        [x, inner, factor, out].into_iter().for_each(give);
    }
}

/// Keys and values of one sequence in all layers.
#[derive(Debug, Clone)]
pub struct Cache {
    layers: Vec<LayerCache>,
    len: usize,
}

impl Cache {
    /// An empty sequence.
    pub fn new(config: &DecoderConfig) -> Self {
        Self { layers: vec![LayerCache::new(config); config.layers()], len: 0 }
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

/// A whole model in memory.
pub struct Model {
    config: DecoderConfig,
    /// `[vocab, H]`
    embedding: Values,
    blocks: Vec<Block>,
    norm: Vec<f32>,
    head: Linear,
}

impl Model {
    /// Reads all weights.
    pub fn load(checkpoint: &Checkpoint, config: &DecoderConfig, execution: Execution) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = checkpoint.values(embedding_name(checkpoint, config)?, &[vocab, hidden])?;
        let spec = config.head();
        // A head of its own wins even where the config says tied: it may differ, and then it was trained so.
        let head = if checkpoint.has(HEAD) && checkpoint.has(EMBEDDING) || checkpoint.packed(&spec.name)?.is_some() {
            Linear::load(checkpoint, spec, execution)?
        } else if config.tied {
            Linear::dense(checkpoint, spec, embedding.clone(), execution)?
        } else {
            return Err(Error::tensor(HEAD, "missing, and config.json does not tie it to the embedding"));
        };
        let blocks = (0..config.layers())
            .map(|layer| Block::load(checkpoint, config, layer, execution))
            .collect::<Result<_>>()?;
        let norm = checkpoint.floats(FINAL_NORM, &[hidden])?;
        Ok(Self { config: config.clone(), embedding, blocks, norm, head })
    }

    /// Sizes and switches.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
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
        let hidden_size = self.config.hidden_size;
        let embedded = |k: usize| tokens.iter().map(move |&id| self.embedding.get(id as usize * hidden_size + k));
        let data = (0..hidden_size).flat_map(embedded).collect();
        let mut hidden = Matrix::new(hidden_size, tokens.len(), data).expect("one column a token");
        let sequences: Vec<(usize, usize)> = batch.iter().map(|(tokens, cache)| (cache.len, tokens.len())).collect();
        let positions = Positions::new(&self.config, &sequences);
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut caches: Vec<&mut LayerCache> =
                batch.iter_mut().map(|(_, cache)| &mut cache.layers[layer]).collect();
            block.forward(&mut hidden, &positions, &mut caches, &mut |_, _| {});
        }
        for (tokens, cache) in batch {
            cache.len += tokens.len();
        }
        rms_norm(&hidden, &self.norm, self.config.norm_eps)
    }

    /// Logits `[vocab, n]` of the given columns of [`Self::forward`]'s result.
    pub fn logits(&self, hidden: &Matrix, columns: &[usize]) -> Matrix {
        self.head.forward(&select_columns(hidden, columns))
    }
}

/// The last norm: what the head sees of the residual stream `hidden[H, T]`.
pub fn final_norm(checkpoint: &Checkpoint, config: &DecoderConfig, hidden: &Matrix) -> Result<Matrix> {
    let weight = checkpoint.floats(FINAL_NORM, &[config.hidden_size])?;
    Ok(rms_norm(hidden, &weight, config.norm_eps))
}

/// The tensor that holds the embedding: tied checkpoints may store it under the head's name.
fn embedding_name(checkpoint: &Checkpoint, config: &DecoderConfig) -> Result<&'static str> {
    let name = if config.tied && !checkpoint.has(EMBEDDING) && checkpoint.has(HEAD) { HEAD } else { EMBEDDING };
    checkpoint.check_shape(name, &[config.vocab_size, config.hidden_size]).map(|()| name)
}

/// Embeds tokens without holding the table: `[H, T]`.
pub fn embed(checkpoint: &Checkpoint, config: &DecoderConfig, tokens: &[u32]) -> Result<Matrix> {
    let rows = checkpoint.rows(embedding_name(checkpoint, config)?, tokens, config.hidden_size)?;
    let data = (0..config.hidden_size).flat_map(|k| (0..tokens.len()).map(|t| rows.row(t)[k]).collect::<Vec<_>>());
    Ok(Matrix::new(config.hidden_size, tokens.len(), data.collect()).expect("one column a token"))
}
