//! Tokens in lanes, for many tokens: a row's kept value is one broadcast, multiplied with vectors of tokens.
//!
//! A chunk of groups at a time, the activations that the tile's rows choose from are laid out in a scratch in the L1
//! cache, and each row adds its products to its sums: no shuffles, one load a multiply-add. For pairs of 16-bit values
//! there are six choices of two columns among a group's four; all six are laid out interleaved, so that a row's two
//! kept values are one instruction.

use std::sync::atomic::{Ordering, compiler_fence};

use half::f16;

use super::aligned::Aligned;
use super::inputs::{Element, InputTile};
use super::isa::Isa;
use super::layout::{CHUNK, Layout, Tile};
use super::product::{FloatValues, InBf16, InF32, InInt, IntValues};

/// One way to multiply many tokens.
pub(super) trait Prefill<I: Isa> {
    /// What activations are rounded to.
    type Input: Element;
    /// Choices of a group.
    const CHOICES: usize;
    /// Whether the values of two chunks fit the registers, and their choices the L1 cache.
    const TWO_CHUNKS: bool;
    /// Rows that are added side by side, one or two, so that enough sums are under way.
    const ROWS: usize;

    /// Lays out the choices of a group: vectors `[choices][N]` from columns of `N` vectors of tokens.
    unsafe fn choices<const N: usize>(columns: [*const Self::Input; 4], out: *mut u32);
    /// A strip's values of a chunk, kept in registers where there are enough.
    type Values: Copy;
    /// Loads them.
    unsafe fn load(from: *const u8) -> Self::Values;
    /// Adds the products of `R` rows in `C` chunks to their `N` vectors of sums each.
    unsafe fn add<const R: usize, const N: usize, const C: usize>(
        values: &[Self::Values; C],
        rows: &[Row<I, C>; R],
        scratch: *const u32,
        sums: *mut f32,
    );
}

/// What tells one row of a strip from another in `C` chunks.
pub(super) struct Row<I: Isa, const C: usize> {
    /// spreads the row's lane
    lane: I::I,
    /// which one that is
    index: usize,
    /// 8 nibbles of positions or ranks
    codes: [u32; C],
    /// the strip's scales, for integers
    scales: [*const f16; C],
    /// the tokens' scales, for integers
    x_scales: [*const f32; C],
}

/// One row's float of a strip's. Where registers are too few for a strip's values, they are in memory, and to take one from
/// there is a load and no shuffle.
#[inline(always)]
unsafe fn spread<I: Isa, const C: usize>(values: &I::F, row: &Row<I, C>) -> I::F {
    // SAFETY: the CPU has the instructions; a vector is as many floats as it has lanes.
    unsafe {
        if I::WIDE {
            I::spread_float(*values, row.lane)
        } else {
            I::splat(*std::ptr::from_ref(values).cast::<f32>().add(row.index))
        }
    }
}

/// The same for words.
#[inline(always)]
unsafe fn spread_word<I: Isa, const C: usize>(words: &I::I, row: &Row<I, C>) -> I::I {
    // SAFETY: as in `spread`.
    unsafe {
        if I::WIDE {
            I::spread(*words, row.lane)
        } else {
            I::splat_word(*std::ptr::from_ref(words).cast::<u32>().add(row.index))
        }
    }
}

impl<I: Isa, V: FloatValues<I>> Prefill<I> for InF32<V> {
    type Input = f32;
    const CHOICES: usize = 4;
    const TWO_CHUNKS: bool = false;
    const ROWS: usize = 1;

    #[inline(always)]
    unsafe fn choices<const N: usize>(columns: [*const f32; 4], out: *mut u32) {
        for (slot, column) in columns.into_iter().enumerate() {
            for i in 0..N {
                // SAFETY: the caller's columns and scratch have `N` vectors of tokens.
                unsafe {
                    I::store(out.cast::<f32>().add((slot * N + i) * I::LANES), I::load(column.add(i * I::LANES)));
                };
            }
        }
    }

    type Values = [[I::F; 2]; CHUNK];

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Values {
        // SAFETY: the stream holds 8 groups of pairs.
        unsafe {
            let mut values = [[I::zero(); 2]; CHUNK];
            for (g, values) in values.iter_mut().enumerate() {
                *values = V::load(from.add(g * V::PAIR * I::LANES));
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn add<const R: usize, const N: usize, const C: usize>(
        values: &[Self::Values; C],
        rows: &[Row<I, C>; R],
        scratch: *const u32,
        sums: *mut f32,
    ) {
        // SAFETY: the caller's sums have `R · N` vectors, the scratch `4 · N` for each of 8 groups; positions are below 4.
        unsafe {
            let scratch = scratch.cast::<f32>();
            for (r, row) in rows.iter().enumerate() {
                let sums = sums.add(r * N * I::LANES);
                let mut acc = [I::zero(); N];
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = I::load(sums.add(i * I::LANES));
                }
                for (g, values) in values.as_flattened().iter().enumerate() {
                    let group = scratch.add(g * 4 * N * I::LANES);
                    let code = (row.codes[g / CHUNK] >> (g % CHUNK * 4)) as usize;
                    let first = group.add((code & 3) * N * I::LANES);
                    let second = group.add((code >> 2 & 3) * N * I::LANES);
                    let a = spread::<I, C>(&values[0], row);
                    for (i, acc) in acc.iter_mut().enumerate() {
                        *acc = I::fma(a, I::load(first.add(i * I::LANES)), *acc);
                    }
                    let b = spread::<I, C>(&values[1], row);
                    for (i, acc) in acc.iter_mut().enumerate() {
                        *acc = I::fma(b, I::load(second.add(i * I::LANES)), *acc);
                    }
                }
                for (i, acc) in acc.into_iter().enumerate() {
                    I::store(sums.add(i * I::LANES), acc);
                }
            }
        }
    }
}

/// The six pairs of four columns of 16-bit values, by rank.
#[inline(always)]
unsafe fn pairs<I: Isa, const N: usize>(columns: [*const u16; 4], out: *mut u32) {
    for i in 0..N {
        // SAFETY: the caller's columns have `N` vectors of tokens and the scratch `6 · N`.
        unsafe {
            let [a, b, c, d] = columns.map(|column| I::widen_words(column.add(i * I::LANES)));
            let [high_b, high_c, high_d] = [b, c, d].map(|v| I::shift_left_16(v));
            let pairs = [(a, high_b), (a, high_c), (b, high_c), (a, high_d), (b, high_d), (c, high_d)];
            for (rank, (low, high)) in pairs.into_iter().enumerate() {
                I::store_words(out.add((rank * N + i) * I::LANES), I::or(low, high));
            }
        }
    }
}

impl<I: Isa> Prefill<I> for InBf16 {
    type Input = half::bf16;
    const CHOICES: usize = 6;
    const TWO_CHUNKS: bool = I::WIDE;
    const ROWS: usize = 1;

    #[inline(always)]
    unsafe fn choices<const N: usize>(columns: [*const half::bf16; 4], out: *mut u32) {
        // SAFETY: the caller's.
        unsafe { pairs::<I, N>(columns.map(<*const half::bf16>::cast), out) };
    }

    type Values = [I::I; CHUNK];

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Values {
        // SAFETY: the stream holds 8 groups of pairs.
        unsafe {
            let mut values = [I::zero_words(); CHUNK];
            for (g, values) in values.iter_mut().enumerate() {
                *values = I::load_words(from.add(g * 4 * I::LANES).cast());
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn add<const R: usize, const N: usize, const C: usize>(
        values: &[Self::Values; C],
        rows: &[Row<I, C>; R],
        scratch: *const u32,
        sums: *mut f32,
    ) {
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: the caller's sums have `R · N` vectors, the scratch `6 · N` for each of 8 groups; ranks are below 6.
            unsafe {
                let sums = sums.add(r * N * I::LANES);
                // Each chunk has sums of its own, taken in turn: four are too few to hide how long a multiply-add takes.
                let mut acc = [[I::zero(); N]; C];
                for i in 0..N {
                    acc[0][i] = I::load(sums.add(i * I::LANES));
                }
                for g in 0..CHUNK {
                    for c in 0..C {
                        let rank = (row.codes[c] >> (g * 4) & 7) as usize;
                        let x = scratch.add(((c * CHUNK + g) * 6 + rank) * N * I::LANES);
                        let w = I::spread(values[c][g], row.lane);
                        for i in 0..N {
                            acc[c][i] = I::dot_bf16(acc[c][i], w, I::load_words(x.add(i * I::LANES)));
                        }
                    }
                    // Keeps the turns: the compiler would put one sum's products in a row, each waiting for the last.
                    compiler_fence(Ordering::SeqCst);
                }
                for i in 0..N {
                    let sum = if C > 1 { I::add(acc[0][i], acc[C - 1][i]) } else { acc[0][i] };
                    I::store(sums.add(i * I::LANES), sum);
                }
            }
        }
    }
}

impl<I: Isa, V: IntValues<I>> Prefill<I> for InInt<V> {
    type Input = i16;
    const CHOICES: usize = 6;
    // Sums of a chunk begin anew: two rows of them hide more than two chunks of one.
    const TWO_CHUNKS: bool = false;
    const ROWS: usize = if I::WIDE { 2 } else { 1 };

    #[inline(always)]
    unsafe fn choices<const N: usize>(columns: [*const i16; 4], out: *mut u32) {
        // SAFETY: the caller's.
        unsafe { pairs::<I, N>(columns.map(<*const i16>::cast), out) };
    }

    type Values = [I::I; CHUNK];

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Values {
        // SAFETY: the stream holds 8 groups of pairs.
        unsafe {
            let mut values = [I::zero_words(); CHUNK];
            for (g, values) in values.iter_mut().enumerate() {
                *values = V::load(from, g);
            }
            values
        }
    }

    #[inline(always)]
    unsafe fn add<const R: usize, const N: usize, const C: usize>(
        values: &[Self::Values; C],
        rows: &[Row<I, C>; R],
        scratch: *const u32,
        sums: *mut f32,
    ) {
        // SAFETY: as in `InBf16`; there is a scale for each token.
        unsafe {
            for (c, values) in values.iter().enumerate() {
                let mut acc = [[I::zero_words(); N]; R];
                for (g, values) in values.iter().enumerate() {
                    for r in 0..R {
                        let rank = (rows[r].codes[c] >> (g * 4) & 7) as usize;
                        let x = scratch.add(((c * CHUNK + g) * 6 + rank) * N * I::LANES);
                        let w = spread_word::<I, C>(values, &rows[r]);
                        for i in 0..N {
                            acc[r][i] = I::dot_i16(acc[r][i], w, I::load_words(x.add(i * I::LANES)));
                        }
                    }
                }
                for r in 0..R {
                    let scale = I::spread_float(I::load_f16(rows[r].scales[c]), rows[r].lane);
                    for i in 0..N {
                        let both = I::mul(scale, I::load(rows[r].x_scales[c].add(i * I::LANES)));
                        let sum = sums.add((r * N + i) * I::LANES);
                        I::store(sum, I::fma(I::to_float(acc[r][i]), both, I::load(sum)));
                    }
                }
            }
        }
    }
}

/// A tile's rows for an input tile of `N` vectors of tokens.
///
/// # Safety
/// The CPU must have the instructions of `I`; `layout` must have been made for its lanes and for `P`; the input tile
/// must be `N` vectors wide.
#[inline(always)]
pub(super) unsafe fn run<I: Isa, P: Prefill<I>, const N: usize>(
    layout: &Layout,
    tile: &Tile,
    input: &InputTile<P::Input>,
    y: &mut [f32],
    tokens: usize,
) {
    // Said to the compiler, which would make such a loop and throw it away after.
    if const { N > <P::Input as Element>::VECTORS } {
        unreachable!("tiles of such activations are narrower");
    }
    let width = N * I::LANES;
    assert!(input.width == width && input.data.len() >= (layout.cols + 1) * width);
    let mut scratch = Aligned::<u32>::scratch(2 * CHUNK * P::CHOICES * width);
    let mut sums = Aligned::<f32>::scratch(tile.len * width);
    sums.fill(0.0);
    let mut places = Aligned::scratch(layout.groups());
    layout.columns(tile).places(width, &mut places);
    let mut chunk = 0;
    while chunk < layout.chunks {
        // SAFETY: the caller's promise; there are as many chunks left, and room for the choices of two.
        unsafe {
            if P::TWO_CHUNKS && chunk + 2 <= layout.chunks {
                add_chunks::<I, P, N, 2>(layout, tile, input, &places, chunk, scratch.as_mut_ptr(), &mut sums);
                chunk += 2;
            } else {
                add_chunks::<I, P, N, 1>(layout, tile, input, &places, chunk, scratch.as_mut_ptr(), &mut sums);
                chunk += 1;
            }
        }
    }
    let real = width.min(tokens - input.start);
    for (out, sums) in y.chunks_exact_mut(tokens).zip(sums.chunks_exact(width)) {
        let out = &mut out[input.start..input.start + real];
        if real == width {
            for i in 0..N {
                // SAFETY: both are `N` vectors long. A call of memcpy would take longer than the copy.
                unsafe { I::store(out.as_mut_ptr().add(i * I::LANES), I::load(sums.as_ptr().add(i * I::LANES))) };
            }
        } else {
            out.copy_from_slice(&sums[..real]);
        }
    }
    places.shelve();
    scratch.shelve();
    sums.shelve();
}

/// Adds the products of `C` chunks to the sums of a tile's rows.
///
/// # Safety
/// As for [`run`]; `scratch` must have room for the choices of `C` chunks.
#[inline(always)]
unsafe fn add_chunks<I: Isa, P: Prefill<I>, const N: usize, const C: usize>(
    layout: &Layout,
    tile: &Tile,
    input: &InputTile<P::Input>,
    places: &[[u32; 4]],
    chunk: usize,
    scratch: *mut u32,
    sums: &mut [f32],
) {
    let width = N * I::LANES;
    let strips = tile.len.div_ceil(I::LANES);
    let (now, next) = places[chunk * CHUNK..].split_at(C * CHUNK);
    for (g, four) in now.iter().enumerate() {
        // SAFETY: the places are those of rows of the input tile; a group's choices are `CHOICES · N` vectors of the scratch.
        unsafe {
            let columns = four.map(|place| input.data.as_ptr().add(place as usize));
            P::choices::<N>(columns, scratch.add(g * P::CHOICES * width));
        }
    }
    // Columns of the chunks after these, which no hardware would see coming, are asked for strip by strip: all at once they
    // would wait for each other, and the first be gone before they are needed.
    let next = next[..next.len().min(C * CHUNK)].as_flattened();
    let mut asked = next.chunks(next.len().div_ceil(strips).max(1));
    let block = |c: usize| (chunk + c) / layout.block_chunks;
    let x_scales: [*const f32; C] =
        std::array::from_fn(|c| input.scales.get(block(c) * width..).map_or(std::ptr::null(), <[f32]>::as_ptr));
    for (strip, sums) in sums.chunks_mut(I::LANES * width).enumerate() {
        let strip = tile.first_strip + strip;
        let stream = layout.stream(strip)[chunk * layout.chunk_bytes..].as_ptr();
        let scales = layout.strip_scales(strip);
        let scales: [*const f16; C] =
            std::array::from_fn(|c| scales.get(block(c) * I::LANES..).map_or(std::ptr::null(), <[f16]>::as_ptr));
        // SAFETY: the stream goes on for `C` chunks; behind the codes of each lie 8 groups of values. The rows have `N`
        // vectors of sums, and their lanes are those of the strip.
        unsafe {
            let chunks: [*const u8; C] = std::array::from_fn(|c| stream.add(c * layout.chunk_bytes));
            let mut values = [P::load(chunks[0].add(4 * I::LANES)); C];
            for c in 1..C {
                values[c] = P::load(chunks[c].add(4 * I::LANES));
            }
            // Asked for: what the next strip has in these chunks, or the first one in the chunks after them.
            let after = if strip + 1 == tile.first_strip + strips {
                layout.stream(tile.first_strip).as_ptr().wrapping_add((chunk + C) * layout.chunk_bytes)
            } else {
                stream.wrapping_add(layout.strip_bytes)
            };
            for place in (0..C * layout.chunk_bytes).step_by(64) {
                I::prefetch(after.wrapping_add(place));
            }
            for &place in asked.next().unwrap_or_default() {
                for ahead in (0..width).step_by(64 / size_of::<P::Input>()) {
                    I::prefetch(input.data.as_ptr().wrapping_add(place as usize + ahead).cast());
                }
            }
            let mut lane = 0;
            // No closure: it may be compiled by itself, without the features.
            macro_rules! row {
                ($next:literal) => {{
                    let codes = chunks.map(|chunk| chunk.add(4 * (lane + $next)).cast::<[u8; 4]>().read());
                    Row {
                        lane: I::lane(lane + $next),
                        index: lane + $next,
                        codes: codes.map(u32::from_ne_bytes),
                        scales,
                        x_scales,
                    }
                }};
            }
            let rows = sums.len() / width;
            while lane < rows {
                let sums = sums.as_mut_ptr().add(lane * width);
                if P::ROWS == 2 && lane + 2 <= rows {
                    P::add::<2, N, C>(&values, &[row!(0), row!(1)], scratch, sums);
                    lane += 2;
                } else {
                    P::add::<1, N, C>(&values, &[row!(0)], scratch, sums);
                    lane += 1;
                }
            }
        }
    }
}
