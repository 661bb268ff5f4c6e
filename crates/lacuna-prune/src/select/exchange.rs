//! Exchange of columns between groups: one slot of every group of a window at a time.
//!
//! Take the column out of slot `j` of every group. With the second largest score `b` of a row among the group's other
//! three, a column with scores `x` adds `Σ_rows max(b, x)` to what the group keeps, whatever the other groups take: who
//! gets which of the vacated and the unselected columns is a rectangular assignment, solved exactly. No step makes the
//! mask worse, since each group may have its column back.
//!
//! Columns in lanes: all sums run down the rows in order, whatever vectors a CPU has.

use lacuna_core::GROUP_COLUMNS;

use super::lsap::{Solver, VECTOR};
use super::{max, min};

/// Groups whose benefits are summed together.
const TILE: usize = 4;
/// A round that gains less than this share of what is kept was the last.
const STALLED: f64 = 1e-4;

/// The scores of one window of one row block, `[height, width]`, copied together: rows of a layer may lie so far apart
/// that they push each other out of the cache.
#[derive(Default)]
pub(super) struct WindowScores {
    pub(super) width: usize,
    pub(super) height: usize,
    data: Vec<f32>,
}

impl WindowScores {
    /// Some columns of `height` rows; the first row begins at the start of `scores`.
    pub(super) fn load(&mut self, scores: &[f32], stride: usize, height: usize, cols: std::ops::Range<usize>) {
        (self.width, self.height) = (cols.len(), height);
        self.data.clear();
        for row in scores.chunks(stride).take(height) {
            self.data.extend_from_slice(&row[cols.clone()]);
        }
    }

    /// Sum of each column.
    pub(super) fn norms(&self) -> Vec<f32> {
        let mut norms = vec![0.0; self.width];
        super::add_rows(&mut norms, &self.data);
        norms
    }
}

/// Scores of some columns, a panel of [`VECTOR`] of them after the other, `[panels, height, VECTOR]`; those that fill up
/// the last panel are 0.
#[derive(Default)]
struct Panels(Vec<[f32; VECTOR]>);

impl Panels {
    #[inline(always)]
    fn gather(&mut self, scores: &WindowScores, columns: &[u32]) {
        self.0.clear();
        for columns in columns.chunks(VECTOR) {
            for row in scores.data.chunks_exact(scores.width) {
                let mut panel = [0.0; VECTOR];
                for (x, &c) in panel.iter_mut().zip(columns) {
                    // Padding is worth nothing.
                    *x = row.get(c as usize).copied().unwrap_or(0.0);
                }
                self.0.push(panel);
            }
        }
    }
}

/// Buffers of the exchange, kept from window to window.
#[derive(Default)]
pub(super) struct Exchange {
    /// scores of the columns in each slot
    slots: [Panels; GROUP_COLUMNS],
    /// second largest of the three slots that stay
    seconds: Panels,
    /// candidates and their scores
    pool: Vec<u32>,
    candidates: Panels,
    /// `[groups, candidates]`
    benefit: Vec<f32>,
    chosen: Vec<u32>,
    solver: Solver,
}

impl Exchange {
    /// Exchanges the columns of the groups of a window, and those with `unselected`, for some rounds over all slots. Columns
    /// are counted from the start of the window; of a group with padding columns, `width` or more, they are the last.
    #[inline(always)]
    pub(super) fn run(
        &mut self,
        scores: &WindowScores,
        groups: &mut [[u32; GROUP_COLUMNS]],
        unselected: &mut [u32],
        rounds: usize,
    ) {
        for (slot, panels) in self.slots.iter_mut().enumerate() {
            self.pool.clear();
            self.pool.extend(groups.iter().map(|four| four[slot]));
            panels.gather(scores, &self.pool);
        }
        for _ in 0..rounds {
            let (mut gain, mut kept) = (0.0, 0.0);
            for slot in 0..GROUP_COLUMNS {
                let (gained, sum) = self.step(scores, groups, unselected, slot);
                gain += gained;
                kept += sum;
            }
            if gain <= kept * STALLED {
                break;
            }
        }
    }

    /// Assigns columns to one slot of every group. What that gained, and the sum of the benefits.
    #[inline(always)]
    fn step(
        &mut self,
        scores: &WindowScores,
        groups: &mut [[u32; GROUP_COLUMNS]],
        unselected: &mut [u32],
        slot: usize,
    ) -> (f64, f64) {
        // A slot of padding stays as it is.
        let count = groups.iter().take_while(|four| (four[slot] as usize) < scores.width).count();
        self.pool.clear();
        self.pool.extend(groups[..count].iter().map(|four| four[slot]));
        self.pool.extend_from_slice(unselected);
        if self.pool.len() < 2 {
            return (0.0, 0.0);
        }
        self.candidates.gather(scores, &self.pool);
        self.take_out(slot);
        self.sum_benefits(scores.height, count);
        let stride = self.pool.len().next_multiple_of(VECTOR);
        self.chosen.resize(count, 0);
        self.solver.solve(&self.benefit, stride, &mut self.chosen);
        let (mut before, mut after) = (0.0, 0.0);
        for (group, &chosen) in self.chosen.iter().enumerate() {
            before += f64::from(self.benefit[group * stride + group]);
            after += f64::from(self.benefit[group * stride + chosen as usize]);
        }
        // Rounding may prefer what is worth less by a hair.
        if after <= before {
            return (0.0, before);
        }
        for (four, &chosen) in groups.iter_mut().zip(&self.chosen) {
            four[slot] = std::mem::replace(&mut self.pool[chosen as usize], u32::MAX);
        }
        let left = self.pool.iter().filter(|&&c| c != u32::MAX);
        unselected.iter_mut().zip(left).for_each(|(place, &c)| *place = c);
        self.pool.clear();
        self.pool.extend(groups.iter().map(|four| four[slot]));
        self.slots[slot].gather(scores, &self.pool);
        (after - before, after)
    }

    /// The second largest scores of the slots other than one.
    #[inline(always)]
    fn take_out(&mut self, slot: usize) {
        let [x, y, z] = [1, 2, 3].map(|i| &self.slots[(slot + i) % GROUP_COLUMNS].0);
        self.seconds.0.clear();
        for ((x, y), z) in x.iter().zip(y).zip(z) {
            let mut second = [0.0; VECTOR];
            for lane in 0..VECTOR {
                let (low, high) = (min(x[lane], y[lane]), max(x[lane], y[lane]));
                second[lane] = max(low, min(high, z[lane]));
            }
            self.seconds.0.push(second);
        }
    }

    /// `Σ_rows max(b, x)` of `count` groups and all candidates.
    #[inline(always)]
    fn sum_benefits(&mut self, height: usize, count: usize) {
        let stride = self.pool.len().next_multiple_of(VECTOR);
        self.benefit.clear();
        self.benefit.resize(count.next_multiple_of(VECTOR) * stride, 0.0);
        for (i, seconds) in self.seconds.0.chunks_exact(height).enumerate().take(count.div_ceil(VECTOR)) {
            for first in (0..VECTOR).step_by(TILE) {
                for (panel, candidates) in self.candidates.0.chunks_exact(height).enumerate() {
                    let mut sums = [[0.0_f32; VECTOR]; TILE];
                    for (b, x) in seconds.iter().zip(candidates) {
                        for (g, sums) in sums.iter_mut().enumerate() {
                            for (sum, &x) in sums.iter_mut().zip(x) {
                                *sum += max(b[first + g], x);
                            }
                        }
                    }
                    for (g, sums) in sums.iter().enumerate() {
                        let at = (i * VECTOR + first + g) * stride + panel * VECTOR;
                        self.benefit[at..at + VECTOR].copy_from_slice(sums);
                    }
                }
            }
        }
        for benefits in self.benefit.chunks_exact_mut(stride) {
            benefits[self.pool.len()..].fill(f32::NEG_INFINITY);
        }
    }
}

// Whole numbers add up exactly.
#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What some groups keep.
    fn kept(scores: &[Vec<f32>], groups: &[[u32; GROUP_COLUMNS]]) -> f32 {
        let best_two = |row: &Vec<f32>, four: &[u32; GROUP_COLUMNS]| {
            let mut four = four.map(|c| row.get(c as usize).copied().unwrap_or(0.0));
            four.sort_by(f32::total_cmp);
            four[2] + four[3]
        };
        scores.iter().map(|row| groups.iter().map(|four| best_two(row, four)).sum::<f32>()).sum()
    }

    /// The most that groups can keep whose slot takes any of the columns, from one group on.
    fn best(scores: &[Vec<f32>], groups: &mut [[u32; GROUP_COLUMNS]], slot: usize, free: &[u32], from: usize) -> f32 {
        if from == groups.len() || groups[from][slot] as usize >= scores[0].len() {
            return kept(scores, groups);
        }
        let old = groups[from][slot];
        let mut most = f32::NEG_INFINITY;
        for (i, &column) in free.iter().enumerate() {
            groups[from][slot] = column;
            let rest: Vec<u32> = free.iter().enumerate().filter(|&(other, _)| other != i).map(|(_, &c)| c).collect();
            most = most.max(best(scores, groups, slot, &rest, from + 1));
        }
        groups[from][slot] = old;
        most
    }

    proptest! {
        #[test]
        fn no_exchange_of_a_slot_is_better(
            (groups, width) in (1_usize..4).prop_flat_map(|groups| (Just(groups), 4 * groups - 3..4 * groups + 5)),
            values in prop::collection::vec(prop::collection::vec(0_u8..40, 16), 1..6),
            slot in 0_usize..GROUP_COLUMNS,
        ) {
            let scores: Vec<Vec<f32>> =
                values.iter().map(|row| row[..width].iter().map(|&v| f32::from(v)).collect()).collect();
            let mut window = WindowScores::default();
            window.load(&scores.concat(), width, scores.len(), 0..width);
            // Ascending columns, so that those of padding are the last of the last group.
            let listed: Vec<u32> = (0..4 * groups as u32).collect();
            let mut groups = listed.as_chunks::<GROUP_COLUMNS>().0.to_vec();
            let mut unselected: Vec<u32> = (listed.len().min(width)..width).map(|c| c as u32).collect();
            let vacated = groups.iter().map(|four| four[slot]).filter(|&c| (c as usize) < width);
            let free: Vec<u32> = vacated.chain(unselected.iter().copied()).collect();
            let want = best(&scores, &mut groups.clone(), slot, &free, 0);
            let before = kept(&scores, &groups);
            let mut exchange = Exchange::default();
            for (slot, panels) in exchange.slots.iter_mut().enumerate() {
                panels.gather(&window, &groups.iter().map(|four| four[slot]).collect::<Vec<_>>());
            }
            let (gain, _) = exchange.step(&window, &mut groups, &mut unselected, slot);
            // Whole numbers add up exactly.
            prop_assert_eq!(kept(&scores, &groups), want);
            prop_assert_eq!(gain, f64::from(want - before));
            let mut all: Vec<u32> = groups.concat().into_iter().chain(unselected).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..width.max(listed.len()) as u32).collect::<Vec<_>>());
        }
    }
}
