//! AlphaPruning: the exponent α of the power law that the tail of a weight's spectrum follows. A small α is a heavy tail, a
//! layer that learnt much; such layers stay denser.

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_core::Matrix;
use lacuna_format::Checkpoint;
use lacuna_kernels::dense::{View, matmul};
use lacuna_model::LinearSpec;
use rayon::prelude::*;

use super::super::stage;
use super::spectrum::eigenvalues;
use super::{centred, spread};

/// Sparsities of layers lie within this share of the mean.
const TAU: f64 = 0.3;

/// The sparsity of each layer by the mean.
pub(super) fn sparsities(
    checkpoint: &Checkpoint,
    layers: &[LinearSpec],
    weights: &[f64],
    progress: &ProgressBar,
) -> Result<Vec<f64>> {
    stage(progress, layers.len() as u64);
    let exponent = |layer: &LinearSpec| {
        let weight = checkpoint.matrix(&layer.weight(), layer.rows, layer.cols)?;
        progress.inc(1);
        Ok(hill(&eigenvalues(gram(&weight))))
    };
    let exponents: Vec<f64> = layers.par_iter().map(exponent).collect::<Result<_>>()?;
    Ok(centred(&spread(&exponents, 2.0 * TAU), weights).into_iter().map(|off| 1.0 + off).collect())
}

/// `W·Wᵀ` or `Wᵀ·W`, whichever is smaller: their eigenvalues are the squares of the singular values.
fn gram(weight: &Matrix) -> Matrix {
    let (a, b) = (View::of(weight), View::of(weight).transposed());
    let (n, left, right) = if weight.rows() <= weight.cols() { (weight.rows(), a, b) } else { (weight.cols(), b, a) };
    let mut gram = Matrix::zeros(n, n);
    matmul(gram.data_mut(), [n, 1], 0.0, 1.0, left, right, false);
    gram
}

/// Hill's estimator over the larger half of the eigenvalues: `α = 1 + k / Σ ln(λ_i / λ_k)`.
fn hill(eigenvalues: &[f64]) -> f64 {
    let mut sorted: Vec<f64> = eigenvalues.iter().copied().filter(|&l| l > 0.0).collect();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let k = sorted.len() / 2;
    let sum: f64 = sorted[..k].iter().map(|l| (l / sorted[k]).ln()).sum();
    if sum > 0.0 { 1.0 + k as f64 / sum } else { f64::MAX.sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hills_estimator_finds_the_exponent_of_a_power_law() {
        // Quantiles of a density that falls with the power 3.5 from 1 on: u = λ^(1 − 3.5).
        let law: Vec<f64> = (1..=20_000).map(|i| (f64::from(i) / 20_001.0).powf(-1.0 / 2.5)).collect();
        assert!((hill(&law) - 3.5).abs() < 0.01, "{}", hill(&law));
    }
}
