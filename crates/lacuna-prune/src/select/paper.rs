//! The paper's selection (arXiv 2410.16135, section 3): of each block drop the column with the least L1 norm of scores
//! until 4 are left. Norms do not change while columns go, so this keeps the 4 largest; of equal ones the first.

use lacuna_core::{GROUP_COLUMNS, Mask, Pattern, Result, Scores};

use super::Select;
use super::grouped::{self, Block, By};

/// The 4 columns of each block with the largest L1 norm of scores.
pub struct Paper;

impl Select for Paper {
    fn name(&self) -> &'static str {
        "paper"
    }

    fn select(&self, scores: &Scores, pattern: Pattern) -> Result<Mask> {
        grouped::select(By::Norm, self.name(), scores, pattern)
    }
}

/// Columns of the block, ascending.
pub(super) fn choose(block: &Block) -> [usize; GROUP_COLUMNS] {
    let mut kept = [0, 1, 2, 3];
    let norm = |c: usize| lacuna_core::sum_of(block.column(c), |s| s);
    let mut norms = kept.map(norm);
    for c in GROUP_COLUMNS..block.columns() {
        // The least of those kept, of equal ones the last, makes room for a larger one; order stays ascending.
        let least = (0..GROUP_COLUMNS).rev().reduce(|a, b| if norms[b] < norms[a] { b } else { a }).unwrap_or(0);
        let own = norm(c);
        if own > norms[least] {
            kept[least..].rotate_left(1);
            norms[least..].rotate_left(1);
            kept[GROUP_COLUMNS - 1] = c;
            norms[GROUP_COLUMNS - 1] = own;
        }
    }
    kept
}
