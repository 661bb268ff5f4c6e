//! The tiling that the vector kernels share: rows in strips of 8 lanes.
//!
//! A tile is at most [`TILE_ROWS`] rows of one row block, cut into strips of [`STRIP`] rows; the last strip of a tile is
//! filled up with rows of zeros. For each strip and group the two kept values of 8 rows lie side by side, and one word
//! holds their 16 positions: bits `2·lane` those of the first values, bits `16 + 2·lane` those of the second.

use lacuna_core::{GROUP_COLUMNS, KEPT_PER_GROUP, Matrix, Packed, Permutation};
use rayon::prelude::*;

use crate::weight::{Bias, check_shapes};

/// Rows of a strip: the lanes of a 256-bit vector.
pub(super) const STRIP: usize = 8;
/// Rows of a tile: enough to reuse the gathered activations, few enough to share the work between threads.
const TILE_ROWS: usize = 64;
/// Kept values × tokens below which handing work to other threads costs more than it saves.
const PARALLEL_WORK: usize = 1 << 17;

/// The kept values of 8 rows in one group.
pub(super) type StripValues = [[f32; STRIP]; KEPT_PER_GROUP];

/// Rows `start..start + len`, all of one row block.
pub(super) struct Tile {
    start: usize,
    pub(super) len: usize,
    block: usize,
    first_strip: usize,
}

/// A packed layer, tiled.
pub(super) struct Strips {
    pub(super) groups: usize,
    rows: usize,
    cols: usize,
    /// `[row_blocks, G, 4]`; at or past `cols` for padding
    columns: Vec<[u32; GROUP_COLUMNS]>,
    /// `[strips, G]`
    values: Vec<StripValues>,
    /// `[strips, G]`
    positions: Vec<u32>,
    tiles: Vec<Tile>,
    /// output row of each packed row
    row_order: Option<Permutation>,
    bias: Bias,
}

impl Strips {
    pub(super) fn new(packed: &Packed, bias: Bias) -> Self {
        let (mask, grid) = (packed.mask(), packed.mask().grid());
        let groups = grid.groups();
        let (mut tiles, mut values, mut positions) = (vec![], vec![], vec![]);
        for block in 0..grid.row_blocks() {
            let rows = grid.block_rows(block);
            for start in rows.clone().step_by(TILE_ROWS) {
                let len = TILE_ROWS.min(rows.end - start);
                tiles.push(Tile { start, len, block, first_strip: values.len() / groups });
                for strip in (start..start + len).step_by(STRIP) {
                    let from = values.len();
                    values.resize(from + groups, StripValues::default());
                    positions.resize(from + groups, 0);
                    for (lane, row) in (strip..(start + len).min(strip + STRIP)).enumerate() {
                        for (g, pair) in mask.row_pairs(row).iter().enumerate() {
                            for (slot, position) in pair.positions().into_iter().enumerate() {
                                let value = packed.values().get((row * groups + g) * KEPT_PER_GROUP + slot);
                                values[from + g][slot][lane] = value;
                                positions[from + g] |= (position as u32) << (2 * STRIP * slot + 2 * lane);
                            }
                        }
                    }
                }
            }
        }
        Self {
            groups,
            rows: grid.rows(),
            cols: grid.cols(),
            columns: mask.all_columns().to_vec(),
            values,
            positions,
            tiles,
            row_order: packed.row_order().cloned(),
            bias,
        }
    }

    pub(super) fn row_count(&self) -> usize {
        self.rows
    }

    /// `y = W · x`, tiles shared between threads; `run` computes one tile, `y[len, T]`.
    pub(super) fn multiply(&self, x: &Matrix, y: &mut Matrix, run: fn(&Self, &Tile, &Matrix, &mut [f32])) {
        check_shapes(self.rows, self.cols, x, y);
        let run = |(tile, part): (&Tile, &mut [f32])| {
            run(self, tile, x, part);
            self.bias.add_to(tile.start, part, x.cols());
        };
        let mut rest = y.data_mut();
        let mut work = Vec::with_capacity(self.tiles.len());
        for tile in &self.tiles {
            let (part, tail) = rest.split_at_mut(tile.len * x.cols());
            work.push((tile, part));
            rest = tail;
        }
        if self.values.len() * STRIP * x.cols() < PARALLEL_WORK {
            work.into_iter().for_each(run);
        } else {
            work.into_par_iter().for_each(run);
        }
        if let Some(order) = &self.row_order
            && let Ok(ordered) = order.restore_rows(y)
        {
            *y = ordered;
        }
    }

    /// Kept columns of a tile, one group after the other.
    #[inline(always)]
    pub(super) fn columns(&self, tile: &Tile) -> &[[u32; GROUP_COLUMNS]] {
        &self.columns[tile.block * self.groups..(tile.block + 1) * self.groups]
    }

    /// Values and positions of one strip of a tile, one group after the other.
    #[inline(always)]
    pub(super) fn strip(&self, tile: &Tile, strip: usize) -> (&[StripValues], &[u32]) {
        let range = (tile.first_strip + strip) * self.groups..(tile.first_strip + strip + 1) * self.groups;
        (&self.values[range.clone()], &self.positions[range])
    }

    /// The activations of one token that a tile reads, group by group; 0 for padding columns.
    #[inline(always)]
    pub(super) fn gather(&self, tile: &Tile, x: &Matrix, token: usize) -> Vec<[f32; GROUP_COLUMNS]> {
        let (tokens, features) = (x.cols(), x.data());
        let pick = |c: u32| features.get(c as usize * tokens + token).copied().unwrap_or(0.0);
        self.columns(tile).iter().map(|group| group.map(pick)).collect()
    }
}
