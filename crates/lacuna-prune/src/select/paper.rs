//! The paper's selection (arXiv 2410.16135, section 3): of each block drop the column with the least L1 norm of scores
//! until 4 are left. Norms do not change while columns go, so this keeps the 4 largest.

use lacuna_core::GROUP_COLUMNS;

use super::Block;

/// Columns of the block, ascending.
pub(super) fn choose(block: &Block) -> [usize; GROUP_COLUMNS] {
    let norms: Vec<f64> = (0..block.columns()).map(|c| block.column(c).iter().map(|&s| f64::from(s)).sum()).collect();
    let mut order: Vec<usize> = (0..block.columns()).collect();
    order.sort_by(|&a, &b| norms[b].total_cmp(&norms[a]));
    let mut kept = [order[0], order[1], order[2], order[3]];
    kept.sort_unstable();
    kept
}
