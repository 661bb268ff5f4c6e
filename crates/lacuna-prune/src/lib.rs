//! From a dense weight to a V:N:M mask: calibration statistics, criteria that score weights, selection of the mask.
//!
//! This crate knows matrices, not models: whoever runs a model hands activations to [`Stats::observe`].

#![forbid(unsafe_code)]

pub mod score;
pub mod select;
mod stats;

use lacuna_core::{Mask, Matrix, Pattern, Scores};

pub use score::Criterion;
pub use select::Selection;
pub use stats::{Stats, weight_error};

/// A chosen mask and what it keeps.
pub struct Pruned {
    /// The mask.
    pub mask: Mask,
    /// Share of the sum of scores that the mask keeps.
    pub retained_score: f64,
}

/// Scores a weight and selects its mask. `stats` may be missing only if the criterion does not need any.
pub fn prune(
    weight: &Matrix,
    stats: Option<&Stats>,
    criterion: &Criterion,
    selection: Selection,
    pattern: Pattern,
) -> lacuna_core::Result<Pruned> {
    let scores = Scores::new(criterion.scores(weight, stats)?)?;
    let mask = selection.select(&scores, pattern)?;
    let total: f64 = scores.matrix().data().iter().map(|&s| f64::from(s)).sum();
    let retained_score = if total > 0.0 { mask.kept_sum(scores.matrix())? / total } else { 1.0 };
    Ok(Pruned { mask, retained_score })
}
