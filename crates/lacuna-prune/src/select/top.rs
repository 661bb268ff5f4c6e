//! The columns with the largest L1 norm of scores in the whole window, then put in groups: slot by slot, the columns of a
//! slot are assigned to the groups to which they add most.

use lacuna_core::{Mask, Pattern, Result, Scores};

use super::window::Windows;
use super::{Select, dispatch, of_columns};

/// How often all slots are gone through at most.
const ROUNDS: usize = 3;

/// The columns with the largest norms of each window, in groups that suit them.
pub struct Top;

impl Select for Top {
    fn name(&self) -> &'static str {
        "top"
    }

    fn select(&self, scores: &Scores, pattern: Pattern) -> Result<Mask> {
        let grid = pattern.grid(scores.matrix().rows(), scores.matrix().cols())?;
        let windows = Windows { scores, grid: &grid, start: None, widen: false, rounds: ROUNDS };
        of_columns(scores, grid, dispatch(windows))
    }
}
