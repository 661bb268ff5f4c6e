//! The exact selection: the 4 columns of a block whose best two of each row have the largest sum.
//!
//! For a set `S` of columns let `f(S)` be the sum over rows of the two largest scores among `S`. With `a ≥ b` the two
//! largest of a row so far, a column with score `x` gains `max(0, x − b)` there, and adding columns only raises `a` and
//! `b`: gains shrink as `S` grows (`f` is submodular). So from `S` with `n` columns to go, no completion exceeds `f(S)`
//! plus the `n` largest gains. Branch and bound over this bound finds the optimum for every M, in time close to that of
//! a greedy choice where the scores are uneven; with all scores alike it visits up to C(M, 4) sets.
//!
//! Everything is inlined into one function, compiled for the vector instructions `S` that are dispatched to; hence plain
//! loops around `gain`: a closure would be compiled without them.

use lacuna_core::{GROUP_COLUMNS, Mask, Pattern, Result, Scores};
use pulp::Simd;

use super::grouped::{self, Block};
use super::{Select, of_columns};

/// The 4 columns of each block whose kept scores have the largest sum.
pub struct Exact;

impl Select for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn select(&self, scores: &Scores, pattern: Pattern) -> Result<Mask> {
        grouped::check(self.name(), pattern)?;
        let grid = pattern.grid(scores.matrix().rows(), scores.matrix().cols())?;
        of_columns(scores, grid, grouped::exact_columns(scores, &grid))
    }
}

/// A bound must exceed the best by more than this share to be followed: sums of f32 are no more exact than that.
pub(super) const SLACK: f32 = 1.0 + 1e-6;

/// Buffers of the search, kept from block to block.
#[derive(Default)]
pub(super) struct Search {
    /// columns by falling sum
    order: Vec<(f32, usize)>,
    /// gains of the columns that may join a pair
    gains: Vec<(f32, usize)>,
    /// of each row: largest and second largest score of a pair of columns, second largest of three
    first: Vec<f32>,
    second: Vec<f32>,
    second_of_three: Vec<f32>,
}

impl Search {
    /// Columns of the block, ascending; of equally good sets the first found.
    #[inline(always)]
    pub(super) fn choose<S: Simd>(&mut self, simd: S, block: &Block) -> [usize; GROUP_COLUMNS] {
        let Self { order, gains, first, second, second_of_three } = self;
        for buffer in [&mut *first, second, second_of_three] {
            buffer.clear();
            buffer.resize(block.stride, 0.0);
        }
        // The stride is a whole number of vectors: nothing is left over behind them.
        let column = |c: usize| S::as_simd_f32s(block.column(c)).0;
        let (first, second) = (S::as_mut_simd_f32s(first).0, S::as_mut_simd_f32s(second).0);
        let second_of_three = S::as_mut_simd_f32s(second_of_three).0;
        order.clear();
        // Nothing chosen: the gain of a column is its sum. It stays so with one column chosen.
        for c in 0..block.columns() {
            order.push((gain(simd, column(c), second), c));
        }
        order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut best = [order[0].1, order[1].1, order[2].1, order[3].1];
        let mut best_sum = f32::NEG_INFINITY;
        let n = order.len();
        for i in 0..n - 3 {
            if bound(&order[i..i + 4]) <= best_sum * SLACK {
                break;
            }
            for j in i + 1..n - 2 {
                if order[i].0 + bound(&order[j..j + 3]) <= best_sum * SLACK {
                    break;
                }
                let (one, two) = (column(order[i].1), column(order[j].1));
                let pair_sum = order[i].0 + order[j].0;
                for (((a, b), x), y) in first.iter_mut().zip(&mut *second).zip(one).zip(two) {
                    *a = simd.max_f32s(*x, *y);
                    *b = simd.min_f32s(*x, *y);
                }
                gains.clear();
                for &(_, c) in &order[j + 1..] {
                    gains.push((gain(simd, column(c), second), c));
                }
                if pair_sum + two_largest(gains) <= best_sum * SLACK {
                    continue;
                }
                gains.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                for (k, &(third_gain, third)) in gains[..gains.len() - 1].iter().enumerate() {
                    if pair_sum + third_gain + gains[k + 1].0 <= best_sum * SLACK {
                        break;
                    }
                    let scores = column(third);
                    for (((out, a), b), x) in second_of_three.iter_mut().zip(&*first).zip(&*second).zip(scores) {
                        *out = simd.max_f32s(*b, simd.min_f32s(*a, *x));
                    }
                    let three_sum = pair_sum + third_gain;
                    for &(most, fourth) in &gains[k + 1..] {
                        if three_sum + most <= best_sum * SLACK {
                            break;
                        }
                        let sum = three_sum + gain(simd, column(fourth), second_of_three);
                        if sum > best_sum * SLACK {
                            best_sum = sum;
                            best = [order[i].1, order[j].1, third, fourth];
                        }
                    }
                }
            }
        }
        best.sort_unstable();
        best
    }
}

#[inline(always)]
fn bound(gains: &[(f32, usize)]) -> f32 {
    gains.iter().map(|&(gain, _)| gain).sum()
}

#[inline(always)]
fn two_largest(gains: &[(f32, usize)]) -> f32 {
    let (mut first, mut second) = (0.0_f32, 0.0_f32);
    for &(gain, _) in gains {
        second = f32::max(second, f32::min(first, gain));
        first = f32::max(first, gain);
    }
    first + second
}

/// How much `f` grows by a column, where `second` holds the second largest scores.
#[inline(always)]
fn gain<S: Simd>(simd: S, column: &[S::f32s], second: &[S::f32s]) -> f32 {
    let zero = simd.splat_f32s(0.0);
    let mut sum = zero;
    for (&x, &b) in column.iter().zip(second) {
        sum = simd.add_f32s(sum, simd.max_f32s(simd.sub_f32s(x, b), zero));
    }
    simd.reduce_sum_f32s(sum)
}
