//! Four columns of 8 tokens to 8 tokens of four columns: the compiler makes scalar moves of the plain loops.
use lacuna_core::GROUP_COLUMNS;

use super::inputs::MAX_TOKENS;

/// Columns of 16-bit values.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn of_16_bits(columns: [&[u16; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[u16; GROUP_COLUMNS]; MAX_TOKENS]) {
    use std::arch::x86_64::{
        _mm_loadu_si128, _mm_storeu_si128, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpacklo_epi16,
        _mm_unpacklo_epi32,
    };
    // SAFETY: SSE2 is part of x86-64; columns are 16 bytes, the result is 64.
    unsafe {
        let [a, b, c, d] = columns.map(|column| _mm_loadu_si128(column.as_ptr().cast()));
        let (ab_low, ab_high) = (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b));
        let (cd_low, cd_high) = (_mm_unpacklo_epi16(c, d), _mm_unpackhi_epi16(c, d));
        let out = out.as_mut_ptr().cast::<std::arch::x86_64::__m128i>();
        _mm_storeu_si128(out, _mm_unpacklo_epi32(ab_low, cd_low));
        _mm_storeu_si128(out.add(1), _mm_unpackhi_epi32(ab_low, cd_low));
        _mm_storeu_si128(out.add(2), _mm_unpacklo_epi32(ab_high, cd_high));
        _mm_storeu_si128(out.add(3), _mm_unpackhi_epi32(ab_high, cd_high));
    }
}

/// Columns of floats.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn of_32_bits(columns: [&[f32; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[f32; GROUP_COLUMNS]; MAX_TOKENS]) {
    use std::arch::x86_64::{_MM_TRANSPOSE4_PS, _mm_loadu_ps, _mm_storeu_ps};
    for half in [0, 4] {
        // SAFETY: SSE is part of x86-64; columns are 8 floats, and 4 tokens of the result 16.
        unsafe {
            let [mut a, mut b, mut c, mut d] = columns.map(|column| _mm_loadu_ps(column.as_ptr().add(half)));
            _MM_TRANSPOSE4_PS(&mut a, &mut b, &mut c, &mut d);
            for (i, v) in [a, b, c, d].into_iter().enumerate() {
                _mm_storeu_ps(out[half + i].as_mut_ptr(), v);
            }
        }
    }
}

/// Columns of 16-bit values.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn of_16_bits(columns: [&[u16; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[u16; GROUP_COLUMNS]; MAX_TOKENS]) {
    plain(columns, out);
}

/// Columns of floats.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn of_32_bits(columns: [&[f32; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[f32; GROUP_COLUMNS]; MAX_TOKENS]) {
    plain(columns, out);
}

/// One store instruction on ARM (`st4`).
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn plain<E: Copy>(columns: [&[E; MAX_TOKENS]; GROUP_COLUMNS], out: &mut [[E; GROUP_COLUMNS]; MAX_TOKENS]) {
    for (t, out) in out.iter_mut().enumerate() {
        *out = columns.map(|column| column[t]);
    }
}
