//! The exact selection: the 4 columns of a block whose best two of each row have the largest sum.
//!
//! For a set `S` of columns let `f(S)` be the sum over rows of the two largest scores among `S`. With `a ≥ b` the two
//! largest of a row so far, a column with score `x` gains `max(0, x − b)` there, and adding columns only raises `a` and
//! `b`: gains shrink as `S` grows (`f` is submodular). So from `S` with `n` columns to go, no completion exceeds `f(S)`
//! plus the `n` largest gains. Branch and bound over this bound finds the optimum for every M, in time close to that of
//! a greedy choice where the scores are uneven; with all scores alike it visits up to C(M, 4) sets.

use lacuna_core::GROUP_COLUMNS;

use super::{Block, paper};

/// Columns of the block, ascending; of equally good sets the first found, which starts from the paper's.
pub(super) fn choose(block: &Block) -> [usize; GROUP_COLUMNS] {
    let start = paper::choose(block);
    let mut search = Search { block, best: start, best_sum: 0.0 };
    let mut top = Top::empty(block.height);
    for c in start {
        search.best_sum += top.gain(block.column(c));
        top = top.with(block.column(c));
    }
    let candidates: Vec<usize> = (0..block.columns()).collect();
    search.descend(&Top::empty(block.height), 0.0, &mut vec![], &candidates);
    search.best.sort_unstable();
    search.best
}

/// The largest and second largest score of each row among the columns chosen so far.
struct Top {
    first: Vec<f32>,
    second: Vec<f32>,
}

impl Top {
    fn empty(height: usize) -> Self {
        Self { first: vec![0.0; height], second: vec![0.0; height] }
    }

    /// How much `f` grows by this column. Eight sums, so that the compiler can use vectors.
    fn gain(&self, column: &[f32]) -> f64 {
        let mut sums = [0.0_f32; 8];
        for (scores, seconds) in column.chunks(8).zip(self.second.chunks(8)) {
            for ((sum, &x), &b) in sums.iter_mut().zip(scores).zip(seconds) {
                *sum += (x - b).max(0.0);
            }
        }
        sums.iter().map(|&s| f64::from(s)).sum()
    }

    fn with(&self, column: &[f32]) -> Self {
        let largest = |(&a, &x): (&f32, &f32)| a.max(x);
        let middle = |((&a, &b), &x): ((&f32, &f32), &f32)| b.max(a.min(x));
        Self {
            first: self.first.iter().zip(column).map(largest).collect(),
            second: self.first.iter().zip(&self.second).zip(column).map(middle).collect(),
        }
    }
}

struct Search<'a> {
    block: &'a Block,
    best: [usize; GROUP_COLUMNS],
    best_sum: f64,
}

impl Search<'_> {
    /// Tries all completions of `chosen`, whose rows have `top` and whose sum is `sum`, by columns of `candidates`.
    fn descend(&mut self, top: &Top, sum: f64, chosen: &mut Vec<usize>, candidates: &[usize]) {
        let left = GROUP_COLUMNS - chosen.len();
        let mut gains: Vec<(f64, usize)> =
            candidates.iter().map(|&c| (top.gain(self.block.column(c)), c)).collect();
        gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let order: Vec<usize> = gains.iter().map(|&(_, c)| c).collect();
        for i in 0..gains.len() {
            // Sets with an earlier column were tried; of the rest none gains more than the next `left` gains together.
            let bound: f64 = gains[i..].iter().take(left).map(|&(gain, _)| gain).sum();
            if gains.len() - i < left || sum + bound <= self.best_sum * (1.0 + 1e-7) {
                return;
            }
            let (gain, column) = gains[i];
            chosen.push(column);
            if left == 1 {
                self.best_sum = sum + gain;
                self.best.copy_from_slice(chosen);
            } else {
                self.descend(&top.with(self.block.column(column)), sum + gain, chosen, &order[i + 1..]);
            }
            chosen.pop();
        }
    }
}
