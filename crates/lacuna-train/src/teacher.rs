//! The dense model beside a training, one block of it in memory at a time; and what a batch carries.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use lacuna_core::{Dtype, Matrix, ValueType};
use lacuna_format::Checkpoint;
use lacuna_kernels::Activations;
use lacuna_model::{Block, Config, Ending, Execution, Positions, Sample};
use rayon::prelude::*;

use crate::Result;
use crate::loss::Loss;

/// Sequences that run through the model together.
pub struct MicroBatch {
    /// what the first block sees, `[H, T]`
    pub hidden: Matrix,
    /// the tokens that this is made of, where it is made of tokens
    pub tokens: Vec<u32>,
    /// tokens of each sequence
    pub lengths: Vec<usize>,
    /// of a decoder each token's next one, of a classifier each image's class; [`crate::NO_TARGET`] for none
    pub targets: Vec<u32>,
    lesson: Option<Lesson>,
}

/// What the dense model made of a batch.
struct Lesson {
    /// `[H, T]` behind each block, or behind the last one only
    streams: Vec<Matrix>,
    ending: Arc<Ending>,
    of_tokens: bool,
}

impl MicroBatch {
    /// Without a teacher so far.
    pub fn new(hidden: Matrix, tokens: Vec<u32>, lengths: Vec<usize>, targets: Vec<u32>) -> Self {
        Self { hidden, tokens, lengths, targets, lesson: None }
    }

    /// What the first block of another checkpoint sees, whose embeddings may be others, `[H, T]`.
    pub(crate) fn hidden_in(&self, checkpoint: &Checkpoint, config: &Config) -> Result<Matrix> {
        match config {
            Config::Decoder(_) => Ok(config.embed(checkpoint, &[Sample::Tokens(self.tokens.clone())])?.0),
            Config::Text(_) | Config::Vision(_) => Ok(self.hidden.clone()),
        }
    }

    /// The stream of the dense model behind a block, `[H, T]`, if it was kept.
    pub(crate) fn teacher_stream(&self, layer: usize, layers: usize) -> Option<&Matrix> {
        let lesson = self.lesson.as_ref()?;
        lesson.streams.get((layer + lesson.streams.len()).checked_sub(layers)?)
    }

    /// The dense model's logits or vectors of some answers, one after the other.
    pub(crate) fn teacher_logits(&self, answers: Range<usize>) -> Option<Vec<f32>> {
        let lesson = self.lesson.as_ref()?;
        let last = lesson.streams.last()?;
        let answers = if lesson.of_tokens {
            let columns = (0..last.rows()).flat_map(|k| last.row(k)[answers.clone()].iter().copied()).collect();
            let part = Matrix::new(last.rows(), answers.len(), columns).expect("as many values as picked");
            lesson.ending.apply(&part, &[answers.len()])
        } else {
            lesson.ending.apply(last, &self.lengths)
        };
        Some(answers.transposed().into_data())
    }
}

/// The dense model.
pub struct Teacher {
    checkpoint: Checkpoint,
    config: Config,
    ending: Arc<Ending>,
    execution: Execution,
}

impl Teacher {
    /// Opens it; only its heads are held. With `bf16` weights and what meets them are rounded to bfloat16.
    pub fn open(dir: &Path, config: &Config, bf16: bool) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let rounded = Execution {
            activations: Activations::Bf16,
            dense_values: Some(ValueType::Float(Dtype::Bf16)),
            ..Execution::EXACT
        };
        let execution = if bf16 { rounded } else { Execution::EXACT };
        let ending = Arc::new(Ending::load(&checkpoint, config, execution)?);
        Ok(Self { checkpoint, config: config.clone(), ending, execution })
    }

    /// Runs all batches of a step through the model, a block at a time.
    pub fn teach(&self, batches: &mut [MicroBatch], loss: &Loss) -> Result<()> {
        if !loss.needs_teacher() {
            return Ok(());
        }
        let blocks = self.config.blocks();
        let first = |batch: &MicroBatch| Ok(vec![batch.hidden_in(&self.checkpoint, &self.config)?]);
        let mut streams: Vec<Vec<Matrix>> = batches.iter().map(first).collect::<Result<_>>()?;
        for layer in 0..blocks.layers {
            let block = Block::load(&self.checkpoint, blocks, layer, self.execution)?;
            streams.par_iter_mut().zip(&*batches).for_each(|(streams, batch)| {
                let positions = Positions::whole(blocks, &batch.lengths);
                let mut stream = if loss.squarehead == 0.0 || layer == 0 {
                    streams.pop().expect("never empty")
                } else {
                    streams.last().expect("never empty").clone()
                };
                block.forward(&mut stream, &positions, None, &mut |_, _| {});
                streams.push(stream);
            });
        }
        let of_tokens = matches!(self.config, Config::Decoder(_));
        for (batch, streams) in batches.iter_mut().zip(streams) {
            batch.lesson = Some(Lesson { streams, ending: Arc::clone(&self.ending), of_tokens });
        }
        Ok(())
    }
}
