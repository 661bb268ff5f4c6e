//! What a plan chooses among: layers, and for each the options of staying dense and of every pattern that fits.

use anyhow::Result;
use lacuna_core::Pattern;
use lacuna_format::Checkpoint;
use lacuna_model::LinearSpec;

use super::choose::Resource;
use super::stand_in::StandIns;

/// An option for each layer: 0 for dense, `p + 1` for pattern `p`.
pub(super) type Choice = Vec<usize>;

/// Layers and patterns.
pub(super) struct Space {
    pub(super) layers: Vec<LinearSpec>,
    pub(super) patterns: Vec<Pattern>,
    /// weights kept by each option of each layer; infinite where a pattern does not fit
    pub(super) kept: Vec<Vec<f64>>,
    /// bytes of the same
    pub(super) bytes: Vec<Vec<f64>>,
}

impl Space {
    pub(super) fn new(
        checkpoint: &Checkpoint,
        layers: Vec<LinearSpec>,
        patterns: Vec<Pattern>,
        stand_ins: StandIns,
    ) -> Result<Self> {
        let (mut kept, mut bytes) = (vec![], vec![]);
        for layer in &layers {
            let grids: Vec<_> =
                patterns.iter().map(|&pattern| stand_ins.grid(pattern, layer.rows, layer.cols)).collect();
            let of = |dense: f64, of: &dyn Fn(&lacuna_core::Grid) -> usize| {
                let sparse = grids.iter().map(|grid| grid.as_ref().map_or(f64::INFINITY, |grid| of(grid) as f64));
                std::iter::once(dense).chain(sparse).collect::<Vec<f64>>()
            };
            kept.push(of((layer.rows * layer.cols) as f64, &|grid| grid.kept()));
            let dense = checkpoint.info(&layer.weight())?.len as f64;
            bytes.push(of(dense, &|grid| stand_ins.bytes(grid)));
        }
        Ok(Self { layers, patterns, kept, bytes })
    }

    /// Weights of all layers.
    pub(super) fn weights(&self) -> f64 {
        self.kept.iter().map(|kept| kept[0]).sum()
    }

    /// Every layer dense.
    pub(super) fn dense(&self) -> Choice {
        vec![0; self.layers.len()]
    }

    /// One pattern for all layers that it fits.
    pub(super) fn uniform(&self, pattern: usize) -> Choice {
        self.kept.iter().map(|kept| if kept[pattern + 1].is_finite() { pattern + 1 } else { 0 }).collect()
    }

    /// The pattern that a choice gives a layer.
    pub(super) fn pattern(&self, option: usize) -> Option<Pattern> {
        option.checked_sub(1).map(|p| self.patterns[p])
    }

    /// Share of the weights that a choice keeps.
    pub(super) fn density(&self, choice: &[usize]) -> f64 {
        total(&self.kept, choice) / self.weights()
    }

    /// No more than a share of the weights.
    pub(super) fn within_density(&self, density: f64) -> Resource {
        Resource { costs: self.kept.clone(), limit: density * self.weights() }
    }

    /// No more than some bytes.
    pub(super) fn within_bytes(&self, bytes: f64) -> Resource {
        Resource { costs: self.bytes.clone(), limit: bytes }
    }
}

/// What a choice adds up to.
pub(super) fn total(costs: &[Vec<f64>], choice: &[usize]) -> f64 {
    costs.iter().zip(choice).map(|(costs, &option)| costs[option]).sum()
}
