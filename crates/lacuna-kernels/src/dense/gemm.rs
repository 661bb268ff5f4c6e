//! Dense products of floats, by the `gemm` crates, behind checked views. Those of single types, not the one for all: that one
//! brings along, and compiles for long, products of complex numbers.
#![allow(unsafe_code)]

use std::ops::Range;

use gemm_common::Parallelism;
use half::bf16;
use lacuna_core::Matrix;

#[cfg(target_arch = "x86_64")]
use crate::lanes::amx;

/// A product of one type: sizes of the result and the inner one; the result, its strides, and whether it is read; the
/// operands and their strides; factors of the result and of the product; three switches for complex numbers; threads.
type Product<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// Types that [`matmul`] multiplies.
pub trait Float: Copy + PartialEq + Default + Sync + 'static {
    #[doc(hidden)]
    fn product() -> Product<Self>;
}

impl Float for f32 {
    fn product() -> Product<Self> {
        gemm_f32::gemm::f32::get_gemm_fn()
    }
}

impl Float for f64 {
    fn product() -> Product<Self> {
        gemm_f64::gemm::f64::get_gemm_fn()
    }
}

/// A strided view of `[rows, cols]` values inside a buffer: element `(r, c)` is `data[r * row_stride + c * col_stride]`.
#[derive(Clone, Copy)]
pub struct View<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Whether every element of a view lies inside its buffer.
fn fits(len: usize, rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> bool {
    rows == 0 || cols == 0 || (rows - 1) * row_stride + (cols - 1) * col_stride < len
}

impl<'a, T: Float> View<'a, T> {
    /// A view with given strides, in elements.
    ///
    /// # Panics
    /// If an element lies outside `data`.
    pub fn new(data: &'a [T], [rows, cols]: [usize; 2], [row_stride, col_stride]: [usize; 2]) -> Self {
        assert!(fits(data.len(), rows, cols, row_stride, col_stride), "view outside its buffer");
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// `[rows, cols]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Where its elements are.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn data(&self) -> &'a [T] {
        self.data
    }

    /// `[row, column]`, in elements.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn strides(&self) -> [usize; 2] {
        [self.row_stride, self.col_stride]
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If there are not so many.
    #[must_use]
    pub fn rows(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows outside the view");
        let first = (rows.start * self.row_stride).min(self.data.len());
        Self { data: &self.data[first..], rows: rows.len(), ..self }
    }

    /// Rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

impl<'a> View<'a> {
    /// All of a matrix.
    pub fn of(matrix: &'a Matrix) -> Self {
        Self::new(matrix.data(), [matrix.rows(), matrix.cols()], [matrix.cols(), 1])
    }
}

/// `out = keep * out + scale * a · b`, where `out` is a view with the given strides over `out_data`.
///
/// With `parallel`, the current thread pool shares the work; the result does not depend on how many threads it has.
///
/// # Panics
/// If the inner sizes differ or `out` lies outside its buffer.
pub fn matmul<T: Float>(
    out_data: &mut [T],
    [out_row_stride, out_col_stride]: [usize; 2],
    keep: T,
    scale: T,
    a: View<T>,
    b: View<T>,
    parallel: bool,
) {
    assert_eq!(a.cols, b.rows, "inner sizes differ");
    assert!(fits(out_data.len(), a.rows, b.cols, out_row_stride, out_col_stride), "result outside its buffer");
    assert!(out_col_stride == 1 || out_row_stride == 1 || a.rows <= 1 || b.cols <= 1, "overlapping result");
    let parallelism = if parallel { Parallelism::Rayon(0) } else { Parallelism::None };
    // The products write vectors along columns of the result, but single values where those are not contiguous: of a
    // row-major result its transpose is asked for, bᵀ · aᵀ.
    let (a, b, [out_row_stride, out_col_stride]) = if out_col_stride < out_row_stride {
        (b.transposed(), a.transposed(), [out_col_stride, out_row_stride])
    } else {
        (a, b, [out_row_stride, out_col_stride])
    };
    // SAFETY: every element that the strides reach lies inside its buffer (`View::new` and the assertion above), the
    // buffers are borrowed for the call, and `out_data` is borrowed exclusively, so it aliases neither operand.
    unsafe {
        T::product()(
            a.rows,
            b.cols,
            a.cols,
            out_data.as_mut_ptr(),
            out_col_stride as isize,
            out_row_stride as isize,
            keep != T::default(),
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            keep,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `out[m, n] = a · b`, row by row and on this thread: operands rounded to bfloat16, sums in f32. Faster than [`matmul`] where the CPU
/// has a matrix unit for it; on others copies are rounded first.
///
/// # Panics
/// If the inner sizes differ, an operand is contiguous neither along its rows nor along its columns, or `out` has another size.
pub fn matmul_bf16(out: &mut [f32], a: View, b: View) {
    #[cfg(target_arch = "x86_64")]
    if amx::available() {
        // SAFETY: just seen.
        return unsafe { amx::matmul(out, a, b) };
    }
    matmul_rounded(out, a, b);
}

/// The same on any CPU.
fn matmul_rounded(out: &mut [f32], a: View, b: View) {
    let [a_data, b_data] = [a, b].map(|view| view.data.iter().map(|&v| bf16::from_f32(v).to_f32()).collect::<Vec<_>>());
    assert_eq!(out.len(), a.rows * b.cols, "a result of another size");
    matmul(out, [b.cols, 1], 0.0, 1.0, View { data: &a_data, ..a }, View { data: &b_data, ..b }, false);
}

/// `W · x` for a dense weight `[R, K]` and activations `[K, T]`.
///
/// # Panics
/// If K differs.
pub fn linear(weight: &Matrix, x: &Matrix) -> Matrix {
    let mut y = Matrix::zeros(weight.rows(), x.cols());
    let strides = [x.cols(), 1];
    matmul(y.data_mut(), strides, 0.0, 1.0, View::of(weight), View::of(x), true);
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways to multiply in bfloat16 against sums in f64, over sizes around those of tiles, operands as they are and transposed.
    #[test]
    fn products_in_bfloat16_are_those_of_rounded_operands() {
        let noise = |len: usize, seed: u32| -> Vec<f32> {
            let mixed = |i: usize| (i as u32 + 1).wrapping_mul(2_654_435_761).wrapping_add(seed * 77_777) >> 8;
            (0..len).map(|i| mixed(i) as f32 / 8_388_608.0 - 1.0).collect()
        };
        let rounded = |v: f32| f64::from(bf16::from_f32(v).to_f32());
        for [m, k, n] in [
            [1, 1, 1],
            [16, 32, 16],
            [32, 64, 32],
            [33, 31, 17],
            [5, 0, 3],
            [64, 70, 16],
            [15, 33, 65],
            [40, 1, 100],
            [97, 200, 48],
        ] {
            let (a_data, b_data) = (noise(m * k, 1), noise(k * n, 2));
            for turned in [[false, false], [true, false], [false, true], [true, true]] {
                let view = |data, [rows, cols]: [usize; 2], turn: bool| {
                    if turn {
                        View::new(data, [cols, rows], [rows, 1]).transposed()
                    } else {
                        View::new(data, [rows, cols], [cols, 1])
                    }
                };
                let (a, b) = (view(&a_data, [m, k], turned[0]), view(&b_data, [k, n], turned[1]));
                let at = |view: View, i: usize, j: usize| rounded(view.data[i * view.row_stride + j * view.col_stride]);
                for product in [matmul_bf16, matmul_rounded] {
                    let mut out = vec![f32::NAN; m * n];
                    product(&mut out, a, b);
                    for (i, &got) in out.iter().enumerate() {
                        let terms = (0..k).map(|j| at(a, i / n, j) * at(b, j, i % n));
                        let (want, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                        let bound = (k + 1) as f64 * f64::from(f32::EPSILON) * size;
                        let off = (f64::from(got) - want).abs();
                        assert!(off <= bound, "{m} × {k} × {n}, {turned:?}: {i} is off by {off:e}, allowed {bound:e}");
                    }
                }
            }
        }
    }
}
