//! How a layer lies in memory for strips of a vector's rows. Built from the canonical form when a layer is loaded.
//!
//! A tile is some rows of one row block, cut into strips; the last strip of a tile is filled up with rows of zeros. A
//! strip is one stream of bytes, chunk after chunk of [`CHUNK`] groups: a word of 8 nibbles for each row, then group by
//! group the two kept values of each row. Groups behind the last one are zeros.

use std::ops::Range;

use half::f16;
use lacuna_core::{GROUP_COLUMNS, IntType, KEPT_PER_GROUP, Packed, Permutation, Values};

use super::aligned::Aligned;

/// Groups whose positions share a word: 8 nibbles.
pub(super) const CHUNK: usize = 8;

/// Most rows of a tile: enough to gather activations rarely, few
/// enough to share the work between threads.
const TILE_ROWS: usize = 128;

/// How the values of a strip in a group lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// all first values, then all second ones, f32
    F32,
    /// all first values, then all second ones, f16
    F16,
    /// row by row the two values
    Bf16,
    /// the same, with ranks instead of positions
    Bf16Dot,
    /// row by row the two codes; ranks
    Int8,
    /// row by row a byte of two nibbles of code + 8, the first one low; ranks
    Int4,
}

impl Form {
    /// Bytes of a row's pair.
    pub(super) fn pair_bytes(self) -> usize {
        match self {
            Self::F32 => 8,
            Self::F16 | Self::Bf16 | Self::Bf16Dot => 4,
            Self::Int8 => 2,
            Self::Int4 => 1,
        }
    }

    /// The form of a layer's values; bfloat16 ones may be wanted for [`super::isa::Isa::dot_bf16`].
    pub(super) fn of(values: &Values, bf16_dot: bool) -> Self {
        match values {
            Values::F32(_) => Self::F32,
            Values::F16(_) => Self::F16,
            Values::Bf16(_) if bf16_dot => Self::Bf16Dot,
            Values::Bf16(_) => Self::Bf16,
            Values::Quantized(values) => match values.int() {
                IntType::Int8 => Self::Int8,
                IntType::Int4 => Self::Int4,
            },
        }
    }

    fn ranks(self) -> bool {
        matches!(self, Self::Bf16Dot | Self::Int8 | Self::Int4)
    }
}

/// Rank of a pair among the six there are; three bits are fewer than the four of a code, and index a vector of 8 words.
pub(super) const fn rank(code: u8) -> u8 {
    let (low, high) = (code & 3, code >> 2);
    // 01 02 12 03 13 23
    low + high * (high - 1) / 2
}

/// For each rank of a pair of positions the bytes of its two 16-bit values among four.
pub(super) const PAIR_BYTES: [u32; 16] = {
    let mut table = [0; 16];
    let ranks = [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)];
    let mut i = 0;
    while i < 6 {
        let (low, high) = (ranks[i].0 * 2, ranks[i].1 * 2);
        table[i] = low | (low + 1) << 8 | high << 16 | (high + 1) << 24;
        i += 1;
    }
    table
};

/// Rows `start..start + len`, all of one row block.
pub(super) struct Tile {
    pub(super) start: usize,
    pub(super) len: usize,
    pub(super) first_strip: usize,
    block: usize,
}

/// A packed layer, laid out.
pub(super) struct Layout {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// chunks of a strip
    pub(super) chunks: usize,
    /// chunks under one scale
    pub(super) block_chunks: usize,
    /// columns under one scale
    pub(super) block_columns: usize,
    /// `[strips, blocks, lanes]`; none for floats
    pub(super) scales: Vec<f16>,
    pub(super) tiles: Vec<Tile>,
    /// packed row of each output row
    pub(super) row_order: Option<Permutation>,
    pub(super) chunk_bytes: usize,
    pub(super) lanes: usize,
    m: usize,
    /// `[row_blocks, groups]`, as [`Columns`] has them
    offsets: Vec<[u8; GROUP_COLUMNS]>,
    /// `[strips, strip_bytes]`
    streams: Aligned<u8>,
    pub(super) strip_bytes: usize,
}

impl Layout {
    pub(super) fn new(packed: &Packed, lanes: usize, form: Form) -> Self {
        let grid = packed.mask().grid();
        let chunks = grid.groups().div_ceil(CHUNK);
        let chunk_bytes = lanes * (4 + CHUNK * form.pair_bytes());
        let strip_bytes = (chunks * chunk_bytes).next_multiple_of(64);
        let group_values = scale_group(packed);
        let block_chunks = group_values.map_or(chunks, |values| values / KEPT_PER_GROUP / CHUNK);

        let mut layout = Self {
            rows: grid.rows(),
            cols: grid.cols(),
            chunks,
            block_chunks,
            block_columns: block_chunks * CHUNK * grid.pattern().m(),
            scales: vec![],
            tiles: vec![],
            row_order: packed.row_order().map(Permutation::inverse),
            chunk_bytes,
            lanes,
            m: grid.pattern().m(),
            offsets: offsets(packed, chunks * CHUNK),
            streams: Aligned::zeros(0),
            strip_bytes,
        };
        for block in 0..grid.row_blocks() {
            let rows = grid.block_rows(block);
            for start in rows.clone().step_by(TILE_ROWS) {
                let len = TILE_ROWS.min(rows.end - start);
                layout.add_tile(len, block);
            }
        }
        if grid.pattern().m() == GROUP_COLUMNS {
            // Every block keeps all columns: tiles need not end with them.
            layout.offsets.truncate(chunks * CHUNK);
            layout.tiles.clear();
            for start in (0..grid.rows()).step_by(TILE_ROWS) {
                layout.add_tile(TILE_ROWS.min(grid.rows() - start), 0);
            }
        }
        let strips = layout.tiles.last().map_or(0, |tile| tile.first_strip + tile.len.div_ceil(lanes));
        layout.streams = Aligned::zeros(strips * strip_bytes);
        layout.scales = vec![f16::ZERO; group_values.map_or(0, |_| strips * layout.blocks() * lanes)];
        layout.fill(packed, form);
        layout
    }

    fn add_tile(&mut self, len: usize, block: usize) {
        let last = self.tiles.last();
        let first_strip = last.map_or(0, |tile| tile.first_strip + tile.len.div_ceil(self.lanes));
        let start = last.map_or(0, |tile| tile.start + tile.len);
        self.tiles.push(Tile { start, len, first_strip, block });
    }

    /// Writes positions, values and scales of all rows.
    fn fill(&mut self, packed: &Packed, form: Form) {
        let (mask, values) = (packed.mask(), packed.values());
        let groups = mask.grid().groups();
        let (lanes, blocks) = (self.lanes, self.blocks());
        let mut row = 0;
        for tile in &self.tiles {
            for in_tile in 0..tile.len {
                let (strip, lane) = (tile.first_strip + in_tile / lanes, in_tile % lanes);
                let stream = &mut self.streams[strip * self.strip_bytes..(strip + 1) * self.strip_bytes];
                for (g, pair) in mask.row_pairs(row).iter().enumerate() {
                    let chunk = g / CHUNK * self.chunk_bytes;
                    let nibble = if form.ranks() { rank(pair.code()) } else { pair.code() };
                    stream[chunk + lane * 4 + g % CHUNK / 2] |= nibble << (g % 2 * 4);
                    let at = chunk + lanes * (4 + g % CHUNK * form.pair_bytes());
                    let i = (row * groups + g) * KEPT_PER_GROUP;
                    put_pair(
                        &mut stream[at..at + lanes * form.pair_bytes()],
                        form,
                        lanes,
                        lane,
                        values,
                        i..i + KEPT_PER_GROUP,
                    );
                }
                if let Some(scales) = row_scales(packed, row) {
                    for (block, &scale) in scales.iter().enumerate() {
                        self.scales[(strip * blocks + block) * lanes + lane] = scale;
                    }
                }
                row += 1;
            }
        }
    }

    /// Groups of a strip, a whole number of chunks.
    pub(super) fn groups(&self) -> usize {
        self.chunks * CHUNK
    }

    /// Blocks of groups under one scale.
    pub(super) fn blocks(&self) -> usize {
        self.chunks.div_ceil(self.block_chunks)
    }

    /// Kept values, with those that fill up.
    pub(super) fn kept(&self) -> usize {
        self.rows * self.groups() * KEPT_PER_GROUP
    }

    /// Kept columns of a tile.
    pub(super) fn columns(&self, tile: &Tile) -> Columns<'_> {
        let offsets = &self.offsets[tile.block * self.groups()..(tile.block + 1) * self.groups()];
        Columns { offsets, m: self.m, cols: self.cols }
    }

    /// Positions and values of a strip.
    pub(super) fn stream(&self, strip: usize) -> &[u8] {
        &self.streams[strip * self.strip_bytes..(strip + 1) * self.strip_bytes]
    }

    /// Scales of a strip, or none.
    pub(super) fn strip_scales(&self, strip: usize) -> &[f16] {
        let len = if self.scales.is_empty() { 0 } else { self.blocks() * self.lanes };
        &self.scales[strip * len..(strip + 1) * len]
    }
}

/// Kept columns of a row block, `cols` for padding. A column is stored as its distance from the start of its group: one
/// byte instead of four, and every row block reads all of them.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    offsets: &'a [[u8; GROUP_COLUMNS]],
    m: usize,
    cols: usize,
}

/// The widest groups whose columns are a byte away from their start; padding may lie behind the last one.
pub(super) const MAX_M: usize = 255;

impl Columns<'_> {
    /// Groups there are.
    pub(super) fn groups(&self) -> usize {
        self.offsets.len()
    }

    /// Columns of a group; at most `cols`.
    #[inline(always)]
    pub(super) fn of(&self, group: usize) -> [usize; GROUP_COLUMNS] {
        let (start, offsets) = self.window(group);
        offsets.map(|offset| start + usize::from(offset))
    }

    /// Where a group starts, at most `cols`, and the distances of its columns from there.
    #[inline(always)]
    pub(super) fn window(&self, group: usize) -> (usize, [u8; GROUP_COLUMNS]) {
        ((group * self.m).min(self.cols), self.offsets[group])
    }

    /// Whether all distances are below 8.
    pub(super) fn narrow(&self) -> bool {
        self.m <= 8
    }

    /// `cols`.
    pub(super) fn padding(&self) -> usize {
        self.cols
    }
}

/// Kept columns of all row blocks, `groups` each.
fn offsets(packed: &Packed, groups: usize) -> Vec<[u8; GROUP_COLUMNS]> {
    let (mask, grid) = (packed.mask(), packed.mask().grid());
    let mut offsets = Vec::with_capacity(grid.row_blocks() * groups);
    for block in mask.all_columns().chunks_exact(grid.groups()) {
        for (g, group) in block.iter().enumerate() {
            let start = g * grid.pattern().m();
            offsets.push(group.map(|column| {
                let offset = (column as usize).min(grid.cols()) - start;
                u8::try_from(offset).expect("`takes` refuses wider groups")
            }));
        }
        offsets.resize(offsets.len().next_multiple_of(groups), [0; GROUP_COLUMNS]);
    }
    offsets
}

/// Kept values under one scale, where values have scales.
fn scale_group(packed: &Packed) -> Option<usize> {
    packed.values().value_type().integers().map(|(_, group)| group.values())
}

/// Scales of a packed row.
fn row_scales(packed: &Packed, row: usize) -> Option<&[f16]> {
    match packed.values() {
        Values::Quantized(values) => Some(&values.scales()[row * values.blocks()..(row + 1) * values.blocks()]),
        _ => None,
    }
}

/// Writes the values of `pair`, two or at the end of an odd row one, for one lane of a strip's group.
pub(super) fn put_pair(out: &mut [u8], form: Form, lanes: usize, lane: usize, values: &Values, pair: Range<usize>) {
    match (form, values) {
        (Form::F32, values) => {
            for (slot, i) in pair.enumerate() {
                out[(slot * lanes + lane) * 4..][..4].copy_from_slice(&values.get(i).to_ne_bytes());
            }
        }
        (Form::F16, Values::F16(values)) => {
            for (slot, i) in pair.enumerate() {
                out[(slot * lanes + lane) * 2..][..2].copy_from_slice(&values[i].to_ne_bytes());
            }
        }
        (Form::Bf16 | Form::Bf16Dot, Values::Bf16(values)) => {
            for (slot, i) in pair.enumerate() {
                out[lane * 4 + slot * 2..][..2].copy_from_slice(&values[i].to_ne_bytes());
            }
        }
        (Form::Int8, Values::Quantized(values)) => {
            for (slot, i) in pair.enumerate() {
                out[lane * 2 + slot] = values.codes()[i].cast_unsigned();
            }
        }
        (Form::Int4, Values::Quantized(values)) => {
            out[lane] = 0x88;
            for (slot, i) in pair.enumerate() {
                out[lane] ^= (values.codes()[i] as u8 & 15) << (4 * slot);
            }
        }
        _ => unreachable!("`Form::of` looks at the values"),
    }
}
