//! A weight as it lies in the checkpoint: widened some rows at a time, straight from the bytes of the file.

use std::ops::Range;

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_format::{Checkpoint, RawMatrix, RawTensor};
use lacuna_model::LinearSpec;
use lacuna_prune::Weight;

pub(crate) struct Source<'a>(RawMatrix<'a>);

impl<'a> Source<'a> {
    /// The weight of a layer, mapped. Refuses a shape other than config.json implies.
    pub(crate) fn open(checkpoint: &'a Checkpoint, layer: &LinearSpec) -> Result<Self> {
        Ok(Self(checkpoint.raw_matrix(&layer.weight(), layer.rows, layer.cols)?))
    }

    /// The same, of a weight that came by.
    pub(crate) fn passing(checkpoint: &'a Checkpoint, layer: &LinearSpec, raw: RawTensor<'a>) -> Result<Self> {
        Ok(Self(checkpoint.matrix_of(&layer.weight(), layer.rows, layer.cols, raw)?))
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
