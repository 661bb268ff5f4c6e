//! What a row is worth in a row block: the two largest of its scores in the columns that the block now keeps of each
//! group. An estimate: with other rows the paper's selection would keep other columns.

use lacuna_core::{GROUP_COLUMNS, Grid, Matrix, Pattern, Result, Scores};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::Moved;
use super::columns::{largest, norms};
use super::search::{Benefits, LANES};

/// Adds what the rows of each set of places are worth at each of them.
pub(super) fn row_benefits(moved: &Moved, scores: &Scores, pattern: Pattern, benefits: &mut [Benefits]) -> Result<()> {
    let scores = scores.matrix();
    let grid = pattern.grid(scores.rows(), scores.cols())?;
    // Where a group is all of its block, rows keep the same wherever they are.
    if moved.rows.is_empty() || benefits.is_empty() || pattern.m() == GROUP_COLUMNS {
        return Ok(());
    }
    for benefits in benefits {
        let lines: Vec<Vec<usize>> =
            moved.rows.iter().map(|row_of| benefits.places.iter().map(|&place| row_of[place]).collect()).collect();
        let mut emptied = lines.concat();
        emptied.sort_unstable();
        let block_of = |row: usize| row / pattern.v();
        let blocks: Vec<&[usize]> = emptied.chunk_by(|&a, &b| block_of(a) == block_of(b)).collect();
        let kept: Vec<Vec<_>> =
            blocks.par_iter().map(|emptied| kept(scores, &grid, emptied, moved.rows.len() > 1)).collect();
        for rows in lines {
            let lines = Lines::new(scores, &rows);
            let worth = kept.par_iter().map(|kept| Arch::new().dispatch(Worth { lines: &lines, kept }));
            let worth: Vec<Vec<f32>> = worth.collect();
            for (place, &row) in rows.iter().enumerate() {
                let block = blocks.partition_point(|emptied| block_of(emptied[0]) < block_of(row));
                for (channel, worth) in worth[block][..rows.len()].iter().enumerate() {
                    benefits.values[channel * benefits.stride + place] += moved.weight * worth;
                }
            }
        }
    }
    Ok(())
}

/// The columns of each group that a row block keeps, of which some rows are to be placed; `without` them, unless they are
/// all. One row hardly sways its block, and the choice of all rows says more than that of some; but where a place is
/// many rows, these made the choice, and would stay for it.
fn kept(scores: &Matrix, grid: &Grid, emptied: &[usize], without: bool) -> Vec<([usize; GROUP_COLUMNS], usize)> {
    let block = emptied[0] / grid.pattern().v();
    let mut norms = norms(scores, grid, block);
    if without && emptied.len() < grid.block_rows(block).len() {
        for &row in emptied {
            norms.iter_mut().zip(scores.row(row)).for_each(|(norm, score)| *norm -= score);
        }
    }
    (0..grid.groups()).map(|group| largest(grid.block_cols(group), &norms)).collect()
}

/// Some rows, column by column.
struct Lines {
    /// rows, rounded up to whole vectors
    stride: usize,
    /// `[K, stride]`
    values: Vec<f32>,
}

impl Lines {
    fn new(scores: &Matrix, rows: &[usize]) -> Self {
        let stride = rows.len().next_multiple_of(LANES);
        let mut values = vec![0.0; scores.cols() * stride];
        for (lane, &row) in rows.iter().enumerate() {
            for (column, &score) in values.chunks_exact_mut(stride).zip(scores.row(row)) {
                column[lane] = score;
            }
        }
        Self { stride, values }
    }
}

/// What each line is worth where so many columns of each group are kept.
struct Worth<'a> {
    lines: &'a Lines,
    kept: &'a [([usize; GROUP_COLUMNS], usize)],
}

impl NullaryFnOnce for Worth<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn call(self) -> Vec<f32> {
        let Lines { stride, values } = self.lines;
        let zeros = vec![0.0; *stride];
        let mut worth = vec![0.0; *stride];
        for (four, count) in self.kept {
            let [a, b, c, d] = std::array::from_fn(|i| {
                if i < *count { &values[four[i] * stride..(four[i] + 1) * stride] } else { &zeros[..] }
            });
            for ((((worth, &a), &b), &c), &d) in worth.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                let (ab, cd) = (if a > b { a } else { b }, if c > d { c } else { d });
                let (less_ab, less_cd) = (if a > b { b } else { a }, if c > d { d } else { c });
                let (first, other) = if ab > cd { (ab, cd) } else { (cd, ab) };
                let rest = if less_ab > less_cd { less_ab } else { less_cd };
                *worth += first + if other > rest { other } else { rest };
            }
        }
        worth
    }
}
