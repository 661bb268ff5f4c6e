//! The portable kernel: plain Rust, written so that the compiler vectorises it for whatever it compiles for.
//!
//! The activations of a row block's kept columns are gathered once for all its rows (that is what V is for):
//! - *prefill*: a chunk of groups × `LANES` tokens is gathered into a scratch that stays in the L1 cache; then each kept
//!   value is one broadcast and one multiply-add per vector of tokens (tokens in lanes).
//! - *decode*, up to [`DECODE_TOKENS`] tokens: the gathered activations of a token are groups of 4 floats, from which
//!   each kept value picks its own by position.

use lacuna_core::{GROUP_COLUMNS, Matrix, Packed};

use super::strips::{STRIP, Strips, Tile};
use crate::weight::{Activations, Bias, Weight};

/// Groups gathered at once in prefill: 24 groups × 4 columns × 64 tokens × 4 bytes is 24 KiB.
const CHUNK_GROUPS: usize = 24;
/// Up to this many tokens, one token at a time wins over half-empty vectors of tokens.
pub(super) const DECODE_TOKENS: usize = 3;
/// Tokens of a wide and of a narrow vector tile.
const WIDE: usize = 64;
const NARROW: usize = 8;

pub(super) fn prepare(packed: &Packed, bias: Option<&[f32]>, _: Activations) -> Box<dyn Weight> {
    Box::new(Portable(Strips::new(packed, Bias::packed(bias, packed))))
}

struct Portable(Strips);

impl Weight for Portable {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        self.0.multiply(x, y, |strips, tile, x, y| {
            if x.cols() <= DECODE_TOKENS { decode(strips, tile, x, y) } else { prefill(strips, tile, x, y) }
        });
    }

    fn rows(&self) -> usize {
        self.0.row_count()
    }
}

/// Few tokens: `y[len, T]` of a tile.
fn decode(strips: &Strips, tile: &Tile, x: &Matrix, y: &mut [f32]) {
    let tokens = x.cols();
    for token in 0..tokens {
        let gathered = strips.gather(tile, x, token);
        for (strip, rows) in y.chunks_mut(STRIP * tokens).enumerate() {
            let (values, positions) = strips.strip(tile, strip);
            let mut sums = [0.0_f32; STRIP];
            for ((four, value), position) in gathered.iter().zip(values).zip(positions) {
                for lane in 0..STRIP {
                    let pick = |shift: usize| four[(position >> shift) as usize & 3];
                    sums[lane] += value[0][lane] * pick(2 * lane) + value[1][lane] * pick(2 * STRIP + 2 * lane);
                }
            }
            for (row, sum) in rows.chunks_mut(tokens).zip(sums) {
                row[token] = sum;
            }
        }
    }
}

/// Many tokens: `y[len, T]` of a tile.
#[inline(always)]
pub(super) fn prefill(strips: &Strips, tile: &Tile, x: &Matrix, y: &mut [f32]) {
    let tokens = x.cols();
    y.fill(0.0);
    let wide = tokens / WIDE * WIDE;
    for start in (0..wide).step_by(WIDE) {
        prefill_tokens::<WIDE>(strips, tile, x, start, y);
    }
    for start in (wide..tokens).step_by(NARROW) {
        prefill_tokens::<NARROW>(strips, tile, x, start, y);
    }
}

/// `LANES` tokens from `start`, or as many as are left: adds to `y[row * T + start ..]`.
#[inline(always)]
fn prefill_tokens<const LANES: usize>(strips: &Strips, tile: &Tile, x: &Matrix, start: usize, y: &mut [f32]) {
    let tokens = x.cols();
    let lanes = LANES.min(tokens - start);
    let mut scratch = [[[0.0_f32; LANES]; GROUP_COLUMNS]; CHUNK_GROUPS];
    for first in (0..strips.groups).step_by(CHUNK_GROUPS) {
        let groups = CHUNK_GROUPS.min(strips.groups - first);
        for (slots, group) in scratch.iter_mut().zip(&strips.columns(tile)[first..first + groups]) {
            for (slot, &col) in slots.iter_mut().zip(group) {
                // A padding column lies behind the last one.
                match x.data().get(col as usize * tokens + start..) {
                    Some(source) if source.len() >= lanes => slot[..lanes].copy_from_slice(&source[..lanes]),
                    _ => slot.fill(0.0),
                }
            }
        }
        for (row, out) in y.chunks_mut(tokens).enumerate() {
            let (values, positions) = strips.strip(tile, row / STRIP);
            let lane = row % STRIP;
            let out = &mut out[start..start + lanes];
            let mut sums = [0.0_f32; LANES];
            sums[..lanes].copy_from_slice(out);
            let kept = values[first..first + groups].iter().zip(&positions[first..first + groups]);
            for (slots, (value, position)) in scratch.iter().zip(kept) {
                let a = &slots[(position >> (2 * lane)) as usize & 3];
                let b = &slots[(position >> (2 * STRIP + 2 * lane)) as usize & 3];
                for i in 0..LANES {
                    sums[i] += value[0][lane] * a[i] + value[1][lane] * b[i];
                }
            }
            out.copy_from_slice(&sums[..lanes]);
        }
    }
}
