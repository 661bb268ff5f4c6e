//! What calibration remembers of a layer's input: the squared norm of each feature, and the Gram matrix `X·Xᵀ`.

use lacuna_core::Matrix;
use lacuna_kernels::dense::{View, matmul};

/// Statistics of activations `X[K, T]`, summed over everything observed.
pub struct Stats {
    tokens: usize,
    /// `[K]`, Σ_t x²
    square_sums: Vec<f64>,
    /// `[K, K]`, `X·Xᵀ`
    gram: Matrix,
}

impl Stats {
    /// Nothing observed yet of an input with `features` features. Holds `4 K²` bytes.
    pub fn new(features: usize) -> Self {
        Self { tokens: 0, square_sums: vec![0.0; features], gram: Matrix::zeros(features, features) }
    }

    /// Adds activations `[K, T]`.
    ///
    /// # Panics
    /// If the number of features differs.
    pub fn observe(&mut self, x: &Matrix) {
        assert_eq!(x.rows(), self.square_sums.len(), "activations have another number of features");
        self.tokens += x.cols();
        for (k, sum) in self.square_sums.iter_mut().enumerate() {
            *sum += x.row(k).iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        }
        let strides = [x.rows(), 1];
        matmul(self.gram.data_mut(), strides, 1.0, 1.0, View::of(x), View::of(x).transposed(), true);
    }

    /// Tokens observed.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `‖X_j‖₂` of each feature over all tokens.
    pub fn norms(&self) -> Vec<f32> {
        self.square_sums.iter().map(|sum| sum.sqrt() as f32).collect()
    }

    /// `X·Xᵀ`, `[K, K]`.
    pub fn gram(&self) -> &Matrix {
        &self.gram
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

/// `‖A‖²_F`: the energy of weights where nothing is known of the input.
pub fn weight_energy(a: &Matrix) -> f64 {
    lacuna_core::sum_of(a.data(), |w| w * w)
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
        stats.observe(&x);
        let outputs = weight_energy(&lacuna_kernels::dense::linear(&w, &x));
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
        whole.observe(&x);
        parts.observe(&column_part(0, 2));
        parts.observe(&column_part(2, 6));
        assert_eq!(whole.tokens(), parts.tokens());
        assert_eq!(whole.norms(), parts.norms());
        assert!(whole.gram().data().iter().zip(parts.gram().data()).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
