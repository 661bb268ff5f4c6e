//! Weight updates: what is kept makes up for what is removed. One file each, one line here.
//!
//! All minimise `‖(W − Ŵ)·X‖²` over the observed inputs, by their Hessian. They work on the scaled weight `W̃` of
//! [`Hessian`], all rows at once, in the order in which the rows will be packed.

mod alps;
mod dsnot;
mod hessian;
mod lsq;
mod sparsegpt;

use lacuna_core::{Mask, Matrix, Pair, Pattern, Result, Scores};

use serde::{Deserialize, Serialize};

use crate::{Selection, Stats};

pub use hessian::Hessian;

/// How the kept weights of a layer change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Update {
    /// not at all
    None,
    /// to those with the least squared error under the mask of criterion and selection
    Lsq,
    /// column by column, each later one making up for what the earlier ones lost; the mask is chosen on the way
    SparseGpt,
    /// by ADMM, which lets mask and weights settle together
    Alps,
    /// not at all, but the mask moves to where it keeps the mean of each output
    DsNoT,
}

/// What a layer has to offer to an update.
pub(crate) struct Task<'a> {
    /// `W`, `[R, K]`
    pub(crate) weight: &'a Matrix,
    /// of `W`, by the criterion
    pub(crate) scores: &'a Scores,
    pub(crate) stats: &'a Stats,
    pub(crate) hessian: &'a Hessian,
    pub(crate) selection: Selection,
    pub(crate) pattern: Pattern,
}

impl Update {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lsq => "lsq",
            Self::SparseGpt => "sparsegpt",
            Self::Alps => "alps",
            Self::DsNoT => "dsnot",
        }
    }

    /// Whether it changes weights by their Hessian.
    pub fn needs_stats(self) -> bool {
        self != Self::None
    }

    /// The new weight, 0 where the mask removes it, and the mask.
    pub(crate) fn run(self, task: &Task) -> Result<(Matrix, Mask)> {
        let selected = || task.selection.select(task.scores, task.pattern);
        match self {
            Self::None => {
                let mask = selected()?;
                Ok((mask.apply(task.weight)?, mask))
            }
            Self::DsNoT => {
                let mask = dsnot::run(task, selected()?)?;
                Ok((mask.apply(task.weight)?, mask))
            }
            Self::Lsq => {
                let mask = selected()?;
                let target = task.hessian.scale(task.weight);
                let refit = lsq::refit(task.hessian, &target, &mask, lsq::ITERATIONS)?;
                Ok((task.hessian.unscale(refit), mask))
            }
            Self::SparseGpt => {
                let (weight, mask) = sparsegpt::run(task)?;
                Ok((task.hessian.unscale(weight), mask))
            }
            Self::Alps => {
                let (weight, mask) = alps::run(task)?;
                Ok((task.hessian.unscale(weight), mask))
            }
        }
    }
}

/// Squares of all weights: scores of a scaled weight.
fn squares(weight: &Matrix) -> Result<Scores> {
    let data = weight.data().iter().map(|w| w * w).collect();
    Scores::new(Matrix::new(weight.rows(), weight.cols(), data)?)
}

/// The mask with the columns of `mask` that keeps the best two of four in every row.
fn best_pairs(scores: &Scores, mask: &Mask) -> Result<Mask> {
    let grid = *mask.grid();
    let mut pairs = Vec::with_capacity(grid.rows() * grid.groups());
    for row in 0..grid.rows() {
        let (scores, block) = (scores.matrix().row(row), row / grid.pattern().v());
        for group in 0..grid.groups() {
            // Padding is worth less than anything real.
            let four = mask.columns(block, group).map(|c| scores.get(c as usize).copied().unwrap_or(-1.0));
            pairs.push(Pair::top_two(four));
        }
    }
    Mask::new(grid, mask.all_columns().to_vec(), pairs)
}
