//! AVX2, FMA and F16C: 8 rows in lanes.
// Fifty intrinsics by name would say less than their names in use.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use half::f16;
use lacuna_core::Matrix;

use super::aligned::Aligned;
use super::dense::{DenseLayout, PairTile};
use super::isa::Isa;
use super::layout::{Form, Layout, Tile};
use super::product::{Bf16, F16, F32, InF32, InInt, Int4, Int8};
use super::{AnyCode, Code, DenseTile, InputTile, InstructionSet, run, run_dense};

fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// The instruction set.
#[derive(Clone, Copy)]
struct Avx2;

#[allow(unsafe_op_in_unsafe_fn)]
// SAFETY of all of it: the trait's contract; each function is one or a few instructions of the set.
impl Isa for Avx2 {
    const LANES: usize = 8;
    const WIDE: bool = false;
    type F = __m256;
    type I = __m256i;

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
    const TABLES: bool = false;
    #[inline(always)]
    unsafe fn table_16<const PARTS: usize>(from: *const u16, distances: &[[u8; 4]; 8]) -> [[u16; 4]; 8] {
        distances.map(|four| four.map(|distance| *from.add(distance.into())))
    }
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        _mm256_setzero_ps()
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        _mm256_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> __m256 {
        _mm256_cvtph_ps(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        _mm256_storeu_ps(to, v);
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> __m256 {
        _mm256_set1_ps(v)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn four(from: *const [f32; 4]) -> __m256 {
        let four = _mm_loadu_ps(from.cast());
        _mm256_set_m128(four, four)
    }
    #[inline(always)]
    unsafe fn pick(four: __m256, by: __m256i) -> __m256 {
        _mm256_permutevar_ps(four, by)
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> __m256i {
        _mm256_loadu_si256(from.cast())
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u32, v: __m256i) {
        _mm256_storeu_si256(to.cast(), v);
    }
    #[inline(always)]
    unsafe fn splat_word(v: u32) -> __m256i {
        _mm256_set1_epi32(v.cast_signed())
    }
    #[inline(always)]
    unsafe fn lane(lane: usize) -> __m256i {
        _mm256_set1_epi32(lane as i32)
    }
    #[inline(always)]
    unsafe fn spread(v: __m256i, lane: __m256i) -> __m256i {
        _mm256_permutevar8x32_epi32(v, lane)
    }
    #[inline(always)]
    unsafe fn spread_float(v: __m256, lane: __m256i) -> __m256 {
        _mm256_permutevar8x32_ps(v, lane)
    }
    #[inline(always)]
    unsafe fn widen_words(from: *const u16) -> __m256i {
        _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn shift_left_16(v: __m256i) -> __m256i {
        _mm256_slli_epi32::<16>(v)
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        _mm256_or_si256(a, b)
    }
    #[inline(always)]
    unsafe fn shift_right<const BY: i32>(v: __m256i) -> __m256i {
        _mm256_srli_epi32::<BY>(v)
    }
    #[inline(always)]
    unsafe fn widen_bf16(pairs: __m256i) -> [__m256; 2] {
        let high = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(high)]
    }
    #[inline(always)]
    unsafe fn zero_words() -> __m256i {
        _mm256_setzero_si256()
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m256i {
        _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()))
    }
    #[inline(always)]
    unsafe fn nibbles(words: __m256i, place: usize) -> __m256i {
        let up = _mm_cvtsi32_si128(12 - 4 * place as i32);
        _mm256_srai_epi16::<12>(_mm256_sll_epi16(words, up))
    }
    #[inline(always)]
    unsafe fn pair_control(ranks: __m256i) -> __m256i {
        _mm256_permutevar8x32_epi32(_mm256_loadu_si256(super::layout::PAIR_BYTES.as_ptr().cast()), ranks)
    }
    #[inline(always)]
    unsafe fn four_pairs(from: *const [u16; 4]) -> __m256i {
        _mm256_set1_epi64x(from.cast::<i64>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn pick_pair(four: __m256i, control: __m256i) -> __m256i {
        _mm256_shuffle_epi8(four, control)
    }
    #[inline(always)]
    unsafe fn ranked(from: *const [u16; 4]) -> __m256i {
        _mm256_shuffle_epi8(Self::four_pairs(from), _mm256_loadu_si256(super::layout::PAIR_BYTES.as_ptr().cast()))
    }
    #[inline(always)]
    unsafe fn pick_ranked(ranked: __m256i, ranks: __m256i) -> __m256i {
        _mm256_permutevar8x32_epi32(ranked, ranks)
    }
    #[inline(always)]
    unsafe fn dot_i16(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
        _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
    }
    #[inline(always)]
    unsafe fn to_float(v: __m256i) -> __m256 {
        _mm256_cvtepi32_ps(v)
    }
    #[inline(always)]
    unsafe fn dot_bf16(_: __m256, _: __m256i, _: __m256i) -> __m256 {
        unreachable!("no such instruction")
    }
}

super::products! {
    "avx2,fma,f16c", Avx2;
    F32_CODE: InF32<F32> as f32,
    F16_CODE: InF32<F16> as f32,
    BF16_CODE: InF32<Bf16> as f32,
    INT8_CODE: InInt<Int8> as i16,
    INT4_CODE: InInt<Int4> as i16,
}

super::attentions! {
    "avx2,fma,f16c", Avx2;
    attend: super::attention::Single,
    ; cached attend_cached
}

/// The kernel.
pub(crate) static SET: InstructionSet = InstructionSet {
    name: "avx2",
    needs: "AVX2, FMA, F16C",
    lanes: Avx2::LANES,
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
