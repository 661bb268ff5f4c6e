//! Calibration: samples of tokens streamed through the model one block at a time.

use std::path::PathBuf;

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_format::{Checkpoint, Tokenizer};
use lacuna_model::{Block, DecoderConfig, LayerCache, Observer, Positions, embed};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::UsageError;
use crate::text::read_documents;

/// Tokens that run through a block together.
const BATCH_TOKENS: usize = 2048;

/// Where calibration samples come from.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// `.txt` or `.jsonl`
    pub file: PathBuf,
    /// how many samples at most
    pub samples: usize,
    /// tokens of a sample; `None` for the model's context, at most 2048
    pub length: Option<usize>,
    /// seed of the draw
    pub seed: u64,
}

impl Calibration {
    /// Tokens of a sample for this model.
    pub fn sample_length(&self, config: &DecoderConfig) -> usize {
        self.length.unwrap_or(config.max_positions.min(2048))
    }

    /// Draws the samples: all documents one after the other, cut into pieces of equal length, some pieces drawn without
    /// replacement. A text that gives fewer pieces than asked for gives all it has; one shorter than a piece gives
    /// itself.
    pub fn draw(&self, tokenizer: &Tokenizer, config: &DecoderConfig) -> Result<Vec<Vec<u32>>> {
        let length = self.sample_length(config);
        if length < 2 || length > config.max_positions {
            let max = config.max_positions;
            let problem = format!("--calibration-length is {length}; this model takes samples of 2 to {max} tokens");
            return Err(UsageError(problem).into());
        }
        let mut tokens = vec![];
        for document in read_documents(&self.file)? {
            tokens.extend(tokenizer.encode(&document)?);
        }
        let mut pieces: Vec<&[u32]> = tokens.chunks_exact(length).collect();
        if pieces.is_empty() {
            pieces.push(&tokens);
        }
        pieces.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        pieces.truncate(self.samples.max(1));
        Ok(pieces.into_iter().map(<[u32]>::to_vec).collect())
    }
}

/// The residual stream of all samples, as it stands between two blocks.
pub struct Stream {
    config: DecoderConfig,
    /// `[H, T]` and the length of each sample in it
    batches: Vec<(Matrix, Vec<usize>)>,
}

impl Stream {
    /// Embeds the samples.
    pub fn new(checkpoint: &Checkpoint, config: &DecoderConfig, samples: &[Vec<u32>]) -> Result<Self> {
        let per_batch = (BATCH_TOKENS / samples.iter().map(Vec::len).max().unwrap_or(1)).max(1);
        let batch = |samples: &[Vec<u32>]| {
            let lengths = samples.iter().map(Vec::len).collect();
            Ok((embed(checkpoint, config, &samples.concat())?, lengths))
        };
        let batches = samples.chunks(per_batch).map(batch).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), batches })
    }

    /// Shows the inputs of a block's linear layers to `observe`; the stream stays where it is.
    pub fn observe(&self, block: &Block, observe: &mut Observer) {
        for (hidden, lengths) in &self.batches {
            self.run(block, &mut hidden.clone(), lengths, observe);
        }
    }

    /// Moves the stream to behind a block.
    pub fn advance(&mut self, block: &Block) {
        let mut batches = std::mem::take(&mut self.batches);
        for (hidden, lengths) in &mut batches {
            self.run(block, hidden, lengths, &mut |_, _| {});
        }
        self.batches = batches;
    }

    /// The stream itself, `[H, T]` a batch.
    pub fn hidden(&self) -> impl Iterator<Item = &Matrix> {
        self.batches.iter().map(|(hidden, _)| hidden)
    }

    fn run(&self, block: &Block, hidden: &mut Matrix, lengths: &[usize], observe: &mut Observer) {
        let sequences: Vec<(usize, usize)> = lengths.iter().map(|&len| (0, len)).collect();
        let mut caches = vec![LayerCache::new(&self.config); lengths.len()];
        let mut caches: Vec<&mut LayerCache> = caches.iter_mut().collect();
        block.forward(hidden, &Positions::new(&self.config, &sequences), &mut caches, observe);
    }
}
