//! From a dense weight to a pruned one: calibration statistics, criteria that score weights, selection of the V:N:M mask,
//! updates of what is kept.
//!
//! This crate knows matrices, not models: whoever runs a model hands activations to [`Stats::observe`].

#![forbid(unsafe_code)]

mod linalg;
pub mod permute;
mod products;
pub mod score;
pub mod select;
mod stats;
pub mod update;

use std::ops::Range;

use lacuna_core::{Error, Matrix, Packed, Pattern, ValueType};
use rayon::prelude::*;
use update::Task;

pub use permute::Permute;
pub use products::Products;
pub use score::Criterion;
pub use select::Selection;
pub use stats::Stats;
pub use update::{Hessian, Update};

/// Weights that one thread works on at a time: they stay in its cache through all stages.
const BAND_WEIGHTS: usize = 1 << 18;

/// A weight that is looked at some rows at a time: a matrix, or a tensor of a file that is widened as it is read.
pub trait Weight: Sync {
    /// what goes wrong in reading or in pruning
    type Error: From<Error> + Send;
    /// Rows and columns.
    fn shape(&self) -> [usize; 2];
    /// A copy of some rows.
    fn band(&self, rows: Range<usize>) -> Result<Matrix, Self::Error>;
}

impl Weight for Matrix {
    type Error = Error;

    fn shape(&self) -> [usize; 2] {
        [self.rows(), self.cols()]
    }

    fn band(&self, rows: Range<usize>) -> Result<Matrix, Error> {
        Ok(self.band(rows))
    }
}

/// How a layer is pruned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Method {
    /// how weights are scored
    pub criterion: Criterion,
    /// in which order rows and columns are when masks are chosen
    pub permute: Permute,
    /// how masks are chosen
    pub selection: Selection,
    /// what becomes of the kept weights
    pub update: Update,
    /// which weights may be kept together
    pub pattern: Pattern,
    /// how the kept weights are stored
    pub values: ValueType,
}

/// A pruned layer.
pub struct Pruned {
    /// the kept weights
    pub packed: Packed,
    /// share of the sum of scores that is kept
    pub retained_score: f64,
    /// `‖(W − Ŵ)·X‖ / ‖W·X‖` on the observed activations, or without them `‖W − Ŵ‖ / ‖W‖`
    pub relative_error: f64,
    /// `‖Ŵ − Ŵq‖ / ‖Ŵ‖`, the kept weights before and after they became integers; `None` if they stayed what they are
    pub quantization_error: Option<f64>,
}

/// What became of some rows.
struct Band {
    packed: Packed,
    kept_score: f64,
    score: f64,
    lost_energy: f64,
    energy: f64,
    /// of the kept weights, where they become integers
    kept_energy: f64,
    /// what rounding them to integers lost
    rounding_energy: f64,
}

impl Method {
    /// Scores a weight, selects its mask, updates and packs what is kept. `stats` may be missing only if neither criterion nor
    /// update needs any.
    pub fn prune<W: Weight>(&self, weight: &W, stats: Option<&Stats>) -> Result<Pruned, W::Error> {
        let row_by_row = self.update == Update::None && self.permute == Permute::None;
        if row_by_row { self.prune_in_bands(weight, stats) } else { self.prune_whole(weight, stats) }
    }

    /// With all rows at once, as updates and permutations need them.
    fn prune_whole<W: Weight>(&self, source: &W, stats: Option<&Stats>) -> Result<Pruned, W::Error> {
        let mut weight = source.band(0..source.shape()[0])?;
        let scores = self.criterion.scorer(source, stats)?.scores(0, &weight)?;
        let arranged = self.permute.arrange(&scores, self.pattern, self.selection)?;
        let ordered = match &arranged.rows {
            Some(order) => &order.permute_rows(&weight)?,
            None => &weight,
        };
        let scores = &arranged.scores;
        let task = Task { weight: ordered, scores, mask: arranged.mask, stats, selection: self.selection };
        let (updated, mask) = self.update.run(task)?;
        let retained_score = share(mask.kept_sum(scores.matrix())?, scores.sum(), 1.0);
        let updated = match &arranged.rows {
            Some(order) => order.restore_rows(&updated)?,
            None => updated,
        };
        let packed = Packed::pack(&updated, mask, self.values, arranged.rows)?;
        let quantization_error = match self.values.integers() {
            None => None,
            Some(_) => {
                let mut updated = updated;
                let [energy, lost] = packed.subtract_from(&mut updated)?;
                Some(share(lost, energy, 0.0).sqrt())
            }
        };
        let [energy, lost] = energies(&packed, &mut weight, stats)?;
        let relative_error = share(lost, energy, 0.0).sqrt();
        Ok(Pruned { packed, retained_score, relative_error, quantization_error })
    }

    fn prune_in_bands<W: Weight>(&self, weight: &W, stats: Option<&Stats>) -> Result<Pruned, W::Error> {
        let scorer = self.criterion.scorer(weight, stats)?;
        let [rows, cols] = weight.shape();
        self.pattern.grid(rows, cols)?;
        let v = self.pattern.v();
        let height = (BAND_WEIGHTS / cols / v).max(1) * v;
        let starts: Vec<usize> = (0..rows).step_by(height).collect();
        let to_integers = self.values.integers().is_some();
        let prune_band = |start: usize, mut band: Matrix| {
            let scores = scorer.scores(start, &band)?;
            let mask = self.selection.select(&scores, self.pattern)?;
            let kept_score = mask.kept_sum(scores.matrix())?;
            let packed = Packed::pack(&band, mask, self.values, None)?;
            let kept_energy_of = |a: &Matrix| if to_integers { packed.mask().kept_energy(a) } else { Ok(0.0) };
            let kept_energy = kept_energy_of(&band)?;
            let [energy, lost_energy] = energies(&packed, &mut band, stats)?;
            let rounding_energy = kept_energy_of(&band)?;
            Ok(Band { packed, kept_score, score: scores.sum(), lost_energy, energy, kept_energy, rounding_energy })
        };
        let bands = starts.into_par_iter().map(|start| {
            let band = weight.band(start..rows.min(start + height))?;
            prune_band(start, band).map_err(|e: Error| e.in_rows_from(start).into())
        });
        // All of them, so that the error is that of the first rows whatever thread came first.
        let bands: Vec<Result<Band, W::Error>> = bands.collect();
        let bands = bands.into_iter().collect::<Result<Vec<Band>, _>>()?;
        let sum = |f: fn(&Band) -> f64| bands.iter().map(f).sum::<f64>();
        let retained_score = share(sum(|b| b.kept_score), sum(|b| b.score), 1.0);
        let relative_error = share(sum(|b| b.lost_energy), sum(|b| b.energy), 0.0).sqrt();
        let rounding_error = share(sum(|b| b.rounding_energy), sum(|b| b.kept_energy), 0.0).sqrt();
        let packed = Packed::stack(bands.into_iter().map(|band| band.packed).collect())?;
        let quantization_error = to_integers.then_some(rounding_error);
        Ok(Pruned { packed, retained_score, relative_error, quantization_error })
    }
}

/// `‖W·X‖²` and `‖(W − Ŵ)·X‖²`, without statistics `‖W‖²` and `‖W − Ŵ‖²`; leaves `W − Ŵ` in place of `W`.
fn energies(packed: &Packed, weight: &mut Matrix, stats: Option<&Stats>) -> lacuna_core::Result<[f64; 2]> {
    let whole = stats.map(|stats| stats.energy(weight));
    let of_weights = packed.subtract_from(weight)?;
    Ok(match (stats, whole) {
        (Some(stats), Some(whole)) => [whole, stats.energy(weight)],
        _ => of_weights,
    })
}

/// `part / whole`, or `empty` where there is nothing to have a part of.
fn share(part: f64, whole: f64, empty: f64) -> f64 {
    if whole > 0.0 { part / whole } else { empty }
}
