//! Products of two matrices of floats on the matrix unit, rounded to bfloat16 as tiles are made of them: those of training, where no
//! operand stays as it is from one product to the next.
#![allow(clippy::wildcard_imports)]

use std::arch::x86_64::*;

use super::unit::{DEPTH, SIDE, To, Unit};
use super::{Aligned, TILE};
use crate::dense::View;

/// Sixteen-bit values of a tile.
const TILE_VALUES: usize = SIDE * DEPTH;

/// `out[m, n] = a · b`, row by row.
///
/// # Panics
/// If the inner sizes differ, a view is contiguous neither along its rows nor along its columns, or `out` has another size.
///
/// # Safety
/// [`super::available`].
pub(crate) unsafe fn matmul(out: &mut [f32], a: View, b: View) {
    let ([m, k], [inner, n]) = (a.shape(), b.shape());
    assert_eq!(k, inner, "inner sizes differ");
    assert_eq!(out.len(), m * n, "a result of another size");
    if k == 0 {
        out.fill(0.0);
    } else if m > 0 && n > 0 {
        // SAFETY: the caller's promise; operands and result fit each other.
        unsafe { run(out, &Operand::new(a), &Operand::new(b.transposed())) };
    }
}

/// An operand as lines along the inner size.
struct Operand<'a> {
    view: View<'a>,
    lines: usize,
    depth: usize,
    /// from one line to the next, and from one place of a line to the next
    strides: [usize; 2],
}

impl<'a> Operand<'a> {
    fn new(view: View<'a>) -> Self {
        let ([lines, depth], strides) = (view.shape(), view.strides());
        assert!(strides.contains(&1), "a view that is contiguous neither along its rows nor along its columns");
        Self { view, lines, depth, strides }
    }

    fn steps(&self) -> usize {
        self.depth.div_ceil(DEPTH)
    }

    /// Strips of 16 lines.
    fn strips(&self) -> usize {
        self.lines.div_ceil(SIDE)
    }

    /// 16 lines × 32 places from `line` and `place` on, 0 behind the last ones: a vector for each line where `by_line`, otherwise
    /// one for each pair of places, with the lines' pairs.
    ///
    /// # Safety
    /// [`super::available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn tile(&self, line: usize, place: usize, by_line: bool) -> [__m512i; SIDE] {
        let data = self.view.data();
        let (lines, places) = (SIDE.min(self.lines - line), DEPTH.min(self.depth - place));
        let mut vectors = [_mm512_setzero_si512(); SIDE];
        let along = self.strides[1] == 1;
        if along {
            let masks = [mask(places), mask(places.saturating_sub(SIDE))];
            for i in 0..lines {
                let from = data[(line + i) * self.strides[0] + place..].as_ptr();
                // SAFETY: what the masks leave lies inside the view.
                unsafe {
                    let low = _mm512_maskz_loadu_ps(masks[0], from);
                    let high = _mm512_maskz_loadu_ps(masks[1], from.wrapping_add(SIDE));
                    vectors[i] = bits(_mm512_cvtne2ps_pbh(high, low));
                }
            }
        } else {
            let interleaved = _mm512_set_epi16(
                31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2,
                17, 1, 16, 0,
            );
            for i in 0..places.div_ceil(2) {
                let from = data[(place + 2 * i) * self.strides[1] + line..].as_ptr();
                let second = if 2 * i + 1 < places { mask(lines) } else { 0 };
                // SAFETY: as above.
                unsafe {
                    let even = _mm512_maskz_loadu_ps(mask(lines), from);
                    let odd = _mm512_maskz_loadu_ps(second, from.wrapping_add(self.strides[1]));
                    vectors[i] = _mm512_permutexvar_epi16(interleaved, bits(_mm512_cvtne2ps_pbh(odd, even)));
                }
            }
        }
        if along == by_line {
            vectors
        } else {
            // SAFETY: the caller's.
            unsafe { transposed(&vectors) }
        }
    }

    /// Two strips of tiles: of rows one strip after the other, of columns both of them step by step. What is behind the last strip
    /// has any value.
    ///
    /// # Safety
    /// [`super::available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn pack(&self, pair: usize, as_rows: bool, out: &mut [u16]) {
        let steps = self.steps();
        let [next_strip, next_step] = if as_rows { [steps, 1] } else { [1, 2] };
        for strip in 2 * pair..self.strips().min(2 * pair + 2) {
            for step in 0..steps {
                let at = strip % 2 * next_strip + step * next_step;
                let out = &mut out[at * TILE_VALUES..(at + 1) * TILE_VALUES];
                // SAFETY: the caller's promise; a tile has room for 16 vectors.
                unsafe {
                    let vectors = self.tile(strip * SIDE, step * DEPTH, as_rows);
                    for i in 0..SIDE {
                        _mm512_storeu_si512(out[i * DEPTH..].as_mut_ptr().cast(), vectors[i]);
                    }
                }
            }
        }
    }
}

/// `out[lines of a, lines of b]`. The larger operand is gone through once, two strips of tiles at a time, and beside each of them
/// all of the other one's.
///
/// # Safety
/// [`super::available`]; the depths must be the same and not 0, and `out` have the size.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn run(out: &mut [f32], a: &Operand, b: &Operand) {
    let steps = a.steps();
    let pair_values = 2 * steps * TILE_VALUES;
    let (a_pairs, b_pairs) = (a.strips().div_ceil(2), b.strips().div_ceil(2));
    let a_is_outer = a_pairs >= b_pairs;
    let (outer_pairs, inner_pairs) = if a_is_outer { (a_pairs, b_pairs) } else { (b_pairs, a_pairs) };
    let mut outer = Aligned::<u16>::scratch(pair_values);
    let mut inner = Aligned::<u16>::scratch(inner_pairs * pair_values);
    let mut sums = Aligned::<f32>::scratch(4 * TILE);
    // SAFETY: the caller's promise; the unit is dropped at the end of this function, which calls nothing that sets up another. Tiles
    // of as many steps as both have lie where they are read, and results go to `out` where it has all of the four tiles.
    unsafe {
        let unit = Unit::set_up();
        let [large, small] = if a_is_outer { [a, b] } else { [b, a] };
        for i in 0..inner_pairs {
            small.pack(i, !a_is_outer, &mut inner[i * pair_values..(i + 1) * pair_values]);
        }
        for o in 0..outer_pairs {
            large.pack(o, a_is_outer, &mut outer);
            for i in 0..inner_pairs {
                let within = inner[i * pair_values..].as_ptr();
                let (rows, columns) = if a_is_outer { (outer.as_ptr(), within) } else { (within, outer.as_ptr()) };
                let at = if a_is_outer { [o, i] } else { [i, o] };
                let [row, column] = [at[0] * 2 * SIDE, at[1] * 2 * SIDE];
                let (height, width) = ((a.lines - row).min(2 * SIDE), (b.lines - column).min(2 * SIDE));
                let is_whole = height == 2 * SIDE && width == 2 * SIDE;
                let to = if is_whole {
                    let first = out[row * b.lines + column..].as_mut_ptr();
                    let first = [first, first.wrapping_add(SIDE * b.lines)];
                    To { first, row_bytes: 4 * b.lines, second_bytes: 4 * SIDE }
                } else {
                    let first = [sums.as_mut_ptr(), sums.as_mut_ptr().wrapping_add(2 * TILE)];
                    To { first, row_bytes: 8 * SIDE, second_bytes: 4 * SIDE }
                };
                let nothing = [sums.as_ptr(); 2];
                let strips = [rows, rows.wrapping_add(steps * TILE_VALUES)];
                if height > SIDE {
                    unit.add::<2>(nothing, strips, columns.cast(), steps, true, to);
                } else {
                    unit.add::<1>(nothing, [rows; 2], columns.cast(), steps, true, to);
                }
                if !is_whole {
                    for i in 0..height {
                        let part = &mut out[(row + i) * b.lines + column..][..width];
                        part.copy_from_slice(&sums[i * 2 * SIDE..][..width]);
                    }
                }
            }
        }
    }
    inner.shelve();
    outer.shelve();
    sums.shelve();
}

/// Lanes of so many values.
fn mask(values: usize) -> u16 {
    if values >= SIDE { u16::MAX } else { (1 << values) - 1 }
}

#[inline(always)]
fn bits(pairs: __m512bh) -> __m512i {
    // SAFETY: any bits of one type are those of the other.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(pairs) }
}

/// A 16 × 16 transposition of words.
#[target_feature(enable = "avx512f")]
unsafe fn transposed(rows: &[__m512i; SIDE]) -> [__m512i; SIDE] {
    let mut pairs = *rows;
    for i in (0..SIDE).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // In each 128-bit part, columns 4 · part + j of rows 4 · i to 4 · i + 3.
    let mut fours = pairs;
    for i in (0..SIDE).step_by(4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    let mut columns = fours;
    for j in 0..4 {
        // The parts 0 and 2, and 1 and 3, of two vectors each; and again.
        let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
        let even = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)];
        columns[j] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        columns[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    columns
}
