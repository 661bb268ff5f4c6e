//! Masked least squares: of all weights under a mask, those with the least squared error.
//!
//! Per row: minimise `(w − ŵ)·H̃·(w − ŵ)ᵀ` over the kept entries of `ŵ`, by conjugate gradients, all rows of a row block
//! together. A block's rows share their columns `C`, so only `H̃[C, C]` is touched. `H̃` has a diagonal of ones: it is
//! preconditioned already.

use lacuna_core::{Mask, Matrix};
use lacuna_kernels::dense::{View, matmul};
use rayon::prelude::*;

use super::Hessian;

/// Steps after which a mask that is final has been made the most of; twice as many change the fourth digit.
const ITERATIONS: usize = 25;
/// Rows whose squared residual has shrunk by this are done.
const CONVERGED: f64 = 1e-10;

/// The best weights under `mask` for the scaled weight `target`, looked for from `start` on, whose entries outside of the mask do
/// not matter.
pub(super) fn refit(hessian: &Hessian, target: &Matrix, mask: &Mask, start: &Matrix) -> Matrix {
    let (grid, cols) = (*mask.grid(), target.cols());
    let mut wanted = Matrix::zeros(target.rows(), cols);
    matmul(wanted.data_mut(), [cols, 1], 0.0, 1.0, View::of(target), View::of(hessian.scaled()), true);
    let mut out = Matrix::zeros(target.rows(), cols);
    out.data_mut().par_chunks_mut(grid.pattern().v() * cols).enumerate().for_each(|(block, out)| {
        let mut columns: Vec<usize> =
            (0..grid.groups()).flat_map(|g| mask.columns(block, g)).map(|c| c as usize).collect();
        columns.retain(|&c| c < cols);
        columns.sort_unstable();
        let mut place = vec![usize::MAX; cols];
        columns.iter().enumerate().for_each(|(i, &c)| place[c] = i);
        let gathered = |from: &[f32]| columns.iter().map(|&c| from[c]).collect::<Vec<f32>>();
        let width = columns.len();
        let h: Vec<f32> = columns.iter().flat_map(|&c| gathered(hessian.scaled().row(c))).collect();
        let rows: Vec<usize> = grid.block_rows(block).collect();
        let mut keep = vec![0.0; rows.len() * width];
        for (keep, &row) in keep.chunks_mut(width).zip(&rows) {
            mask.kept(row).flatten().filter(|&c| c < cols).for_each(|c| keep[place[c]] = 1.0);
        }
        let gathered_rows = |from: &Matrix| rows.iter().flat_map(|&row| gathered(from.row(row))).collect::<Vec<f32>>();
        let mut x: Vec<f32> = gathered_rows(start).iter().zip(&keep).map(|(x, keep)| x * keep).collect();
        solve(&h, &gathered_rows(&wanted), &keep, &mut x, width);
        for (out, x) in out.chunks_mut(cols).zip(x.chunks(width)) {
            columns.iter().zip(x).for_each(|(&c, &x)| out[c] = x);
        }
    });
    out
}

/// Conjugate gradients on every row: `x·h = wanted` where `keep` is 1, `x = 0` where it is 0. `h` is `[width, width]`, the
/// others are `[rows, width]`.
fn solve(h: &[f32], wanted: &[f32], keep: &[f32], x: &mut [f32], width: usize) {
    let shape = [wanted.len() / width, width];
    let h = View::new(h, [width, width], [width, 1]);
    let times_h = |a: &[f32], out: &mut [f32]| {
        matmul(out, [width, 1], 0.0, 1.0, View::new(a, shape, [width, 1]), h, false);
        out.iter_mut().zip(keep).for_each(|(out, keep)| *out *= keep);
    };
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let mut product = vec![0.0; x.len()];
    times_h(x, &mut product);
    let mut residual: Vec<f32> =
        wanted.iter().zip(keep).zip(&product).map(|((want, keep), got)| want * keep - got).collect();
    let mut direction = residual.clone();
    let squares = |residual: &[f32]| residual.chunks(width).map(|r| dot(r, r)).collect::<Vec<f64>>();
    let first = squares(&residual);
    let mut now = first.clone();
    for _ in 0..ITERATIONS {
        if now.iter().zip(&first).all(|(now, first)| *now <= first * CONVERGED) {
            break;
        }
        times_h(&direction, &mut product);
        for (row, square) in now.iter_mut().enumerate() {
            let at = row * width..(row + 1) * width;
            let (direction, product) = (&mut direction[at.clone()], &product[at.clone()]);
            let curvature = dot(direction, product);
            if *square <= first[row] * CONVERGED || curvature <= 0.0 {
                continue;
            }
            let step = (*square / curvature) as f32;
            let (x, residual) = (&mut x[at.clone()], &mut residual[at]);
            x.iter_mut().zip(&*direction).for_each(|(x, d)| *x += step * d);
            residual.iter_mut().zip(product).for_each(|(r, p)| *r -= step * p);
            let next = dot(residual, residual);
            let turn = (next / *square) as f32;
            direction.iter_mut().zip(&*residual).for_each(|(d, r)| *d = r + turn * *d);
            *square = next;
        }
    }
}
