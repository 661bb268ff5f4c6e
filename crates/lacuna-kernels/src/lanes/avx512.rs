//! AVX-512 (F, BW, VL): 16 rows in lanes. With VNNI and BF16 two products are one instruction.
// Fifty intrinsics by name would say less than their names in use.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use half::{bf16, f16};
use lacuna_core::Matrix;

use super::aligned::Aligned;
use super::dense::{DenseLayout, PairTile};
use super::isa::Isa;
use super::layout::{Form, Layout, Tile};
use super::product::{Bf16, F16, F32, InBf16, InF32, InInt, Int4, Int8};
use super::{AnyCode, Code, DenseTile, InputTile, InstructionSet, run, run_dense};

fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl")
}

fn dot_available() -> bool {
    available() && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bf16")
}

/// The instruction set, with (`DOT`) or without VNNI and BF16.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const DOT: bool>;

#[allow(unsafe_op_in_unsafe_fn)]
// SAFETY of all of it: the trait's contract; each function is one or a few instructions of the set.
impl<const DOT: bool> Isa for Avx512<DOT> {
    const LANES: usize = 16;
    const WIDE: bool = true;
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn prefetch(place: *const u8) {
        // SAFETY: a prefetch reads nothing, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
    }
    fn asks_ahead() -> bool {
        super::x86::asks_ahead()
    }
    const WINDOWS: bool = true;
    #[inline(always)]
    unsafe fn window_16(from: *const u16, offsets: [u8; 4]) -> [u16; 4] {
        super::x86::window_16(from, offsets)
    }
    #[inline(always)]
    unsafe fn window_32(from: *const f32, offsets: [u8; 4]) -> [f32; 4] {
        super::x86::window_32(from, offsets)
    }
    const TABLES: bool = true;
    #[inline(always)]
    unsafe fn table_16<const PARTS: usize>(from: *const u16, distances: &[[u8; 4]; 8]) -> [[u16; 4]; 8] {
        let places = _mm512_cvtepu8_epi16(_mm256_loadu_si256(distances.as_ptr().cast()));
        // 64 values out of two registers by the low 6 bits of a place; the two bits above choose among four such.
        let part = |i: usize| _mm512_loadu_si512(from.add(32 * i).cast());
        let pick = |i: usize| _mm512_permutex2var_epi16(part(2 * i), places, part(2 * i + 1));
        let mut picked = pick(0);
        if PARTS > 1 {
            let odd = _mm512_test_epi16_mask(places, _mm512_set1_epi16(64));
            picked = _mm512_mask_blend_epi16(odd, picked, pick(1));
            if PARTS > 2 {
                let high = _mm512_test_epi16_mask(places, _mm512_set1_epi16(128));
                let high_half = _mm512_mask_blend_epi16(odd, pick(2), pick(3));
                picked = _mm512_mask_blend_epi16(high, picked, high_half);
            }
        }
        std::mem::transmute(picked)
    }
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m512 {
        _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        _mm512_storeu_ps(to, v);
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> __m512 {
        _mm512_set1_ps(v)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn four(from: *const [f32; 4]) -> __m512 {
        _mm512_broadcast_f32x4(_mm_loadu_ps(from.cast()))
    }
    #[inline(always)]
    unsafe fn pick(four: __m512, by: __m512i) -> __m512 {
        _mm512_permutevar_ps(four, by)
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> __m512i {
        _mm512_loadu_si512(from.cast())
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u32, v: __m512i) {
        _mm512_storeu_si512(to.cast(), v);
    }
    #[inline(always)]
    unsafe fn splat_word(v: u32) -> __m512i {
        _mm512_set1_epi32(v.cast_signed())
    }
    #[inline(always)]
    unsafe fn lane(lane: usize) -> __m512i {
        _mm512_set1_epi32(lane as i32)
    }
    #[inline(always)]
    unsafe fn spread(v: __m512i, lane: __m512i) -> __m512i {
        _mm512_permutexvar_epi32(lane, v)
    }
    #[inline(always)]
    unsafe fn spread_float(v: __m512, lane: __m512i) -> __m512 {
        _mm512_permutexvar_ps(lane, v)
    }
    #[inline(always)]
    unsafe fn widen_words(from: *const u16) -> __m512i {
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn shift_left_16(v: __m512i) -> __m512i {
        _mm512_slli_epi32::<16>(v)
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        _mm512_or_si512(a, b)
    }
    #[inline(always)]
    unsafe fn shift_right<const BY: i32>(v: __m512i) -> __m512i {
        _mm512_srlv_epi32(v, _mm512_set1_epi32(BY))
    }
    #[inline(always)]
    unsafe fn widen_bf16(pairs: __m512i) -> [__m512; 2] {
        let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(high)]
    }
    #[inline(always)]
    unsafe fn zero_words() -> __m512i {
        _mm512_setzero_si512()
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512i {
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast()))
    }
    #[inline(always)]
    unsafe fn nibbles(words: __m512i, place: usize) -> __m512i {
        let up = _mm_cvtsi32_si128(12 - 4 * place as i32);
        _mm512_srai_epi16::<12>(_mm512_sll_epi16(words, up))
    }
    #[inline(always)]
    unsafe fn pair_control(ranks: __m512i) -> __m512i {
        _mm512_permutexvar_epi32(ranks, _mm512_loadu_si512(super::layout::PAIR_BYTES.as_ptr().cast()))
    }
    #[inline(always)]
    unsafe fn four_pairs(from: *const [u16; 4]) -> __m512i {
        _mm512_set1_epi64(from.cast::<i64>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn pick_pair(four: __m512i, control: __m512i) -> __m512i {
        _mm512_shuffle_epi8(four, control)
    }
    #[inline(always)]
    unsafe fn ranked(from: *const [u16; 4]) -> __m512i {
        _mm512_shuffle_epi8(Self::four_pairs(from), _mm512_loadu_si512(super::layout::PAIR_BYTES.as_ptr().cast()))
    }
    #[inline(always)]
    unsafe fn pick_ranked(ranked: __m512i, ranks: __m512i) -> __m512i {
        _mm512_permutexvar_epi32(ranks, ranked)
    }
    #[inline(always)]
    unsafe fn dot_i16(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        if DOT { _mm512_dpwssd_epi32(sum, a, b) } else { _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)) }
    }
    #[inline(always)]
    unsafe fn to_float(v: __m512i) -> __m512 {
        _mm512_cvtepi32_ps(v)
    }
    #[inline(always)]
    unsafe fn dot_bf16(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
    }
}

super::products! {
    "avx512f,avx512bw,avx512vl", Avx512<false>;
    F32_CODE: InF32<F32> as f32,
    F16_CODE: InF32<F16> as f32,
    BF16_CODE: InF32<Bf16> as f32,
    INT8_CODE: InInt<Int8> as i16,
    INT4_CODE: InInt<Int4> as i16,
}

super::attentions! {
    "avx512f,avx512bw,avx512vl", Avx512<false>;
    attend: super::attention::Single,
    ; cached attend_cached
}

/// The products that VNNI and BF16 make faster.
mod dot {
    use super::*;
    crate::lanes::products! {
        "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16", Avx512<true>;
        BF16_CODE: InBf16 as bf16,
        INT8_CODE: InInt<Int8> as i16,
        INT4_CODE: InInt<Int4> as i16,
    }
    crate::lanes::attentions! {
        "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16", Avx512<true>;
        attend: crate::lanes::attention::Pair,
    }
}

/// The kernel without VNNI and BF16.
pub(crate) static PLAIN: InstructionSet = InstructionSet {
    name: "avx512",
    needs: "AVX-512 F, BW, VL",
    lanes: Avx512::<false>::LANES,
    bf16_dot: false,
    unit: false,
    attend,
    attend_bf16: None,
    attend_cached,
    available,
    code: |form| match form {
        Form::F32 => AnyCode::F32(&F32_CODE),
        Form::F16 => AnyCode::F32(&F16_CODE),
        Form::Bf16 | Form::Bf16Dot => AnyCode::F32(&BF16_CODE),
        Form::Int8 => AnyCode::I16(&INT8_CODE),
        Form::Int4 => AnyCode::I16(&INT4_CODE),
    },
};

/// The kernel with them.
pub(crate) static WITH_DOT: InstructionSet = InstructionSet {
    name: "avx512-vnni-bf16",
    needs: "AVX-512 F, BW, VL, VNNI, BF16",
    lanes: Avx512::<true>::LANES,
    bf16_dot: true,
    unit: false,
    attend,
    attend_bf16: Some(dot::attend),
    attend_cached,
    available: dot_available,
    code: |form| match form {
        Form::F32 => AnyCode::F32(&F32_CODE),
        Form::F16 => AnyCode::F32(&F16_CODE),
        Form::Bf16 => AnyCode::F32(&BF16_CODE),
        Form::Bf16Dot => AnyCode::Bf16(&dot::BF16_CODE),
        Form::Int8 => AnyCode::I16(&dot::INT8_CODE),
        Form::Int4 => AnyCode::I16(&dot::INT4_CODE),
    },
};
