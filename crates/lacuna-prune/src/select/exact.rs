//! The exact selection: the 4 columns of a block whose best two of each row have the largest sum.
//!
//! For a set `S` of columns let `f(S)` be the sum over rows of the two largest scores among `S`. With `a ≥ b` the two
//! largest of a row so far, a column with score `x` gains `max(0, x − b)` there, and adding columns only raises `a` and
//! `b`: gains shrink as `S` grows (`f` is submodular). So from `S` with `n` columns to go, no completion exceeds `f(S)`
//! plus the `n` largest gains. Branch and bound over this bound finds the optimum for every M, in time close to that of
//! a greedy choice where the scores are uneven; with all scores alike it visits up to C(M, 4) sets.

use lacuna_core::GROUP_COLUMNS;

use super::{Block, paper};

/// A bound must exceed the best by more than this share to be followed: sums of f32 are no more exact than that.
const SLACK: f64 = 1.0 + 1e-7;

/// Branch and bound over the columns of a block; keeps its buffers from block to block.
#[derive(Default)]
pub(super) struct Search {
    levels: [Level; GROUP_COLUMNS],
    chosen: [usize; GROUP_COLUMNS],
    best: [usize; GROUP_COLUMNS],
    best_sum: f64,
}

/// The state with some columns chosen.
#[derive(Default)]
struct Level {
    /// largest score of each row among the chosen columns
    first: Vec<f32>,
    /// second largest
    second: Vec<f32>,
    /// gain and number of each column that may still come, best first
    gains: Vec<(f64, usize)>,
}

impl Search {
    /// Columns of the block, ascending; of equally good sets the first found, the paper's before all others.
    pub(super) fn choose(&mut self, block: &Block) -> [usize; GROUP_COLUMNS] {
        self.best = paper::choose(block);
        if block.columns() == GROUP_COLUMNS {
            return self.best;
        }
        for level in &mut self.levels {
            level.first.resize(block.height, 0.0);
            level.second.resize(block.height, 0.0);
        }
        self.levels[0].first.fill(0.0);
        self.levels[0].second.fill(0.0);
        self.best_sum = self.sum_of(block, self.best);
        self.levels[0].gains.clear();
        self.levels[0].gains.extend((0..block.columns()).map(|c| (0.0, c)));
        self.descend(block, 0, 0.0);
        self.best.sort_unstable();
        self.best
    }

    /// `f` of 4 columns; leaves level 0 as it is.
    fn sum_of(&mut self, block: &Block, columns: [usize; GROUP_COLUMNS]) -> f64 {
        let mut sum = 0.0;
        for (depth, &c) in columns.iter().enumerate() {
            sum += gain(block.column(c), &self.levels[depth].second);
            if depth + 1 < GROUP_COLUMNS {
                self.choose_column(block, depth, c);
            }
        }
        sum
    }

    /// Fills the level below `depth` with the two largest scores after column `c` joined.
    fn choose_column(&mut self, block: &Block, depth: usize, c: usize) {
        let (upper, lower) = self.levels.split_at_mut(depth + 1);
        let (from, to) = (&upper[depth], &mut lower[0]);
        let largest = to.first.iter_mut().zip(&mut to.second).zip(from.first.iter().zip(&from.second));
        for (((first, second), (&a, &b)), &x) in largest.zip(block.column(c)) {
            *first = if a > x { a } else { x };
            let smaller = if a > x { x } else { a };
            *second = if b > smaller { b } else { smaller };
        }
    }

    /// Tries all completions of the columns chosen above `depth`, whose sum is `sum`, by the columns listed in its level.
    fn descend(&mut self, block: &Block, depth: usize, sum: f64) {
        let left = GROUP_COLUMNS - depth;
        let mut gains = std::mem::take(&mut self.levels[depth].gains);
        // With one column chosen the second largest of each row is still 0, and all gains are what they were before.
        if depth != 1 {
            for (value, column) in &mut gains {
                *value = gain(block.column(*column), &self.levels[depth].second);
            }
        }
        if left == 1 {
            let best = gains.iter().copied().reduce(|best, next| if next.0 > best.0 { next } else { best });
            if let Some((gain, column)) = best.filter(|&(gain, _)| sum + gain > self.best_sum * SLACK) {
                self.chosen[depth] = column;
                self.best_sum = sum + gain;
                self.best = self.chosen;
            }
        } else {
            self.branch(block, depth, sum, &mut gains);
        }
        self.levels[depth].gains = gains;
    }

    /// Chooses one column after the other at `depth`, best first, while the bound leaves hope.
    fn branch(&mut self, block: &Block, depth: usize, sum: f64, gains: &mut [(f64, usize)]) {
        let left = GROUP_COLUMNS - depth;
        gains.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for i in 0..=gains.len() - left {
            // Sets with an earlier column were tried; of the rest none gains more than the next `left` gains together.
            let bound: f64 = gains[i..i + left].iter().map(|&(gain, _)| gain).sum();
            if sum + bound <= self.best_sum * SLACK {
                return;
            }
            let (gain, column) = gains[i];
            self.chosen[depth] = column;
            self.choose_column(block, depth, column);
            let below = &mut self.levels[depth + 1].gains;
            below.clear();
            below.extend_from_slice(&gains[i + 1..]);
            self.descend(block, depth + 1, sum + gain);
        }
    }
}

/// How much `f` grows by a column, where `second` holds the second largest scores. Eight sums, so that the compiler can
/// use vectors.
#[inline(always)]
fn gain(column: &[f32], second: &[f32]) -> f64 {
    let more = |x: f32, b: f32| if x > b { x - b } else { 0.0 };
    let (columns, tail) = column.as_chunks::<8>();
    let (seconds, second_tail) = second.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for (scores, seconds) in columns.iter().zip(seconds) {
        for lane in 0..8 {
            sums[lane] += more(scores[lane], seconds[lane]);
        }
    }
    let tail: f32 = tail.iter().zip(second_tail).map(|(&x, &b)| more(x, b)).sum();
    f64::from(sums.iter().sum::<f32>() + tail)
}
