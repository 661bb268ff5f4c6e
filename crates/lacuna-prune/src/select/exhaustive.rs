//! The exact selection of blocks 8 columns wide: the sums of all 70 sets of 4.
//!
//! No bound cuts off much where so few columns are left to choose from, and rows in the lanes of vectors need no branches.
//! They add in another order than [`super::exact`], so this answers only where the best set is best by more than rounding
//! can account for. There both find the same one; the rest is left to the search, and the mask does not depend on which
//! of the two came to look.

use lacuna_core::GROUP_COLUMNS;
use pulp::Simd;

use super::exact;
use super::grouped::Block;

/// Columns of a block.
pub(super) const WIDTH: usize = 8;
/// Sets of 3 of the first 7 columns, and of 4 of all 8.
const TRIPLES: usize = 35;
const SETS: usize = 70;

/// Vectors of rows at a time: fewer reads and writes of sums.
const VECTORS: usize = 2;

/// The columns of a block [`WIDTH`] columns wide, ascending; `None` where another set may be as good.
#[inline(always)]
pub(super) fn choose<S: Simd>(simd: S, block: &Block) -> Option<[usize; GROUP_COLUMNS]> {
    let zero = simd.splat_f32s(0.0);
    let mut columns: [&[S::f32s]; WIDTH] = [&[]; WIDTH];
    for (c, column) in columns.iter_mut().enumerate() {
        *column = S::as_simd_f32s(block.column(c)).0;
    }
    // The best two of four are the largest of three, and the larger of their second largest and the fourth.
    let mut firsts = [zero; TRIPLES];
    let mut seconds = [zero; SETS];
    for top in (0..columns[0].len()).step_by(VECTORS) {
        let mut x = [[zero; VECTORS]; WIDTH];
        for (x, column) in x.iter_mut().zip(columns) {
            for (x, &rows) in x.iter_mut().zip(&column[top..]) {
                *x = rows;
            }
        }
        let (mut triple, mut set) = (0, 0);
        for i in 0..WIDTH - 3 {
            for j in i + 1..WIDTH - 2 {
                let (first, second) = (max(simd, x[i], x[j]), min(simd, x[i], x[j]));
                for k in j + 1..WIDTH - 1 {
                    firsts[triple] = add_rows(simd, firsts[triple], max(simd, first, x[k]));
                    let second = max(simd, second, min(simd, first, x[k]));
                    triple += 1;
                    for &fourth in &x[k + 1..] {
                        seconds[set] = add_rows(simd, seconds[set], max(simd, second, fourth));
                        set += 1;
                    }
                }
            }
        }
    }
    best(simd, &firsts, &seconds, block.height)
}

/// The set with the largest sum.
#[inline(always)]
fn best<S: Simd>(
    simd: S,
    firsts: &[S::f32s; TRIPLES],
    seconds: &[S::f32s; SETS],
    height: usize,
) -> Option<[usize; GROUP_COLUMNS]> {
    let mut best = [0; GROUP_COLUMNS];
    let (mut most, mut next) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    let (mut triple, mut set) = (0, 0);
    for i in 0..WIDTH - 3 {
        for j in i + 1..WIDTH - 2 {
            for k in j + 1..WIDTH - 1 {
                for l in k + 1..WIDTH {
                    let sum = simd.reduce_sum_f32s(simd.add_f32s(firsts[triple], seconds[set]));
                    if sum > most {
                        (next, most, best) = (most, sum, [i, j, k, l]);
                    } else if sum > next {
                        next = sum;
                    }
                    set += 1;
                }
                triple += 1;
            }
        }
    }
    // Each of the two ways of adding is off by half an ulp a row at most, for each of the two sets.
    let doubt = (exact::SLACK - 1.0) + 2.0 * (height + 16) as f32 * f32::EPSILON;
    (most - next > most * doubt).then_some(best)
}

#[inline(always)]
fn max<S: Simd>(simd: S, mut a: [S::f32s; VECTORS], b: [S::f32s; VECTORS]) -> [S::f32s; VECTORS] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = simd.max_f32s(*a, b);
    }
    a
}

#[inline(always)]
fn min<S: Simd>(simd: S, mut a: [S::f32s; VECTORS], b: [S::f32s; VECTORS]) -> [S::f32s; VECTORS] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = simd.min_f32s(*a, b);
    }
    a
}

#[inline(always)]
fn add_rows<S: Simd>(simd: S, sum: S::f32s, [a, b]: [S::f32s; VECTORS]) -> S::f32s {
    simd.add_f32s(sum, simd.add_f32s(a, b))
}
