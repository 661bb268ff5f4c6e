//! The selections that look at one `V × M` block at a time: each group has its own M columns.

use lacuna_core::{Error, GROUP_COLUMNS, Grid, Mask, Pair, Pattern, Result, Scores};

use super::{dispatch, exact, exhaustive, paper};

/// How the 4 columns of a block are chosen.
#[derive(Clone, Copy)]
pub(super) enum By {
    /// [`super::Paper`]
    Norm,
    /// [`super::Exact`]
    Sum,
}

/// The mask of a pattern without a window; `name` is that of the selection.
pub(super) fn select(by: By, name: &'static str, scores: &Scores, pattern: Pattern) -> Result<Mask> {
    if !pattern.is_grouped() {
        return Err(Error::NoWindow { selection: name, pattern: pattern.to_string() });
    }
    let grid = pattern.grid(scores.matrix().rows(), scores.matrix().cols())?;
    let (columns, pairs) = dispatch(Choice { by, scores, grid: &grid });
    Mask::new(grid, columns, pairs)
}

/// The choice of a mask, compiled for each instruction set that `pulp` dispatches to, with all that is inlined into it.
struct Choice<'a> {
    by: By,
    scores: &'a Scores,
    grid: &'a Grid,
}

impl pulp::WithSimd for Choice<'_> {
    /// columns of all blocks and pairs of all rows
    type Output = (Vec<[u32; GROUP_COLUMNS]>, Vec<Pair>);

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> Self::Output {
        let (grid, groups) = (self.grid, self.grid.groups());
        let mut block = Block::default();
        let mut search = exact::Search::default();
        let mut answers = [None; TILE];
        let mut columns = Vec::with_capacity(grid.row_blocks() * groups);
        let mut column_pairs = vec![];
        let mut pairs = vec![Pair::FIRST; grid.rows() * groups];
        for i in 0..grid.row_blocks() * groups {
            block.load(self.scores, grid, i);
            let chosen = match self.by {
                By::Norm => paper::choose(&block),
                By::Sum => {
                    let group = i % groups;
                    if group % TILE == 0 {
                        answers = self.ahead(i / groups, group);
                    }
                    answers[group % TILE].unwrap_or_else(|| search.choose(simd, &block))
                }
            };
            let start = grid.group_range(i % groups).start as u32;
            columns.push(chosen.map(|c| start + c as u32));
            let [a, b, c, d] = chosen.map(|c| block.column(c));
            column_pairs.resize(block.stride, Pair::FIRST);
            let first = grid.block_rows(i / groups).start * groups + i % groups;
            for ((((pair, &a), &b), &c), &d) in column_pairs.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                *pair = Pair::top_two([a, b, c, d]);
            }
            for (pair, &top) in pairs[first..].iter_mut().step_by(groups).zip(&column_pairs[..block.height]) {
                *pair = top;
            }
        }
        (columns, pairs)
    }
}

impl Choice<'_> {
    /// The columns of the next [`TILE`] blocks, as far as they can be told without a search.
    #[inline(always)]
    fn ahead(&self, row_block: usize, group: usize) -> [Option<[usize; GROUP_COLUMNS]>; TILE] {
        let (cols, start) = (self.grid.cols(), group * self.grid.pattern().m());
        match self.grid.pattern().m() {
            GROUP_COLUMNS => [Some([0, 1, 2, 3]); TILE],
            TILE if start + TILE * TILE <= cols => {
                let rows = self.grid.block_rows(row_block);
                exhaustive::choose(&self.scores.matrix().data()[rows.start * cols + start..], cols, rows.len())
            }
            _ => [None; TILE],
        }
    }
}

/// Columns of a block take a whole number of this many scores: of vectors, for every width there is.
const VECTOR: usize = 16;

/// Scores of one `V × M` block, column by column, so that the methods run down contiguous columns.
#[derive(Default)]
pub(super) struct Block {
    /// rows of the block
    pub(super) height: usize,
    /// scores of a column; those that fill up the last vector are 0
    pub(super) stride: usize,
    /// `[columns, stride]`; columns of padding score -1, less than any real one
    scores: Vec<f32>,
}

impl Block {
    /// Takes block `i`, counted along the groups of a row block.
    #[inline(always)]
    fn load(&mut self, scores: &Scores, grid: &Grid, i: usize) {
        let (rows, cols) = (grid.block_rows(i / grid.groups()), grid.group_range(i % grid.groups()));
        let real = cols.start..cols.end.min(grid.cols());
        self.height = rows.len();
        self.stride = rows.len().next_multiple_of(VECTOR);
        self.scores.clear();
        self.scores.resize(self.stride * real.len(), 0.0);
        self.scores.resize(self.stride * cols.len(), -1.0);
        let (stride, width) = (self.stride, grid.cols());
        let mut tile = [[0.0; TILE]; TILE];
        for top in (0..self.height).step_by(TILE) {
            let tall = TILE.min(self.height - top);
            let source = &scores.matrix().data()[(rows.start + top) * width..];
            for c in (0..real.len()).step_by(TILE) {
                let cols = TILE.min(real.len() - c);
                for (r, row) in tile[..tall].iter_mut().enumerate() {
                    let source = &source[r * width + real.start + c..];
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

    pub(super) fn columns(&self) -> usize {
        self.scores.len() / self.stride
    }

    #[inline(always)]
    pub(super) fn column(&self, c: usize) -> &[f32] {
        &self.scores[c * self.stride..(c + 1) * self.stride]
    }
}

/// Rows and columns that are turned at once: as many as the registers of 256 bits hold of either.
pub(super) const TILE: usize = 8;

/// Column by column what was row by row: halves, pairs and single values change places. Written out, because only such
/// steps become shuffles of vectors.
#[inline(always)]
pub(super) fn transposed(mut rows: [[f32; TILE]; TILE]) -> [[f32; TILE]; TILE] {
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
