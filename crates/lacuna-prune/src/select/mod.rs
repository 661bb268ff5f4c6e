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
        let (columns, pairs) = pulp::Arch::new().dispatch(|| self.choose(scores, &grid));
        Mask::new(grid, columns, pairs)
    }

    /// Columns of all blocks and pairs of all rows. Compiled for each instruction set that `pulp` dispatches to, with all
    /// that is inlined here.
    #[inline(always)]
    fn choose(self, scores: &Scores, grid: &Grid) -> (Vec<[u32; GROUP_COLUMNS]>, Vec<Pair>) {
        let groups = grid.groups();
        let mut block = Block::default();
        let mut search = exact::Search::default();
        let mut columns = Vec::with_capacity(grid.row_blocks() * groups);
        let mut pairs = vec![Pair::FIRST; grid.rows() * groups];
        for i in 0..grid.row_blocks() * groups {
            block.load(scores, grid, i);
            let chosen = match self {
                Self::Paper => paper::choose(&block),
                Self::Exact => search.choose(&block),
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

/// Scores of one `V × M` block, column by column, so that the methods run down contiguous columns.
#[derive(Default)]
struct Block {
    /// rows of the block
    height: usize,
    /// `[columns, height]`; columns of padding score -1, less than any real one
    scores: Vec<f32>,
}

impl Block {
    /// Takes block `i`, counted along the groups of a row block.
    #[inline(always)]
    fn load(&mut self, scores: &Scores, grid: &Grid, i: usize) {
        let (rows, cols) = (grid.block_rows(i / grid.groups()), grid.group_range(i % grid.groups()));
        self.height = rows.len();
        self.scores.clear();
        self.scores.resize(self.height * cols.len(), -1.0);
        for (r, row) in rows.enumerate() {
            let source = &scores.matrix().row(row)[cols.start..cols.end.min(grid.cols())];
            for (column, &score) in self.scores.chunks_exact_mut(self.height).zip(source) {
                column[r] = score;
            }
        }
    }

    fn columns(&self) -> usize {
        self.scores.len() / self.height
    }

    fn column(&self, c: usize) -> &[f32] {
        &self.scores[c * self.height..(c + 1) * self.height]
    }
}
