//! Which rows share their columns: rows of a layer are put into blocks of V by what they keep there.
//!
//! Alternately the columns are selected for the blocks, and the rows assigned to the blocks whose columns keep most of
//! their scores, each block with its V rows (balanced k-means, whose centres are sets of columns). The result is an order
//! of the output rows, which costs nothing at run time.

use lacuna_core::{GROUP_COLUMNS, Grid, Mask, Pattern, Permutation, Result, Scores};
use rayon::prelude::*;

use super::lsap::VECTOR;
use super::{Selection, dispatch, max, min, transport};

/// How often rows are assigned.
const ROUNDS: usize = 3;
/// Blocks among which rows are assigned together: with more the time would grow with their square.
const MAX_BLOCKS: usize = 1024;

/// An order of the rows for which `selection` keeps more: row `i` of the blocks is to be row `order[i]` of `scores`. Of all
/// orders that were looked at the best, the one they have among them.
pub fn cluster_rows(scores: &Scores, pattern: Pattern, selection: Selection) -> Result<Permutation> {
    let rows = scores.matrix().rows();
    let mut order = Permutation::new((0..rows as u32).collect())?;
    let mut mask = select_blocks(scores, pattern, selection)?;
    let mut best = (mask.kept_sum(scores.matrix())?, order.clone());
    if pattern.v() == 1 || mask.grid().row_blocks() == 1 {
        return Ok(order);
    }
    for _ in 0..ROUNDS {
        order = assign_rows(scores, &mask)?;
        let ordered = Scores::new(order.permute_rows(scores.matrix())?)?;
        mask = select_blocks(&ordered, pattern, selection)?;
        let kept = mask.kept_sum(ordered.matrix())?;
        if kept <= best.0 {
            break;
        }
        best = (kept, order);
    }
    Ok(best.1)
}

/// The mask that `selection` finds, row block by row block on all cores.
pub(crate) fn select_blocks(scores: &Scores, pattern: Pattern, selection: Selection) -> Result<Mask> {
    let matrix = scores.matrix();
    let grid = pattern.grid(matrix.rows(), matrix.cols())?;
    let blocks = (0..grid.row_blocks()).into_par_iter();
    let parts = blocks.map(|block| selection.select(&Scores::new(matrix.band(grid.block_rows(block)))?, pattern));
    Mask::stack(parts.collect::<Result<Vec<Mask>>>()?)
}

/// A mask for scores that have changed since `mask` was selected, row block by row block on all cores: each no worse than its
/// columns with the best two of each row.
pub(crate) fn improve_blocks(scores: &Scores, mask: &Mask, selection: Selection) -> Result<Mask> {
    let (matrix, grid) = (scores.matrix(), *mask.grid());
    let parts = (0..grid.row_blocks()).into_par_iter().map(|block| {
        let band = Scores::new(matrix.band(grid.block_rows(block)))?;
        selection.improve(&band, &mask.block(block)?)
    });
    Mask::stack(parts.collect::<Result<Vec<Mask>>>()?)
}

/// The order of the rows of `scores` that suits the columns of a mask best.
fn assign_rows(scores: &Scores, mask: &Mask) -> Result<Permutation> {
    let grid = mask.grid();
    let blocks: Vec<usize> = (0..grid.row_blocks()).collect();
    let orders = blocks.par_chunks(MAX_BLOCKS).map(|blocks| {
        let rows = grid.block_rows(blocks[0]).start..grid.block_rows(blocks[blocks.len() - 1]).end;
        let places: Vec<usize> = blocks.iter().map(|&block| grid.block_rows(block).len()).collect();
        let stride = blocks.len().next_multiple_of(VECTOR);
        let mut benefit = vec![f32::NEG_INFINITY; rows.len() * stride];
        benefit.par_chunks_mut(VECTOR * stride).enumerate().for_each(|(panel, benefit)| {
            let first = rows.start + panel * VECTOR;
            dispatch(Benefits { scores, grid, columns: mask.all_columns(), first, blocks, stride, benefit });
        });
        let assigned = dispatch(Assign { benefit: &benefit, stride, places: &places });
        assigned.into_iter().flatten().map(move |row| row + rows.start as u32).collect::<Vec<u32>>()
    });
    Permutation::new(orders.collect::<Vec<_>>().concat())
}

/// What a panel of rows would keep in each of some blocks. Rows in lanes.
struct Benefits<'a> {
    scores: &'a Scores,
    grid: &'a Grid,
    /// `[row_blocks, G]`
    columns: &'a [[u32; GROUP_COLUMNS]],
    /// first row
    first: usize,
    blocks: &'a [usize],
    /// `[rows, stride]`
    benefit: &'a mut [f32],
    stride: usize,
}

impl pulp::WithSimd for Benefits<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { scores, grid, columns, first, blocks, benefit, stride } = self;
        // Padding columns lie behind the others and are worth nothing.
        let mut panel = vec![[0.0_f32; VECTOR]; grid.cols() + grid.padding()];
        for lane in 0..benefit.len() / stride {
            for (column, &score) in panel.iter_mut().zip(scores.matrix().row(first + lane)) {
                column[lane] = score;
            }
        }
        for (i, &block) in blocks.iter().enumerate() {
            let mut kept = [0.0_f32; VECTOR];
            for four in &columns[block * grid.groups()..][..grid.groups()] {
                let [a, b, c, d] = four.map(|column| &panel[column as usize]);
                for (lane, kept) in kept.iter_mut().enumerate() {
                    let (high, low) = (max(a[lane], b[lane]), min(a[lane], b[lane]));
                    let (other_high, other_low) = (max(c[lane], d[lane]), min(c[lane], d[lane]));
                    *kept += max(high, other_high) + max(min(high, other_high), max(low, other_low));
                }
            }
            for (benefit, kept) in benefit.chunks_exact_mut(stride).zip(kept) {
                benefit[i] = kept;
            }
        }
    }
}

/// [`transport::assign`]
struct Assign<'a> {
    benefit: &'a [f32],
    stride: usize,
    places: &'a [usize],
}

impl pulp::WithSimd for Assign<'_> {
    type Output = Vec<Vec<u32>>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        transport::assign(self.benefit, self.stride, self.places)
    }
}
