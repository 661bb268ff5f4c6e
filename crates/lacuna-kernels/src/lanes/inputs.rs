//! Activations made ready: rounded to what a product takes, cut into tiles of up to 8 tokens, and gathered.

use bytemuck::Pod;
use half::bf16;
use lacuna_core::{GROUP_COLUMNS, Matrix};
use rayon::prelude::*;

use super::aligned::Aligned;
use super::isa::Isa;
use super::layout::{Columns, GroupWindow, TileDistances};
use super::transpose;

/// Values behind the last row of a tile: a window may reach over the end.
const SPARE: usize = 8;

/// Most tokens of a tile.
pub(super) const MAX_TOKENS: usize = 8;

/// Most lanes of a vector.
const MOST_LANES: usize = 16;

/// Vectors that a tile of more tokens may be wide.
const TILE_VECTORS: [usize; 5] = [2, 3, 4, 6, 8];

/// A number that activations are rounded to.
pub(super) trait Element: Pod + Send + Sync {
    /// Whether values are counted in units of a scale for each block of columns.
    const SCALED: bool;
    /// Most vectors of tokens of a tile: sums and choices of a tile are to fit the L1 cache.
    const VECTORS: usize;
    /// Rounds; `per_unit` is 1 / scale, and 1 without scales.
    fn round(x: f32, per_unit: f32) -> Self;
    /// Four of the 8 values from a place on, by their distance from it.
    ///
    /// # Safety
    /// As for [`Isa`]: the CPU must have the instructions, and there must be 8 values.
    unsafe fn window<I: Isa>(from: *const Self, offsets: [u8; GROUP_COLUMNS]) -> [Self; GROUP_COLUMNS];
    /// Whether [`Isa::table_16`] is for such numbers.
    const WORDS: bool;
    /// Four numbers side by side: in a general register where they fit, for inserting each into a vector takes longer.
    fn four(four: [Self; GROUP_COLUMNS]) -> [Self; GROUP_COLUMNS];
    /// Four columns of 8 tokens as 8 tokens of four columns.
    fn transpose(columns: [&[Self; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[Self; GROUP_COLUMNS]; MAX_TOKENS]);
}

impl Element for f32 {
    const VECTORS: usize = 8;
    const WORDS: bool = false;
    const SCALED: bool = false;
    #[inline(always)]
    fn round(x: f32, _: f32) -> Self {
        x
    }
    #[inline(always)]
    unsafe fn window<I: Isa>(from: *const Self, offsets: [u8; GROUP_COLUMNS]) -> [Self; GROUP_COLUMNS] {
        // SAFETY: the caller's.
        unsafe { I::window_32(from, offsets) }
    }
    #[inline(always)]
    fn four(four: [Self; GROUP_COLUMNS]) -> [Self; GROUP_COLUMNS] {
        four
    }
    #[inline(always)]
    fn transpose(columns: [&[Self; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[Self; GROUP_COLUMNS]; MAX_TOKENS]) {
        transpose::of_32_bits(columns, out);
    }
}

impl Element for bf16 {
    const VECTORS: usize = 4;
    const WORDS: bool = true;
    const SCALED: bool = false;
    #[inline(always)]
    fn round(x: f32, _: f32) -> Self {
        // Nearest even by hand, so that it vectorises. A NaN stays one: its quiet bit is set.
        let bits = x.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        bf16::from_bits(if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded })
    }
    #[inline(always)]
    unsafe fn window<I: Isa>(from: *const Self, offsets: [u8; GROUP_COLUMNS]) -> [Self; GROUP_COLUMNS] {
        // SAFETY: the caller's.
        bytemuck::cast(unsafe { I::window_16(from.cast(), offsets) })
    }
    #[inline(always)]
    fn four(four: [Self; GROUP_COLUMNS]) -> [Self; GROUP_COLUMNS] {
        bytemuck::cast(join(bytemuck::cast(four)))
    }
    #[inline(always)]
    fn transpose(columns: [&[Self; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[Self; GROUP_COLUMNS]; MAX_TOKENS]) {
        transpose::of_16_bits(columns.map(bytemuck::cast_ref), bytemuck::cast_mut(out));
    }
}

impl Element for i16 {
    const VECTORS: usize = 4;
    const WORDS: bool = true;
    const SCALED: bool = true;
    #[inline(always)]
    fn round(x: f32, per_unit: f32) -> Self {
        (x * per_unit).round_ties_even() as i16
    }
    #[inline(always)]
    unsafe fn window<I: Isa>(from: *const Self, offsets: [u8; GROUP_COLUMNS]) -> [Self; GROUP_COLUMNS] {
        // SAFETY: the caller's.
        bytemuck::cast(unsafe { I::window_16(from.cast(), offsets) })
    }
    #[inline(always)]
    fn four(four: [Self; GROUP_COLUMNS]) -> [Self; GROUP_COLUMNS] {
        bytemuck::cast(join(bytemuck::cast(four)))
    }
    #[inline(always)]
    fn transpose(columns: [&[Self; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[Self; GROUP_COLUMNS]; MAX_TOKENS]) {
        transpose::of_16_bits(columns.map(bytemuck::cast_ref), bytemuck::cast_mut(out));
    }
}

/// Four words in one.
#[inline(always)]
fn join([a, b, c, d]: [u16; GROUP_COLUMNS]) -> [u16; GROUP_COLUMNS] {
    let joined = u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48;
    bytemuck::cast(joined.to_le())
}

/// Some tokens of the activations.
pub(super) struct InputTile<E> {
    /// first token
    pub(super) start: usize,
    /// tokens, one of the widths of [`next_width`]; those behind the last one are 0
    pub(super) width: usize,
    /// `[K + 1, width]`; the last row is 0, for padding columns
    pub(super) data: Aligned<E>,
    /// `[blocks, width]`, or none
    pub(super) scales: Vec<f32>,
}

impl<E: Element> InputTile<E> {
    /// `width` tokens from `start` on.
    #[inline(always)]
    pub(super) fn new(x: &Matrix, start: usize, width: usize, block_columns: usize) -> Self {
        match width {
            1 => Self::of_width::<1>(x, start, block_columns),
            2 => Self::of_width::<2>(x, start, block_columns),
            4 => Self::of_width::<4>(x, start, block_columns),
            8 => Self::of_width::<8>(x, start, block_columns),
            12 => Self::of_width::<12>(x, start, block_columns),
            16 => Self::of_width::<16>(x, start, block_columns),
            24 => Self::of_width::<24>(x, start, block_columns),
            32 => Self::of_width::<32>(x, start, block_columns),
            48 => Self::of_width::<48>(x, start, block_columns),
            64 => Self::of_width::<64>(x, start, block_columns),
            96 => Self::of_width::<96>(x, start, block_columns),
            128 => Self::of_width::<128>(x, start, block_columns),
            other => unreachable!("`next_width` makes no tiles of {other} tokens"),
        }
    }

    #[inline(always)]
    fn of_width<const N: usize>(x: &Matrix, start: usize, block_columns: usize) -> Self {
        // As in `prefill::run`.
        if const { N > E::VECTORS * MOST_LANES } {
            unreachable!("tiles of such activations are narrower");
        }
        let (features, tokens) = (x.rows(), x.cols());
        let real = N.min(tokens - start);
        let mut data = Aligned::scratch((features + 1) * N + SPARE);
        let mut scales = vec![];
        let (tiles, _) = data[..(features + 1) * N].as_chunks_mut::<N>();
        let row = |k: usize| &x.data()[k * tokens + start..][..real];
        if N == 1 && tokens == 1 {
            scales = one_token(x.data(), block_columns, &mut tiles.as_flattened_mut()[..features]);
        } else if E::SCALED {
            for (block, out) in tiles[..features].chunks_mut(block_columns).enumerate() {
                let mut largest = [0.0_f32; N];
                for k in 0..out.len() {
                    for (m, v) in largest.iter_mut().zip(row(block * block_columns + k)) {
                        // A NaN comes and stays.
                        *m = if v.abs() > *m || v.is_nan() { v.abs() } else { *m };
                    }
                }
                let per_unit = largest.map(|m| if m > 0.0 { f32::from(i16::MAX) / m } else { 0.0 });
                scales.extend(largest.map(|m| m / f32::from(i16::MAX)));
                for (k, out) in out.iter_mut().enumerate() {
                    round_row(row(block * block_columns + k), &per_unit, out);
                }
            }
        } else {
            for (k, out) in tiles[..features].iter_mut().enumerate() {
                round_row(row(k), &[1.0; N], out);
            }
        }
        tiles[features] = [E::zeroed(); N];
        Self { start, width: N, data, scales }
    }

    /// The same where `blocks` blocks of groups have scales of their own and each `times` of them share one here.
    #[must_use]
    pub(super) fn with_scales_repeated(mut self, times: usize, blocks: usize) -> Self {
        if times > 1 && !self.scales.is_empty() {
            let repeated = self.scales.chunks_exact(self.width).flat_map(|scales| std::iter::repeat_n(scales, times));
            self.scales = repeated.take(blocks).flatten().copied().collect();
        }
        self
    }

    /// Fours of activations, `[groups][width]`.
    #[inline(always)]
    ///
    /// # Safety
    /// The CPU must have the instructions of `I`.
    pub(super) unsafe fn gather<I: Isa>(&self, columns: Columns, out: &mut Aligned<[E; 4]>) {
        let window = columns.window;
        match columns.distances {
            // SAFETY: the caller's promise.
            TileDistances::Near(near) if self.width == 1 && I::TABLES && E::WORDS && window.has_eights() => unsafe {
                match window.columns {
                    ..=8 => gather_grouped::<I, E, 1>(&self.data, columns, near, out),
                    9..=16 => gather_grouped::<I, E, 2>(&self.data, columns, near, out),
                    _ => gather_grouped::<I, E, 4>(&self.data, columns, near, out),
                }
            },
            // SAFETY: the caller's promise.
            TileDistances::Near(near) if self.width == 1 && I::WINDOWS && window.narrow() => unsafe {
                gather_windows::<I, E>(&self.data, columns, near, out);
            },
            // SAFETY: the caller's promise.
            TileDistances::Near(near) if self.width == 1 && I::TABLES && E::WORDS && window.groups >= 8 => unsafe {
                gather_tables::<I, E>(&self.data, window, near, out);
            },
            TileDistances::Near(near) => self.gather_from(columns.starts(), near, window.padding, out),
            TileDistances::Far(far) => self.gather_from(std::iter::repeat(0), far, window.padding, out),
        }
    }

    #[inline(always)]
    fn gather_from<D: Copy + Into<usize>>(
        &self,
        starts: impl Iterator<Item = usize>,
        from: &[[D; 4]],
        padding: usize,
        out: &mut Aligned<[E; 4]>,
    ) {
        match self.width {
            1 => gather::<E, D, 1>(&self.data, starts, from, padding, out),
            2 => gather::<E, D, 2>(&self.data, starts, from, padding, out),
            4 => gather::<E, D, 4>(&self.data, starts, from, padding, out),
            _ => gather::<E, D, MAX_TOKENS>(&self.data, starts, from, padding, out),
        }
    }
}

/// One token, a group at a time: a window of 8 values, and a shuffle that takes the four.
///
/// # Safety
/// The CPU must have the instructions of `I`.
#[inline(always)]
unsafe fn gather_windows<I: Isa, E: Element>(
    data: &[E],
    columns: Columns,
    distances: &[[u8; GROUP_COLUMNS]],
    out: &mut Aligned<[E; 4]>,
) {
    assert!(data.len() == columns.window.padding + 1 + SPARE, "inputs for another layer");
    out.resize(distances.len());
    for ((out, &distances), start) in out.iter_mut().zip(distances).zip(columns.starts()) {
        // SAFETY: a window starts at `padding` at most, and behind it are `SPARE` values.
        *out = unsafe { E::window::<I>(data.as_ptr().add(start), distances) };
    }
}

/// Rounds the activations of one token; the scales of its blocks, or none. In slices, which vectorise where arrays of one
/// value do not.
#[inline(always)]
fn one_token<E: Element>(x: &[f32], block_columns: usize, out: &mut [E]) -> Vec<f32> {
    if !E::SCALED {
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = E::round(x, 1.0));
        return vec![];
    }
    let blocks = x.chunks(block_columns).zip(out.chunks_mut(block_columns));
    let scale = |(x, out): (&[f32], &mut [E])| {
        // As bits, a magnitude is the larger the larger it is, and NaN is the largest.
        let largest = f32::from_bits(x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)));
        let per_unit = if largest > 0.0 { f32::from(i16::MAX) / largest } else { 0.0 };
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = E::round(x, per_unit));
        largest / f32::from(i16::MAX)
    };
    blocks.map(scale).collect()
}

/// One row of a tile: the real tokens rounded, the others 0.
#[inline(always)]
fn round_row<E: Element, const N: usize>(row: &[f32], per_unit: &[f32; N], out: &mut [E; N]) {
    if let Some(row) = row.first_chunk::<N>() {
        for t in 0..N {
            out[t] = E::round(row[t], per_unit[t]);
        }
    } else {
        *out = [E::zeroed(); N];
        for ((out, v), per_unit) in out.iter_mut().zip(row).zip(per_unit) {
            *out = E::round(*v, *per_unit);
        }
    }
}

/// One token of 16-bit numbers, 8 groups of a window at a time: a window is a table that registers hold.
///
/// # Safety
/// The CPU must have the instructions of `I`.
#[inline(always)]
unsafe fn gather_tables<I: Isa, E: Element>(
    data: &[E],
    window: GroupWindow,
    distances: &[[u8; GROUP_COLUMNS]],
    out: &mut Aligned<[E; 4]>,
) {
    assert!(data.len() == window.padding + 1 + SPARE, "inputs for another layer");
    out.resize(distances.len());
    let words: &[u16] = bytemuck::cast_slice(data);
    let windows = distances.chunks(window.groups).zip(out.chunks_mut(window.groups));
    for (i, (distances, out)) in windows.enumerate() {
        let values = &words[(i * window.columns).min(window.padding)..];
        let (tables, _) = if values.len() < 256 { (&[][..], distances) } else { distances.as_chunks::<8>() };
        let (eights, _) = out.as_chunks_mut::<8>();
        for (out, table) in eights.iter_mut().zip(tables) {
            // SAFETY: there are 256 values, and the CPU has the instructions.
            *out = bytemuck::cast(unsafe { I::table_16::<4>(values.as_ptr(), table) });
        }
        let done = tables.len() * 8;
        for (out, four) in out[done..].iter_mut().zip(&distances[done..]) {
            *out = bytemuck::cast(join(four.map(|distance| values[usize::from(distance)])));
        }
    }
}

/// One token of 16-bit numbers, 8 groups at a time, each with a window of its own: 8 windows are a table of `64 · PARTS`
/// values.
///
/// # Safety
/// The CPU must have the instructions of `I`.
#[inline(always)]
unsafe fn gather_grouped<I: Isa, E: Element, const PARTS: usize>(
    data: &[E],
    columns: Columns,
    distances: &[[u8; GROUP_COLUMNS]],
    out: &mut Aligned<[E; 4]>,
) {
    let window = columns.window;
    assert!(data.len() == window.padding + 1 + SPARE, "inputs for another layer");
    assert!(window.groups == 1 && 8 * window.columns <= 64 * PARTS);
    out.resize(distances.len());
    let words: &[u16] = bytemuck::cast_slice(data);
    let offsets: [u8; 8] = std::array::from_fn(|group| (group * window.columns) as u8);
    let eights = out.chunks_mut(8).zip(distances.chunks(8)).enumerate();
    for (i, (out, distances)) in eights {
        let start = i * 8 * window.columns;
        if let (Some(out), Some(table)) = (out.first_chunk_mut::<8>(), distances.first_chunk::<8>())
            && start + 64 * PARTS <= window.padding
        {
            let mut places = *table;
            for (places, offset) in places.iter_mut().zip(offsets) {
                for place in places {
                    *place += offset;
                }
            }
            // SAFETY: there are as many values, and the CPU has the instructions.
            *out = bytemuck::cast(unsafe { I::table_16::<PARTS>(words.as_ptr().add(start), &places) });
        } else {
            for ((out, distances), start) in out.iter_mut().zip(distances).zip(columns.starts().skip(i * 8)) {
                *out = bytemuck::cast(join(distances.map(|distance| words[start + usize::from(distance)])));
            }
        }
    }
}

#[inline(always)]
fn gather<E: Element, D: Copy + Into<usize>, const N: usize>(
    data: &[E],
    starts: impl Iterator<Item = usize>,
    distances: &[[D; GROUP_COLUMNS]],
    padding: usize,
    out: &mut Aligned<[E; 4]>,
) {
    let (rows, _) = data[..data.len() - SPARE].as_chunks::<N>();
    assert!(rows.len() == padding + 1, "inputs for another layer");
    out.resize(distances.len() * N);
    for ((out, distances), start) in out.as_chunks_mut::<N>().0.iter_mut().zip(distances).zip(starts) {
        // SAFETY: columns are at most `padding`, the last row.
        let [a, b, c, d] = distances.map(|distance| unsafe { rows.get_unchecked(start + distance.into()) });
        if N == MAX_TOKENS {
            let columns = [a, b, c, d].map(|row| row.first_chunk().expect("N is MAX_TOKENS"));
            E::transpose(columns, out.first_chunk_mut().expect("N is MAX_TOKENS"));
        } else {
            for t in 0..N {
                out[t] = E::four([a[t], b[t], c[t], d[t]]);
            }
        }
    }
}

/// Width of the next tile, with `left` tokens to go: few tokens in a power of two, many in whole vectors of `lanes`. What
/// one tile does not hold but two do is shared out evenly: a small rest would cost as much as a large one.
fn next_width(left: usize, lanes: usize, most: usize) -> usize {
    let vectors = left.div_ceil(lanes);
    if left <= 2 * MAX_TOKENS {
        return left.next_power_of_two().min(MAX_TOKENS);
    }
    let wanted = if vectors > most && vectors < 2 * most { vectors.div_ceil(2) } else { vectors.min(most) };
    TILE_VECTORS.into_iter().find(|&width| width >= wanted).unwrap_or(most) * lanes
}

/// All tokens of `x[K, T]`, for vectors of `lanes`, each tile made by `new`. With scaled elements a scale is shared by
/// `block_columns` columns.
pub(super) fn input_tiles<E: Element>(
    new: impl Fn(&Matrix, usize, usize, usize) -> InputTile<E> + Sync,
    x: &Matrix,
    lanes: usize,
    block_columns: usize,
    parallel: bool,
) -> Vec<InputTile<E>> {
    let (mut tiles, mut start) = (vec![], 0);
    while start < x.cols() {
        let width = next_width(x.cols() - start, lanes, E::VECTORS);
        tiles.push((start, width));
        start += width;
    }
    let tile = |(start, width)| new(x, start, width, block_columns);
    if parallel { tiles.into_par_iter().map(tile).collect() } else { tiles.into_iter().map(tile).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widths(mut left: usize, lanes: usize, most: usize) -> Vec<usize> {
        let mut widths = vec![];
        while left > 0 {
            let width = next_width(left, lanes, most);
            widths.push(width);
            left = left.saturating_sub(width);
        }
        widths
    }

    #[test]
    fn tiles_cover_all_tokens_and_waste_little() {
        for (lanes, most) in [(16, 4), (16, 8), (8, 4), (4, 8)] {
            for tokens in 1..600 {
                let widths = widths(tokens, lanes, most);
                let sum: usize = widths.iter().sum();
                assert!(sum >= tokens && sum < tokens + 2 * lanes.max(MAX_TOKENS), "{tokens}: {widths:?}");
                let few = |width: usize| width <= MAX_TOKENS;
                assert!(widths.iter().all(|w| few(*w) || TILE_VECTORS.contains(&(w / lanes))), "{tokens}: {widths:?}");
            }
        }
        assert_eq!(widths(197, 16, 4), [64, 64, 48, 32]);
        assert_eq!(widths(256, 16, 8), [128, 128]);
    }
}
