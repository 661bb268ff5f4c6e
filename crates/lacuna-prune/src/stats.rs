//! What calibration remembers of a layer's input: the squared norm of each feature, and the Gram matrix `X·Xᵀ`; and of what
//! the input was before anything was pruned, `X₀`, its products with the input, `X₀·Xᵀ`. The latter twice, of everything
//! and of half of it, which tells how far what is learnt of one half holds for the other.

use std::sync::{Arc, OnceLock};

use lacuna_core::{Matrix, Result};
use lacuna_kernels::dense::{View, matmul};

use crate::Hessian;
use crate::products::{OnCpu, Products};

/// Statistics of activations `X[K, T]`, summed over everything observed.
pub struct Stats {
    tokens: usize,
    /// `[K]`, Σ_t x
    sums: Vec<f64>,
    /// `[K]`, Σ_t x²
    square_sums: Vec<f64>,
    /// `[K, K]`, `X·Xᵀ`
    gram: Matrix,
    /// where the dense input is observed too
    beside: Option<Beside>,
    /// who multiplies
    products: Arc<dyn Products>,
    /// made of the rest when an update asks for it
    hessian: OnceLock<Result<Hessian>>,
}

/// What is remembered of an input beside that of the dense model.
pub(crate) struct Beside {
    /// how much of what the layers before have lost updates make up for, 0 to 1
    pub(crate) aim: f64,
    /// `[K, K]`, `X₀·Xᵀ`
    pub(crate) cross: Matrix,
    /// `[K, K]`, `X·Xᵀ` of the first half of each observation
    pub(crate) half_gram: Matrix,
    /// `[K, K]`, `X₀·Xᵀ` of the same
    pub(crate) half_cross: Matrix,
}

impl Stats {
    /// Nothing observed yet of an input with `features` features. Holds `4 K²` bytes.
    pub fn new(features: usize) -> Self {
        let zeros = vec![0.0; features];
        Self {
            tokens: 0,
            sums: zeros.clone(),
            square_sums: zeros,
            gram: Matrix::zeros(features, features),
            beside: None,
            products: Arc::new(OnCpu),
            hessian: OnceLock::new(),
        }
    }

    /// Nothing observed yet of an input that is looked at beside that of the dense model. An update then aims at the outputs
    /// on the input and `aim` of what they lack of those on the dense input, as far as half of the tokens foretells that
    /// of the others. Holds `16 K²` bytes.
    pub fn beside_dense(features: usize, aim: f64) -> Self {
        let zeros = || Matrix::zeros(features, features);
        let beside = Beside { aim, cross: zeros(), half_gram: zeros(), half_cross: zeros() };
        Self { beside: Some(beside), ..Self::new(features) }
    }

    /// The same, multiplied by something else than the CPU, here and in updates.
    #[must_use]
    pub fn multiplied_by(self, products: Arc<dyn Products>) -> Self {
        Self { products, ..self }
    }

    pub(crate) fn products(&self) -> &dyn Products {
        &*self.products
    }

    /// Adds activations `x[K, T]`, and to statistics [beside the dense model](Self::beside_dense) what they are there, `dense[K, T]`.
    ///
    /// Fails only as [`Products`] do; the statistics are then of no more use.
    ///
    /// # Panics
    /// If the number of features or tokens differs, or if `dense` is missing or not asked for.
    pub fn observe(&mut self, x: &Matrix, dense: Option<&Matrix>) -> Result<()> {
        assert_eq!(x.rows(), self.square_sums.len(), "activations have another number of features");
        self.hessian = OnceLock::new();
        self.tokens += x.cols();
        for (k, (sum, square_sum)) in self.sums.iter_mut().zip(&mut self.square_sums).enumerate() {
            *sum += x.row(k).iter().map(|&v| f64::from(v)).sum::<f64>();
            *square_sum += x.row(k).iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        }
        self.products.add_outer(&mut self.gram, x, x)?;
        match (&mut self.beside, dense) {
            (None, None) => Ok(()),
            (Some(beside), Some(dense)) => {
                self.products.add_outer(&mut beside.cross, dense, x)?;
                // One token has no half, and not everything that multiplies takes none.
                if x.cols() < 2 {
                    return Ok(());
                }
                let (x, dense) = (first_half(x), first_half(dense));
                self.products.add_outer(&mut beside.half_gram, &x, &x)?;
                self.products.add_outer(&mut beside.half_cross, &dense, &x)
            }
            _ => panic!("statistics beside the dense model take both inputs, others one"),
        }
    }

    /// Tokens observed.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `‖X_j‖₂` of each feature over all tokens.
    pub fn norms(&self) -> Vec<f32> {
        self.square_sums.iter().map(|sum| sum.sqrt() as f32).collect()
    }

    /// Mean of each feature over all tokens.
    pub fn means(&self) -> Vec<f64> {
        self.sums.iter().map(|sum| sum / self.tokens.max(1) as f64).collect()
    }

    /// Variance of each feature over all tokens.
    pub fn variances(&self) -> Vec<f64> {
        let tokens = self.tokens.max(1) as f64;
        self.means().iter().zip(&self.square_sums).map(|(m, s)| (s / tokens - m * m).max(0.0)).collect()
    }

    /// `X·Xᵀ`, `[K, K]`.
    pub fn gram(&self) -> &Matrix {
        &self.gram
    }

    /// What was observed beside the dense model.
    pub(crate) fn beside(&self) -> Option<&Beside> {
        self.beside.as_ref()
    }

    /// The Hessian of what was observed. Layers that share an input share it.
    pub fn hessian(&self) -> Result<&Hessian> {
        self.hessian.get_or_init(|| Hessian::new(self)).as_ref().map_err(Clone::clone)
    }

    /// `‖A·X‖²_F = tr(A·(X·Xᵀ)·Aᵀ)` for some rows `A[n, K]` of a weight, or of a difference of two.
    ///
    /// # Panics
    /// If `a` has another number of columns than the statistics have features.
    pub fn energy(&self, a: &Matrix) -> f64 {
        let mut product = Matrix::zeros(a.rows(), a.cols());
        matmul(product.data_mut(), [a.cols(), 1], 0.0, 1.0, View::of(a), View::of(&self.gram), false);
        product.data().iter().zip(a.data()).map(|(&p, &a)| f64::from(p) * f64::from(a)).sum::<f64>().max(0.0)
    }
}

/// The first half of the tokens.
fn first_half(x: &Matrix) -> Matrix {
    let half = x.cols() / 2;
    let mut out = Matrix::zeros(x.rows(), half);
    for k in 0..x.rows() {
        out.row_mut(k).copy_from_slice(&x.row(k)[..half]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, cols: usize, seed: u32) -> Matrix {
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 8e6 - 1.0;
        Matrix::new(rows, cols, (0..rows * cols).map(value).collect()).unwrap()
    }

    #[test]
    fn the_energy_of_a_weight_is_that_of_its_outputs() {
        let (w, x) = (matrix(3, 5, 1), matrix(5, 9, 3));
        let mut stats = Stats::new(5);
        stats.observe(&x, None).unwrap();
        let outputs = lacuna_core::sum_of(lacuna_kernels::dense::linear(&w, &x).data(), |y| y * y);
        assert!((stats.energy(&w) / outputs - 1.0).abs() < 1e-5);
    }

    #[test]
    fn observing_in_parts_is_observing_at_once() {
        let x = matrix(4, 6, 5);
        let column_part = |from: usize, to: usize| {
            let data = (0..4).flat_map(|k| x.row(k)[from..to].to_vec()).collect();
            Matrix::new(4, to - from, data).unwrap()
        };
        let (mut whole, mut parts) = (Stats::new(4), Stats::new(4));
        whole.observe(&x, None).unwrap();
        parts.observe(&column_part(0, 2), None).unwrap();
        parts.observe(&column_part(2, 6), None).unwrap();
        assert_eq!(whole.tokens(), parts.tokens());
        assert_eq!(whole.norms(), parts.norms());
        assert!(whole.gram().data().iter().zip(parts.gram().data()).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
