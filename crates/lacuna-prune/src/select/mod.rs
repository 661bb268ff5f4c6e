//! Selection: from scores to the mask. One file each, one line here.
//!
//! In each row a mask keeps the best 2 of a group's 4 columns whatever the method; the methods differ in how they
//! choose the 4 columns of a `V × M` block.

mod exact;
mod paper;

use lacuna_core::{GROUP_COLUMNS, Grid, Mask, Pair, Pattern, Result, Scores};
use rayon::prelude::*;

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
        let groups = grid.groups();
        let choose = match self {
            Self::Paper => paper::choose,
            Self::Exact => exact::choose,
        };
        let choose_group = |i: usize| {
            let (start, block) = (grid.group_range(i % groups).start as u32, Block::new(scores, &grid, i));
            choose(&block).map(|c| start + c as u32)
        };
        let columns: Vec<[u32; GROUP_COLUMNS]> =
            (0..grid.row_blocks() * groups).into_par_iter().map(choose_group).collect();
        let pair = |i: usize| {
            let (row, group) = (i / groups, i % groups);
            let of = |c: u32| scores.matrix().row(row).get(c as usize).copied().unwrap_or(-1.0);
            Pair::top_two(columns[row / pattern.v() * groups + group].map(of))
        };
        let pairs = (0..rows * groups).into_par_iter().map(pair).collect();
        Mask::new(grid, columns, pairs)
    }
}

/// Scores of one `V × M` block, column by column, so that the methods run down contiguous columns.
struct Block {
    /// rows of the block
    height: usize,
    /// `[columns, height]`; columns of padding score 0
    scores: Vec<f32>,
}

impl Block {
    /// Block `i`, counted along the groups of a row block.
    fn new(scores: &Scores, grid: &Grid, i: usize) -> Self {
        let (rows, cols) = (grid.block_rows(i / grid.groups()), grid.group_range(i % grid.groups()));
        let height = rows.len();
        let mut block = Self { height, scores: vec![0.0; height * cols.len()] };
        for (r, row) in rows.enumerate() {
            let source = &scores.matrix().row(row)[cols.start..cols.end.min(grid.cols())];
            for (c, &score) in source.iter().enumerate() {
                block.scores[c * height + r] = score;
            }
        }
        block
    }

    fn columns(&self) -> usize {
        self.scores.len() / self.height
    }

    fn column(&self, c: usize) -> &[f32] {
        &self.scores[c * self.height..(c + 1) * self.height]
    }
}
