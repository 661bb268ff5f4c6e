//! What every weight that is ready to multiply has in common.

use lacuna_core::{Matrix, Packed};

/// A weight `[R, K]` made ready for one kernel.
pub trait Weight: Send + Sync {
    /// `y = W · x + b` for activations `x[K, T]`; `y` is `[R, T]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    fn multiply(&self, x: &Matrix, y: &mut Matrix);

    /// `out_features`, R.
    fn rows(&self) -> usize;
}

/// What activations may be rounded to on their way into a product. Sums are f32 either way. Integer values meet activations of 16
/// bits with a scale of their own, whatever is asked for; where bfloat16 is, and the CPU has a matrix unit for it, many tokens meet
/// values times scales rounded to bfloat16 instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// not at all
    F32,
    /// to bfloat16, where the CPU multiplies it and the weights are bfloat16, or, on a matrix unit, integers
    Bf16,
}

/// Refuses operands whose shapes do not fit a `[rows, cols]` weight.
pub(crate) fn check_shapes(rows: usize, cols: usize, x: &Matrix, y: &Matrix) {
    assert_eq!(x.rows(), cols, "activations have another number of features than the weight");
    assert_eq!((y.rows(), y.cols()), (rows, x.cols()), "result has another shape than the product");
}

/// A bias `[R]`, in the order in which a kernel computes rows.
#[derive(Default)]
pub(crate) struct Bias(Vec<f32>);

impl Bias {
    /// That of a packed layer.
    ///
    /// # Panics
    /// If there is another number of values than rows.
    pub(crate) fn packed(bias: Option<&[f32]>, packed: &Packed) -> Self {
        let rows = packed.mask().grid().rows();
        Self::new(bias, rows).reordered(|bias| (0..rows).map(|row| bias[packed.output_row(row)]).collect())
    }

    /// That of a weight with so many rows.
    ///
    /// # Panics
    /// If there is another number of values.
    pub(crate) fn new(bias: Option<&[f32]>, rows: usize) -> Self {
        assert!(bias.is_none_or(|bias| bias.len() == rows), "a bias for another number of rows");
        Self(bias.unwrap_or_default().to_vec())
    }

    fn reordered(self, order: impl Fn(&[f32]) -> Vec<f32>) -> Self {
        if self.0.is_empty() { self } else { Self(order(&self.0)) }
    }

    /// Adds it to the rows of `y[_, T]` from `first` on: done while they are still in the cache.
    pub(crate) fn add_to(&self, first: usize, y: &mut [f32], tokens: usize) {
        if self.0.is_empty() {
            return;
        }
        for (row, bias) in y.chunks_exact_mut(tokens.max(1)).zip(&self.0[first..]) {
            for v in row {
                *v += bias;
            }
        }
    }
}
