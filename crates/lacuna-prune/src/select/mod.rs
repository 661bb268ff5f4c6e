//! Selection: from scores to the mask. One file each, one line here.
//!
//! In each row a mask keeps the best 2 of a group's 4 columns whatever the method; the methods differ in how they
//! choose the 4 columns of a `V × M` block.

mod exact;
mod paper;

use lacuna_core::{GROUP_COLUMNS, Grid, Mask, Pair, Pattern, Result, Scores};

/// How the 4 columns of a block are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// the columns with the largest L1 norm of scores
    Paper,
    /// the 4 columns whose kept scores have the largest sum
    Exact,
}

impl Selection {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::Exact => "exact",
        }
    }

    /// The mask of `pattern` that this method finds. Deterministic: of equal choices the one with lower columns.
    pub fn select(self, scores: &Scores, pattern: Pattern) -> Result<Mask> {
        let (rows, cols) = (scores.matrix().rows(), scores.matrix().cols());
        let grid = pattern.grid(rows, cols)?;
        let (columns, pairs) = dispatch(Choice { selection: self, scores, grid: &grid });
        Mask::new(grid, columns, pairs)
    }
}

/// Runs a choice on vectors of at most 256 bits: blocks are a few vectors high, and summing up the lanes of longer ones
/// costs more than there is to gain (a prune with AVX-512 took a third longer).
fn dispatch(choice: Choice) -> <Choice as pulp::WithSimd>::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(simd, choice);
    }
    pulp::Arch::new().dispatch(choice)
}

/// The choice of a mask, compiled for each instruction set that `pulp` dispatches to, with all that is inlined into it.
struct Choice<'a> {
    selection: Selection,
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
        let mut columns = Vec::with_capacity(grid.row_blocks() * groups);
        let mut pairs = vec![Pair::FIRST; grid.rows() * groups];
        for i in 0..grid.row_blocks() * groups {
            block.load(self.scores, grid, i);
            let chosen = match self.selection {
                Selection::Paper => paper::choose(&block),
                Selection::Exact => search.choose(simd, &block),
            };
            let start = grid.group_range(i % groups).start as u32;
            columns.push(chosen.map(|c| start + c as u32));
            let [a, b, c, d] = chosen.map(|c| block.column(c));
            let first = grid.block_rows(i / groups).start * groups + i % groups;
            for (r, pair) in pairs[first..].iter_mut().step_by(groups).take(block.height).enumerate() {
                *pair = Pair::top_two([a[r], b[r], c[r], d[r]]);
            }
        }
        (columns, pairs)
    }
}

/// Columns of a block take a whole number of this many scores: of vectors, for every width there is.
const VECTOR: usize = 16;

/// Scores of one `V × M` block, column by column, so that the methods run down contiguous columns.
#[derive(Default)]
struct Block {
    /// rows of the block
    height: usize,
    /// scores of a column; those that fill up the last vector are 0
    stride: usize,
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
        for (r, row) in rows.enumerate() {
            let source = &scores.matrix().row(row)[real.clone()];
            for (column, &score) in self.scores.chunks_exact_mut(self.stride).zip(source) {
                column[r] = score;
            }
        }
    }

    fn columns(&self) -> usize {
        self.scores.len() / self.stride
    }

    #[inline(always)]
    fn column(&self, c: usize) -> &[f32] {
        &self.scores[c * self.stride..(c + 1) * self.stride]
    }
}
