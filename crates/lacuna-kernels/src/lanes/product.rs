//! The inner loops: `S` strips times `N` tokens over all groups, a loop for each kind of arithmetic.
//!
//! Plain loops, no closures, around the functions of [`Isa`]: a closure may be compiled by itself, without the features.

use half::f16;

use super::inputs::{Element, InputTile};
use super::isa::Isa;
use super::layout::{CHUNK, Layout};

/// Most vectors of sums at once.
pub(super) const SUMS: usize = 16;

/// `[S][N]` vectors of sums, a row's in its lane.
pub(super) type Sums = [[f32; 16]; SUMS];

/// What the loop runs over.
pub(super) struct Work<const S: usize> {
    /// the strips' streams: chunks of positions, where there are any, and values
    pub(super) streams: [*const u8; S],
    /// the strips' scales, `[blocks][LANES]`
    pub(super) scales: [*const f16; S],
    /// chunks of 8 groups or pairs of columns, all of K
    pub(super) chunks: usize,
    /// chunks under one scale
    pub(super) block_chunks: usize,
    /// activations, `[groups][N]` gathered fours, or in dense products pairs
    pub(super) x: *const u8,
    /// their scales, `[blocks][N]`
    pub(super) x_scales: *const f32,
}

impl<const S: usize> Work<S> {
    /// `S` strips from `strip` on and the gathered activations.
    #[inline(always)]
    pub(super) fn new<E: Element>(layout: &Layout, strip: usize, input: &InputTile<E>, gathered: &[[E; 4]]) -> Self {
        assert!(gathered.len() == layout.groups() * input.width);
        assert!(input.scales.len() == layout.blocks() * input.width || layout.scales.is_empty());
        Self {
            streams: std::array::from_fn(|s| layout.stream(strip + s).as_ptr()),
            scales: std::array::from_fn(|s| layout.strip_scales(strip + s).as_ptr()),
            chunks: layout.chunks,
            block_chunks: layout.block_chunks,
            x: gathered.as_ptr().cast(),
            x_scales: input.scales.as_ptr(),
        }
    }
}

/// One way to multiply.
pub(super) trait Product<I: Isa> {
    /// What activations are rounded to.
    type Input: Element;

    /// Sums over all groups.
    ///
    /// # Safety
    /// The CPU must have the instructions of `I`, and `work` must point at strips of this value type.
    unsafe fn sums<const S: usize, const N: usize>(work: &Work<S>, sums: &mut Sums);
}

/// A value type that is widened to floats.
pub(super) trait FloatValues<I: Isa> {
    /// Bytes of a row's two values.
    const PAIR: usize;
    /// The first values of a strip's rows in a group, and the second ones.
    unsafe fn load(from: *const u8) -> [I::F; 2];
}

/// A value type of small integers.
pub(super) trait IntValues<I: Isa> {
    /// Bytes of a row's two values.
    const PAIR: usize;
    /// Those of a group of a chunk, as pairs of 16-bit integers.
    unsafe fn load(chunk: *const u8, group: usize) -> I::I;
}

/// f32.
pub(super) struct F32;
/// IEEE half precision.
pub(super) struct F16;
/// bfloat16.
pub(super) struct Bf16;
/// 8-bit integers.
pub(super) struct Int8;
/// 4-bit integers.
pub(super) struct Int4;

impl<I: Isa> FloatValues<I> for F32 {
    const PAIR: usize = 8;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> [I::F; 2] {
        // SAFETY: the strip holds two vectors of floats for the group.
        unsafe { [I::load(from.cast()), I::load(from.add(4 * I::LANES).cast())] }
    }
}

impl<I: Isa> FloatValues<I> for F16 {
    const PAIR: usize = 4;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> [I::F; 2] {
        // SAFETY: the strip holds two vectors of halves for the group.
        unsafe { [I::load_f16(from.cast()), I::load_f16(from.add(2 * I::LANES).cast())] }
    }
}

impl<I: Isa> FloatValues<I> for Bf16 {
    const PAIR: usize = 4;
    #[inline(always)]
    unsafe fn load(from: *const u8) -> [I::F; 2] {
        // SAFETY: the strip holds a vector of pairs for the group.
        unsafe { I::widen_bf16(I::load_words(from.cast())) }
    }
}

impl<I: Isa> IntValues<I> for Int8 {
    const PAIR: usize = 2;
    #[inline(always)]
    unsafe fn load(chunk: *const u8, group: usize) -> I::I {
        // SAFETY: the chunk holds two bytes a row for each group.
        unsafe { I::load_i8(chunk.add(group * 2 * I::LANES)) }
    }
}

impl<I: Isa> IntValues<I> for Int4 {
    const PAIR: usize = 1;
    #[inline(always)]
    unsafe fn load(chunk: *const u8, group: usize) -> I::I {
        // SAFETY: the chunk holds a word a row for each 4 groups.
        unsafe { I::nibbles(I::load_words(chunk.add(group / 4 * 4 * I::LANES).cast()), group % 4) }
    }
}

/// How far ahead of its use a stream is asked for, in bytes. Strips are a few pages long, and the hardware starts anew
/// with each page.
const AHEAD: usize = 2048;

/// Asks for what lies ahead of a chunk with so many bytes a row, where [`Isa::asks_ahead`] says so.
#[inline(always)]
pub(super) fn prefetch<I: Isa>(asks_ahead: bool, stream: *const u8, row_bytes: usize) {
    if asks_ahead {
        for place in (0..row_bytes * I::LANES).step_by(64) {
            I::prefetch(stream.wrapping_add(AHEAD + place));
        }
    }
}

/// Products and sums in f32, activations as they are.
pub(super) struct InF32<V>(V);

impl<I: Isa, V: FloatValues<I>> Product<I> for InF32<V> {
    type Input = f32;

    #[inline(always)]
    unsafe fn sums<const S: usize, const N: usize>(work: &Work<S>, sums: &mut Sums) {
        // SAFETY: the caller's promise. A chunk is `LANES` words and 8 groups of values; there are `chunks` of them in
        // each stream and 8 groups of `N` gathered fours for each.
        unsafe {
            let mut acc = [[I::zero(); N]; S];
            let (asks_ahead, mut streams) = (I::asks_ahead(), work.streams);
            let mut x: *const [f32; 4] = work.x.cast();
            for _ in 0..work.chunks {
                let mut codes = [I::zero_words(); S];
                for s in 0..S {
                    codes[s] = I::load_words(streams[s].cast());
                    prefetch::<I>(asks_ahead, streams[s], 4 + CHUNK * V::PAIR);
                    streams[s] = streams[s].add(4 * I::LANES);
                }
                for _ in 0..CHUNK {
                    let mut values = [[I::zero(); 2]; S];
                    let mut second = codes;
                    for s in 0..S {
                        values[s] = V::load(streams[s]);
                        streams[s] = streams[s].add(V::PAIR * I::LANES);
                        second[s] = I::shift_right::<2>(codes[s]);
                    }
                    for t in 0..N {
                        let four = I::four(x.add(t));
                        for s in 0..S {
                            acc[s][t] = I::fma(values[s][0], I::pick(four, codes[s]), acc[s][t]);
                        }
                        for s in 0..S {
                            acc[s][t] = I::fma(values[s][1], I::pick(four, second[s]), acc[s][t]);
                        }
                    }
                    for codes in &mut codes {
                        *codes = I::shift_right::<4>(*codes);
                    }
                    x = x.add(N);
                }
            }
            for (i, sum) in acc.as_flattened().iter().enumerate() {
                I::store(sums[i].as_mut_ptr(), *sum);
            }
        }
    }
}

/// What [`pick`] takes for rows of these ranks: made once for several tokens, or for one token the ranks themselves.
#[inline(always)]
unsafe fn control<I: Isa, const N: usize>(ranks: I::I) -> I::I {
    // SAFETY: the CPU has the instructions.
    if N == 1 { ranks } else { unsafe { I::pair_control(ranks) } }
}

/// The activations that [`pick`] picks from, of one of `N` tokens.
#[inline(always)]
unsafe fn four<I: Isa, const N: usize>(x: *const [u16; 4]) -> I::I {
    // SAFETY: the CPU has the instructions, and the caller a four there.
    unsafe { if N == 1 { I::ranked(x) } else { I::four_pairs(x) } }
}

/// Each row's pair.
#[inline(always)]
unsafe fn pick<I: Isa, const N: usize>(four: I::I, control: I::I) -> I::I {
    // SAFETY: the CPU has the instructions.
    unsafe { if N == 1 { I::pick_ranked(four, control) } else { I::pick_pair(four, control) } }
}

/// Values and activations in bfloat16, sums in f32: two products an instruction.
pub(super) struct InBf16;

impl<I: Isa> Product<I> for InBf16 {
    type Input = half::bf16;

    #[inline(always)]
    unsafe fn sums<const S: usize, const N: usize>(work: &Work<S>, sums: &mut Sums) {
        // SAFETY: as in `InF32`.
        unsafe {
            let mut acc = [[I::zero(); N]; S];
            let (asks_ahead, mut streams) = (I::asks_ahead(), work.streams);
            let mut x: *const [u16; 4] = work.x.cast();
            for _ in 0..work.chunks {
                let mut ranks = [I::zero_words(); S];
                for s in 0..S {
                    ranks[s] = I::load_words(streams[s].cast());
                    prefetch::<I>(asks_ahead, streams[s], 4 + CHUNK * 4);
                    streams[s] = streams[s].add(4 * I::LANES);
                }
                for _ in 0..CHUNK {
                    let (mut values, mut controls) = (ranks, ranks);
                    for s in 0..S {
                        values[s] = I::load_words(streams[s].cast());
                        streams[s] = streams[s].add(4 * I::LANES);
                        controls[s] = control::<I, N>(ranks[s]);
                    }
                    for t in 0..N {
                        let four = four::<I, N>(x.add(t));
                        for s in 0..S {
                            acc[s][t] = I::dot_bf16(acc[s][t], values[s], pick::<I, N>(four, controls[s]));
                        }
                    }
                    for ranks in &mut ranks {
                        *ranks = I::shift_right::<4>(*ranks);
                    }
                    x = x.add(N);
                }
            }
            for (i, sum) in acc.as_flattened().iter().enumerate() {
                I::store(sums[i].as_mut_ptr(), *sum);
            }
        }
    }
}

/// Integer values with a scale a block, activations rounded to 16 bits with a scale a block and token: exact integer
/// sums in a block (at most 128 products of 127 · 32767, less than 2^31), f32 between blocks.
pub(super) struct InInt<V>(V);

impl<I: Isa, V: IntValues<I>> Product<I> for InInt<V> {
    type Input = i16;

    #[inline(always)]
    unsafe fn sums<const S: usize, const N: usize>(work: &Work<S>, sums: &mut Sums) {
        // SAFETY: as in `InF32`; there is a vector of scales and `N` scales of activations for each block.
        unsafe {
            let mut total = [[I::zero(); N]; S];
            let asks_ahead = I::asks_ahead();
            let (mut streams, mut scales) = (work.streams, work.scales);
            let mut x: *const [u16; 4] = work.x.cast();
            let mut x_scales = work.x_scales;
            let mut chunks = work.chunks;
            while chunks > 0 {
                let block = chunks.min(work.block_chunks);
                chunks -= block;
                let mut acc = [[I::zero_words(); N]; S];
                for _ in 0..block {
                    let mut ranks = [I::zero_words(); S];
                    for s in 0..S {
                        ranks[s] = I::load_words(streams[s].cast());
                        prefetch::<I>(asks_ahead, streams[s], 4 + CHUNK * V::PAIR);
                        streams[s] = streams[s].add(4 * I::LANES);
                    }
                    for group in 0..CHUNK {
                        let (mut values, mut controls) = (ranks, ranks);
                        for s in 0..S {
                            values[s] = V::load(streams[s], group);
                            controls[s] = control::<I, N>(ranks[s]);
                        }
                        for t in 0..N {
                            let four = four::<I, N>(x.add(t));
                            for s in 0..S {
                                acc[s][t] = I::dot_i16(acc[s][t], values[s], pick::<I, N>(four, controls[s]));
                            }
                        }
                        for ranks in &mut ranks {
                            *ranks = I::shift_right::<4>(*ranks);
                        }
                        x = x.add(N);
                    }
                    for stream in &mut streams {
                        *stream = stream.add(CHUNK * V::PAIR * I::LANES);
                    }
                }
                for s in 0..S {
                    let scale = I::load_f16(scales[s]);
                    for t in 0..N {
                        let both = I::mul(scale, I::splat(*x_scales.add(t)));
                        total[s][t] = I::fma(I::to_float(acc[s][t]), both, total[s][t]);
                    }
                }
                for scale in &mut scales {
                    *scale = scale.add(I::LANES);
                }
                x_scales = x_scales.add(N);
            }
            for (i, sum) in total.as_flattened().iter().enumerate() {
                I::store(sums[i].as_mut_ptr(), *sum);
            }
        }
    }
}
