//! Recovery without gradients through the model: each block, from the first to the last, is fitted to what the dense block makes of
//! the dense model's stream, on the stream that the recovered blocks before it give. One block is in memory with its gradients.

use lacuna_core::Matrix;
use lacuna_format::Checkpoint;
use lacuna_model::{Block, Config, Execution, Positions};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::layer::{Rule, matrix};
use crate::loss::Losses;
use crate::student::Part;
use crate::{MicroBatch, Result, StepReport, Trainer};

/// Samples on their way through a model that is fitted block by block.
pub struct Fit<'a> {
    dense: &'a Checkpoint,
    parts: Vec<Part>,
    /// the block that inputs stand before and targets behind
    layer: Option<usize>,
    /// parts of a step
    per_step: usize,
    seed: u64,
}

impl<'a> Fit<'a> {
    /// All samples, of which each step takes so many batches.
    pub fn new(
        dense: &'a Checkpoint,
        config: &Config,
        batches: Vec<MicroBatch>,
        per_step: usize,
        seed: u64,
    ) -> Result<Self> {
        let part = |batch: MicroBatch| {
            let target = batch.hidden_in(dense, config)?;
            Ok(Part { target, input: batch.hidden, lengths: batch.lengths })
        };
        let parts = batches.into_iter().map(part).collect::<Result<_>>()?;
        Ok(Self { dense, parts, layer: None, per_step, seed })
    }
}

impl Trainer {
    /// One step of fitting the block whose turn it is: each has as many steps as the others.
    pub fn fit_step(&mut self, fit: &mut Fit) -> Result<StepReport> {
        let layers = self.student.config.blocks().layers;
        let each = (self.steps / layers).max(1);
        let layer = (self.step / each).min(layers - 1);
        while fit.layer.is_none_or(|at| at < layer) {
            self.move_on(fit)?;
        }
        let (at, steps) =
            (self.step - layer * each, if layer + 1 == layers { self.steps - layer * each } else { each });
        let (phase, start, rule) = self.rule(at, steps);
        let mut random = ChaCha8Rng::seed_from_u64(fit.seed);
        random.set_stream(self.step as u64);
        let picked = sample(&mut random, fit.parts.len(), fit.per_step.min(fit.parts.len()));
        let parts: Vec<&Part> = picked.iter().map(|i| &fit.parts[i]).collect();
        let flipped = if self.selects(phase, start, at) { Some(self.select_in(layer, &parts, &rule)?) } else { None };
        let (lost, gradients) = self.student.block_step(layer, &parts, &rule)?;
        let losses = Losses { total: lost, squarehead: lost, ..Losses::default() };
        self.update(phase, (at, steps), losses, &gradients, flipped)
    }

    /// Moves inputs behind the block they stand before, and targets behind the next one.
    fn move_on(&self, fit: &mut Fit) -> Result<()> {
        let blocks = self.student.config.blocks();
        if let Some(done) = fit.layer {
            let behind = |part: &Part| -> Result<Matrix> {
                Ok(matrix(&self.student.through_block(done, part, &Rule::FINAL, &|_, _| Ok(()))?)?.transposed())
            };
            let inputs = fit.parts.par_iter().map(behind).collect::<Result<Vec<_>>>()?;
            fit.parts.iter_mut().zip(inputs).for_each(|(part, input)| part.input = input);
        }
        let next = fit.layer.map_or(0, |layer| layer + 1);
        let block = Block::load(fit.dense, blocks, next, Execution::EXACT)?;
        fit.parts.par_iter_mut().for_each(|part| {
            block.forward(&mut part.target, &Positions::whole(blocks, &part.lengths), None, &mut |_, _| {});
        });
        fit.layer = Some(next);
        Ok(())
    }
}
