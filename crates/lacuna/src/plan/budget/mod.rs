//! Rules that share a budget of weights out among layers without measuring what that does: cheap, and blind to speed.
//!
//! Each says how dense a layer is when the model is `D` dense on average; a layer gets the option whose density is nearest,
//! and `D` is the largest for which the target is met.

mod alpha;
mod owl;
mod spectrum;

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_format::Checkpoint;
use lacuna_model::Config;

use super::sensitivity::Laboratory;
use super::space::{Choice, Space};

/// Densities that are tried between 1 and 0.
const LEVELS: usize = 2000;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// blocks with more outliers among their scores stay denser (Yin et al., OWL, arXiv 2310.05175)
    Owl,
    /// layers whose spectrum has a heavier tail stay denser (Lu et al., AlphaPruning, arXiv 2410.10912)
    Alpha,
    /// sparsity grows from block to block in equal steps (Huang et al., ATP, arXiv 2502.14770)
    Atp,
}

impl Rule {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Owl => "owl",
            Self::Alpha => "alpha",
            Self::Atp => "atp",
        }
    }

    /// Whether it looks at activations.
    pub(super) fn needs_samples(self) -> bool {
        self == Self::Owl
    }

    /// Looks at the layers.
    pub(super) fn budget(
        self,
        checkpoint: &Checkpoint,
        config: &Config,
        space: &Space,
        laboratory: Option<&Laboratory>,
        progress: &ProgressBar,
    ) -> Result<Budget> {
        let block = |i: usize| config.blocks().layer_of(&space.layers[i].name).unwrap_or(0);
        let blocks: Vec<usize> = (0..space.layers.len()).map(block).collect();
        let weights: Vec<f64> = space.kept.iter().map(|kept| kept[0]).collect();
        Ok(match self {
            Self::Owl => {
                let laboratory = laboratory.expect("a rule that needs samples is given them");
                let shares = laboratory.outlier_shares(space, owl::outliers, progress)?;
                let shares = block_means(&shares, &blocks, &weights);
                Budget::Shift(centred(&spread(&shares, 2.0 * owl::LAMBDA), &weights))
            }
            Self::Alpha => Budget::Scale(alpha::sparsities(checkpoint, &space.layers, &weights, progress)?),
            Self::Atp => {
                let last = config.blocks().layers.saturating_sub(1).max(1) as f64;
                // −½ to ½ of the way from the first block to the last.
                let place: Vec<f64> = blocks.iter().map(|&b| 0.5 - b as f64 / last).collect();
                Budget::Progression(centred(&place, &weights))
            }
        })
    }
}

/// How dense each layer is when the model is `D` dense on average.
#[derive(Debug, Clone)]
pub(super) enum Budget {
    /// `D` and something
    Shift(Vec<f64>),
    /// sparsity `1 − D` times something
    Scale(Vec<f64>),
    /// `D` and a part of the widest progression that stays between 0 and 1
    Progression(Vec<f64>),
}

/// Of the widest progression, whose ends are 0 or 1, what is taken: ATP searches this number.
const WIDTH: f64 = 0.5;

impl Budget {
    fn density(&self, layer: usize, mean: f64) -> f64 {
        let density = match self {
            // Near 0 and 1 there is no room for the whole shift.
            Self::Shift(by) => mean + by[layer] * (mean.min(1.0 - mean) / 0.25).min(1.0),
            Self::Scale(factor) => 1.0 - (1.0 - mean) * factor[layer],
            Self::Progression(place) => mean + WIDTH * place[layer] * 2.0 * mean.min(1.0 - mean),
        };
        density.clamp(0.0, 1.0)
    }

    /// Choices from everything dense to everything sparse.
    pub(super) fn choices(&self, space: &Space) -> impl Iterator<Item = Choice> {
        (0..=LEVELS).map(|level| {
            let mean = 1.0 - level as f64 / LEVELS as f64;
            let nearest = |(layer, kept): (usize, &Vec<f64>)| {
                let wanted = self.density(layer, mean);
                let off = |option: &usize| (kept[*option] / kept[0] - wanted).abs();
                (0..kept.len()).min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(0)
            };
            space.kept.iter().enumerate().map(nearest).collect()
        })
    }
}

/// Means over the layers of each block by their weights, a figure a layer.
fn block_means(figures: &[f64], blocks: &[usize], weights: &[f64]) -> Vec<f64> {
    let mean = |&block: &usize| {
        let own = (0..figures.len()).filter(|&i| blocks[i] == block);
        own.clone().map(|i| figures[i] * weights[i]).sum::<f64>() / own.map(|i| weights[i]).sum::<f64>()
    };
    blocks.iter().map(mean).collect()
}

/// Stretched so that least and most lie `width` apart.
fn spread(figures: &[f64], width: f64) -> Vec<f64> {
    let (least, most) = figures.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, m), &f| (l.min(f), m.max(f)));
    let factor = if most > least { width / (most - least) } else { 0.0 };
    figures.iter().map(|f| (f - least) * factor).collect()
}

/// Less their mean by weights.
fn centred(figures: &[f64], weights: &[f64]) -> Vec<f64> {
    let mean = figures.iter().zip(weights).map(|(f, w)| f * w).sum::<f64>() / weights.iter().sum::<f64>();
    figures.iter().map(|f| f - mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_keep_their_mean() {
        let weights = [3.0, 1.0, 1.0, 3.0];
        let shift = Budget::Shift(centred(&spread(&[5.0, 1.0, 2.0, 4.0], 0.16), &weights));
        let places = Budget::Progression(centred(&[0.5, 0.2, -0.2, -0.5], &weights));
        for mean in [0.1, 0.25, 0.5, 0.9] {
            for budget in [&shift, &places] {
                let sum: f64 = (0..4).map(|layer| budget.density(layer, mean) * weights[layer]).sum();
                assert!((sum / 8.0 - mean).abs() < 1e-12, "{budget:?} at {mean}");
            }
        }
        assert!((shift.density(0, 0.5) - shift.density(1, 0.5) - 0.16).abs() < 1e-12);
    }
}
