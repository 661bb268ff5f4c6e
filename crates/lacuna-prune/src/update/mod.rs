//! Weight updates: what is kept makes up for what is removed. One file each, one line here.
//!
//! All minimise `‖(W − Ŵ)·X‖²` over the observed inputs, by their Hessian. They work on the scaled weight `W̃` of
//! [`Hessian`], all rows at once, in the order in which the rows will be packed.

mod alps;
mod drift;
mod dsnot;
mod hessian;
mod lsq;
mod sparsegpt;

use lacuna_core::{Error, Mask, Matrix, Result, Scores};

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

/// What a layer has to offer to an update. Rows are in the order in which they will be packed.
pub(crate) struct Task<'a> {
    /// `W`, `[R, K]`
    pub(crate) weight: &'a Matrix,
    /// of `W`, by the criterion
    pub(crate) scores: &'a Scores,
    /// selected on the scores
    pub(crate) mask: Mask,
    pub(crate) stats: Option<&'a Stats>,
    pub(crate) selection: Selection,
}

impl<'a> Task<'a> {
    /// Statistics of the input; an error where there are none of this weight's input.
    fn stats(&self) -> Result<&'a Stats> {
        let (want, got) = (self.weight.cols(), self.stats.map_or(0, |stats| stats.gram().rows()));
        let missing = Error::Length { what: "input statistics", want, got };
        self.stats.filter(|_| got == want).ok_or(missing)
    }

    fn hessian(&self) -> Result<&'a Hessian> {
        self.stats()?.hessian()
    }
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
    pub(crate) fn run(self, task: Task) -> Result<(Matrix, Mask)> {
        match self {
            Self::None => Ok((task.mask.apply(task.weight)?, task.mask)),
            Self::DsNoT => {
                let mask = dsnot::run(&task, task.stats()?)?;
                Ok((mask.apply(task.weight)?, mask))
            }
            Self::Lsq => {
                let hessian = task.hessian()?;
                let target = hessian.scale(task.weight);
                let refit = lsq::refit(hessian, &target, &task.mask, &target);
                Ok((hessian.unscale(refit), task.mask))
            }
            Self::SparseGpt => {
                let hessian = task.hessian()?;
                let (weight, mask) = sparsegpt::run(&task, hessian)?;
                Ok((hessian.unscale(weight), mask))
            }
            Self::Alps => {
                let hessian = task.hessian()?;
                let (weight, mask) = alps::run(&task, hessian)?;
                Ok((hessian.unscale(weight), mask))
            }
        }
    }
}

/// Squares of all weights: scores of a scaled weight.
fn squares(weight: &Matrix) -> Result<Scores> {
    let data = weight.data().iter().map(|w| w * w).collect();
    Scores::new(Matrix::new(weight.rows(), weight.cols(), data)?)
}
