//! The exact selection of blocks 8 columns wide: the sums of all 70 sets of 4, for 8 blocks side by side.
//!
//! No bound cuts off much where so few columns are left to choose from, and sums of 8 blocks in the lanes of a vector
//! need neither branches nor a sum across lanes. They add in another order than [`super::exact`], so this answers only
//! where the best set is best by more than rounding can account for. There both find the same one; the rest is left to
//! the search, and the mask does not depend on which of the two came to look.

use lacuna_core::GROUP_COLUMNS;

use super::exact;
use super::grouped::{TILE, transposed};

/// Columns of a block.
const WIDTH: usize = TILE;
/// Sets of 3 of the first 7 columns, and of 4 of all 8.
const TRIPLES: usize = 35;
const SETS: usize = 70;

/// Rows at a time: fewer reads and writes of sums.
const ROWS: usize = 4;

/// A value of each block.
type Lanes = [f32; TILE];

/// The columns of [`TILE`] blocks side by side, ascending; `None` where another set may be as good. Row `r` of them is
/// `scores[r * stride..]`.
#[inline(always)]
pub(super) fn choose(scores: &[f32], stride: usize, height: usize) -> [Option<[usize; GROUP_COLUMNS]>; TILE] {
    // The best two of four are the largest of three, and the larger of their second largest and the fourth.
    let mut firsts = [[0.0; TILE]; TRIPLES];
    let mut seconds = [[0.0; TILE]; SETS];
    for top in (0..height).step_by(ROWS) {
        // A row of zeros adds nothing.
        let mut x = [[[0.0; TILE]; ROWS]; WIDTH];
        for r in 0..ROWS.min(height - top) {
            let row = columns(&scores[(top + r) * stride..]);
            for c in 0..WIDTH {
                x[c][r] = row[c];
            }
        }
        let (mut triple, mut set) = (0, 0);
        for i in 0..WIDTH - 3 {
            for j in i + 1..WIDTH - 2 {
                let (first, second) = (max(x[i], x[j]), min(x[i], x[j]));
                for k in j + 1..WIDTH - 1 {
                    add_rows(&mut firsts[triple], max(first, x[k]));
                    let second = max(second, min(first, x[k]));
                    triple += 1;
                    for &fourth in &x[k + 1..] {
                        add_rows(&mut seconds[set], max(second, fourth));
                        set += 1;
                    }
                }
            }
        }
    }
    best(&firsts, &seconds, height)
}

/// The set with the largest sum in each lane.
#[inline(always)]
fn best(firsts: &[Lanes; TRIPLES], seconds: &[Lanes; SETS], height: usize) -> [Option<[usize; GROUP_COLUMNS]>; TILE] {
    let (mut sets, mut which) = ([[0; GROUP_COLUMNS]; SETS], [0_u32; TILE]);
    let (mut most, mut next) = ([f32::NEG_INFINITY; TILE], [f32::NEG_INFINITY; TILE]);
    let (mut triple, mut set) = (0, 0);
    for i in 0..WIDTH - 3 {
        for j in i + 1..WIDTH - 2 {
            for k in j + 1..WIDTH - 1 {
                for l in k + 1..WIDTH {
                    for lane in 0..TILE {
                        let sum = firsts[triple][lane] + seconds[set][lane];
                        next[lane] = if sum > most[lane] { most[lane] } else { f32::max(sum, next[lane]) };
                        which[lane] = if sum > most[lane] { set as u32 } else { which[lane] };
                        most[lane] = if sum > most[lane] { sum } else { most[lane] };
                    }
                    sets[set] = [i, j, k, l];
                    set += 1;
                }
                triple += 1;
            }
        }
    }
    // Each of the two ways of adding is off by half an ulp a row at most, for each of the two sets.
    let doubt = (exact::SLACK - 1.0) + 2.0 * (height + 16) as f32 * f32::EPSILON;
    let mut answers = [None; TILE];
    for lane in 0..TILE {
        answers[lane] = (most[lane] - next[lane] > most[lane] * doubt).then_some(sets[which[lane] as usize]);
    }
    answers
}

/// The columns of one row of all blocks.
#[inline(always)]
fn columns(row: &[f32]) -> [Lanes; WIDTH] {
    let mut blocks = [[0.0; WIDTH]; TILE];
    for (block, source) in blocks.iter_mut().zip(row[..WIDTH * TILE].as_chunks().0) {
        *block = *source;
    }
    transposed(blocks)
}

#[inline(always)]
fn max<const N: usize>(mut a: [Lanes; N], b: [Lanes; N]) -> [Lanes; N] {
    for (a, b) in a.as_flattened_mut().iter_mut().zip(b.as_flattened()) {
        *a = if *a > *b { *a } else { *b };
    }
    a
}

#[inline(always)]
fn min<const N: usize>(mut a: [Lanes; N], b: [Lanes; N]) -> [Lanes; N] {
    for (a, b) in a.as_flattened_mut().iter_mut().zip(b.as_flattened()) {
        *a = if *a < *b { *a } else { *b };
    }
    a
}

#[inline(always)]
fn add_rows(sum: &mut Lanes, rows: [Lanes; ROWS]) {
    for (lane, sum) in sum.iter_mut().enumerate() {
        *sum += (rows[0][lane] + rows[1][lane]) + (rows[2][lane] + rows[3][lane]);
    }
}
