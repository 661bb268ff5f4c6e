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

    /// Refuses a pattern whose groups take columns from a window, where this looks at one group at a time.
    pub fn check(self, pattern: Pattern) -> Result<()> {
        match self {
            Self::Paper | Self::Exact => grouped::check(self.name(), pattern),
            Self::Top | Self::Assignment => Ok(()),
        }
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
    let mut pairs = vec![Pair::FIRST; grid.rows() * grid.groups()];
    let blocks = pairs.par_chunks_mut(grid.pattern().v() * grid.groups()).zip(columns.par_chunks_exact(grid.groups()));
    blocks.enumerate().for_each(|(block, (pairs, columns))| {
        let first = grid.block_rows(block).start;
        pulp::Arch::new().dispatch(BestTwo { scores, first, columns, pairs });
    });
    Mask::new(grid, columns, pairs)
}

/// The best two of each row of a row block and each of its groups.
struct BestTwo<'a> {
    scores: &'a Scores,
    /// row of the matrix
    first: usize,
    /// `[G]`
    columns: &'a [[u32; GROUP_COLUMNS]],
    /// `[rows, G]`
    pairs: &'a mut [Pair],
}

impl pulp::WithSimd for BestTwo<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) {
        for (row, pairs) in self.pairs.chunks_exact_mut(self.columns.len()).enumerate() {
            let scores = self.scores.matrix().row(self.first + row);
            // Values are fetched one by one, then compared in vectors.
            for (pairs, columns) in pairs.chunks_mut(FETCHED).zip(self.columns.chunks(FETCHED)) {
                let mut fetched = [[0.0; FETCHED]; GROUP_COLUMNS];
                let [a, b, c, d] = &mut fetched;
                for (i, four) in columns.iter().enumerate() {
                    // Padding scores less than any real column.
                    let mut score = [-1.0; GROUP_COLUMNS];
                    for (score, &c) in score.iter_mut().zip(four) {
                        if let Some(&real) = scores.get(c as usize) {
                            *score = real;
                        }
                    }
                    [a[i], b[i], c[i], d[i]] = score;
                }
                for ((((pair, &a), &b), &c), &d) in pairs.iter_mut().zip(&*a).zip(&*b).zip(&*c).zip(&*d) {
                    *pair = Pair::top_two([a, b, c, d]);
                }
            }
        }
    }
}

/// Groups whose values are compared together.
const FETCHED: usize = 64;

/// Runs a choice on vectors of at most 256 bits: blocks are a few vectors high, and summing up the lanes of longer ones
/// costs more than there is to gain (a prune with AVX-512 took a third longer).
fn dispatch<Op: pulp::WithSimd>(choice: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V3::try_new() {
        return pulp::Simd::vectorize(simd, choice);
    }
    pulp::Arch::new().dispatch(choice)
}

/// Adds rows to the sums of their columns.
#[inline(always)]
fn add_rows(sums: &mut [f32], rows: &[f32]) {
    for row in rows.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, score)| *sum += score);
    }
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
