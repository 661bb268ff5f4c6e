//! What every weight that is ready to multiply has in common.

use lacuna_core::Matrix;

/// A weight `[R, K]` made ready for one kernel.
pub trait Weight: Send + Sync {
    /// `y = W · x` for activations `x[K, T]`; `y` is `[R, T]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    fn multiply(&self, x: &Matrix, y: &mut Matrix);

    /// `out_features`, R.
    fn rows(&self) -> usize;
}

/// What activations may be rounded to on their way into a product. Sums are f32 either way, and integer values always
/// meet activations of 16 bits with a scale of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// not at all
    F32,
    /// to bfloat16, where the weights are bfloat16 and the CPU multiplies it
    Bf16,
}

/// Refuses operands whose shapes do not fit a `[rows, cols]` weight.
pub(crate) fn check_shapes(rows: usize, cols: usize, x: &Matrix, y: &Matrix) {
    assert_eq!(x.rows(), cols, "activations have another number of features than the weight");
    assert_eq!((y.rows(), y.cols()), (rows, x.cols()), "result has another shape than the product");
}
