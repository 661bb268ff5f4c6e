//! A text encoder: BERT and its relatives, one vector a text.

use lacuna_core::{Matrix, Values};
use lacuna_format::{Checkpoint, Result};
use rayon::prelude::*;

use crate::batch::{RUN_TOKENS, runs};
use crate::block::{Block, Positions};
use crate::buffers::give;
use crate::config::TextConfig;
use crate::linear::Execution;
use crate::norm::Norm;

/// What is added to the embedding of a word, and the norm of the sum.
pub(crate) struct TextStem {
    /// `[positions, H]`, that of the first token first, the token type included
    places: Matrix,
    norm: Norm,
}

impl TextStem {
    pub(crate) fn load(checkpoint: &Checkpoint, config: &TextConfig) -> Result<Self> {
        let hidden = config.blocks.hidden_size;
        let table = |part: &str, rows| checkpoint.floats(&config.tensor(part), &[rows, hidden]);
        let positions = table("position_embeddings.weight", config.position_rows)?;
        let kind = table("token_type_embeddings.weight", config.token_types)?;
        let data = positions[config.first_position * hidden..].chunks_exact(hidden);
        let data = data.flat_map(|row| row.iter().zip(&kind).map(|(position, kind)| position + kind)).collect();
        let places = Matrix::new(config.positions(), hidden, data).expect("whole rows");
        Ok(Self { places, norm: Norm::load(checkpoint, &config.blocks, &config.tensor("LayerNorm"))? })
    }

    /// What the first block sees, from the embeddings of words `[H, T]`.
    pub(crate) fn apply(&self, mut words: Matrix, lengths: &[usize]) -> Matrix {
        let places: Vec<usize> = lengths.iter().flat_map(|&len| 0..len).collect();
        for k in 0..words.rows() {
            for (word, &place) in words.row_mut(k).iter_mut().zip(&places) {
                *word += self.places.row(place)[k];
            }
        }
        self.norm.apply(&words)
    }
}

/// Embeds words without holding the table: `[H, T]`.
pub(crate) fn words(checkpoint: &Checkpoint, config: &TextConfig, tokens: &[u32]) -> Result<Matrix> {
    let name = config.tensor("word_embeddings.weight");
    let hidden = config.blocks.hidden_size;
    checkpoint.check_shape(&name, &[config.vocab_size, hidden])?;
    Ok(checkpoint.rows(&name, tokens, hidden)?.transposed())
}

/// A whole text encoder in memory.
pub struct TextEncoder {
    config: TextConfig,
    /// `[vocab, H]`
    words: Values,
    stem: TextStem,
    blocks: Vec<Block>,
}

impl TextEncoder {
    /// Reads all weights.
    pub fn load(checkpoint: &Checkpoint, config: &TextConfig, execution: Execution) -> Result<Self> {
        let blocks = &config.blocks;
        Ok(Self {
            config: config.clone(),
            words: checkpoint
                .values(&config.tensor("word_embeddings.weight"), &[config.vocab_size, blocks.hidden_size])?,
            stem: TextStem::load(checkpoint, config)?,
            blocks: (0..blocks.layers)
                .map(|layer| Block::load(checkpoint, blocks, layer, execution))
                .collect::<Result<_>>()?,
        })
    }

    /// Sizes and switches.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The blocks, so that layers can be replaced.
    pub fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// The vectors of all tokens behind the last block, `[H, T]`, the tokens of the texts side by side.
    ///
    /// # Panics
    /// If a token is not in the vocabulary or a text is longer than the table of positions.
    pub fn forward(&self, texts: &[&[u32]]) -> Matrix {
        // One thread of the pool leads through all layers, as in the decoder.
        rayon::scope(|_| {
            let hidden_size = self.config.blocks.hidden_size;
            let tokens = texts.concat();
            let word = |k: usize| tokens.iter().map(move |&id| self.words.get(id as usize * hidden_size + k));
            let data = (0..hidden_size).flat_map(word).collect();
            let words = Matrix::new(hidden_size, tokens.len(), data).expect("one column a token");
            let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
            let mut hidden = self.stem.apply(words, &lengths);
            let positions = Positions::whole(&self.config.blocks, &lengths);
            for block in &self.blocks {
                block.forward(&mut hidden, &positions, None, &mut |_, _| {});
            }
            hidden
        })
    }

    /// One vector `[H]` a text.
    ///
    /// # Panics
    /// As [`Self::forward`], or if a text is empty.
    pub fn embed(&self, texts: &[&[u32]]) -> Vec<Vec<f32>> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        assert!(!lengths.contains(&0), "an empty text has no vector");
        let run = |run: std::ops::Range<usize>| {
            let hidden = self.forward(&texts[run.clone()]);
            let vectors = self.config.pooling.pool(&hidden, &lengths[run]);
            give(hidden);
            vectors
        };
        runs(&lengths, RUN_TOKENS).into_par_iter().flat_map_iter(run).collect()
    }
}
