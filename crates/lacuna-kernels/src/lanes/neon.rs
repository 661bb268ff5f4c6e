//! NEON, which every 64-bit ARM CPU has: 4 rows in lanes.
//!
//! There is no shuffle of words by a vector of words; `tbl` picks bytes by a vector of bytes. So a word that names a word
//! is first made to name its four bytes: one multiply-add, see [`bytes_of_words`].

// Intrinsics have names of their own kind.
#[allow(clippy::wildcard_imports)]
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use half::f16;
use lacuna_core::Matrix;

use super::aligned::Aligned;
use super::dense::{DenseLayout, PairTile};
use super::isa::Isa;
use super::layout::{Form, Layout, PAIR_BYTES, Tile};
use super::product::{Bf16, F16, F32, InF32, InInt, Int4, Int8};
use super::{AnyCode, Code, DenseTile, InputTile, InstructionSet, run, run_dense};

fn available() -> bool {
    // Positions are words made of bytes, and bytes of words are numbered from the low end, here as in `layout`.
    cfg!(target_endian = "little") && is_aarch64_feature_detected!("neon")
}

/// The instruction set.
#[derive(Clone, Copy)]
struct Neon;

/// Controls for `tbl`: the four bytes of the word, counted from the first one of the table, that each lane names.
///
/// # Safety
/// The CPU must have NEON.
#[allow(unsafe_op_in_unsafe_fn)]
#[inline(always)]
unsafe fn bytes_of_words(words: uint32x4_t) -> uint8x16_t {
    // SAFETY: the caller's promise.
    vreinterpretq_u8_u32(vmlaq_u32(vdupq_n_u32(0x0302_0100), words, vdupq_n_u32(0x0404_0404)))
}

#[allow(unsafe_op_in_unsafe_fn)]
// SAFETY of all of it: the trait's contract; each function is one or a few instructions of the set.
impl Isa for Neon {
    const LANES: usize = 4;
    const WIDE: bool = true;
    type F = float32x4_t;
    type I = uint32x4_t;

    /// Nothing: Rust has no stable function for it. `prfm` by `asm!` would do, but whether it is worth its place in the
    /// loop has to be measured on such a CPU first.
    #[inline(always)]
    fn prefetch(_: *const u8) {}
    fn asks_ahead() -> bool {
        false
    }
    const WINDOWS: bool = false;
    #[inline(always)]
    unsafe fn window_16(from: *const u16, offsets: [u8; 4]) -> [u16; 4] {
        offsets.map(|offset| *from.add(usize::from(offset)))
    }
    #[inline(always)]
    unsafe fn window_32(from: *const f32, offsets: [u8; 4]) -> [f32; 4] {
        offsets.map(|offset| *from.add(usize::from(offset)))
    }
    const TABLES: bool = false;
    #[inline(always)]
    unsafe fn table_16<const PARTS: usize>(from: *const u16, distances: &[[u8; 4]; 8]) -> [[u16; 4]; 8] {
        distances.map(|four| four.map(|distance| *from.add(distance.into())))
    }
    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        vdupq_n_f32(0.0)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4_t {
        vld1q_f32(from)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> float32x4_t {
        // `vcvt_f32_f16`, which is stable later than our oldest compiler. Every 64-bit ARM CPU converts halves, also
        // those that cannot multiply them; the result is exact.
        let wide: float32x4_t;
        asm!(
            "fcvtl {wide:v}.4s, {half:v}.4h",
            wide = lateout(vreg) wide,
            half = in(vreg) vld1_u16(from.cast()),
            options(pure, nomem, nostack, preserves_flags)
        );
        wide
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: float32x4_t) {
        vst1q_f32(to, v);
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> float32x4_t {
        vdupq_n_f32(v)
    }
    #[inline(always)]
    unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        vfmaq_f32(c, a, b)
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vaddq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        vmulq_f32(a, b)
    }
    #[inline(always)]
    unsafe fn four(from: *const [f32; 4]) -> float32x4_t {
        vld1q_f32(from.cast())
    }
    #[inline(always)]
    unsafe fn pick(four: float32x4_t, by: uint32x4_t) -> float32x4_t {
        let control = bytes_of_words(vandq_u32(by, vdupq_n_u32(3)));
        vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(four), control))
    }
    #[inline(always)]
    unsafe fn load_words(from: *const u32) -> uint32x4_t {
        vld1q_u32(from)
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut u32, v: uint32x4_t) {
        vst1q_u32(to, v);
    }
    #[inline(always)]
    unsafe fn splat_word(v: u32) -> uint32x4_t {
        vdupq_n_u32(v)
    }
    #[inline(always)]
    unsafe fn lane(lane: usize) -> uint32x4_t {
        vreinterpretq_u32_u8(bytes_of_words(vdupq_n_u32(lane as u32)))
    }
    #[inline(always)]
    unsafe fn spread(v: uint32x4_t, lane: uint32x4_t) -> uint32x4_t {
        vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(v), vreinterpretq_u8_u32(lane)))
    }
    #[inline(always)]
    unsafe fn spread_float(v: float32x4_t, lane: uint32x4_t) -> float32x4_t {
        vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(v), vreinterpretq_u8_u32(lane)))
    }
    #[inline(always)]
    unsafe fn widen_words(from: *const u16) -> uint32x4_t {
        vmovl_u16(vld1_u16(from))
    }
    #[inline(always)]
    unsafe fn shift_left_16(v: uint32x4_t) -> uint32x4_t {
        vshlq_n_u32::<16>(v)
    }
    #[inline(always)]
    unsafe fn or(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        vorrq_u32(a, b)
    }
    #[inline(always)]
    unsafe fn shift_right<const BY: i32>(v: uint32x4_t) -> uint32x4_t {
        vshrq_n_u32::<BY>(v)
    }
    #[inline(always)]
    unsafe fn widen_bf16(pairs: uint32x4_t) -> [float32x4_t; 2] {
        let high = vandq_u32(pairs, vdupq_n_u32(0xffff_0000));
        [vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs)), vreinterpretq_f32_u32(high)]
    }
    #[inline(always)]
    unsafe fn zero_words() -> uint32x4_t {
        vdupq_n_u32(0)
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> uint32x4_t {
        vreinterpretq_u32_s16(vmovl_s8(vld1_s8(from.cast())))
    }
    #[inline(always)]
    unsafe fn nibbles(words: uint32x4_t, place: usize) -> uint32x4_t {
        let up = vshlq_s16(vreinterpretq_s16_u32(words), vdupq_n_s16(12 - 4 * place as i16));
        vreinterpretq_u32_s16(vshrq_n_s16::<12>(up))
    }
    #[inline(always)]
    unsafe fn pair_control(ranks: uint32x4_t) -> uint32x4_t {
        // `tbl` takes up to four vectors as one table; the first 8 words are two.
        let table: *const u8 = PAIR_BYTES.as_ptr().cast();
        let table = uint8x16x2_t(vld1q_u8(table), vld1q_u8(table.add(16)));
        vreinterpretq_u32_u8(vqtbl2q_u8(table, bytes_of_words(vandq_u32(ranks, vdupq_n_u32(7)))))
    }
    #[inline(always)]
    unsafe fn four_pairs(from: *const [u16; 4]) -> uint32x4_t {
        vreinterpretq_u32_u64(vdupq_n_u64(from.cast::<u64>().read_unaligned()))
    }
    #[inline(always)]
    unsafe fn pick_pair(four: uint32x4_t, control: uint32x4_t) -> uint32x4_t {
        vreinterpretq_u32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(four), vreinterpretq_u8_u32(control)))
    }
    #[inline(always)]
    unsafe fn dot_i16(sum: uint32x4_t, a: uint32x4_t, b: uint32x4_t) -> uint32x4_t {
        // Not `vmlal_s16`, nor `vmull_s16` and `vpaddq_s32`: LLVM sees through them and makes more and slower
        // instructions of them (`mla` of words; the addition of pairs taken apart). What is asked here of an operand that
        // stays is done once.
        let (a, b) = (vreinterpretq_s32_u32(a), vreinterpretq_s32_u32(b));
        let mut sum = sum;
        asm!(
            "smlal {sum:v}.4s, {a_low:v}.4h, {b_low:v}.4h",
            "smlal {sum:v}.4s, {a_high:v}.4h, {b_high:v}.4h",
            sum = inout(vreg) sum,
            a_low = in(vreg) vmovn_s32(a),
            b_low = in(vreg) vmovn_s32(b),
            a_high = in(vreg) vshrn_n_s32::<16>(a),
            b_high = in(vreg) vshrn_n_s32::<16>(b),
            options(pure, nomem, nostack, preserves_flags)
        );
        sum
    }
    #[inline(always)]
    unsafe fn to_float(v: uint32x4_t) -> float32x4_t {
        vcvtq_f32_s32(vreinterpretq_s32_u32(v))
    }
    #[inline(always)]
    unsafe fn dot_bf16(_: float32x4_t, _: uint32x4_t, _: uint32x4_t) -> float32x4_t {
        unreachable!("not every such CPU multiplies bfloat16")
    }
}

super::products! {
    "neon", Neon;
    F32_CODE: InF32<F32> as f32,
    F16_CODE: InF32<F16> as f32,
    BF16_CODE: InF32<Bf16> as f32,
    INT8_CODE: InInt<Int8> as i16,
    INT4_CODE: InInt<Int4> as i16,
}

super::attentions! {
    "neon", Neon;
    attend: super::attention::Single,
    ; cached attend_cached
}

/// The kernel.
pub(crate) static SET: InstructionSet = InstructionSet {
    name: "neon",
    needs: "NEON",
    lanes: Neon::LANES,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests of all kernels pass over those that are not available.
    #[test]
    fn every_such_cpu_has_it() {
        assert!(available());
    }

    #[test]
    fn every_half_is_widened_exactly() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for four in halves.chunks_exact(4) {
            let mut got = [0.0_f32; 4];
            // SAFETY: NEON is part of the targets that this compiles for; there are four halves and four floats.
            unsafe { Neon::store(got.as_mut_ptr(), Neon::load_f16(four.as_ptr())) };
            for (half, got) in four.iter().zip(got) {
                // By the format's definition: sign, 5 bits of exponent with bias 15, 10 bits of fraction.
                let bits = half.to_bits();
                let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
                let size = match exponent {
                    0 => fraction * 2_f32.powi(-24),
                    31 if fraction == 0.0 => f32::INFINITY,
                    31 => f32::NAN,
                    _ => (1024.0 + fraction) * 2_f32.powi(exponent - 25),
                };
                let want = if bits >> 15 == 1 { -size } else { size };
                assert!(
                    got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                    "{bits:#06x}: {got:e}, not {want:e}"
                );
            }
        }
    }
}
