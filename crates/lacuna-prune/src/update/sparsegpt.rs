//! The SparseGPT sweep (Frantar and Alistarh, arXiv 2301.00774, algorithm 1) over row blocks of V:N:M.
//!
//! With `H̃⁻¹ = Uᵀ·U`, column after column is pruned and what it loses is made up for by the columns behind it: `w_k −=
//! (w_j − ŵ_j) / U_jj · U_jk`. The columns of a window are chosen when the sweep reaches it, on `(w / U_jj)²` of the weights as they
//! are by then; for 2:4 that is the authors' rule.

use std::ops::Range;

use lacuna_core::{Grid, Mask, Matrix, Result, Scores};
use lacuna_kernels::dense::{View, matmul};
use rayon::prelude::*;

use super::{Hessian, Task};

/// Columns after which the others hear of it: one product instead of many (the authors' lazy batch).
const LAZY: usize = 128;

/// The updated scaled weight and its mask.
pub(super) fn run(task: &Task, hessian: &Hessian) -> Result<(Matrix, Mask)> {
    let grid = *task.mask.grid();
    let mut weight = hessian.scale(task.weight);
    let (cols, upper) = (weight.cols(), hessian.inverse_upper());
    let windows = windows(&grid);
    let swept = weight.data_mut().par_chunks_mut(grid.pattern().v() * cols).map(|rows| {
        let mut block = RowBlock { task, upper, rows, cols, masks: vec![] };
        block.sweep(&windows)?;
        Ok(block.masks)
    });
    let swept: Vec<Vec<(usize, Mask)>> = swept.collect::<Result<_>>()?;
    let (mut columns, mut pairs) = (vec![], vec![]);
    for windows in &swept {
        for (start, mask) in windows {
            columns.extend(mask.all_columns().iter().map(|four| four.map(|c| c + *start as u32)));
        }
        for row in 0..windows.first().map_or(0, |(_, mask)| mask.grid().rows()) {
            pairs.extend(windows.iter().flat_map(|(_, mask)| mask.row_pairs(row)));
        }
    }
    Ok((weight, Mask::new(grid, columns, pairs)?))
}

/// The windows; one that is too narrow for a block of its own goes with the one before.
fn windows(grid: &Grid) -> Vec<Range<usize>> {
    let mut windows: Vec<Range<usize>> = (0..grid.windows()).map(|w| grid.window_cols(w)).collect();
    if let [.., before, last] = &mut windows[..]
        && last.len() < grid.pattern().m()
    {
        before.end = last.end;
        windows.pop();
    }
    windows
}

/// One row block on its way.
struct RowBlock<'a> {
    task: &'a Task<'a>,
    /// `U`, `[K, K]`
    upper: &'a Matrix,
    /// `[v, K]`
    rows: &'a mut [f32],
    cols: usize,
    /// of the windows so far: first column, and the mask of what follows it
    masks: Vec<(usize, Mask)>,
}

impl RowBlock<'_> {
    fn sweep(&mut self, mut windows: &[Range<usize>]) -> Result<()> {
        while let Some(first) = windows.first() {
            let start = first.start;
            let count = windows.iter().take_while(|w| w.end - start <= LAZY).count().max(1);
            let (batch, rest) = windows.split_at(count);
            self.sweep_batch(start..batch[count - 1].end, batch)?;
            windows = rest;
        }
        Ok(())
    }

    /// Prunes the windows of a batch of columns, and tells the columns behind it.
    fn sweep_batch(&mut self, batch: Range<usize>, windows: &[Range<usize>]) -> Result<()> {
        let (cols, height, width) = (self.cols, self.rows.len() / self.cols, batch.len());
        let mut errors = vec![0.0; height * width];
        for window in windows {
            let mask = self.choose(window)?;
            let keep = mask.to_bools();
            let rows = self.rows.chunks_mut(cols).zip(errors.chunks_mut(width));
            for ((row, errors), keep) in rows.zip(keep.as_slice().chunks(window.len())) {
                for (j, keep) in window.clone().zip(keep) {
                    if !keep {
                        let factors = &self.upper.row(j)[j..batch.end];
                        let error = row[j] / factors[0];
                        row[j..batch.end].iter_mut().zip(factors).for_each(|(w, u)| *w -= error * u);
                        row[j] = 0.0;
                        errors[j - batch.start] = error;
                    }
                }
            }
            self.masks.push((window.start, mask));
        }
        let behind = cols - batch.end;
        if behind > 0 {
            let errors = View::new(&errors, [height, width], [width, 1]);
            let factors = View::new(&self.upper.data()[batch.start * cols + batch.end..], [width, behind], [cols, 1]);
            matmul(&mut self.rows[batch.end..], [cols, 1], 1.0, -1.0, errors, factors, false);
        }
        Ok(())
    }

    /// The mask of a window, by the weights as they are now.
    fn choose(&self, window: &Range<usize>) -> Result<Mask> {
        let mut scores = Vec::with_capacity(self.rows.len() / self.cols * window.len());
        for row in self.rows.chunks(self.cols) {
            scores.extend(window.clone().map(|j| (row[j] / self.upper.row(j)[j]).powi(2)));
        }
        let scores = Matrix::new(self.rows.len() / self.cols, window.len(), scores)?;
        self.task.selection.select(&Scores::new(scores)?, self.task.mask.grid().pattern())
    }
}
