//! Activations for the matrix unit: rounded once, then for each row block the pairs of columns that it keeps, side by side.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;
use std::ops::Deref;

use lacuna_core::Matrix;
use rayon::prelude::*;

use super::unit::{DEPTH, SIDE};
use crate::lanes::aligned::Aligned;

/// Most tokens at once: many, since weights are made ready for the unit again for each such part; few enough that the sums of a row
/// block stay in the L2 cache.
const MOST_TOKENS: usize = 256;

/// Tokens that lie side by side: a cache line of them.
pub(super) const LINE: usize = 2 * SIDE;

/// Columns whose lines of the same tokens follow each other.
const COLUMNS: usize = 64;

/// Some tokens of the activations.
pub(super) struct Input {
    /// first token
    pub(super) start: usize,
    /// tokens, a multiple of 32; those behind the last one are 0
    pub(super) width: usize,
    /// `[K / 64, width / 32, 64, 32]` in bfloat16: 64 columns at a time, and of these 32 tokens at a time, so that what is gathered
    /// together lies together; columns from K on are 0. 32 tokens lie in the order in which unpacking two vectors puts them straight:
    /// 0–3, 16–19, 4–7, and so on.
    data: Aligned<u16>,
}

/// All tokens of the activations; their buffers go back to the shelf when they are dropped.
pub(super) struct Inputs(Vec<Input>);

impl Deref for Inputs {
    type Target = [Input];
    fn deref(&self) -> &[Input] {
        &self.0
    }
}

impl Drop for Inputs {
    fn drop(&mut self) {
        for input in self.0.drain(..) {
            input.data.shelve();
        }
    }
}

impl Inputs {
    /// All tokens of `x[K, T]` in parts of about the same width.
    ///
    /// # Safety
    /// The CPU must have AVX-512 F, BW, VL and BF16.
    pub(super) unsafe fn new(x: &Matrix, parallel: bool) -> Self {
        let tokens = x.cols();
        let width = tokens.div_ceil(tokens.div_ceil(MOST_TOKENS)).next_multiple_of(LINE);
        let part = |start: usize| {
            // The last part may be shorter.
            let width = width.min((tokens - start).next_multiple_of(LINE));
            // A column behind the last one is there for padding.
            let mut data = Aligned::scratch((x.rows() / COLUMNS + 1) * COLUMNS * width);
            let round = |(i, out): (usize, &mut [u16])| {
                let rows = x.rows().min(i * COLUMNS)..x.rows().min((i + 1) * COLUMNS);
                // SAFETY: the caller's promise.
                unsafe { round_columns(&x.data()[rows.start * tokens..rows.end * tokens], tokens, start, out) }
            };
            if parallel {
                data.par_chunks_exact_mut(COLUMNS * width).enumerate().for_each(round);
            } else {
                data.chunks_exact_mut(COLUMNS * width).enumerate().for_each(round);
            }
            Input { start, width, data }
        };
        Self((0..tokens).step_by(width).map(part).collect())
    }
}

impl Input {
    /// Where the first line of a column begins.
    pub(super) fn place(&self, column: u32) -> u32 {
        let (block, column) = (column / COLUMNS as u32, column % COLUMNS as u32);
        block * (COLUMNS * self.width) as u32 + column * LINE as u32
    }

    /// Two tiles of columns for each step of 32 columns that begin at `places`: 16 pairs × 32 tokens, those of a line.
    ///
    /// # Safety
    /// As [`Inputs::new`]; `out` must have room, and places be of [`Input::place`].
    #[inline(always)]
    pub(super) unsafe fn pairs(&self, line: usize, places: &[[u32; 4]], out: *mut u32) {
        let from = self.data[line * LINE * COLUMNS..].as_ptr();
        for (step, places) in places.chunks_exact(DEPTH / 4).enumerate() {
            let out = out.wrapping_add(step * 2 * SIDE * SIDE);
            for (pair, [a, b]) in places.as_flattened().as_chunks::<2>().0.iter().enumerate() {
                let (a, b) = (from.wrapping_add(*a as usize), from.wrapping_add(*b as usize));
                let out = out.wrapping_add(pair * SIDE);
                // SAFETY: the caller's promise; lines are aligned, and tiles have 16 rows of 16 pairs.
                unsafe {
                    let (a, b) = (_mm512_load_si512(a.cast()), _mm512_load_si512(b.cast()));
                    _mm512_store_si512(out.cast(), _mm512_unpacklo_epi16(a, b));
                    _mm512_store_si512(out.wrapping_add(SIDE * SIDE).cast(), _mm512_unpackhi_epi16(a, b));
                }
            }
        }
    }
}

/// 64 columns or at the end fewer, see [`Input::data`], from token `start` on out of `x[_, T]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn round_columns(x: &[f32], tokens: usize, start: usize, out: &mut [u16]) {
    let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    let mut rows = x.chunks_exact(tokens);
    for column in 0..COLUMNS {
        let row = rows.next().map(|row| &row[start..]).unwrap_or_default();
        for (i, lines) in out.chunks_exact_mut(COLUMNS * LINE).enumerate() {
            let half = |half: usize| {
                let left = row.get((2 * i + half) * SIDE..).unwrap_or_default();
                let mask = if left.len() >= SIDE { u16::MAX } else { (1 << left.len()) - 1 };
                // SAFETY: no more is read than there is.
                unsafe { _mm512_maskz_loadu_ps(mask, left.as_ptr()) }
            };
            let out = &mut lines[column * LINE..(column + 1) * LINE];
            // SAFETY: a line is 32 values, aligned; any bits of one type are those of the other.
            unsafe {
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(half(1), half(0)));
                _mm512_store_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi64(order, both));
            }
        }
    }
}
