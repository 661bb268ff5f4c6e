//! Selection: from scores to the mask. One file each, one line of [`Selection`].
//!
//! In each row a mask keeps the best 2 of a group's 4 columns whatever the method; the methods differ in how they
//! choose the columns of the groups. *Paper* and *exact* look at one `V × M` block at a time. *Top* and *assignment*
//! choose the columns of all groups of a window together, and put them in groups.

mod assignment;
mod exact;
mod exchange;
mod exhaustive;
mod grouped;
pub(crate) mod lsap;
mod paper;
mod rows;
mod top;
mod transport;
mod window;

use lacuna_core::{GROUP_COLUMNS, Grid, Mask, Pair, Pattern, Result, Scores};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use assignment::Assignment;
pub use exact::Exact;
pub use paper::Paper;
pub use rows::cluster_rows;
pub(crate) use rows::{improve_blocks, select_blocks};
pub use top::Top;

/// Columns of a window that does nearly what the whole row would: a kernel holds them at hand, a byte names one of them, and
/// choosing among them takes time that grows with the width of the layer, not with its square.
pub const WINDOW: usize = 256;

/// A way to choose the columns of a mask. Row blocks do not know of each other: those of a band of rows are what they
/// are in the whole matrix.
pub trait Select: Sync {
    /// Name as users write it.
    fn name(&self) -> &'static str;

    /// The mask of `pattern` that this method finds. Deterministic: of equal choices the one with lower columns.
    fn select(&self, scores: &Scores, pattern: Pattern) -> Result<Mask>;

    /// A mask for scores that have changed since `mask` was selected: no worse than its columns with the best two of each
    /// row.
    fn improve(&self, scores: &Scores, mask: &Mask) -> Result<Mask> {
        let kept = same_columns(scores, mask)?;
        let new = self.select(scores, mask.grid().pattern())?;
        let better = new.kept_sum(scores.matrix())? > kept.kept_sum(scores.matrix())?;
        Ok(if better { new } else { kept })
    }
}

/// The methods there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// [`Paper`]
    Paper,
    /// [`Exact`]
    Exact,
    /// [`Top`]
    Top,
    /// [`Assignment`]
    Assignment,
}

impl Selection {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Paper, Self::Exact, Self::Top, Self::Assignment];

    /// The method.
    pub fn method(self) -> &'static dyn Select {
        match self {
            Self::Paper => &Paper,
            Self::Exact => &Exact,
            Self::Top => &Top,
            Self::Assignment => &Assignment,
        }
    }

    /// Name as users write it.
    pub fn name(self) -> &'static str {
        self.method().name()
    }

    /// [`Select::select`]
    pub fn select(&self, scores: &Scores, pattern: Pattern) -> Result<Mask> {
        self.method().select(scores, pattern)
    }

    /// [`Select::improve`]
    pub fn improve(&self, scores: &Scores, mask: &Mask) -> Result<Mask> {
        self.method().improve(scores, mask)
    }
}

/// The columns of a mask with the best two of each row.
pub(crate) fn same_columns(scores: &Scores, mask: &Mask) -> Result<Mask> {
    of_columns(scores, *mask.grid(), mask.all_columns().to_vec())
}

/// The mask of some columns, `[row_blocks, G]`, that keeps the best two of each row and group.
pub(crate) fn of_columns(scores: &Scores, grid: Grid, columns: Vec<[u32; GROUP_COLUMNS]>) -> Result<Mask> {
    let matrix = scores.matrix();
    let blocks = columns.par_chunks_exact(grid.groups()).enumerate().map(|(block, groups)| {
        let of_row = |row: usize| {
            let row = matrix.row(row);
            // Padding scores less than any real column.
            let score = move |c: u32| row.get(c as usize).copied().unwrap_or(-1.0);
            groups.iter().map(move |four| Pair::top_two(four.map(score)))
        };
        grid.block_rows(block).flat_map(of_row).collect::<Vec<Pair>>()
    });
    let pairs = blocks.collect::<Vec<_>>().concat();
    Mask::new(grid, columns, pairs)
}

/// Runs a choice on vectors of at most 256 bits: blocks are a few vectors high, and summing up the lanes of longer ones
/// costs more than there is to gain (a prune with AVX-512 took a third longer).
fn dispatch<Op: pulp::WithSimd>(choice: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(simd, choice);
    }
    pulp::Arch::new().dispatch(choice)
}

/// Plain comparisons: one instruction each, which `f32::max` is not, for it has an opinion on NaN.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn min(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}
