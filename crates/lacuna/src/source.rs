//! A weight as it lies in the checkpoint: widened some rows at a time, straight from the mapped file.

use std::ops::Range;

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_format::{Checkpoint, RawMatrix};
use lacuna_model::LinearSpec;
use lacuna_prune::Weight;

pub(crate) struct Source<'a>(RawMatrix<'a>);

impl<'a> Source<'a> {
    /// The weight of a layer. Refuses a shape other than config.json implies.
    pub(crate) fn open(checkpoint: &'a Checkpoint, layer: &LinearSpec) -> Result<Self> {
        Ok(Self(checkpoint.raw_matrix(&layer.weight(), layer.rows, layer.cols)?))
    }
}

impl Weight for Source<'_> {
    type Error = anyhow::Error;

    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    fn band(&self, rows: Range<usize>) -> Result<Matrix> {
        Ok(self.0.band(rows)?)
    }
}
