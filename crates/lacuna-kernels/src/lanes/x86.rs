//! What the x86 sets do by the same instructions: those of AVX2 and below.
// SAFETY of all of it: each function is a few instructions under its own contract.
#![allow(unsafe_op_in_unsafe_fn, clippy::wildcard_imports)]

use std::arch::x86_64::*;
use std::sync::LazyLock;

use raw_cpuid::CpuId;

/// Whether strips are better asked for ahead of their use, see [`super::product::prefetch`]. CPUs of AMD's family
/// 19h follow them by themselves, and requests from here take the places of theirs: on Zen 4 decoding took 35 % longer.
pub(super) fn asks_ahead() -> bool {
    static ASKS: LazyLock<bool> = LazyLock::new(|| {
        let cpu = CpuId::new();
        let is_amd = cpu.get_vendor_info().is_some_and(|vendor| vendor.as_str() == "AuthenticAMD");
        !(is_amd && cpu.get_feature_info().is_some_and(|info| info.family_id() == 0x19))
    });
    *ASKS
}

/// [`super::isa::Isa::window_16`].
///
/// # Safety
/// The CPU must have AVX2, and 8 values must be readable.
#[inline(always)]
pub(super) unsafe fn window_16(from: *const u16, offsets: [u8; 4]) -> [u16; 4] {
    let twice = _mm_cvtsi32_si128(i32::from_ne_bytes(offsets.map(|offset| offset * 2)));
    // Bytes 2·offset and 2·offset + 1.
    let bytes = _mm_add_epi16(_mm_unpacklo_epi8(twice, twice), _mm_set1_epi16(0x0100));
    let picked = _mm_shuffle_epi8(_mm_loadu_si128(from.cast()), bytes);
    std::mem::transmute::<i64, [u16; 4]>(_mm_cvtsi128_si64(picked))
}

/// [`super::isa::Isa::window_32`].
///
/// # Safety
/// The CPU must have AVX2, and 8 values must be readable.
#[inline(always)]
pub(super) unsafe fn window_32(from: *const f32, offsets: [u8; 4]) -> [f32; 4] {
    let places = _mm256_cvtepu8_epi32(_mm_cvtsi32_si128(i32::from_ne_bytes(offsets)));
    let picked = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), places);
    std::mem::transmute::<__m128, [f32; 4]>(_mm256_castps256_ps128(picked))
}
