//! Calibration: samples of text or images streamed through the model one block at a time.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_format::{Checkpoint, Tokenizer};
use lacuna_model::{Block, BlockConfig, Config, DecoderConfig, LinearSpec, Positions, Sample};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::UsageError;
use crate::images::{self, Split};
use crate::text::{read_documents, read_sentences};

/// The flag that says how long samples are.
const FLAG: &str = "--calibration-length";

/// Tokens that run through a block together.
const BATCH_TOKENS: usize = 2048;

/// Samples unless told otherwise, and tokens of all of a decoder's together: every one passes each block several times.
const SAMPLES: usize = 128;
const TOKENS: usize = 1 << 16;

/// Where calibration samples come from.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// a text for models of text, a folder for models of images
    pub data: PathBuf,
    /// how many samples at most; `None` for 128, of a decoder no more than have 65,536 tokens together
    pub samples: Option<usize>,
    /// tokens of a sample; `None` for the model's context, at most 2048
    pub length: Option<usize>,
    /// seed of the draw
    pub seed: u64,
}

impl Calibration {
    /// Draws the samples of a model, without replacement; data that give fewer than asked for give all they have.
    pub fn draw(&self, model: &Path, config: &Config) -> Result<Vec<Sample>> {
        match config {
            Config::Decoder(decoder) => {
                let tokenizer = Tokenizer::open(model, decoder.vocab_size, decoder.bos_token_id)?;
                let (pieces, length) = self.pieces(&tokenizer, decoder)?;
                let most = (TOKENS / length).clamp(1, SAMPLES);
                Ok(self.shuffled(pieces, most).into_iter().map(Sample::Tokens).collect())
            }
            Config::Text(text) => {
                let tokenizer = Tokenizer::open(model, text.vocab_size, None)?;
                let length = checked_length(FLAG, self.length.unwrap_or(text.max_tokens), text.max_tokens)?;
                let sentences = self.shuffled(read_sentences(&self.data)?, SAMPLES);
                sentences.iter().map(|s| Ok(Sample::Tokens(tokenizer.encode_with_specials(s, length)?))).collect()
            }
            Config::Vision(vision) => {
                let processor = images::processor(model, vision)?;
                let files = self.shuffled(images::files(&self.data, Split::Calibration)?, SAMPLES);
                files.par_iter().map(|file| Ok(Sample::Pixels(processor.pixels(file)?))).collect()
            }
        }
    }

    /// What of the data is used, where that is not all.
    pub fn split(config: &Config) -> Option<Split> {
        matches!(config, Config::Vision(_)).then_some(Split::Calibration)
    }

    /// All documents one after the other, cut into pieces of equal length, and that length; a text shorter than a piece
    /// gives itself.
    fn pieces(&self, tokenizer: &Tokenizer, config: &DecoderConfig) -> Result<(Vec<Vec<u32>>, usize)> {
        let max = config.max_positions;
        let length = checked_length(FLAG, self.length.unwrap_or(max.min(2048)), max)?;
        let mut tokens = vec![];
        for document in read_documents(&self.data)? {
            tokens.extend(tokenizer.encode(&document)?);
        }
        let pieces: Vec<Vec<u32>> = tokens.chunks_exact(length).map(<[u32]>::to_vec).collect();
        Ok((if pieces.is_empty() { vec![tokens] } else { pieces }, length))
    }

    /// As many as asked for, or else so many at most, in the seed's order.
    fn shuffled<T>(&self, mut all: Vec<T>, most: usize) -> Vec<T> {
        all.shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed));
        all.truncate(self.samples.unwrap_or(most).max(1));
        all
    }
}

/// Tokens of a sample, as `flag` asks for them.
pub(crate) fn checked_length(flag: &str, length: usize, max: usize) -> Result<usize, UsageError> {
    if (2..=max).contains(&length) {
        return Ok(length);
    }
    Err(UsageError(format!("{flag} is {length}; this model takes samples of 2 to {max} tokens")))
}

/// The residual stream of all samples, as it stands between two blocks.
#[derive(Clone)]
pub struct Stream {
    blocks: BlockConfig,
    batches: Vec<Batch>,
}

/// Samples that run through a block together.
#[derive(Clone)]
pub struct Batch {
    /// tokens of each sample
    pub lengths: Vec<usize>,
    /// `[H, T]`
    pub hidden: Matrix,
    /// `[H, T]`, behind dense blocks only, where that is wanted
    pub dense: Option<Matrix>,
}

/// Is shown the input `[K, T]` of linear layers, with the layers that share it, and the same behind dense blocks.
pub type PairObserver<'a> = dyn FnMut(&[&LinearSpec], &Matrix, Option<&Matrix>) + 'a;

impl Stream {
    /// What the first block sees of the samples. With `beside_dense`, the stream of the dense model runs along.
    pub fn new(checkpoint: &Checkpoint, config: &Config, samples: &[Sample], beside_dense: bool) -> Result<Self> {
        let per_batch =
            (BATCH_TOKENS / samples.iter().map(|sample| config.tokens_of(sample)).max().unwrap_or(1)).max(1);
        let batches = samples.chunks(per_batch).map(|batch| {
            let (hidden, lengths) = config.embed(checkpoint, batch)?;
            Ok(Batch { lengths, dense: beside_dense.then(|| hidden.clone()), hidden })
        });
        Ok(Self { blocks: config.blocks().clone(), batches: batches.collect::<lacuna_format::Result<_>>()? })
    }

    /// Whether the stream of the dense model runs along.
    pub fn beside_dense(&self) -> bool {
        self.batches.iter().any(|batch| batch.dense.is_some())
    }

    /// Shows the inputs of the linear layers of a block, of which some may be pruned, and what they are in the `dense` one, if
    /// that is given and its stream runs along; both stay where they are.
    pub fn observe(&self, block: &Block, dense: Option<&Block>, observe: &mut PairObserver) {
        for batch in &self.batches {
            let positions = Positions::whole(&self.blocks, &batch.lengths);
            let mut beside = VecDeque::new();
            if let (Some(hidden), Some(dense)) = (&batch.dense, dense) {
                dense.forward(&mut hidden.clone(), &positions, None, &mut |_, x| beside.push_back(x.clone()));
            }
            block.forward(&mut batch.hidden.clone(), &positions, None, &mut |sharing, x| {
                observe(sharing, x, beside.pop_front().as_ref());
            });
        }
    }

    /// Moves the stream to behind a block, and that of the dense model, if it runs along, to behind the `dense` one.
    pub fn advance(&mut self, block: &Block, dense: Option<&Block>) {
        for batch in &mut self.batches {
            let positions = Positions::whole(&self.blocks, &batch.lengths);
            block.forward(&mut batch.hidden, &positions, None, &mut |_, _| {});
            if let (Some(hidden), Some(dense)) = (&mut batch.dense, dense) {
                dense.forward(hidden, &positions, None, &mut |_, _| {});
            }
        }
    }

    /// The stream itself.
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// Tokens of all samples.
    pub fn tokens(&self) -> usize {
        self.batches.iter().flat_map(|batch| &batch.lengths).sum()
    }
}
