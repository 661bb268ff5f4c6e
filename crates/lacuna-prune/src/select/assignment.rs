//! The columns of all groups of a window together: slot by slot a rectangular assignment of the columns that are free to
//! the groups, until that gains no more. With a window of one group that is the exact selection.

use lacuna_core::{GROUP_COLUMNS, Mask, Pattern, Result, Scores};

use super::window::Windows;
use super::{Exact, Select, dispatch, of_columns, same_columns};

/// How often all slots are gone through at most.
const ROUNDS: usize = 3;

/// Any columns of the window, in the groups to which they add most.
pub struct Assignment;

impl Select for Assignment {
    fn name(&self) -> &'static str {
        "assignment"
    }

    fn select(&self, scores: &Scores, pattern: Pattern) -> Result<Mask> {
        if pattern.is_grouped() {
            return Exact.select(scores, pattern);
        }
        let grid = pattern.grid(scores.matrix().rows(), scores.matrix().cols())?;
        let windows = Windows { scores, grid: &grid, start: None, widen: true, rounds: ROUNDS };
        of_columns(scores, grid, dispatch(windows))
    }

    /// Starts from the columns of `mask` and goes through the slots once.
    fn improve(&self, scores: &Scores, mask: &Mask) -> Result<Mask> {
        let grid = *mask.grid();
        if grid.pattern().is_grouped() {
            return Exact.improve(scores, mask);
        }
        let start: &[[u32; GROUP_COLUMNS]] = mask.all_columns();
        let windows = Windows { scores, grid: &grid, start: Some(start), widen: true, rounds: 1 };
        let (kept, new) = (same_columns(scores, mask)?, of_columns(scores, grid, dispatch(windows))?);
        let better = new.kept_sum(scores.matrix())? > kept.kept_sum(scores.matrix())?;
        Ok(if better { new } else { kept })
    }
}
