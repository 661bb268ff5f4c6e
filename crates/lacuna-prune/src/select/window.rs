//! The selections that look at a whole window at a time: where they start, and what they may exchange.

use lacuna_core::{GROUP_COLUMNS, Grid, Scores};

use super::exchange::{Exchange, WindowScores};

/// A choice of the columns of all row blocks, compiled for the vector instructions that are dispatched to.
pub(super) struct Windows<'a> {
    pub(super) scores: &'a Scores,
    pub(super) grid: &'a Grid,
    /// where to start, `[row_blocks, G]`; without it the columns with the largest norms
    pub(super) start: Option<&'a [[u32; GROUP_COLUMNS]]>,
    /// whether columns that are not selected may come in
    pub(super) widen: bool,
    /// how often all slots are gone through at most
    pub(super) rounds: usize,
}

impl pulp::WithSimd for Windows<'_> {
    /// `[row_blocks, G]`
    type Output = Vec<[u32; GROUP_COLUMNS]>;

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        let (grid, matrix) = (self.grid, self.scores.matrix());
        let (mut window_scores, mut exchange) = (WindowScores::default(), Exchange::default());
        let mut columns = Vec::with_capacity(grid.row_blocks() * grid.groups());
        for block in 0..grid.row_blocks() {
            let rows = grid.block_rows(block);
            let first = columns.len();
            for window in 0..grid.windows() {
                let (cols, groups) = (grid.window_cols(window), grid.window_groups(window));
                window_scores.load(&matrix.data()[rows.start * grid.cols()..], grid.cols(), rows.len(), cols.clone());
                let mut chosen = match self.start {
                    Some(start) => {
                        let groups = &start[block * grid.groups()..][groups];
                        groups.iter().map(|four| four.map(|c| c - cols.start as u32)).collect()
                    }
                    None => largest(&window_scores, groups.len()),
                };
                let mut free = vec![true; cols.len()];
                for &c in chosen.as_flattened() {
                    free.get_mut(c as usize).into_iter().for_each(|free| *free = false);
                }
                let mut unselected: Vec<u32> = (0..cols.len() as u32).filter(|&c| free[c as usize]).collect();
                if self.start.is_none() {
                    // Groups that suit these columns are a better place to look for other columns from.
                    exchange.run(&window_scores, &mut chosen, &mut [], self.rounds);
                }
                if self.widen {
                    exchange.run(&window_scores, &mut chosen, &mut unselected, self.rounds);
                }
                columns.extend(chosen.into_iter().map(|four| four.map(|c| c + cols.start as u32)));
            }
            grid.arrange(&mut columns[first..]);
        }
        columns
    }
}

/// The columns with the largest norms, the largest of all in the first slots of the groups and so on; padding in the last
/// slots of the last group.
fn largest(scores: &WindowScores, groups: usize) -> Vec<[u32; GROUP_COLUMNS]> {
    let norms = scores.norms();
    let mut order: Vec<u32> = (0..scores.width as u32).collect();
    order.sort_by(|&a, &b| norms[b as usize].total_cmp(&norms[a as usize]));
    let padding = (groups * GROUP_COLUMNS).saturating_sub(scores.width);
    let mut columns = order.into_iter();
    let mut chosen = vec![[0; GROUP_COLUMNS]; groups];
    for slot in 0..GROUP_COLUMNS {
        let real = if slot + padding < GROUP_COLUMNS { groups } else { groups - 1 };
        for four in &mut chosen[..real] {
            four[slot] = columns.next().expect("a column for each slot that is not padding");
        }
        if let Some(last) = chosen.get_mut(real) {
            last[slot] = (scores.width + slot + padding - GROUP_COLUMNS) as u32;
        }
    }
    chosen
}
