//! Many tokens on the matrix unit of Intel's Xeons (AMX), bfloat16. The unit knows no sparsity: what a row block has not kept in any
//! row is left out, and the two of four that a row has not kept are zeros to it. So at most M / 4 of a dense product's work goes to
//! it, where vectors do M / 2, but at 16 times their rate.
//!
//! The weights stay as they lie for few tokens, which vectors serve; tiles for the unit are made of them part by part, in the caches.

mod inputs;
mod matmul;
mod rows;
mod unit;

use std::ops::Deref;

use lacuna_core::Matrix;

use self::inputs::{Input, Inputs, LINE};
pub(crate) use self::matmul::matmul;
use self::rows::Rows;
use self::unit::{SIDE, TILE_BYTES, To, Unit};
use super::aligned::Aligned;
use super::dense::{DenseLanes, TILE_STRIPS};
use super::inputs::Element;
use super::layout::{Form, Tile};
use super::{InstructionSet, Lanes, avx512};
use crate::weight::{Weight, check_shapes};

/// Tokens from which on the unit is faster than vectors: later for integers, of which tiles take longer to make.
fn fewest_tokens(form: Form) -> usize {
    if form == Form::Bf16Dot { 13 } else { 17 }
}

/// Most rows of [`rows_together`]: the larger, the less often the activations come from beyond the L2 cache; their sums must fit there.
const MOST_ROWS: usize = 512;

/// Steps of 32 columns whose tiles are made before they are used.
const STEPS: usize = 8;

/// Floats of a tile.
const TILE: usize = SIDE * SIDE;

/// Whether this machine can run it.
pub(crate) fn available() -> bool {
    (avx512::WITH_DOT.available)() && is_x86_feature_detected!("avx512vbmi2") && unit::available()
}

/// The kernel that leaves many tokens of bfloat16 to the unit, and all else to vectors.
pub(crate) static SET: InstructionSet = InstructionSet {
    name: "avx512-amx-bf16",
    needs: "AVX-512 F, BW, VL, VNNI, BF16, VBMI2, AMX-BF16",
    unit: true,
    available,
    ..avx512::WITH_DOT
};

/// Sparse weights; made where [`SET`] is available, of bfloat16 or integers.
pub(super) struct SparseTiles<E: 'static>(pub(super) Lanes<E>);

impl<E: Element> Weight for SparseTiles<E> {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        let (layout, tokens) = (&self.0.layout, x.cols());
        if tokens < fewest_tokens(layout.form) {
            return self.0.multiply(x, y);
        }
        check_shapes(layout.rows, layout.cols, x, y);
        // SAFETY: whoever made `self` has seen the features.
        let inputs = unsafe { Inputs::new(x, self.0.is_worth_sharing(tokens)) };
        let rows_each = layout.tiles.iter().map(|tile| tile.len).max().unwrap_or(1);
        self.0.for_tiles(y, rows_together(layout.rows).div_ceil(rows_each), |tiles, part| {
            for input in inputs.iter() {
                let block = |tile: &Tile| {
                    let mut places = Aligned::scratch(layout.groups());
                    layout.columns(tile).places(1, &mut places);
                    places.as_flattened_mut().iter_mut().for_each(|place| *place = input.place(*place));
                    Block { first: tile.first_strip, rows: tile.len, places }
                };
                let blocks: Vec<_> = tiles.iter().map(block).collect();
                // SAFETY: as above, and the places are of rows of the input.
                unsafe { run(layout, &blocks, input, part, tokens) };
                for block in blocks {
                    block.places.shelve();
                }
            }
        });
    }

    fn rows(&self) -> usize {
        self.0.rows()
    }
}

/// Dense weights; made likewise.
pub(super) struct DenseTiles<E: 'static>(pub(super) DenseLanes<E>);

impl<E: Element> Weight for DenseTiles<E> {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        let (layout, tokens) = (&self.0.layout, x.cols());
        if tokens < fewest_tokens(layout.form) {
            return self.0.multiply(x, y);
        }
        check_shapes(layout.rows, layout.cols, x, y);
        // SAFETY: whoever made `self` has seen the features.
        let inputs = unsafe { Inputs::new(x, self.0.is_worth_sharing(tokens)) };
        let places = |input: &Input| -> Vec<[u32; 4]> {
            let place = |column: usize| input.place(column.min(layout.cols) as u32);
            (0..layout.steps() * 8).map(|four| [0, 1, 2, 3].map(|i| place(four * 4 + i))).collect()
        };
        let places: Vec<_> = inputs.iter().map(places).collect();
        self.0.for_tiles(y, rows_together(layout.rows).div_ceil(SIDE), |tile, part| {
            for (input, places) in inputs.iter().zip(&places) {
                let block = |first: usize| {
                    let rows = (part.len() / tokens - (first - tile.first) * SIDE).min(TILE_STRIPS * SIDE);
                    Block { first, rows, places: &places[..] }
                };
                let blocks: Vec<_> = (tile.first..tile.first + tile.strips).step_by(TILE_STRIPS).map(block).collect();
                // SAFETY: as above, and the places are of rows of the input.
                unsafe { run(layout, &blocks, input, part, tokens) };
            }
        });
    }

    fn rows(&self) -> usize {
        self.0.rows()
    }
}

/// Rows of a layer that one thread computes at once: as many threads as there are have the same number of such parts.
fn rows_together(rows: usize) -> usize {
    let threads = rayon::current_num_threads();
    let parts = rows.div_ceil(MOST_ROWS * threads) * threads;
    rows.div_ceil(parts).max(1)
}

/// Rows with the same columns.
struct Block<P> {
    /// first strip
    first: usize,
    rows: usize,
    /// where the rows of an input line begin that belong to four columns each
    places: P,
}

impl<P> Block<P> {
    fn strips(&self) -> usize {
        self.rows.div_ceil(SIDE)
    }

    /// Whether a strip has all its rows, and the one that is computed beside it too.
    fn is_whole(&self, strip: usize) -> bool {
        let beside = (strip / 2 * 2 + 2).min(self.strips());
        beside * SIDE <= self.rows
    }
}

/// Blocks after each other: `y[rows, T]` from token `input.start` on.
///
/// Part of K by part, so that the activations of a part are in the L2 cache for all blocks. For each block the tiles of its weights are
/// made, and for each 32 tokens those of the columns it keeps.
///
/// # Safety
/// [`available`]; the weights must be of bfloat16 or integers for 16 lanes, and places those of rows of the input.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2,avx512bf16")]
unsafe fn run<W: Rows, P: Deref<Target = [[u32; 4]]>>(
    weights: &W,
    blocks: &[Block<P>],
    input: &Input,
    y: &mut [f32],
    tokens: usize,
) {
    let across = input.width / SIDE;
    let strips: usize = blocks.iter().map(Block::strips).sum();
    let most = blocks.iter().map(Block::strips).max().unwrap_or(0);
    let mut sums = Aligned::<f32>::scratch(strips * across * TILE);
    let mut rows = Aligned::<u16>::scratch(most * STEPS * TILE_BYTES / 2);
    let mut columns = Aligned::<u32>::scratch(2 * STEPS * TILE);
    let real = input.width.min(tokens - input.start);
    // SAFETY: the caller's promise; it is dropped at the end of this function, which calls nothing that sets up another.
    let unit = unsafe { Unit::set_up() };
    for from in (0..weights.steps()).step_by(STEPS) {
        let steps = STEPS.min(weights.steps() - from);
        let last = from + steps == weights.steps();
        let (mut sums, mut y) = (sums.as_mut_ptr(), y.as_mut_ptr());
        for (i, block) in blocks.iter().enumerate() {
            let strips = block.strips();
            let (after, far) = blocks.get(i + 1).map_or((blocks[0].first, steps), |block| (block.first, 0));
            let places = &block.places[from * 8..(from + steps) * 8];
            for strip in 0..strips {
                for step in 0..steps {
                    weights.ask_for(after + strip, from + far + step);
                    // SAFETY: the caller's promise; there is room for so many tiles.
                    unsafe {
                        let tile = rows.as_mut_ptr().add((strip * STEPS + step) * TILE_BYTES / 2);
                        weights.tile(block.first + strip, from + step, tile);
                    }
                }
            }
            for line in 0..across / 2 {
                // SAFETY: the places are the caller's, and there is room for two tiles a step. Two strips are taken where there are two; in `y` there are as many rows and tokens.
                unsafe {
                    let out = columns.as_mut_ptr();
                    input.pairs(line, places, out);
                    for strip in (0..strips).step_by(2) {
                        let pair = [strip, (strip + 1).min(strips - 1)];
                        let sums = pair.map(|strip| sums.add((strip * across + 2 * line) * TILE));
                        let rows = pair.map(|strip| rows.as_ptr().add(strip * STEPS * TILE_BYTES / 2));
                        let to = if last && block.is_whole(strip) && (line + 1) * LINE <= real {
                            let first = pair.map(|strip| y.add(strip * SIDE * tokens + input.start + line * LINE));
                            To { first, row_bytes: 4 * tokens, second_bytes: 4 * SIDE }
                        } else {
                            To { first: sums, row_bytes: 4 * SIDE, second_bytes: 4 * TILE }
                        };
                        let sums = sums.map(<*mut f32>::cast_const);
                        match strips - strip {
                            2.. => unit.add::<2>(sums, rows, out, steps, from == 0, to),
                            _ => unit.add::<1>(sums, rows, out, steps, from == 0, to),
                        }
                    }
                }
            }
            y = y.wrapping_add(block.rows * tokens);
            sums = sums.wrapping_add(strips * across * TILE);
        }
    }
    drop(unit);
    let (mut y, mut rest) = (y, &sums[..]);
    for block in blocks {
        let (out, after) = y.split_at_mut(block.rows * tokens);
        let (sums, more) = rest.split_at(block.strips() * across * TILE);
        for (row, out) in out.chunks_exact_mut(tokens).enumerate() {
            // What has gone there already ends with the last whole line.
            let from = if block.is_whole(row / SIDE) { real / LINE * LINE } else { 0 };
            let tiles = sums[(row / SIDE * across + from / SIDE) * TILE..].chunks_exact(TILE);
            for (out, tile) in out[input.start..][from..real].chunks_mut(SIDE).zip(tiles) {
                out.copy_from_slice(&tile[row % SIDE * SIDE..][..out.len()]);
            }
        }
        (y, rest) = (after, more);
    }
    sums.shelve();
    rows.shelve();
    columns.shelve();
}
