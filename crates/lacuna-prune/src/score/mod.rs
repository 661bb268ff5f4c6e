//! Criteria: how much each weight of `W[R, K]` is worth keeping. One file each, one line here.

mod magnitude;
mod ria;
mod wanda;

use lacuna_core::{Error, Matrix, Result};

use crate::Stats;

pub use ria::{Ria, RiaParts};

/// A criterion with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Criterion {
    /// `|W|`
    Magnitude,
    /// `|W| · ‖X‖`
    Wanda,
    /// relative importance and activations
    Ria(Ria),
}

impl Criterion {
    /// Name as users write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Magnitude => "magnitude",
            Self::Wanda => "wanda",
            Self::Ria(_) => "ria",
        }
    }

    /// Whether it looks at activations, so that pruning has to calibrate.
    pub fn needs_stats(&self) -> bool {
        match self {
            Self::Magnitude => false,
            Self::Wanda => true,
            Self::Ria(ria) => ria.exponent != 0.0,
        }
    }

    /// The scores, `[R, K]`. Fails if statistics are needed and missing or belong to another input.
    pub fn scores(&self, weight: &Matrix, stats: Option<&Stats>) -> Result<Matrix> {
        let norms = match stats {
            Some(stats) => stats.norms(),
            None if self.needs_stats() => vec![],
            None => vec![1.0; weight.cols()],
        };
        if norms.len() != weight.cols() {
            return Err(Error::Length { what: "activation norms", want: weight.cols(), got: norms.len() });
        }
        Ok(match self {
            Self::Magnitude => magnitude::scores(weight),
            Self::Wanda => wanda::scores(weight, &norms),
            Self::Ria(ria) => ria.scores(weight, &norms),
        })
    }
}

/// A weight-shaped matrix whose entry is `f(row, column, |w|)`.
fn map_weights(weight: &Matrix, f: impl Fn(usize, usize, f32) -> f32) -> Matrix {
    let mut out = weight.clone();
    for row in 0..out.rows() {
        for (col, w) in out.row_mut(row).iter_mut().enumerate() {
            *w = f(row, col, w.abs());
        }
    }
    out
}
