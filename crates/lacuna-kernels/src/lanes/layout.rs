//! How a layer lies in memory for strips of a vector's rows. Built from the canonical form when a layer is loaded.
//!
//! A tile is some rows of one row block, cut into strips; the last strip of a tile is filled up with rows of zeros. A
//! strip is one stream of bytes, chunk after chunk of [`CHUNK`] groups: a word of 8 nibbles for each row, then group by
//! group the two kept values of each row. Groups behind the last one are zeros.

use std::ops::Range;

use half::f16;
use lacuna_core::{GROUP_COLUMNS, Grid, IntType, KEPT_PER_GROUP, Packed, Permutation, Values, Window};

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
    /// four groups at a time, row by row a word: four nibbles of first codes, then four of second ones; ranks
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
    pub(super) form: Form,
    /// chunks of a strip
    pub(super) chunks: usize,
    /// chunks under one scale
    pub(super) block_chunks: usize,
    /// columns that share a scale of the activations: those that groups under one scale may take, and of the blocks that
    /// share a window with them
    pub(super) block_columns: usize,
    /// blocks of groups that such columns belong to
    pub(super) joined_blocks: usize,
    /// `[strips, blocks, lanes]`; none for floats
    pub(super) scales: Vec<f16>,
    pub(super) tiles: Vec<Tile>,
    /// output row of each packed row
    pub(super) row_order: Option<Permutation>,
    pub(super) chunk_bytes: usize,
    pub(super) lanes: usize,
    window: GroupWindow,
    /// where each group's window starts
    starts: Vec<u32>,
    /// `[row_blocks, groups]`
    distances: Distances,
    /// `[strips, strip_bytes]`
    pub(super) streams: Aligned<u8>,
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
        let window = GroupWindow::of(grid);
        let starts = window.starts(chunks * CHUNK);
        // Scales of activations begin anew where both a block of groups and a window do.
        let joined_blocks = window.groups / greatest_common_divisor(window.groups, block_chunks * CHUNK);

        let mut layout = Self {
            rows: grid.rows(),
            cols: grid.cols(),
            form,
            chunks,
            block_chunks,
            block_columns: joined_blocks * block_chunks * CHUNK * grid.pattern().m(),
            joined_blocks,
            scales: vec![],
            tiles: vec![],
            row_order: packed.row_order().cloned(),
            chunk_bytes,
            lanes,
            window,
            distances: Distances::new(packed, &window, &starts),
            starts,
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
        if shares_columns(grid) {
            // Tiles need not end with a row block.
            layout.tiles.clear();
            for start in (0..grid.rows()).step_by(TILE_ROWS) {
                layout.add_tile(TILE_ROWS.min(grid.rows() - start), 0);
            }
        }
        let strips = layout.tiles.last().map_or(0, |tile| tile.first_strip + tile.len.div_ceil(lanes));
        layout.streams = Aligned::zeros(strips * strip_bytes);
        layout.scales = vec![f16::ZERO; group_values.map_or(0, |_| strips * layout.blocks() * lanes)];
        layout.fill(packed);
        layout
    }

    fn add_tile(&mut self, len: usize, block: usize) {
        let last = self.tiles.last();
        let first_strip = last.map_or(0, |tile| tile.first_strip + tile.len.div_ceil(self.lanes));
        let start = last.map_or(0, |tile| tile.start + tile.len);
        self.tiles.push(Tile { start, len, first_strip, block });
    }

    /// Writes positions, values and scales of all rows.
    fn fill(&mut self, packed: &Packed) {
        let (mask, values) = (packed.mask(), packed.values());
        let groups = mask.grid().groups();
        let (lanes, blocks, form) = (self.lanes, self.blocks(), self.form);
        let mut row = 0;
        for tile in &self.tiles {
            for in_tile in 0..tile.len {
                let (strip, lane) = (tile.first_strip + in_tile / lanes, in_tile % lanes);
                let stream = &mut self.streams[strip * self.strip_bytes..(strip + 1) * self.strip_bytes];
                for (g, pair) in mask.row_pairs(row).iter().enumerate() {
                    let chunk = g / CHUNK * self.chunk_bytes;
                    let nibble = if form.ranks() { rank(pair.code()) } else { pair.code() };
                    stream[chunk + lane * 4 + g % CHUNK / 2] |= nibble << (g % 2 * 4);
                    let values_at = chunk + 4 * lanes..chunk + self.chunk_bytes;
                    let i = (row * groups + g) * KEPT_PER_GROUP;
                    put_pair(&mut stream[values_at], form, [lanes, lane], g % CHUNK, values, i..i + KEPT_PER_GROUP);
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
        let groups = tile.block * self.groups()..(tile.block + 1) * self.groups();
        let distances = match &self.distances {
            Distances::Near(all) => TileDistances::Near(&all[groups]),
            Distances::Far(all) => TileDistances::Far(&all[groups]),
        };
        Columns { distances, window: self.window, starts: &self.starts }
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

/// Whether all row blocks have the same columns: where every group keeps all that it may choose among.
pub(super) fn shares_columns(grid: &Grid) -> bool {
    grid.pattern().is_grouped() && grid.pattern().m() == GROUP_COLUMNS
}

/// Where the columns of groups lie.
#[derive(Clone, Copy)]
pub(super) struct GroupWindow {
    /// groups of a window
    pub(super) groups: usize,
    /// columns of a window
    pub(super) columns: usize,
    /// columns of the layer, and the one that stands for padding
    pub(super) padding: usize,
}

impl GroupWindow {
    pub(super) fn of(grid: &Grid) -> Self {
        let m = grid.pattern().m();
        let groups = match grid.pattern().window() {
            Window::Columns(columns) => columns / m,
            Window::All => grid.groups(),
        };
        Self { groups, columns: groups * m, padding: grid.cols() }
    }

    /// Whether a byte reaches through a window, to the padding behind the last one too.
    fn is_near(&self) -> bool {
        self.columns.min(self.padding + 1) <= 1 << u8::BITS
    }

    /// Whether there is a type for the distances.
    pub(super) fn fits(&self) -> bool {
        self.is_near() || self.padding < 1 << u16::BITS
    }

    /// Whether all distances are below 8.
    pub(super) fn narrow(&self) -> bool {
        self.columns <= 8
    }

    /// Whether each group has a window of its own, and a byte reaches through eight of them.
    pub(super) fn has_eights(&self) -> bool {
        self.groups == 1 && 8 * self.columns <= 1 << u8::BITS
    }

    /// Where the window of each of some groups starts, at most at `padding`.
    fn starts(self, groups: usize) -> Vec<u32> {
        (0..groups).map(|group| (group / self.groups * self.columns).min(self.padding) as u32).collect()
    }
}

/// Kept columns of row blocks. Every row block reads all of its own, so that a byte is better than four.
enum Distances {
    /// from the start of the window
    Near(Vec<[u8; GROUP_COLUMNS]>),
    /// from the first column of all, where a byte does not reach through a window
    Far(Vec<[u16; GROUP_COLUMNS]>),
}

impl Distances {
    /// One for each start of a group's window and row block; groups behind the last one, and columns of padding, lie at `padding`.
    fn new(packed: &Packed, window: &GroupWindow, starts: &[u32]) -> Self {
        let (mask, grid) = (packed.mask(), packed.mask().grid());
        let row_blocks = if shares_columns(grid) { 1 } else { grid.row_blocks() };
        let blocks = mask.all_columns().chunks_exact(grid.groups()).take(row_blocks);
        let near = window.is_near();
        let distances = blocks.flat_map(|block| {
            let listed = block.iter().copied().chain(std::iter::repeat([u32::MAX; GROUP_COLUMNS]));
            let from = move |(four, &start): ([u32; GROUP_COLUMNS], &u32)| {
                four.map(|column| (column.min(window.padding as u32) - if near { start } else { 0 }) as u16)
            };
            listed.zip(starts).map(from)
        });
        if near {
            Self::Near(distances.map(|four| four.map(|d| d as u8)).collect())
        } else {
            Self::Far(distances.collect())
        }
    }
}

/// Those of one row block.
#[derive(Clone, Copy)]
pub(super) enum TileDistances<'a> {
    Near(&'a [[u8; GROUP_COLUMNS]]),
    Far(&'a [[u16; GROUP_COLUMNS]]),
}

/// Kept columns of a row block; padding columns are those at `window.padding`.
#[derive(Clone, Copy)]
pub(super) struct Columns<'a> {
    pub(super) distances: TileDistances<'a>,
    pub(super) window: GroupWindow,
    /// where each group's window starts
    starts: &'a [u32],
}

impl Columns<'_> {
    /// Where each group's window starts.
    #[inline(always)]
    pub(super) fn starts(&self) -> impl Iterator<Item = usize> {
        self.starts.iter().map(|&start| start as usize)
    }

    /// Where the rows of an input tile begin that the columns of all groups name, in elements; rows are `width` wide.
    #[inline(always)]
    pub(super) fn places(&self, width: usize, out: &mut [[u32; GROUP_COLUMNS]]) {
        match self.distances {
            TileDistances::Near(all) => put_places(all, self.starts.iter().copied(), width as u32, out),
            TileDistances::Far(all) => put_places(all, std::iter::repeat(0), width as u32, out),
        }
    }
}

// A loop and no `map`, which was compiled as a call here, with a tenth of a product's time.
#[inline(always)]
fn put_places<D: Copy + Into<u32>>(
    distances: &[[D; GROUP_COLUMNS]],
    starts: impl Iterator<Item = u32>,
    width: u32,
    out: &mut [[u32; GROUP_COLUMNS]],
) {
    for ((out, distances), start) in out.iter_mut().zip(distances).zip(starts) {
        for i in 0..GROUP_COLUMNS {
            out[i] = (start + distances[i].into()) * width;
        }
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
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

/// Writes the values of `pair`, two or at the end of an odd row one, for one of the lanes of a strip and a group of a chunk
/// of zeros.
pub(super) fn put_pair(
    chunk: &mut [u8],
    form: Form,
    [lanes, lane]: [usize; 2],
    group: usize,
    values: &Values,
    pair: Range<usize>,
) {
    let out = &mut chunk[group * lanes * form.pair_bytes()..];
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
            let word = &mut chunk[(group / 4 * lanes + lane) * 4..][..4];
            for (slot, i) in pair.enumerate() {
                word[2 * slot + group % 4 / 2] |= (values.codes()[i] as u8 & 15) << (4 * (group % 2));
            }
        }
        _ => unreachable!("`Form::of` looks at the values"),
    }
}
