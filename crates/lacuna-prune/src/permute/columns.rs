//! What a column is worth in a group, under the paper's selection: exact.
//!
//! A group that lost one of its columns has others with L1 norms `n1 ≥ n2 ≥ n3 ≥ n4 ≥ …` in a row block. A column whose
//! norm exceeds `n4` joins the first three, and of these and itself each row keeps two: with `a ≥ b` the two largest of
//! the three and `x` its own score, `a + max(b, x)`. Any other column changes nothing: the first four are kept.

use lacuna_core::{GROUP_COLUMNS, Grid, Matrix, Pattern, Result, Scores};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::Moved;
use super::search::{Benefits, LANES};

/// Row blocks that are made ready at once.
const BLOCKS: usize = 8;
/// Channels whose benefits one thread computes at a time.
const CHANNELS: usize = 32;
/// Channels whose benefits fill registers together.
const TILE: usize = 4;

/// Adds what the columns of each set of places are worth at each of them, over all row blocks.
pub(super) fn column_benefits(
    moved: &Moved,
    scores: &Scores,
    pattern: Pattern,
    benefits: &mut [Benefits],
) -> Result<()> {
    let scores = scores.matrix();
    let grid = pattern.grid(scores.rows(), scores.cols())?;
    let blocks: Vec<usize> = (0..grid.row_blocks()).collect();
    for column_of in &moved.columns {
        for blocks in blocks.chunks(BLOCKS) {
            let norms: Vec<Vec<f32>> = blocks.par_iter().map(|&block| norms(scores, &grid, block)).collect();
            for benefits in &mut *benefits {
                let columns: Vec<usize> = benefits.places.iter().map(|&place| column_of[place]).collect();
                let ready = blocks.par_iter().zip(&norms);
                let ready = ready.map(|(&block, norms)| Ready::new(scores, &grid, block, norms, &columns));
                let ready: Vec<Ready> = ready.collect();
                let chunks = benefits.values.par_chunks_mut(CHANNELS * benefits.stride).enumerate();
                chunks.for_each(|(chunk, out)| {
                    for ready in &ready {
                        Arch::new().dispatch(Add { ready, first: chunk * CHANNELS, weight: moved.weight, out });
                    }
                });
            }
        }
    }
    Ok(())
}

/// The L1 norm of each column in a row block.
pub(super) fn norms(scores: &Matrix, grid: &Grid, block: usize) -> Vec<f32> {
    let mut norms = vec![0.0; scores.cols()];
    for row in grid.block_rows(block) {
        norms.iter_mut().zip(scores.row(row)).for_each(|(norm, score)| *norm += score);
    }
    norms
}

/// The columns with the largest norms, falling, of equal ones the first; as many as there are up to 4.
pub(super) fn largest(columns: impl Iterator<Item = usize>, norms: &[f32]) -> ([usize; GROUP_COLUMNS], usize) {
    let (mut best, mut count) = ([0; GROUP_COLUMNS], 0);
    for column in columns {
        let place = best[..count].iter().position(|&other| norms[column] > norms[other]).unwrap_or(count);
        if place < GROUP_COLUMNS {
            count = (count + 1).min(GROUP_COLUMNS);
            best[place..count].rotate_right(1);
            best[place] = column;
        }
    }
    (best, count)
}

/// What a row block makes of the groups of some columns without them; the columns themselves.
struct Ready {
    height: usize,
    /// `[height, places]`: `b`; places rounded up to whole vectors
    second: Vec<f32>,
    /// `[places]`: sum of `a`
    first_sum: Vec<f32>,
    /// `[places]`: the norm that a column must exceed
    threshold: Vec<f32>,
    /// `[places]`: what is kept if it does not
    without: Vec<f32>,
    /// `[channels, height]`
    scores: Vec<f32>,
    /// `[channels]`
    norms: Vec<f32>,
}

impl Ready {
    fn new(scores: &Matrix, grid: &Grid, block: usize, norms: &[f32], columns: &[usize]) -> Self {
        let (rows, stride) = (grid.block_rows(block), columns.len().next_multiple_of(LANES));
        let height = rows.len();
        let mut ready = Self {
            height,
            second: vec![0.0; height * stride],
            first_sum: vec![0.0; stride],
            threshold: vec![-1.0; stride],
            without: vec![0.0; stride],
            scores: vec![0.0; columns.len() * height],
            norms: columns.iter().map(|&column| norms[column]).collect(),
        };
        let others = |column: usize| {
            let group = grid.block_cols(column / grid.pattern().m());
            largest(group.filter(|&other| other != column), norms)
        };
        let others: Vec<_> = columns.iter().map(|&column| others(column)).collect();
        for (place, (four, count)) in others.iter().enumerate() {
            if *count == GROUP_COLUMNS {
                ready.threshold[place] = norms[four[GROUP_COLUMNS - 1]];
            }
        }
        for (r, row) in rows.enumerate() {
            let row = scores.row(row);
            let second = &mut ready.second[r * stride..(r + 1) * stride];
            for (place, (four, count)) in others.iter().enumerate() {
                let at = |i: usize| if i < *count { row[four[i]] } else { 0.0 };
                let [x, y, z, last] = [at(0), at(1), at(2), at(3)];
                let (high, low) = (x.max(y), x.min(y));
                let (a, b) = (high.max(z), low.max(high.min(z)));
                second[place] = b;
                ready.first_sum[place] += a;
                ready.without[place] += a + b.max(last);
            }
            for (channel, &column) in columns.iter().enumerate() {
                ready.scores[channel * height + r] = row[column];
            }
        }
        ready
    }
}

/// Adds the benefits of some channels at all places: a function object, so that it is compiled for the CPU's vectors.
struct Add<'a> {
    ready: &'a Ready,
    /// first channel
    first: usize,
    weight: f32,
    /// `[channels, places]`
    out: &'a mut [f32],
}

impl NullaryFnOnce for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { ready, first, weight, out } = self;
        let (height, stride) = (ready.height, ready.first_sum.len());
        for (tile, out) in out.chunks_mut(TILE * stride).enumerate() {
            let channels = out.len() / stride;
            let first = first + tile * TILE;
            // A short tile computes its last channel several times.
            let of: [&[f32]; TILE] = std::array::from_fn(|i| {
                let channel = first + i.min(channels - 1);
                &ready.scores[channel * height..(channel + 1) * height]
            });
            for lanes in (0..stride).step_by(LANES) {
                let mut sums = [[0.0_f32; LANES]; TILE];
                for r in 0..height {
                    let second: &[f32; LANES] = ready.second[r * stride + lanes..][..LANES].try_into().expect("lanes");
                    for (sums, of) in sums.iter_mut().zip(of) {
                        let x = of[r];
                        for (sum, &b) in sums.iter_mut().zip(second) {
                            *sum += if b > x { b } else { x };
                        }
                    }
                }
                for (i, sums) in sums.iter().enumerate().take(channels) {
                    let norm = ready.norms[first + i];
                    let out = &mut out[i * stride + lanes..][..LANES];
                    for (lane, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
                        let place = lanes + lane;
                        let joins = norm > ready.threshold[place];
                        let kept = if joins { ready.first_sum[place] + sum } else { ready.without[place] };
                        *out += weight * kept;
                    }
                }
            }
        }
    }
}
