//! What one layer is pruned from: its weight and the statistics of its input.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_format::RawMatrix;
use lacuna_model::LinearSpec;
use lacuna_prune::{Stats, Weight};

/// A weight as it lies in the checkpoint.
pub(super) struct Source<'a>(pub(super) RawMatrix<'a>);

impl Weight for Source<'_> {
    type Error = anyhow::Error;

    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    fn band(&self, rows: Range<usize>) -> Result<Matrix> {
        Ok(self.0.band(rows)?)
    }
}

/// Statistics of the distinct inputs of some layers.
pub(super) struct Statistics {
    aim: f64,
    inputs: Vec<Stats>,
    of_layer: BTreeMap<String, usize>,
}

impl Statistics {
    /// `aim` as in [`Stats::beside_dense`]; 0 without the dense model's inputs.
    pub(super) fn new(aim: f64) -> Self {
        Self { aim, inputs: vec![], of_layer: BTreeMap::new() }
    }

    /// Adds the input `x[K, T]` of layers that share it, and what it is in the dense model where that runs along.
    pub(super) fn observe(&mut self, sharing: &[&LinearSpec], x: &Matrix, dense: Option<&Matrix>) {
        let input = *self.of_layer.entry(sharing[0].name.clone()).or_insert_with(|| {
            let stats = dense.map_or_else(|| Stats::new(x.rows()), |_| Stats::beside_dense(x.rows(), self.aim));
            self.inputs.push(stats);
            self.inputs.len() - 1
        });
        for layer in sharing {
            self.of_layer.insert(layer.name.clone(), input);
        }
        self.inputs[input].observe(x, dense);
    }

    pub(super) fn of(&self, layer: &LinearSpec) -> Option<&Stats> {
        self.of_layer.get(&layer.name).map(|&input| &self.inputs[input])
    }
}
