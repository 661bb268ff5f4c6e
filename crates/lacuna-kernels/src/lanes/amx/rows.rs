//! Weights for the matrix unit: tiles of 16 rows × 32 values out of strips, which hold rows in lanes.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use crate::lanes::dense::DenseLayout;
use crate::lanes::layout::{CHUNK, Layout};

/// Weights laid out for 16 lanes.
pub(super) trait Rows {
    /// Steps of 32 columns.
    fn steps(&self) -> usize;

    /// The values of a strip in a step: 16 rows of 32.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F, BW, VL and VBMI2, the layout must be of bfloat16 for 16 lanes, and `out` have room for a tile,
    /// aligned to 64 bytes.
    unsafe fn tile(&self, strip: usize, step: usize, out: *mut u16);

    /// Asks for the values of a strip in a step, which [`Rows::tile`] will take later. There may be no such step.
    fn ask_for(&self, strip: usize, step: usize);
}

/// Asks for bytes from a place on, to be put in the L2 cache.
#[inline(always)]
fn ask_for(place: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: a prefetch reads nothing, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(place.wrapping_add(line).cast()) };
    }
}

impl Rows for Layout {
    fn steps(&self) -> usize {
        self.chunks
    }

    #[inline(always)]
    fn ask_for(&self, strip: usize, step: usize) {
        let place = self.streams.as_ptr().wrapping_add(strip * self.strip_bytes + step * self.chunk_bytes);
        ask_for(place, self.chunk_bytes);
    }

    /// A chunk's kept values with zeros between them.
    #[inline(always)]
    unsafe fn tile(&self, strip: usize, step: usize, out: *mut u16) {
        let chunk = self.stream(strip)[step * self.chunk_bytes..][..self.chunk_bytes].as_ptr();
        // SAFETY: the caller's promise. A chunk is 16 words of ranks and 8 groups of 16 pairs.
        unsafe {
            let ranks = _mm512_loadu_si512(chunk.cast());
            let mut masks = Masks([0; 16]);
            _mm512_store_si512((&raw mut masks).cast(), kept_masks(ranks));
            let pair = |g: usize| _mm512_loadu_si512(chunk.add(64 * (1 + g)).cast());
            // Rows 0, 4, 8, 12 in the parts of the first of each four, 1, 5, 9, 13 in the second, and so on.
            let low = transposed_fours([0, 1, 2, 3].map(pair));
            let high = transposed_fours([4, 5, 6, 7].map(pair));
            let (front, back) =
                (_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15));
            for i in 0..4 {
                let both = [front, back].map(|order| _mm512_permutex2var_epi64(low[i], order, high[i]));
                for (half, both) in both.into_iter().enumerate() {
                    let row = i + 8 * half;
                    put_expanded(both, masks.0[row], out.add(row * 32));
                    let second = _mm512_castsi256_si512(_mm512_extracti64x4_epi64::<1>(both));
                    put_expanded(second, masks.0[row + 4], out.add((row + 4) * 32));
                }
            }
        }
    }
}

/// Of each of 16 rows, which of 32 values are kept.
#[repr(C, align(64))]
struct Masks([u32; 16]);

/// Puts the values in the places that the mask has bits for, 0 in the others.
#[inline(always)]
unsafe fn put_expanded(values: __m512i, mask: u32, out: *mut u16) {
    // SAFETY: the caller's.
    unsafe { _mm512_store_si512(out.cast(), _mm512_maskz_expand_epi16(mask, values)) };
}

/// The places of four that pairs of those ranks keep, nibble by nibble; see `layout::rank`.
#[inline(always)]
unsafe fn kept_masks(ranks: __m512i) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let table = _mm_setr_epi8(0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        let table = _mm512_broadcast_i32x4(table);
        let nibbles = _mm512_set1_epi8(15);
        let low = _mm512_shuffle_epi8(table, _mm512_and_si512(ranks, nibbles));
        let high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(ranks), nibbles));
        _mm512_or_si512(low, _mm512_slli_epi16::<4>(high))
    }
}

/// In each 128-bit part, a 4 × 4 transposition of words.
#[inline(always)]
unsafe fn transposed_fours([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller's.
    unsafe {
        let [ab, cd] = [(a, b), (c, d)].map(|(x, y)| (_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y)));
        [
            _mm512_unpacklo_epi64(ab.0, cd.0),
            _mm512_unpackhi_epi64(ab.0, cd.0),
            _mm512_unpacklo_epi64(ab.1, cd.1),
            _mm512_unpackhi_epi64(ab.1, cd.1),
        ]
    }
}

impl Rows for DenseLayout {
    fn steps(&self) -> usize {
        self.chunks.div_ceil(2)
    }

    #[inline(always)]
    fn ask_for(&self, strip: usize, step: usize) {
        let step_bytes = 2 * CHUNK * 64;
        ask_for(self.streams.as_ptr().wrapping_add(strip * self.strip_bytes + step * step_bytes), step_bytes);
    }

    /// Two chunks of 8 pairs of columns; behind the last one zeros.
    #[inline(always)]
    unsafe fn tile(&self, strip: usize, step: usize, out: *mut u16) {
        let chunk_bytes = CHUNK * 64;
        let stream = &self.streams[strip * self.strip_bytes..][..self.chunks * chunk_bytes];
        for half in 0..2 {
            let chunk = stream.get((2 * step + half) * chunk_bytes..).unwrap_or_default();
            // SAFETY: the caller's promise. A chunk is 8 groups of 16 pairs; a row of the tile takes 16 values of it.
            unsafe {
                let [low, high] = [0, 4].map(|first| {
                    let pairs = [0, 1, 2, 3].map(|g| {
                        chunk
                            .get((first + g) * 64..)
                            .filter(|left| !left.is_empty())
                            .map_or(_mm512_setzero_si512(), |left| _mm512_loadu_si512(left.as_ptr().cast()))
                    });
                    transposed_fours(pairs)
                });
                for i in 0..4 {
                    for (part, four) in [low[i], high[i]].into_iter().enumerate() {
                        let out = out.add(half * 16 + part * 8);
                        _mm_store_si128(out.add(i * 32).cast(), _mm512_castsi512_si128(four));
                        _mm_store_si128(out.add((i + 4) * 32).cast(), _mm512_extracti32x4_epi32::<1>(four));
                        _mm_store_si128(out.add((i + 8) * 32).cast(), _mm512_extracti32x4_epi32::<2>(four));
                        _mm_store_si128(out.add((i + 12) * 32).cast(), _mm512_extracti32x4_epi32::<3>(four));
                    }
                }
            }
        }
    }
}
