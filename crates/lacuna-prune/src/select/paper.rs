//! The paper's selection (arXiv 2410.16135, section 3): of each block drop the column with the least L1 norm of scores
//! until 4 are left. Norms do not change while columns go, so this keeps the 4 largest; of equal ones the first.

use lacuna_core::{GROUP_COLUMNS, Grid, Mask, Pattern, Result, Scores};
use rayon::prelude::*;

use super::{Select, add_rows, grouped, of_columns};

/// The 4 columns of each block with the largest L1 norm of scores.
pub struct Paper;

impl Select for Paper {
    fn name(&self) -> &'static str {
        "paper"
    }

    fn select(&self, scores: &Scores, pattern: Pattern) -> Result<Mask> {
        grouped::check(self.name(), pattern)?;
        let grid = pattern.grid(scores.matrix().rows(), scores.matrix().cols())?;
        let blocks = (0..grid.row_blocks()).into_par_iter();
        let columns = blocks.flat_map_iter(|block| columns_of(scores, &grid, block)).collect();
        of_columns(scores, grid, columns)
    }
}

/// Rows whose scores are added up in single precision.
const ROWS: usize = 512;

/// The columns of the groups of a row block, `[G]`.
fn columns_of(scores: &Scores, grid: &Grid, block: usize) -> Vec<[u32; GROUP_COLUMNS]> {
    let (width, m) = (grid.cols(), grid.pattern().m());
    // Padding scores less than any real column.
    let mut norms = vec![-1.0; grid.groups() * m];
    norms[..width].fill(0.0);
    let rows = grid.block_rows(block);
    let mut sums = vec![0.0; width];
    for rows in scores.matrix().data()[rows.start * width..rows.end * width].chunks(ROWS * width) {
        sums.fill(0.0);
        pulp::Arch::new().dispatch(|| add_rows(&mut sums, rows));
        norms.iter_mut().zip(&sums).for_each(|(norm, &sum)| *norm += f64::from(sum));
    }
    let groups = norms.chunks_exact(m).enumerate();
    groups.map(|(group, norms)| largest(norms).map(|c| (group * m + c) as u32)).collect()
}

/// The 4 largest, ascending by place.
fn largest(norms: &[f64]) -> [usize; GROUP_COLUMNS] {
    let mut kept = [0, 1, 2, 3];
    let mut of_kept = kept.map(|c| norms[c]);
    for (c, &norm) in norms.iter().enumerate().skip(GROUP_COLUMNS) {
        // The least of those kept, of equal ones the last, makes room for a larger one; order stays ascending.
        let least = (0..GROUP_COLUMNS).rev().reduce(|a, b| if of_kept[b] < of_kept[a] { b } else { a }).unwrap_or(0);
        if norm > of_kept[least] {
            kept[least..].rotate_left(1);
            of_kept[least..].rotate_left(1);
            kept[GROUP_COLUMNS - 1] = c;
            of_kept[GROUP_COLUMNS - 1] = norm;
        }
    }
    kept
}
