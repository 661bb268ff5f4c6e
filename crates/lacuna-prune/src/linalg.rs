//! Cholesky factors and inverses of symmetric positive definite matrices, in f64.
//!
//! Blocked, so that nearly all of the work is matrix products. A library has these too; but the one that is kept well
//! takes longer to build than all the rest of this project.

use lacuna_kernels::dense::{View, matmul};
use rayon::prelude::*;

/// Rows and columns of a diagonal block.
const BLOCK: usize = 64;
/// Columns of a symmetric result that are computed at once: what lies above the diagonal of a strip is wasted.
const STRIP: usize = 512;

/// A square matrix `[n, n]`, row-major.
#[derive(Clone)]
pub(crate) struct Square {
    n: usize,
    data: Vec<f64>,
}

impl Square {
    /// Entry `(i, j)` is `f(i, j)`.
    pub(crate) fn from_fn(n: usize, f: impl Fn(usize, usize) -> f64 + Sync) -> Self {
        let mut data = vec![0.0; n * n];
        data.par_chunks_mut(n.max(1)).enumerate().for_each(|(i, row)| {
            for (j, out) in row.iter_mut().enumerate() {
                *out = f(i, j);
            }
        });
        Self { n, data }
    }

    /// `n`.
    pub(crate) fn size(&self) -> usize {
        self.n
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.data[i * self.n + j]
    }

    /// Row `i`.
    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.n..(i + 1) * self.n]
    }

    /// The inverse of a symmetric positive definite matrix; `None` if it is not, to working precision.
    pub(crate) fn inverse(self) -> Option<Self> {
        let n = self.n;
        let mut x = self.cholesky()?.lower_inverse();
        // A⁻¹ = L⁻ᵀ·L⁻¹, and L⁻¹ is lower triangular: a strip of the result is made of the columns from its own on, so that it
        // can take their place.
        let mut out = vec![0.0; n * STRIP.min(n)];
        for start in (0..n).step_by(STRIP) {
            let width = STRIP.min(n - start);
            let from = |shape| View::new(&x.data[start * n + start..], shape, [n, 1]);
            let (rows, strip) = (from([n - start, n - start]).transposed(), from([n - start, width]));
            matmul(&mut out, [width, 1], 0.0, 1.0, rows, strip, true);
            for (i, row) in out.chunks_exact(width).take(n - start).enumerate() {
                x.data[(start + i) * n + start..][..width].copy_from_slice(row);
            }
        }
        x.mirror();
        Some(x)
    }

    /// `B·A⁻¹` of a symmetric positive definite matrix `A` and a few rows `B[rows, n]`; `None` if it is not, to working
    /// precision. A third of the work of the inverse.
    pub(crate) fn solve(self, mut b: Vec<f64>) -> Option<Vec<f64>> {
        let factor = self.cholesky()?;
        let (n, l) = (factor.n, &factor.data);
        let rows = b.len() / n.max(1);
        let mut sum = vec![0.0; rows * BLOCK];
        // Y·Lᵀ = B from the left to the right, X·L = Y back: what is done is taken off block by block.
        let forth = (0..n).step_by(BLOCK).map(|start| (start, false));
        let back = (0..n).step_by(BLOCK).rev().map(|start| (start, true));
        for (start, backwards) in forth.chain(back) {
            let end = n.min(start + BLOCK);
            let width = end - start;
            let done = if backwards { end..n } else { 0..start };
            if done.is_empty() {
                sum.fill(0.0);
            } else {
                let l = if backwards {
                    View::new(&l[end * n + start..], [n - end, width], [n, 1])
                } else {
                    View::new(&l[start * n..], [width, start], [n, 1]).transposed()
                };
                let done = View::new(&b[done.start..], [rows, done.len()], [n, 1]);
                matmul(&mut sum, [width, 1], 0.0, 1.0, done, l, true);
            }
            for (row, sum) in b.chunks_exact_mut(n).zip(sum.chunks_exact(width)) {
                let row = &mut row[start..end];
                row.iter_mut().zip(sum).for_each(|(b, sum)| *b -= sum);
                let at = |i: usize, j: usize| l[(start + i) * n + start + j];
                for step in 0..width {
                    let i = if backwards { width - 1 - step } else { step };
                    let x = row[i] / at(i, i);
                    row[i] = x;
                    if backwards {
                        (0..i).for_each(|j| row[j] -= x * at(i, j));
                    } else {
                        (i + 1..width).for_each(|j| row[j] -= x * at(j, i));
                    }
                }
            }
        }
        Some(b)
    }

    /// `U` with `A⁻¹ = Uᵀ·U`, upper triangular; `None` if this matrix is not positive definite, to working precision.
    ///
    /// With rows and columns in reverse order, `A = L·Lᵀ`; in order again, `L` is an upper triangle whose inverse is `U`.
    pub(crate) fn inverse_upper(self) -> Option<Self> {
        let x = self.reversed().cholesky()?.lower_inverse();
        Some(x.reversed())
    }

    fn reversed(mut self) -> Self {
        self.data.reverse();
        self
    }

    /// `L` with `A = L·Lᵀ`, of which only the lower triangle is read.
    fn cholesky(mut self) -> Option<Self> {
        let n = self.n;
        let mut panel = vec![];
        for start in (0..n).step_by(BLOCK) {
            let end = n.min(start + BLOCK);
            for j in start..end {
                let done: f64 = self.row(j)[start..j].iter().map(|l| l * l).sum();
                let pivot = self.at(j, j) - done;
                if !(pivot > 0.0 && pivot.is_finite()) {
                    return None;
                }
                let pivot = pivot.sqrt();
                let (above, below) = self.data.split_at_mut((j + 1) * n);
                let row = &mut above[j * n..];
                row[j] = pivot;
                row[j + 1..].fill(0.0);
                let row = &row[start..j];
                below.par_chunks_mut(n).for_each(|below| {
                    let done: f64 = below[start..j].iter().zip(row).map(|(a, b)| a * b).sum();
                    below[j] = (below[j] - done) / pivot;
                });
            }
            let (rest, width) = (n - end, end - start);
            panel.clear();
            panel.extend(self.data[end * n..].chunks(n).flat_map(|row| &row[start..end]));
            for top in (0..rest).step_by(STRIP) {
                let rows = View::new(&panel[top * width..], [rest - top, width], [width, 1]);
                let columns = rows.rows(0..STRIP.min(rest - top)).transposed();
                let out = &mut self.data[(end + top) * (n + 1)..];
                matmul(out, [n, 1], 1.0, -1.0, rows, columns, true);
            }
        }
        Some(self)
    }

    /// The inverse of a lower triangle, in its place.
    fn lower_inverse(mut self) -> Self {
        let n = self.n;
        let mut sum = vec![0.0; BLOCK * n];
        let mut factor = vec![];
        for start in (0..n).step_by(BLOCK) {
            let height = BLOCK.min(n - start);
            let (done, rows) = self.data.split_at_mut(start * n);
            factor.clear();
            factor.extend_from_slice(&rows[..height * n]);
            if start > 0 {
                let left = View::new(&factor, [height, start], [n, 1]);
                let above = View::new(done, [start, start], [n, 1]);
                matmul(&mut sum, [n, 1], 0.0, 1.0, left, above, true);
            }
            for i in 0..height {
                let l = &factor[i * n + start..];
                let (before, row) = rows.split_at_mut(i * n);
                row[start..n].fill(0.0);
                row[..start].copy_from_slice(&sum[i * n..i * n + start]);
                row[..start].iter_mut().for_each(|x| *x = -*x);
                row[start + i] = 1.0;
                for (k, before) in before.chunks(n).enumerate() {
                    for (x, b) in row[..start + i].iter_mut().zip(before) {
                        *x -= l[k] * b;
                    }
                }
                row[..=start + i].iter_mut().for_each(|x| *x /= l[i]);
            }
        }
        self
    }

    /// Copies the lower triangle over the upper one.
    fn mirror(&mut self) {
        for i in 0..self.n {
            for j in 0..i {
                self.data[j * self.n + i] = self.data[i * self.n + j];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `A = B·Bᵀ + I` of a size that is no multiple of the blocks.
    fn positive(n: usize) -> Square {
        let b = |i: usize, k: usize| ((i * 31 + k * 17) * 2_654_435_761 % 1009) as f64 / 1009.0 - 0.5;
        Square::from_fn(n, |i, j| (0..n).map(|k| b(i, k) * b(j, k)).sum::<f64>() + if i == j { 1.0 } else { 0.0 })
    }

    fn product(a: &Square, b: &Square) -> Square {
        Square::from_fn(a.n, |i, j| (0..a.n).map(|k| a.at(i, k) * b.at(k, j)).sum())
    }

    fn assert_identity(a: &Square) {
        for i in 0..a.n {
            for j in 0..a.n {
                let want = if i == j { 1.0 } else { 0.0 };
                assert!((a.at(i, j) - want).abs() < 1e-9, "entry {i}, {j} is {}", a.at(i, j));
            }
        }
    }

    #[test]
    fn an_inverse_undoes_its_matrix() {
        for n in [1, 5, BLOCK, BLOCK + 3, 2 * BLOCK + 1, STRIP + 70] {
            let a = positive(n);
            assert_identity(&product(&a, &a.clone().inverse().unwrap()));
        }
    }

    #[test]
    fn a_solution_is_that_of_the_inverse() {
        for n in [1, 5, BLOCK, BLOCK + 3, 2 * BLOCK + 1] {
            let a = positive(n);
            let b: Vec<f64> = (0..3 * n).map(|i| ((i * 37 + 11) % 101) as f64 / 101.0 - 0.5).collect();
            let x = a.clone().solve(b.clone()).unwrap();
            for (x, b) in x.chunks(n).zip(b.chunks(n)) {
                for (j, b) in b.iter().enumerate() {
                    let got: f64 = x.iter().enumerate().map(|(i, x)| x * a.at(i, j)).sum();
                    assert!((got - b).abs() < 1e-9, "entry {j} of {n} is {got}, not {b}");
                }
            }
        }
    }

    #[test]
    fn the_upper_factor_is_one_of_the_inverse() {
        let a = positive(150);
        let u = a.clone().inverse_upper().unwrap();
        assert!((0..150).all(|i| (0..i).all(|j| u.at(i, j) == 0.0)), "not upper triangular");
        let transposed = Square::from_fn(150, |i, j| u.at(j, i));
        assert_identity(&product(&a, &product(&transposed, &u)));
    }

    #[test]
    fn what_is_not_positive_definite_has_neither() {
        let singular = Square::from_fn(70, |i, j| ((i + 1) * (j + 1)) as f64);
        assert!(singular.clone().inverse().is_none());
        assert!(singular.clone().solve(vec![1.0; 70]).is_none());
        assert!(singular.inverse_upper().is_none());
        assert!(Square::from_fn(3, |_, _| f64::NAN).inverse().is_none());
    }
}
