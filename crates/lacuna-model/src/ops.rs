//! The small operations between the linear layers, on feature-major activations `[features, T]`.

use lacuna_core::Matrix;

/// `x / √(mean(x²) + eps) · weight`, each token by itself (Zhang & Sennrich, arXiv 1910.07467).
pub(crate) fn rms_norm(x: &Matrix, weight: &[f32], eps: f32) -> Matrix {
    let mut squares = vec![0.0_f32; x.cols()];
    for k in 0..x.rows() {
        for (sum, v) in squares.iter_mut().zip(x.row(k)) {
            *sum += v * v;
        }
    }
    let scale: Vec<f32> = squares.iter().map(|sum| (sum / x.rows() as f32 + eps).sqrt().recip()).collect();
    let mut out = x.clone();
    for (k, w) in weight.iter().enumerate() {
        for (v, s) in out.row_mut(k).iter_mut().zip(&scale) {
            *v *= s * w;
        }
    }
    out
}

/// `gate · σ(gate) · up`, in place of `gate` (SwiGLU, Shazeer, arXiv 2002.05202).
pub(crate) fn silu_mul(gate: &mut Matrix, up: &Matrix) {
    for (g, u) in gate.data_mut().iter_mut().zip(up.data()) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
}

/// `x += y`.
pub(crate) fn add(x: &mut Matrix, y: &Matrix) {
    for (a, b) in x.data_mut().iter_mut().zip(y.data()) {
        *a += b;
    }
}

/// Turns scores into probabilities in place; those that shall not be seen are left out by the caller.
pub(crate) fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for s in scores.iter_mut() {
        *s = (*s - max).exp();
        sum += *s;
    }
    for s in scores.iter_mut() {
        *s /= sum;
    }
}

/// The given columns of a matrix, in that order.
pub(crate) fn select_columns(x: &Matrix, columns: &[usize]) -> Matrix {
    let data = (0..x.rows()).flat_map(|k| columns.iter().map(move |&c| x.row(k)[c])).collect();
    Matrix::new(x.rows(), columns.len(), data).expect("as many values as selected")
}
