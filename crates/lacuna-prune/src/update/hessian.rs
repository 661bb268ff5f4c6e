//! The Hessian of a layer's squared error, `H = X·Xᵀ + λ·I`, ready for weight updates.
//!
//! Columns are scaled so that `H̃ = S⁻¹·H·S⁻¹` has a diagonal of ones; weights are `W̃ = W·S` there. Features with large
//! activations, of which transformers have a few, then weigh no more in a sum of f32 than others.

use std::sync::OnceLock;

use lacuna_core::{Error, Matrix, Result};

use super::drift;
use crate::Stats;
use crate::linalg::Square;
use crate::products::product;

/// `λ`, relative to the mean of the diagonal of `X·Xᵀ` (as in SparseGPT, arXiv 2301.00774, section 4).
const DAMPING: f64 = 0.01;
/// By how much damping grows when a factorisation fails, and how often.
const MORE_DAMPING: f64 = 10.0;
const ATTEMPTS: usize = 6;

/// `H̃` of one input, shared by the layers that read it.
pub struct Hessian {
    /// `S`, `[K]`
    scale: Vec<f32>,
    /// `H̃`, `[K, K]`
    scaled: Matrix,
    /// what maps a weight to the one whose outputs come closest to those aimed at, `[K, K]`; `None` where that is itself
    retarget: Option<Matrix>,
    inverse_upper: OnceLock<Matrix>,
}

impl Hessian {
    /// Of everything observed. Features that were always 0 are left alone: whatever their weights are is as good.
    ///
    /// Fails if nothing was observed that is not 0, or if statistics are not finite.
    pub fn new(stats: &Stats) -> Result<Self> {
        // First, so that what it holds meanwhile is gone before the rest is made.
        let share = stats.beside().map_or(0.0, |beside| beside.aim * drift::foretold(stats.gram(), beside));
        let mut hessian = Self::of_gram(stats.gram())?;
        if let Some(beside) = stats.beside().filter(|_| share > 0.0) {
            hessian.retarget = Some(drift::retarget(&hessian, stats.gram(), &beside.cross, share));
        }
        Ok(hessian)
    }

    /// Of `X·Xᵀ`.
    pub(super) fn of_gram(gram: &Matrix) -> Result<Self> {
        let n = gram.rows();
        let diagonal = |j: usize| f64::from(gram.row(j)[j]);
        let mean = (0..n).map(diagonal).sum::<f64>() / n as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return Err(Error::NoSignal { mean });
        }
        let damping = DAMPING * mean;
        let scale: Vec<f64> = (0..n).map(|j| (diagonal(j) + damping).sqrt()).collect();
        let scaled_at = |i: usize, j: usize| {
            let entry = f64::from(gram.row(i)[j]) + if i == j { damping } else { 0.0 };
            entry / (scale[i] * scale[j])
        };
        let mut scaled = Matrix::zeros(n, n);
        for i in 0..n {
            for (j, out) in scaled.row_mut(i).iter_mut().enumerate() {
                *out = scaled_at(i, j) as f32;
            }
        }
        let scale = scale.iter().map(|&s| s as f32).collect();
        Ok(Self { scale, scaled, retarget: None, inverse_upper: OnceLock::new() })
    }

    /// `K`.
    pub fn features(&self) -> usize {
        self.scale.len()
    }

    /// `H̃`, `[K, K]`: symmetric, with a diagonal of ones.
    pub fn scaled(&self) -> &Matrix {
        &self.scaled
    }

    /// `S`, `[K]`.
    pub(super) fn scales(&self) -> &[f32] {
        &self.scale
    }

    /// `W̃ = W·S` of a weight; where the dense input was observed too, of the weight whose outputs on the input come closest to
    /// those aimed at: `W + share · W·(X₀ − X)·Xᵀ·H⁻¹`, the share being that of [`Stats::beside_dense`].
    pub fn scale(&self, weight: &Matrix) -> Matrix {
        let mut out = match &self.retarget {
            None => weight.clone(),
            Some(retarget) => product(weight, retarget),
        };
        for row in out.data_mut().chunks_mut(self.features()) {
            row.iter_mut().zip(&self.scale).for_each(|(w, s)| *w *= s);
        }
        out
    }

    /// `W = W̃·S⁻¹`.
    pub fn unscale(&self, mut weight: Matrix) -> Matrix {
        self.unscale_in_place(&mut weight);
        weight
    }

    fn unscale_in_place(&self, weight: &mut Matrix) {
        for row in weight.data_mut().chunks_mut(self.features()) {
            row.iter_mut().zip(&self.scale).for_each(|(w, s)| *w /= s);
        }
    }

    /// `(H̃ + ρ·I)⁻¹`, `[K, K]`.
    pub fn inverse(&self, rho: f64) -> Matrix {
        narrow(&self.factor(rho, Square::inverse))
    }

    /// `A·H⁻¹ = A·S⁻¹·H̃⁻¹·S⁻¹` of a few rows `A[n, K]`.
    pub(super) fn solve(&self, mut a: Matrix) -> Matrix {
        self.unscale_in_place(&mut a);
        let wide: Vec<f64> = a.data().iter().map(|&v| f64::from(v)).collect();
        let solved = self.factor(0.0, |square| square.solve(wide.clone()));
        a.data_mut().iter_mut().zip(solved).for_each(|(a, x)| *a = x as f32);
        self.unscale_in_place(&mut a);
        a
    }

    /// `U` with `H̃⁻¹ = Uᵀ·U`, upper triangular.
    pub fn inverse_upper(&self) -> &Matrix {
        self.inverse_upper.get_or_init(|| narrow(&self.factor(0.0, Square::inverse_upper)))
    }

    /// Something made of `H̃ + ρ·I`; if rounding has left that indefinite, of the least damped one that is not.
    fn factor<T>(&self, rho: f64, factor: impl Fn(Square) -> Option<T>) -> T {
        let n = self.features();
        let at = |more: f64| {
            Square::from_fn(n, |i, j| f64::from(self.scaled.row(i)[j]) + if i == j { rho + more } else { 0.0 })
        };
        let mut more = 0.0;
        for _ in 0..ATTEMPTS {
            if let Some(factor) = factor(at(more)) {
                return factor;
            }
            more = if more == 0.0 { DAMPING } else { more * MORE_DAMPING };
        }
        // With a diagonal that outweighs everything else nothing is left to fail.
        factor(at(n as f64)).expect("a dominant diagonal is positive definite")
    }
}

fn narrow(square: &Square) -> Matrix {
    let n = square.size();
    let mut out = Matrix::zeros(n, n);
    for i in 0..n {
        out.row_mut(i).iter_mut().zip(square.row(i)).for_each(|(out, &x)| *out = x as f32);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounding can leave a Gram matrix of few tokens a little below 0 in some direction, here by much.
    #[test]
    fn what_rounding_left_indefinite_is_damped_until_it_is_not() {
        for off in [1.02_f32, 1.2, 40.0] {
            let gram = Matrix::new(2, 2, vec![1.0, off, off, 1.0]).unwrap();
            let hessian = Hessian::of_gram(&gram).unwrap();
            for data in [hessian.inverse(0.0), hessian.inverse_upper().clone()].map(Matrix::into_data) {
                assert!(data.iter().all(|v| v.is_finite()), "{off}: {data:?}");
            }
            // The inverse of H̃ plus the least of the dampings that do.
            let (inverse, entry) = (hessian.inverse(0.0), f64::from(hessian.scaled().row(0)[1]));
            let more = [0.0, 0.01, 0.1, 1.0, 10.0, 100.0].into_iter().find(|more| 1.0 + more > entry).unwrap();
            let determinant = (1.0 + more) * (1.0 + more) - entry * entry;
            let want = ((1.0 + more) / determinant) as f32;
            assert!((inverse.row(0)[0] / want - 1.0).abs() < 1e-4, "{off}: {} is not {want}", inverse.row(0)[0]);
        }
    }
}
