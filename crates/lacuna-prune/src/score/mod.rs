//! Criteria: how much each weight of `W[R, K]` is worth keeping. One file each, one line here.

mod magnitude;
mod ria;
mod wanda;

use lacuna_core::{Error, Matrix, Scores};
use serde::{Deserialize, Serialize};

use crate::{Stats, Weight};

pub use ria::{Ria, RiaParts};

/// A criterion with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
    pub fn scorer<W: Weight>(&self, weight: &W, stats: Option<&Stats>) -> Result<Scorer, W::Error> {
        self.scorer_by_norms(weight, stats.map(Stats::norms))
    }

    /// The same where only `‖X_j‖₂` of each feature is known, `[K]`.
    pub fn scorer_by_norms<W: Weight>(&self, weight: &W, norms: Option<Vec<f32>>) -> Result<Scorer, W::Error> {
        let shape @ [_, cols] = weight.shape();
        let norms = match norms {
            Some(norms) => norms,
            None if self.needs_stats() => vec![],
            None => vec![1.0; cols],
        };
        if norms.len() != cols {
            return Err(Error::Length { what: "activation norms", want: cols, got: norms.len() }.into());
        }
        Ok(match self {
            Self::Magnitude => magnitude::scorer(shape),
            Self::Wanda => wanda::scorer(shape, norms),
            Self::Ria(ria) => ria.scorer(weight, &norms)?,
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
    /// Scores of the rows from `start` on, given as a matrix of their own. Refuses one that overflows.
    pub fn scores(&self, start: usize, rows: &Matrix) -> lacuna_core::Result<Scores> {
        let mut scores = Vec::with_capacity(rows.data().len());
        for i in 0..rows.rows() {
            let row = self.row[start + i];
            let factors = self.column.iter().zip(&self.row_scale);
            scores.extend(rows.row(i).iter().zip(factors).map(|(w, (c, d))| w.abs() * (c + row * d)));
        }
        Scores::new(Matrix::new(rows.rows(), rows.cols(), scores)?)
    }
}
