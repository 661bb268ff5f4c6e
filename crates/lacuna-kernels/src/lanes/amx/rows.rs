//! Weights for the matrix unit: tiles of 16 rows × 32 values out of strips, which hold rows in lanes.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use half::f16;

use super::unit::DEPTH;
use crate::lanes::avx512::Avx512;
use crate::lanes::dense::DenseLayout;
use crate::lanes::isa::Isa;
use crate::lanes::layout::{Form, Layout};
use crate::lanes::product::{Int4, Int8, IntValues};

/// Weights laid out for 16 lanes.
pub(super) trait Rows {
    /// Steps of 32 columns.
    fn steps(&self) -> usize;

    /// The values of a strip in a step: 16 rows of 32.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F, BW, VL, BF16 and VBMI2, the layout must be of bfloat16 or integers for 16 lanes, and `out` have room for a tile,
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
        let chunk = &self.stream(strip)[step * self.chunk_bytes..][..self.chunk_bytes];
        // SAFETY: the caller's promise. A chunk is 16 words of ranks and 8 groups of 16 pairs.
        unsafe {
            let ranks = _mm512_loadu_si512(chunk.as_ptr().cast());
            let mut masks = Masks([0; 16]);
            _mm512_store_si512((&raw mut masks).cast(), kept_masks(ranks));
            let scales = scales(&self.scales, strip * self.blocks() + step / self.block_chunks);
            let [low, high] = transposed(chunk[64..].as_ptr(), self.form, scales);
            let (front, back) =
                (_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15));
            for i in 0..4 {
                for (half, order) in [front, back].into_iter().enumerate() {
                    let both = _mm512_permutex2var_epi64(low[i], order, high[i]);
                    let row = i + 8 * half;
                    put_expanded(both, masks.0[row], out.add(row * DEPTH));
                    let second = _mm512_castsi256_si512(_mm512_extracti64x4_epi64::<1>(both));
                    put_expanded(second, masks.0[row + 4], out.add((row + 4) * DEPTH));
                }
            }
        }
    }
}

impl Rows for DenseLayout {
    fn steps(&self) -> usize {
        self.chunks.div_ceil(2)
    }

    #[inline(always)]
    fn ask_for(&self, strip: usize, step: usize) {
        let step_bytes = 2 * self.chunk_bytes();
        ask_for(self.streams.as_ptr().wrapping_add(strip * self.strip_bytes + step * step_bytes), step_bytes);
    }

    /// Two chunks of 8 pairs of columns; behind the last one zeros.
    #[inline(always)]
    unsafe fn tile(&self, strip: usize, step: usize, out: *mut u16) {
        for half in 0..2 {
            let chunk = 2 * step + half;
            // SAFETY: the caller's promise. A chunk is 8 groups of 16 pairs; a row of the tile takes 16 values of it.
            unsafe {
                let parts = if chunk < self.chunks {
                    let blocks = self.chunks.div_ceil(self.block_chunks);
                    let scales = scales(&self.scales, strip * blocks + chunk / self.block_chunks);
                    let stream = &self.streams[strip * self.strip_bytes..][..self.chunks * self.chunk_bytes()];
                    transposed(stream[chunk * self.chunk_bytes()..].as_ptr(), self.form, scales)
                } else {
                    [[_mm512_setzero_si512(); 4]; 2]
                };
                for i in 0..4 {
                    for (part, fours) in parts.iter().enumerate() {
                        let out = out.add(half * DEPTH / 2 + part * 8);
                        _mm_store_si128(out.add(i * DEPTH).cast(), _mm512_castsi512_si128(fours[i]));
                        _mm_store_si128(out.add((i + 4) * DEPTH).cast(), _mm512_extracti32x4_epi32::<1>(fours[i]));
                        _mm_store_si128(out.add((i + 8) * DEPTH).cast(), _mm512_extracti32x4_epi32::<2>(fours[i]));
                        _mm_store_si128(out.add((i + 12) * DEPTH).cast(), _mm512_extracti32x4_epi32::<3>(fours[i]));
                    }
                }
            }
        }
    }
}

/// The scales of 16 rows in a block, where there are any.
#[inline(always)]
unsafe fn scales(all: &[f16], block: usize) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        match all.get(block * 16..(block + 1) * 16) {
            Some(scales) => Avx512::<true>::load_f16(scales.as_ptr()),
            None => _mm512_setzero_ps(),
        }
    }
}

/// 16 rows of a chunk's 8 pairs: in each half four vectors of four pairs a row, rows 0, 4, 8, 12 in the 128-bit parts of the first,
/// 1, 5, 9, 13 in those of the second, and so on.
#[inline(always)]
unsafe fn transposed(values: *const u8, form: Form, scales: __m512) -> [[__m512i; 4]; 2] {
    // Plain loops: a closure may be compiled by itself, without the features.
    // SAFETY: the caller's.
    let mut halves = [[unsafe { _mm512_setzero_si512() }; 4]; 2];
    for (half, fours) in halves.iter_mut().enumerate() {
        for (g, four) in fours.iter_mut().enumerate() {
            // SAFETY: the caller's: a chunk of the form.
            *four = unsafe { pairs(values, form, 4 * half + g, scales) };
        }
        // SAFETY: the caller's.
        *fours = unsafe { transposed_fours(*fours) };
    }
    halves
}

/// The pairs of 16 rows in a group of a chunk: integers times their scales, rounded to bfloat16.
#[inline(always)]
unsafe fn pairs(values: *const u8, form: Form, group: usize, scales: __m512) -> __m512i {
    // SAFETY: the caller's.
    unsafe {
        let codes = match form {
            Form::Int8 => <Int8 as IntValues<Avx512<true>>>::load(values, group),
            Form::Int4 => <Int4 as IntValues<Avx512<true>>>::load(values, group),
            _ => return _mm512_loadu_si512(values.add(64 * group).cast()),
        };
        let first = _mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(codes));
        let first = _mm512_mul_ps(_mm512_cvtepi32_ps(first), scales);
        let second = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(codes)), scales);
        let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
        _mm512_permutexvar_epi16(_mm512_loadu_si512((&raw const BY_TURNS).cast()), both)
    }
}

/// 16 values and 16 others by turns.
static BY_TURNS: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 16 {
        order[2 * i] = i as u16;
        order[2 * i + 1] = i as u16 + 16;
        i += 1;
    }
    order
};

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
        let ab = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab.0, cd.0),
            _mm512_unpackhi_epi64(ab.0, cd.0),
            _mm512_unpacklo_epi64(ab.1, cd.1),
            _mm512_unpackhi_epi64(ab.1, cd.1),
        ]
    }
}
