//! A packed weight in the order of `mma.sp`'s fragments, as `kernels/product.cuh` lays it down.

use half::{bf16, f16};
use lacuna_core::{Dtype, GROUP_COLUMNS, IntType, KEPT_PER_GROUP, Packed, Pair, Quantized, Values};
use rayon::prelude::*;

use crate::banks;
use crate::error::{Error, Result};
use crate::kernels::{Limits, row_tiles};

/// The column of a k-row that has none: its activations are zero.
pub const NO_COLUMN: u32 = u32::MAX;
/// Rows of an m-tile.
pub(crate) const TILE_ROWS: usize = 16;
/// m-tiles of a strip.
const STRIP_TILES: usize = 4;
pub(crate) const STRIP_ROWS: usize = STRIP_TILES * TILE_ROWS;
/// Chunks (groups) of a step, and steps of a slab.
const CHUNKS: usize = 8;
const STEPS: usize = 2;
/// Groups and k-rows of a slab.
pub(crate) const SLAB_GROUPS: usize = CHUNKS * STEPS;
pub(crate) const SLAB_K: usize = SLAB_GROUPS * GROUP_COLUMNS;
/// `STAGES` of prefill.cu.
pub(crate) const SLABS_IN_FLIGHT: usize = 3;
const LANES: usize = 32;
/// Values of a lane in one step.
const LANE_VALUES: usize = 8;
/// Places of a slab are numbered by a byte.
pub(crate) const MOST_PLACES: usize = 256;

/// The 16-bit type of activations, and of values that are no integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HalfType {
    /// IEEE half precision
    F16,
    /// bfloat16
    Bf16,
}

impl HalfType {
    /// `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }

    /// The same among the types of tensors.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// The bits of a value, rounded to nearest even.
    pub fn round(self, value: f32) -> u16 {
        match self {
            Self::F16 => f16::from_f32(value).to_bits(),
            Self::Bf16 => bf16::from_f32(value).to_bits(),
        }
    }

    /// The value of some bits.
    pub fn widen(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }
}

/// How values lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codes {
    /// as the activations
    Float,
    /// a byte each, code + 128
    Int8,
    /// a nibble each, code + 8
    Int4,
}

impl Codes {
    /// Part of a kernel's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Bytes of an m-tile of a slab.
    pub(crate) fn slab_bytes(self) -> usize {
        STEPS * LANES * self.lane_bytes()
    }

    /// Bytes that a lane has of a step.
    fn lane_bytes(self) -> usize {
        match self {
            Self::Float => 2 * LANE_VALUES,
            Self::Int8 => LANE_VALUES,
            Self::Int4 => LANE_VALUES / 2,
        }
    }
}

/// Tokens from one feature to the next: few are packed tight, many are copied 16 bytes at a time.
pub fn stride(tokens: usize) -> usize {
    if tokens <= 8 { tokens } else { tokens.next_multiple_of(8) }
}

/// A weight ready for the kernels. Every buffer is one of `Product` in `kernels/product.cuh`.
#[derive(Debug, Clone)]
pub struct Tiles {
    half: HalfType,
    codes: Codes,
    rows: usize,
    cols: usize,
    v: usize,
    slabs: usize,
    slabs_per_scale: usize,
    row_tile: usize,
    slab_places: usize,
    buffers: Buffers,
}

/// What a GPU gets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers {
    pub(crate) values: Vec<u8>,
    pub(crate) metadata: Vec<u32>,
    pub(crate) scales: Vec<f16>,
    pub(crate) places: Vec<u16>,
    pub(crate) slab_columns: Vec<u32>,
    pub(crate) columns: Vec<u32>,
    pub(crate) output_rows: Vec<u32>,
}

impl Tiles {
    /// Brings a weight into order for activations of a type, on a GPU with some limits. Floats are rounded to that type.
    /// Refuses V that no row tile fits, and values that f16 cannot hold.
    pub fn new(packed: &Packed, half: HalfType, limits: Limits) -> Result<Self> {
        let grid = packed.mask().grid();
        let v = grid.pattern().v();
        let (codes, slabs_per_scale) = match packed.values() {
            Values::Quantized(q) if q.int() == IntType::Int8 => (Codes::Int8, slabs_per_scale(q)),
            Values::Quantized(q) => (Codes::Int4, slabs_per_scale(q)),
            _ => (Codes::Float, 1),
        };
        let k_rows = KRows::new(packed);
        let (row_tile, slabs) = choose_row_tile(&k_rows, grid.rows(), v, limits)?;
        let mut tiles = Self {
            half,
            codes,
            rows: grid.rows(),
            cols: grid.cols(),
            v,
            slabs: k_rows.slabs,
            slabs_per_scale,
            row_tile,
            slab_places: most_places(&slabs),
            buffers: Buffers {
                columns: k_rows.in_register_order(),
                output_rows: (0..grid.rows()).map(|row| packed.output_row(row) as u32).collect(),
                ..Buffers::default()
            },
        };
        tiles.fill_fragments(packed)?;
        tiles.fill_slabs(&k_rows, &slabs);
        Ok(tiles)
    }

    /// Values, metadata and scales, a strip at a time. Rows past the last are zero, under metadata that is in order.
    fn fill_fragments(&mut self, packed: &Packed) -> Result<()> {
        let m_tiles = self.rows.next_multiple_of(self.row_tile) / TILE_ROWS;
        let values_of_strip = self.slabs * STEPS * STRIP_TILES * LANES * self.codes.lane_bytes();
        let metadata_of_strip = self.slabs * LANES * STRIP_TILES;
        let strips = m_tiles / STRIP_TILES;
        self.buffers.values = vec![0; strips * values_of_strip];
        self.buffers.metadata = vec![0; strips * metadata_of_strip];
        let (codes, half) = (self.codes, self.half);
        let values = self.buffers.values.par_chunks_mut(values_of_strip);
        let strips = values.zip(self.buffers.metadata.par_chunks_mut(metadata_of_strip));
        strips.enumerate().try_for_each(|(strip, (values, metadata))| {
            let strip = Strip { packed, half, codes, first_row: strip * STRIP_TILES * TILE_ROWS };
            strip.fill_metadata(metadata);
            strip.fill_values(values)
        })?;
        if let Values::Quantized(quantized) = packed.values() {
            let blocks = self.slabs.div_ceil(self.slabs_per_scale);
            let scale = |m_tile: usize, block: usize, row: usize| {
                let row = m_tile * TILE_ROWS + row;
                // The last slab may be filled up past the last block of scales; its codes are zero there.
                let known = row < self.rows && block < quantized.blocks();
                if known { quantized.scales()[row * quantized.blocks() + block] } else { f16::ZERO }
            };
            let of_tile = |m_tile| (0..blocks).flat_map(move |b| (0..TILE_ROWS).map(move |row| (m_tile, b, row)));
            self.buffers.scales =
                (0..m_tiles).flat_map(of_tile).map(|(m_tile, block, row)| scale(m_tile, block, row)).collect();
        }
        Ok(())
    }

    /// Places and columns of the slabs, a row tile at a time.
    fn fill_slabs(&mut self, k_rows: &KRows, slabs: &[Vec<banks::Slab>]) {
        let row_tiles = slabs.len();
        self.buffers.slab_columns = vec![NO_COLUMN; row_tiles * self.slabs * self.slab_places];
        // Strips of rows past the last, or of a row block with others, have places too.
        let strips = self.rows.next_multiple_of(self.row_tile) / STRIP_ROWS;
        let runs = (STRIP_ROWS / self.v).max(1);
        self.buffers.places = vec![0; strips * self.slabs * runs * LANES];
        for (tile, slabs) in slabs.iter().enumerate() {
            let blocks = k_rows.blocks_of(tile, self.row_tile, self.rows, self.v);
            for (s, slab) in slabs.iter().enumerate() {
                let at = (tile * self.slabs + s) * self.slab_places;
                self.buffers.slab_columns[at..at + slab.columns.len()].copy_from_slice(&slab.columns);
            }
            let first = tile * self.row_tile / STRIP_ROWS;
            for (strip, run) in (first..first + self.row_tile / STRIP_ROWS).flat_map(|s| (0..runs).map(move |r| (s, r)))
            {
                let block = (strip * STRIP_ROWS + run * self.v.min(STRIP_ROWS)) / self.v;
                if !blocks.contains(&block) {
                    continue;
                }
                for (s, slab) in slabs.iter().enumerate() {
                    let places = &slab.places[block - blocks.start];
                    let lanes = &mut self.buffers.places[((strip * self.slabs + s) * runs + run) * LANES..][..LANES];
                    for (lane, out) in lanes.iter_mut().enumerate() {
                        *out = u16::from_le_bytes([places[lane], places[lane + LANES]]);
                    }
                }
            }
        }
    }

    /// Leaves only the shapes.
    pub(crate) fn take_buffers(&mut self) -> Buffers {
        std::mem::take(&mut self.buffers)
    }

    /// Type of the activations.
    pub fn half(&self) -> HalfType {
        self.half
    }

    /// How the values lie in memory.
    pub fn codes(&self) -> Codes {
        self.codes
    }

    /// R.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// V.
    pub fn v(&self) -> usize {
        self.v
    }

    /// Slabs of K.
    pub fn slabs(&self) -> usize {
        self.slabs
    }

    /// Slabs under one scale.
    pub fn slabs_per_scale(&self) -> usize {
        self.slabs_per_scale
    }

    /// Rows whose columns are fetched together.
    pub fn row_tile(&self) -> usize {
        self.row_tile
    }

    /// Places of a slab.
    pub fn slab_places(&self) -> usize {
        self.slab_places
    }

    /// m-tiles in a row that have the same columns, at most 4.
    pub(crate) fn sharing(&self) -> usize {
        (self.v / TILE_ROWS).min(4)
    }

    /// `[strips, slabs, …]`
    pub fn values(&self) -> &[u8] {
        &self.buffers.values
    }

    /// `[strips, slabs, lanes, 4]`
    pub fn metadata(&self) -> &[u32] {
        &self.buffers.metadata
    }

    /// `[m-tiles, blocks of scales, 16]`; none of floats
    pub fn scales(&self) -> &[f16] {
        &self.buffers.scales
    }

    /// `[strips, slabs, row blocks of a strip, lanes]`
    pub fn places(&self) -> &[u16] {
        &self.buffers.places
    }

    /// `[row tiles, slabs, places]`
    pub fn slab_columns(&self) -> &[u32] {
        &self.buffers.slab_columns
    }

    /// `[row blocks, slabs, steps, 4, 8]`
    pub fn columns(&self) -> &[u32] {
        &self.buffers.columns
    }

    /// `[R]`
    pub fn output_rows(&self) -> &[u32] {
        &self.buffers.output_rows
    }
}

fn slabs_per_scale(quantized: &Quantized) -> usize {
    quantized.group().values() / (SLAB_GROUPS * KEPT_PER_GROUP)
}

/// The largest row tile whose slabs fit the shared memory, with its slabs, `[row tiles, slabs]`.
fn choose_row_tile(k_rows: &KRows, rows: usize, v: usize, limits: Limits) -> Result<(usize, Vec<Vec<banks::Slab>>)> {
    let fits_v = |tile: usize| v.is_multiple_of(TILE_ROWS) && (v.is_multiple_of(tile) || tile.is_multiple_of(v));
    let sizes = row_tiles(0).map(|(size, _)| size);
    for (i, &size) in sizes.iter().enumerate() {
        let smallest = i + 1 == sizes.len();
        // A tile half of which is padding would be for nothing.
        if !fits_v(size) || (!smallest && rows <= size / 2) {
            continue;
        }
        let fits = |places: usize| places <= MOST_PLACES && (smallest || row_tiles(places)[i].1 <= limits.shared_bytes);
        let of_tile = |tile| {
            let blocks = k_rows.blocks_of(tile, size, rows, v);
            let assign = |slab| {
                let blocks = k_rows.of(blocks.clone(), slab);
                fits(banks::places_needed(&blocks))
                    .then(|| banks::assign(&blocks))
                    .filter(|slab| fits(slab.columns.len()))
            };
            (0..k_rows.slabs).map(assign).collect()
        };
        let slabs: Option<Vec<Vec<banks::Slab>>> = (0..rows.div_ceil(size)).into_par_iter().map(of_tile).collect();
        if let Some(slabs) = slabs {
            return Ok((size, slabs));
        }
    }
    Err(Error::RowBlock { v })
}

/// Places of the largest slab.
fn most_places(slabs: &[Vec<banks::Slab>]) -> usize {
    slabs.iter().flatten().map(|slab| slab.columns.len()).max().unwrap_or(0)
}

/// The column of every k-row, `[row blocks, slabs, 64]`.
struct KRows {
    slabs: usize,
    columns: Vec<[u32; SLAB_K]>,
}

impl KRows {
    fn new(packed: &Packed) -> Self {
        let (mask, grid) = (packed.mask(), packed.mask().grid());
        let slabs = grid.groups().div_ceil(SLAB_GROUPS);
        let column = |block: usize, slab: usize, k: usize| {
            let group = slab * SLAB_GROUPS + k / GROUP_COLUMNS;
            let real = |&column: &u32| (column as usize) < grid.cols();
            let known = (group < grid.groups()).then(|| mask.columns(block, group)[k % GROUP_COLUMNS]);
            known.filter(real).unwrap_or(NO_COLUMN)
        };
        let places = (0..grid.row_blocks()).flat_map(|block| (0..slabs).map(move |slab| (block, slab)));
        Self { slabs, columns: places.map(|(block, slab)| std::array::from_fn(|k| column(block, slab, k))).collect() }
    }

    /// Row blocks of a row tile.
    fn blocks_of(&self, tile: usize, row_tile: usize, rows: usize, v: usize) -> std::ops::Range<usize> {
        debug_assert!(self.columns.len() == rows.div_ceil(v) * self.slabs);
        tile * row_tile / v..((tile + 1) * row_tile).min(rows).div_ceil(v)
    }

    /// One slab of some row blocks.
    fn of(&self, blocks: std::ops::Range<usize>, slab: usize) -> Vec<[u32; SLAB_K]> {
        blocks.map(|block| self.columns[block * self.slabs + slab]).collect()
    }

    /// As decode loads them: lanes `4 g + t` take k-rows `8 i + 2 t` and the next, i = 0 to 3, side by side.
    fn in_register_order(&self) -> Vec<u32> {
        let order = (0..STEPS).flat_map(|step| {
            let of_lane =
                move |t: usize| (0..4).flat_map(move |i: usize| [0, 1].map(|odd| step * LANES + 8 * i + 2 * t + odd));
            (0..4).flat_map(of_lane)
        });
        let order: Vec<usize> = order.collect();
        self.columns.iter().flat_map(|slab| order.iter().map(|&k| slab[k])).collect()
    }
}

/// 4 m-tiles, to be laid out.
struct Strip<'a> {
    packed: &'a Packed,
    half: HalfType,
    codes: Codes,
    first_row: usize,
}

impl Strip<'_> {
    /// `[slabs, lanes, m-tiles]`: lane `4 g + 2 step + h` has chunks `4 h` to `4 h + 3` of rows g (low half) and g + 8.
    fn fill_metadata(&self, metadata: &mut [u32]) {
        let grid = self.packed.mask().grid();
        let nibble = |row: usize, group: usize| {
            let known = row < grid.rows() && group < grid.groups();
            u32::from(if known { self.packed.mask().row_pairs(row)[group] } else { Pair::FIRST }.code())
        };
        for (i, out) in metadata.iter_mut().enumerate() {
            let [slab, lane, m_tile] = unravel(i, [LANES, STRIP_TILES]);
            let (g, step, h) = (lane / 4, lane % 4 / 2, lane % 2);
            let first = slab * SLAB_GROUPS + step * CHUNKS + 4 * h;
            *out = (0..8).fold(0, |bits, n| {
                let row = self.first_row + m_tile * TILE_ROWS + g + 8 * (n / 4);
                bits | nibble(row, first + n % 4) << (4 * n)
            });
        }
    }

    /// `[slabs, steps, m-tiles, lanes, 8]` of floats, `[slabs, m-tiles, lanes, steps, 8]` of integers.
    fn fill_values(&self, out: &mut [u8]) -> Result<()> {
        for (i, lane_values) in out.chunks_exact_mut(self.codes.lane_bytes()).enumerate() {
            let (slab, step, m_tile, lane) = match self.codes {
                Codes::Float => {
                    let [slab, step, m_tile, lane] = unravel(i, [STEPS, STRIP_TILES, LANES]);
                    (slab, step, m_tile, lane)
                }
                Codes::Int8 | Codes::Int4 => {
                    let [slab, m_tile, lane, step] = unravel(i, [STRIP_TILES, LANES, STEPS]);
                    (slab, step, m_tile, lane)
                }
            };
            for value in 0..LANE_VALUES {
                let (register, second) = (value / 2, value % 2);
                let row = self.first_row + m_tile * TILE_ROWS + lane / 4 + 8 * (register % 2);
                let group = slab * SLAB_GROUPS + step * CHUNKS + lane % 4 + 4 * (register / 2);
                self.put(lane_values, register, second, row, group)?;
            }
        }
        Ok(())
    }

    /// One of the two values of a register.
    fn put(&self, lane: &mut [u8], register: usize, second: usize, row: usize, group: usize) -> Result<()> {
        let grid = self.packed.mask().grid();
        let known = row < grid.rows() && group < grid.groups();
        let place = row * grid.kept_per_row() + group * KEPT_PER_GROUP + second;
        match (self.codes, self.packed.values()) {
            (Codes::Int8, Values::Quantized(quantized)) => {
                let code = if known { quantized.codes()[place] } else { 0 };
                lane[2 * register + second] = (i16::from(code) + 128) as u8;
            }
            (Codes::Int4, Values::Quantized(quantized)) => {
                let code = if known { quantized.codes()[place] } else { 0 };
                let nibble = register + 4 * second;
                lane[nibble / 2] |= ((code + 8) as u8) << (4 * (nibble % 2));
            }
            (_, values) => {
                let value = if known { values.get(place) } else { 0.0 };
                if value.is_finite() && !self.half.dtype().holds(value) {
                    return Err(Error::Overflow { row, value });
                }
                lane[4 * register + 2 * second..][..2].copy_from_slice(&self.half.round(value).to_le_bytes());
            }
        }
        Ok(())
    }
}

/// The indices of an element of an array whose inner sides are given; the outermost comes first.
fn unravel<const SIDES: usize, const INDICES: usize>(mut at: usize, sides: [usize; SIDES]) -> [usize; INDICES] {
    let mut indices = [0; INDICES];
    for (index, side) in indices[1..].iter_mut().zip(sides).rev() {
        *index = at % side;
        at /= side;
    }
    indices[0] = at;
    indices
}
