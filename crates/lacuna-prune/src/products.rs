//! Who multiplies whole matrices, which is most of the work of statistics and of ALPS: the CPU, or what its caller has.

use lacuna_core::{Matrix, Result};
use lacuna_kernels::dense::{View, matmul};

/// Products of f32 with sums in f32.
pub trait Products: Send + Sync {
    /// `out[R, K] += left[R, T] x[K, T]ᵀ`.
    fn add_outer(&self, out: &mut Matrix, left: &Matrix, x: &Matrix) -> Result<()>;

    /// `out[R, K] = a[R, K] b[K, K]`, where `b` is symmetric but for rounding.
    fn multiply_symmetric(&self, out: &mut Matrix, a: &Matrix, b: &Matrix) -> Result<()>;
}

/// On all cores.
pub(crate) struct OnCpu;

impl Products for OnCpu {
    fn add_outer(&self, out: &mut Matrix, left: &Matrix, x: &Matrix) -> Result<()> {
        matmul(out.data_mut(), [x.rows(), 1], 1.0, 1.0, View::of(left), View::of(x).transposed(), true);
        Ok(())
    }

    fn multiply_symmetric(&self, out: &mut Matrix, a: &Matrix, b: &Matrix) -> Result<()> {
        matmul(out.data_mut(), [b.cols(), 1], 0.0, 1.0, View::of(a), View::of(b), true);
        Ok(())
    }
}

/// `a · b`, on all cores.
pub(crate) fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let mut out = Matrix::zeros(a.rows(), b.cols());
    matmul(out.data_mut(), [b.cols(), 1], 0.0, 1.0, View::of(a), View::of(b), true);
    out
}
