//! The exact selection's walk over the blocks, one `V × M` block at a time: each group has its own M columns.

use std::ops::Range;

use lacuna_core::{Error, GROUP_COLUMNS, Grid, Pattern, Result, Scores};

use super::{dispatch, exact, exhaustive};

/// Refuses a pattern with a window.
pub(super) fn check(name: &'static str, pattern: Pattern) -> Result<()> {
    if pattern.is_grouped() { Ok(()) } else { Err(Error::NoWindow { selection: name, pattern: pattern.to_string() }) }
}

/// The columns of all blocks, `[row_blocks, G]`.
pub(super) fn exact_columns(scores: &Scores, grid: &Grid) -> Vec<[u32; GROUP_COLUMNS]> {
    dispatch(Choice { scores, grid })
}

/// The choice of columns, compiled for each instruction set that `pulp` dispatches to, with all that is inlined into it.
struct Choice<'a> {
    scores: &'a Scores,
    grid: &'a Grid,
}

impl pulp::WithSimd for Choice<'_> {
    /// columns of all blocks
    type Output = Vec<[u32; GROUP_COLUMNS]>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> Self::Output {
        let (grid, m) = (self.grid, self.grid.pattern().m());
        let mut panel = Panel::default();
        let mut search = exact::Search::default();
        let mut columns = Vec::with_capacity(grid.row_blocks() * grid.groups());
        for row_block in 0..grid.row_blocks() {
            for first in (0..grid.groups()).step_by((PANEL / m).max(1)) {
                let groups = first..grid.groups().min(first + (PANEL / m).max(1));
                // Where every column is kept there is nothing to look at.
                if m > GROUP_COLUMNS {
                    panel.load(self.scores, grid, row_block, groups.clone());
                }
                for group in groups {
                    // Branches, not closures, which would be compiled for no instruction set in particular.
                    let chosen = if m == GROUP_COLUMNS {
                        [0, 1, 2, 3]
                    } else {
                        let block = panel.block(group - first, m);
                        let answer = if m == exhaustive::WIDTH { exhaustive::choose(simd, &block) } else { None };
                        match answer {
                            Some(answer) => answer,
                            None => search.choose(simd, &block),
                        }
                    };
                    columns.push(chosen.map(|c| (group * m + c) as u32));
                }
            }
        }
        columns
    }
}

/// Columns of a panel: some cache lines of each row, and with all rows of a block no more than a cache of the first level
/// holds.
const PANEL: usize = 64;

/// Columns of a block take a whole number of this many scores: of vectors, for every width there is.
const VECTOR: usize = 16;

/// Scores of one `V × M` block, column by column, so that the methods run down contiguous columns.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    /// rows of the block
    pub(super) height: usize,
    /// scores of a column; those that fill up the last vector are 0
    pub(super) stride: usize,
    /// `[columns, stride]`; columns of padding score -1, less than any real one
    scores: &'a [f32],
}

impl Block<'_> {
    pub(super) fn columns(&self) -> usize {
        self.scores.len() / self.stride
    }

    #[inline(always)]
    pub(super) fn column(&self, c: usize) -> &[f32] {
        &self.scores[c * self.stride..(c + 1) * self.stride]
    }
}

/// Scores of blocks side by side, column by column.
#[derive(Default)]
struct Panel {
    height: usize,
    stride: usize,
    /// columns that are not padding
    real: usize,
    scores: Vec<f32>,
}

impl Panel {
    /// Takes some groups of a row block.
    #[inline(always)]
    fn load(&mut self, scores: &Scores, grid: &Grid, row_block: usize, groups: Range<usize>) {
        let (rows, m, width) = (grid.block_rows(row_block), grid.pattern().m(), grid.cols());
        let (start, end) = (groups.start * m, groups.end * m);
        let real = end.min(width) - start;
        let stride = rows.len().next_multiple_of(VECTOR);
        // What fills up vectors and stands for padding stays from panel to panel of the same shape.
        if (self.height, self.stride, self.real, self.scores.len())
            != (rows.len(), stride, real, stride * (end - start))
        {
            (self.height, self.stride, self.real) = (rows.len(), stride, real);
            self.scores.clear();
            self.scores.resize(stride * real, 0.0);
            self.scores.resize(stride * (end - start), -1.0);
        }
        let mut tile = [[0.0; TILE]; TILE];
        for top in (0..self.height).step_by(TILE) {
            let tall = TILE.min(self.height - top);
            let source = &scores.matrix().data()[(rows.start + top) * width..];
            for c in (0..real).step_by(TILE) {
                let cols = TILE.min(real - c);
                for (r, row) in tile[..tall].iter_mut().enumerate() {
                    let source = &source[r * width + start + c..];
                    // A copy of known length is one instruction.
                    if cols == TILE {
                        row.copy_from_slice(&source[..TILE]);
                    } else {
                        row[..cols].copy_from_slice(&source[..cols]);
                    }
                }
                let turned = transposed(tile);
                for (i, column) in turned[..cols].iter().enumerate() {
                    let out = &mut self.scores[(c + i) * stride + top..];
                    if tall == TILE {
                        out[..TILE].copy_from_slice(column);
                    } else {
                        out[..tall].copy_from_slice(&column[..tall]);
                    }
                }
            }
        }
    }

    /// One of them, `m` columns wide.
    #[inline(always)]
    fn block(&self, i: usize, m: usize) -> Block<'_> {
        let scores = &self.scores[i * m * self.stride..(i + 1) * m * self.stride];
        Block { height: self.height, stride: self.stride, scores }
    }
}

/// Rows and columns that are turned at once: as many as the registers of 256 bits hold of either.
const TILE: usize = 8;

/// Column by column what was row by row: halves, pairs and single values change places. Written out, because only such
/// steps become shuffles of vectors.
#[inline(always)]
fn transposed(mut rows: [[f32; TILE]; TILE]) -> [[f32; TILE]; TILE] {
    for i in 0..4 {
        let (a, b) = (rows[i], rows[i + 4]);
        rows[i] = [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]];
        rows[i + 4] = [a[4], a[5], a[6], a[7], b[4], b[5], b[6], b[7]];
    }
    for i in [0, 1, 4, 5] {
        let (a, b) = (rows[i], rows[i + 2]);
        rows[i] = [a[0], a[1], b[0], b[1], a[4], a[5], b[4], b[5]];
        rows[i + 2] = [a[2], a[3], b[2], b[3], a[6], a[7], b[6], b[7]];
    }
    for i in [0, 2, 4, 6] {
        let (a, b) = (rows[i], rows[i + 1]);
        rows[i] = [a[0], b[0], a[2], b[2], a[4], b[4], a[6], b[6]];
        rows[i + 1] = [a[1], b[1], a[3], b[3], a[5], b[5], a[7], b[7]];
    }
    rows
}
