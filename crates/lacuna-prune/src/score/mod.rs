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

    /// Makes ready to score rows of `weight`. Fails if statistics are needed and missing or belong to another input.
    pub fn scorer(&self, weight: &Matrix, stats: Option<&Stats>) -> Result<Scorer> {
        let norms = match stats {
            Some(stats) => stats.norms(),
            None if self.needs_stats() => vec![],
            None => vec![1.0; weight.cols()],
        };
        if norms.len() != weight.cols() {
            return Err(Error::Length { what: "activation norms", want: weight.cols(), got: norms.len() });
        }
        Ok(match self {
            Self::Magnitude => magnitude::scorer(weight),
            Self::Wanda => wanda::scorer(weight, norms),
            Self::Ria(ria) => ria.scorer(weight, &norms),
        })
    }
}

/// A criterion made ready for one weight. Every criterion here is `|W_ij| · (c_j + r_i · d_j)`: a factor of the column,
/// and one of the row that may be scaled by column.
#[derive(Debug, Clone, PartialEq)]
pub struct Scorer {
    /// `c`, `[K]`
    column: Vec<f32>,
    /// `r`, `[R]`
    row: Vec<f32>,
    /// `d`, `[K]`
    row_scale: Vec<f32>,
}

impl Scorer {
    /// Scores of the rows from `start` on, given as a matrix of their own.
    pub fn scores(&self, start: usize, rows: &Matrix) -> Matrix {
        let mut out = rows.clone();
        for i in 0..rows.rows() {
            let row = self.row[start + i];
            for ((w, c), d) in out.row_mut(i).iter_mut().zip(&self.column).zip(&self.row_scale) {
                *w = w.abs() * (c + row * d);
            }
        }
        out
    }
}
