//! Norms of the inputs of all layers of a dense model, from one pass of the calibration samples, a block at a time.

use std::collections::BTreeMap;

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_format::Checkpoint;
use lacuna_model::{Block, Config, Execution, LinearSpec, Sample};

use crate::calibrate::Stream;

/// `‖X_j‖₂` of each input feature of each layer.
pub(super) struct Norms {
    /// sums of squares by module name
    squares: BTreeMap<String, Vec<f64>>,
    tokens: usize,
}

impl Norms {
    /// Streams the samples through all blocks.
    pub(super) fn collect(checkpoint: &Checkpoint, config: &Config, samples: &[Sample]) -> Result<Self> {
        let mut stream = Stream::new(checkpoint, config, samples, false)?;
        let mut norms = Self { squares: BTreeMap::new(), tokens: stream.tokens() };
        for layer in 0..config.blocks().layers {
            let block = Block::load(checkpoint, config.blocks(), layer, Execution::EXACT)?;
            stream.observe(&block, None, &mut |sharing, x, _| norms.add(sharing, x));
            stream.advance(&block, None);
        }
        Ok(norms)
    }

    fn add(&mut self, sharing: &[&LinearSpec], x: &Matrix) {
        let squares = (0..x.rows()).map(|feature| lacuna_core::sum_of(x.row(feature), |v| v * v));
        let squares: Vec<f64> = squares.collect();
        for layer in sharing {
            let sums = self.squares.entry(layer.name.clone()).or_insert_with(|| vec![0.0; x.rows()]);
            sums.iter_mut().zip(&squares).for_each(|(sum, square)| *sum += square);
        }
    }

    /// Tokens of all samples.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The norms of a layer's input.
    pub(super) fn of(&self, layer: &LinearSpec) -> Option<Vec<f32>> {
        Some(self.squares.get(&layer.name)?.iter().map(|sum| sum.sqrt() as f32).collect())
    }
}
