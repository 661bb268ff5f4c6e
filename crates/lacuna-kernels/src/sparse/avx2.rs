//! AVX2 and FMA. Decode has rows in lanes: a group's 4 activations fill each half of a vector, and `vpermilps`, which
//! looks at the two low bits of each lane, lets 8 rows pick theirs at once. Prefill is the portable one, compiled for
//! these instructions.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    _mm_loadu_ps, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_permutevar_ps, _mm256_set_m128,
    _mm256_set1_epi32, _mm256_setr_epi32, _mm256_setzero_ps, _mm256_srlv_epi32, _mm256_storeu_ps,
};

use lacuna_core::{Matrix, Packed};

use super::SparseWeight;
use super::portable::{self, DECODE_TOKENS};
use super::strips::{STRIP, Strips, Tile};

/// Strips at work side by side: their sums hide the latency of the multiply-adds.
const SIDE_BY_SIDE: usize = 4;

pub(super) fn available() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}

pub(super) fn prepare(packed: &Packed) -> Box<dyn SparseWeight> {
    assert!(available(), "this CPU lacks AVX2 or FMA");
    Box::new(Avx2(Strips::new(packed)))
}

/// Exists only where [`available`] held.
struct Avx2(Strips);

impl SparseWeight for Avx2 {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        self.0.multiply(x, y, |strips, tile, x, y| {
            // SAFETY: an `Avx2` is only made by `prepare`, which has seen that the CPU has both features.
            unsafe { if x.cols() <= DECODE_TOKENS { decode(strips, tile, x, y) } else { prefill(strips, tile, x, y) } }
        });
    }

    fn rows(&self) -> usize {
        self.0.row_count()
    }
}

#[target_feature(enable = "avx2,fma")]
fn prefill(strips: &Strips, tile: &Tile, x: &Matrix, y: &mut [f32]) {
    portable::prefill(strips, tile, x, y);
}

#[target_feature(enable = "avx2,fma")]
fn decode(strips: &Strips, tile: &Tile, x: &Matrix, y: &mut [f32]) {
    let tokens = x.cols();
    let count = tile.len.div_ceil(STRIP);
    for token in 0..tokens {
        let gathered = strips.gather(tile, x, token);
        let mut strip = 0;
        while strip < count {
            let left = (count - strip).min(SIDE_BY_SIDE);
            let mut sums = [[0.0; STRIP]; SIDE_BY_SIDE];
            match left {
                4.. => sums = decode_strips::<4>(strips, tile, strip, &gathered),
                3 => sums[..3].copy_from_slice(&decode_strips::<3>(strips, tile, strip, &gathered)),
                2 => sums[..2].copy_from_slice(&decode_strips::<2>(strips, tile, strip, &gathered)),
                _ => sums[..1].copy_from_slice(&decode_strips::<1>(strips, tile, strip, &gathered)),
            }
            let rows = y[strip * STRIP * tokens..].chunks_mut(tokens);
            for (row, &sum) in rows.zip(sums[..left].as_flattened()) {
                row[token] = sum;
            }
            strip += left;
        }
    }
}

/// Sums of `N` strips from `first` on, for one token.
#[target_feature(enable = "avx2,fma")]
fn decode_strips<const N: usize>(
    strips: &Strips,
    tile: &Tile,
    first: usize,
    gathered: &[[f32; 4]],
) -> [[f32; STRIP]; N] {
    let own: [_; N] = std::array::from_fn(|i| strips.strip(tile, first + i));
    let low = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    let high = _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30);
    let mut first_sums = [_mm256_setzero_ps(); N];
    let mut second_sums = [_mm256_setzero_ps(); N];
    for (g, four) in gathered.iter().enumerate() {
        // SAFETY: `four` is 4 floats long.
        let four = unsafe { _mm_loadu_ps(four.as_ptr()) };
        let four = _mm256_set_m128(four, four);
        for i in 0..N {
            let (values, positions) = own[i];
            let (value, word) = (&values[g], _mm256_set1_epi32(positions[g].cast_signed()));
            // SAFETY: both rows of `value` are 8 floats long.
            let (a, b) = unsafe { (_mm256_loadu_ps(value[0].as_ptr()), _mm256_loadu_ps(value[1].as_ptr())) };
            let x = _mm256_permutevar_ps(four, _mm256_srlv_epi32(word, low));
            first_sums[i] = _mm256_fmadd_ps(a, x, first_sums[i]);
            let x = _mm256_permutevar_ps(four, _mm256_srlv_epi32(word, high));
            second_sums[i] = _mm256_fmadd_ps(b, x, second_sums[i]);
        }
    }
    let mut sums = [[0.0; STRIP]; N];
    for i in 0..N {
        // SAFETY: `sums[i]` is 8 floats long.
        unsafe { _mm256_storeu_ps(sums[i].as_mut_ptr(), _mm256_add_ps(first_sums[i], second_sums[i])) };
    }
    sums
}
