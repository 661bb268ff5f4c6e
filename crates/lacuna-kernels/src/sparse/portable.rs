//! The portable kernel: plain Rust, written so that the compiler vectorises it for whatever it compiles for.
//!
//! Work is cut into tiles of at most [`TILE_ROWS`] rows of one row block. For a tile the activations of the block's kept
//! columns are gathered once and serve all its rows (that is what V is for):
//! - *prefill*: a chunk of groups × `LANES` tokens is gathered into a scratch that stays in the L1 cache; then each kept
//!   value is one broadcast and one multiply-add per vector of tokens (tokens in lanes).
//! - *decode*, up to [`SCALAR_TOKENS`] tokens: the gathered activations of a token are groups of 4 floats, from which
//!   each kept value picks its own by position.

use lacuna_core::{GROUP_COLUMNS, KEPT_PER_GROUP, Matrix, Packed, Permutation};
use rayon::prelude::*;

use super::{SparseWeight, check_shapes};

/// Rows of a tile: enough to reuse the gathered activations, few enough to share the work between threads.
const TILE_ROWS: usize = 64;
/// Groups gathered at once in prefill: 24 groups × 4 columns × 64 tokens × 4 bytes is 24 KiB.
const CHUNK_GROUPS: usize = 24;
/// Up to this many tokens the scalar path wins over half-empty vectors.
const SCALAR_TOKENS: usize = 3;
/// Kept values × tokens below which handing work to other threads costs more than it saves.
const PARALLEL_WORK: usize = 1 << 17;
/// Tokens of a wide and of a narrow vector tile.
const WIDE: usize = 64;
const NARROW: usize = 8;

pub(super) fn prepare(packed: &Packed) -> Box<dyn SparseWeight> {
    Box::new(Portable(Layout::new(packed)))
}

struct Portable(Layout);

impl SparseWeight for Portable {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        self.0.multiply(x, y, Layout::multiply_tile);
    }

    fn rows(&self) -> usize {
        self.0.row_count()
    }
}

/// Rows `start..start + len`, all of one row block.
pub(super) struct Tile {
    block: usize,
    start: usize,
    len: usize,
}

/// A packed layer as this kernel reads it: canonical order, values widened to f32, positions a byte each.
pub(super) struct Layout {
    rows: usize,
    cols: usize,
    groups: usize,
    /// `[row_blocks, G, 4]`; `u32::MAX` for padding
    columns: Vec<[u32; GROUP_COLUMNS]>,
    /// `[R, G]`
    values: Vec<[f32; KEPT_PER_GROUP]>,
    /// `[R, G]`
    positions: Vec<[u8; KEPT_PER_GROUP]>,
    tiles: Vec<Tile>,
    row_order: Option<Permutation>,
}

impl Layout {
    pub(super) fn new(packed: &Packed) -> Self {
        let (mask, grid) = (packed.mask(), packed.mask().grid());
        let real = |c: u32| if (c as usize) < grid.cols() { c } else { u32::MAX };
        let tiles = (0..grid.row_blocks()).flat_map(|block| {
            let rows = grid.block_rows(block);
            let end = rows.end;
            rows.step_by(TILE_ROWS).map(move |start| Tile { block, start, len: TILE_ROWS.min(end - start) })
        });
        let pairs = (0..grid.rows()).flat_map(|row| mask.row_pairs(row));
        Self {
            rows: grid.rows(),
            cols: grid.cols(),
            groups: grid.groups(),
            columns: mask.all_columns().iter().map(|group| group.map(real)).collect(),
            values: (0..grid.rows() * grid.groups()).map(|i| [0, 1].map(|k| packed.values().get(i * 2 + k))).collect(),
            positions: pairs.map(|pair| pair.positions().map(|p| p as u8)).collect(),
            tiles: tiles.collect(),
            row_order: packed.row_order().map(Permutation::inverse),
        }
    }

    pub(super) fn row_count(&self) -> usize {
        self.rows
    }

    /// `y = W · x`, tiles shared between threads; `run` computes one tile, `y[len, T]`.
    pub(super) fn multiply(&self, x: &Matrix, y: &mut Matrix, run: fn(&Self, &Tile, &Matrix, &mut [f32])) {
        check_shapes(self.rows, self.cols, x, y);
        let mut rest = y.data_mut();
        let mut work = Vec::with_capacity(self.tiles.len());
        for tile in &self.tiles {
            let (part, tail) = rest.split_at_mut(tile.len * x.cols());
            work.push((tile, part));
            rest = tail;
        }
        if self.values.len() * x.cols() < PARALLEL_WORK {
            for (tile, part) in work {
                run(self, tile, x, part);
            }
        } else {
            work.into_par_iter().for_each(|(tile, part)| run(self, tile, x, part));
        }
        if let Some(order) = &self.row_order
            && let Ok(ordered) = order.permute_rows(y)
        {
            *y = ordered;
        }
    }

    /// One tile, all tokens.
    #[inline(always)]
    pub(super) fn multiply_tile(&self, tile: &Tile, x: &Matrix, y: &mut [f32]) {
        let tokens = x.cols();
        if tokens <= SCALAR_TOKENS {
            for token in 0..tokens {
                self.decode(tile, x, token, y);
            }
            return;
        }
        y.fill(0.0);
        let wide = tokens / WIDE * WIDE;
        for start in (0..wide).step_by(WIDE) {
            self.prefill::<WIDE>(tile, x, start, y);
        }
        for start in (wide..tokens).step_by(NARROW) {
            self.prefill::<NARROW>(tile, x, start, y);
        }
    }

    /// One token: `y[row * T + token]` for the rows of a tile.
    #[inline(always)]
    fn decode(&self, tile: &Tile, x: &Matrix, token: usize, y: &mut [f32]) {
        let (tokens, features) = (x.cols(), x.data());
        let columns = &self.columns[tile.block * self.groups..(tile.block + 1) * self.groups];
        let pick = |c: u32| features.get(c as usize * tokens + token).copied().unwrap_or(0.0);
        let gathered: Vec<[f32; GROUP_COLUMNS]> = columns.iter().map(|group| group.map(pick)).collect();
        for row in 0..tile.len {
            let range = (tile.start + row) * self.groups..(tile.start + row + 1) * self.groups;
            let (values, positions) = (&self.values[range.clone()], &self.positions[range]);
            // Four sums, so that one does not wait for the last.
            let mut sums = [0.0_f32; 4];
            let groups = gathered.iter().zip(values).zip(positions);
            for (i, ((four, value), position)) in groups.enumerate() {
                let product =
                    value[0] * four[usize::from(position[0] & 3)] + value[1] * four[usize::from(position[1] & 3)];
                sums[i & 3] += product;
            }
            y[row * tokens + token] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
    }

    /// `LANES` tokens from `start`, or as many as are left: adds to `y[row * T + start ..]`.
    #[inline(always)]
    fn prefill<const LANES: usize>(&self, tile: &Tile, x: &Matrix, start: usize, y: &mut [f32]) {
        let tokens = x.cols();
        let lanes = LANES.min(tokens - start);
        let mut scratch = [[[0.0_f32; LANES]; GROUP_COLUMNS]; CHUNK_GROUPS];
        for first in (0..self.groups).step_by(CHUNK_GROUPS) {
            let groups = CHUNK_GROUPS.min(self.groups - first);
            let columns = &self.columns[tile.block * self.groups + first..][..groups];
            for (slots, group) in scratch.iter_mut().zip(columns) {
                for (slot, &col) in slots.iter_mut().zip(group) {
                    match x.data().get(col as usize * tokens + start..) {
                        Some(source) if col != u32::MAX => slot[..lanes].copy_from_slice(&source[..lanes]),
                        _ => slot.fill(0.0),
                    }
                }
            }
            for row in 0..tile.len {
                let from = (tile.start + row) * self.groups + first;
                let (values, positions) = (&self.values[from..][..groups], &self.positions[from..][..groups]);
                let out = &mut y[row * tokens + start..][..lanes];
                let mut sums = [0.0_f32; LANES];
                sums[..lanes].copy_from_slice(out);
                for ((slots, value), position) in scratch.iter().zip(values).zip(positions) {
                    let (a, b) = (&slots[usize::from(position[0] & 3)], &slots[usize::from(position[1] & 3)]);
                    for lane in 0..LANES {
                        sums[lane] += value[0] * a[lane] + value[1] * b[lane];
                    }
                }
                out.copy_from_slice(&sums[..lanes]);
            }
        }
    }
}
