//! Attention of one head, queries in lanes.
//!
//! A tile of `N` vectors of queries at a time: the scores of every key with them, `[len, tile]`, by broadcasts of the keys;
//! the softmax down each column; the values times that, `[D, tile]`, again by broadcasts. Nothing is summed across lanes,
//! and both products are one loop. With bfloat16 a word holds a pair along the sum, as the dense kernels have it.

use super::Isa;
use super::aligned::Aligned;
use crate::attention::Head;
use crate::exp_of_negative;

/// Computes a head: `out[D][len]`. Only to be called where the instructions it was compiled for were detected.
pub(crate) type Attend = unsafe fn(&Head, &mut [&mut [f32]]);

/// Queries in a unit of a tile: a vector, or two or four of shorter ones.
const UNIT: usize = 16;
/// Rows of a register tile.
const ROWS: usize = 4;

/// What a word of an operand is.
pub(super) trait Word<I: Isa> {
    /// Values of a word, along the sum.
    const VALUES: usize;
    /// A vector of words.
    type Vector: Copy;

    unsafe fn load(from: *const u32) -> Self::Vector;
    unsafe fn splat(word: u32) -> Self::Vector;
    unsafe fn add(sum: I::F, a: Self::Vector, b: Self::Vector) -> I::F;
    /// `VALUES` values as a word; what lies beyond the sum is 0.
    fn word(first: f32, second: f32) -> u32;
}

/// A float.
pub(super) struct Single;

#[allow(unsafe_op_in_unsafe_fn)]
// SAFETY of all of it: that of [`Isa`].
impl<I: Isa> Word<I> for Single {
    const VALUES: usize = 1;
    type Vector = I::F;

    #[inline(always)]
    unsafe fn load(from: *const u32) -> I::F {
        I::load(from.cast())
    }
    #[inline(always)]
    unsafe fn splat(word: u32) -> I::F {
        I::splat(f32::from_bits(word))
    }
    #[inline(always)]
    unsafe fn add(sum: I::F, a: I::F, b: I::F) -> I::F {
        I::fma(a, b, sum)
    }
    #[inline(always)]
    fn word(first: f32, _: f32) -> u32 {
        first.to_bits()
    }
}

/// Two of bfloat16, rounded to nearest, ties to even.
pub(super) struct Pair;

#[allow(unsafe_op_in_unsafe_fn)]
// SAFETY of all of it: that of [`Isa`].
impl<I: Isa> Word<I> for Pair {
    const VALUES: usize = 2;
    type Vector = I::I;

    #[inline(always)]
    unsafe fn load(from: *const u32) -> I::I {
        I::load_words(from)
    }
    #[inline(always)]
    unsafe fn splat(word: u32) -> I::I {
        I::splat_word(word)
    }
    #[inline(always)]
    unsafe fn add(sum: I::F, a: I::I, b: I::I) -> I::F {
        I::dot_bf16(sum, a, b)
    }
    #[inline(always)]
    fn word(first: f32, second: f32) -> u32 {
        // Without a branch for NaN, which stays NaN unless its mantissa is all ones; so that loops are vectorised.
        let round = |x: f32| x.to_bits().wrapping_add(0x7fff + (x.to_bits() >> 16 & 1)) >> 16;
        round(first) | round(second) << 16
    }
}

/// One head.
///
/// # Safety
/// The CPU must have the instructions of `I` and those of `W`.
#[inline(always)]
pub(super) unsafe fn attend<I: Isa, W: Word<I>>(head: &Head, out: &mut [&mut [f32]]) {
    let Head { dim, len, stride, .. } = *head;
    let (features, positions) = (dim.div_ceil(W::VALUES), len.div_ceil(W::VALUES));
    // Keys as [features, len] words, values as [dim, positions] words.
    let mut keys = Aligned::<u32>::scratch(features * len);
    for (i, words) in keys.chunks_exact_mut(len).enumerate() {
        pair_rows::<I, W>(head.keys, stride, W::VALUES * i, dim, 1.0, words);
    }
    let mut values = Aligned::<u32>::scratch(dim * positions);
    for (d, words) in values.chunks_exact_mut(positions).enumerate() {
        pair_columns::<I, W>(&head.values[d * stride..d * stride + len], words);
    }
    let units = len.div_ceil(UNIT);
    // Four vectors: 16 sums, or 8 of 256 bits, of which there are half as many registers.
    let widest = (4 * I::LANES / UNIT).min(if I::WIDE { 4 } else { 1 });
    let tiles = units.div_ceil(widest);
    let mut first = 0;
    for tile in 0..tiles {
        let width = (units * (tile + 1) / tiles - units * tile / tiles) * UNIT;
        let tile = Tile { head, keys: &keys, values: &values, first, width };
        // SAFETY: the caller's promise.
        unsafe {
            match (width / UNIT) * (UNIT / I::LANES) {
                1 => tile.run::<I, W, 1>(out),
                2 => tile.run::<I, W, 2>(out),
                3 => tile.run::<I, W, 3>(out),
                4 => tile.run::<I, W, 4>(out),
                other => unreachable!("{other} vectors"),
            }
        }
        first += width;
    }
    keys.shelve();
    values.shelve();
}

/// Words of the rows from `row` on of `x[rows, stride]`, scaled; those behind the last row count as 0.
#[inline(always)]
fn pair_rows<I: Isa, W: Word<I>>(x: &[f32], stride: usize, row: usize, rows: usize, scale: f32, words: &mut [u32]) {
    let one = &x[row * stride..][..words.len()];
    if W::VALUES == 2 && row + 1 < rows {
        let two = &x[(row + 1) * stride..][..words.len()];
        for ((word, a), b) in words.iter_mut().zip(one).zip(two) {
            *word = W::word(a * scale, b * scale);
        }
    } else {
        for (word, a) in words.iter_mut().zip(one) {
            *word = W::word(a * scale, 0.0);
        }
    }
}

/// Words of a row, along it.
#[inline(always)]
fn pair_columns<I: Isa, W: Word<I>>(row: &[f32], words: &mut [u32]) {
    if W::VALUES == 1 {
        for (word, value) in words.iter_mut().zip(row) {
            *word = W::word(*value, 0.0);
        }
        return;
    }
    let (pairs, rest) = row.as_chunks::<2>();
    for (word, [a, b]) in words.iter_mut().zip(pairs) {
        *word = W::word(*a, *b);
    }
    if let ([last], Some(word)) = (rest, words.last_mut()) {
        *word = W::word(*last, 0.0);
    }
}

/// Some of the queries of a head.
struct Tile<'a> {
    head: &'a Head<'a>,
    /// `[features, len]`
    keys: &'a [u32],
    /// `[dim, positions]`
    values: &'a [u32],
    /// the first query
    first: usize,
    /// queries, those of padding included
    width: usize,
}

impl Tile<'_> {
    /// `N` vectors of queries.
    ///
    /// # Safety
    /// As for [`attend`]; the width must be that of `N` vectors.
    #[inline(always)]
    unsafe fn run<I: Isa, W: Word<I>, const N: usize>(&self, out: &mut [&mut [f32]]) {
        let Head { dim, len, stride, queries, .. } = *self.head;
        let (features, positions) = (dim.div_ceil(W::VALUES), len.div_ceil(W::VALUES));
        let width = self.width;
        assert!(width == N * I::LANES && width.is_multiple_of(UNIT));
        let real = width.min(len - self.first);
        let scale = (dim as f32).sqrt().recip();
        let mut tile = Aligned::<u32>::scratch(features * width);
        for (i, words) in tile.chunks_exact_mut(width).enumerate() {
            pair_rows::<I, W>(&queries[self.first..], stride, W::VALUES * i, dim, scale, &mut words[..real]);
            words[real..].fill(0);
        }
        let mut scores = Aligned::<f32>::scratch(len * width);
        for (start, scores) in (0..len).step_by(ROWS).zip(scores.chunks_mut(ROWS * width)) {
            let keys = Operand { words: &self.keys[start..], row: 1, step: len };
            // SAFETY: keys and the tile have `features` rows, and the scores as many as there are keys left.
            unsafe { product::<I, W, N>(keys, &tile, features, ROWS.min(len - start), scores) };
        }
        let mut weights = Aligned::<u32>::scratch(positions * width);
        let mut shares = [0.0; 4 * UNIT];
        for unit in (0..width).step_by(UNIT) {
            let share = &mut shares[unit..unit + UNIT];
            softmax::<I, W>(&scores, &mut weights, width, unit, share);
        }
        let mut rows = [0.0_f32; ROWS * 4 * UNIT];
        for (start, out) in (0..dim).step_by(ROWS).zip(out.chunks_mut(ROWS)) {
            let values = Operand { words: &self.values[start * positions..], row: positions, step: 1 };
            // SAFETY: values and weights have `positions` columns and rows.
            unsafe { product::<I, W, N>(values, &weights, positions, out.len(), &mut rows) };
            for (out, row) in out.iter_mut().zip(rows.chunks_exact(width)) {
                for ((out, sum), share) in out[self.first..self.first + real].iter_mut().zip(row).zip(&shares) {
                    *out = sum * share;
                }
            }
        }
        tile.shelve();
        scores.shelve();
        weights.shelve();
    }
}

/// From scores to weights of the 16 queries from column `unit` on: `exp(score − largest)` as words along the keys, and for
/// each query the share that makes them sum to 1.
#[inline(always)]
fn softmax<I: Isa, W: Word<I>>(scores: &[f32], weights: &mut [u32], width: usize, unit: usize, share: &mut [f32]) {
    let mut largest = [f32::NEG_INFINITY; UNIT];
    for row in scores.chunks_exact(width) {
        let row: &[f32; UNIT] = row[unit..unit + UNIT].try_into().expect("a unit");
        for i in 0..UNIT {
            largest[i] = if row[i] > largest[i] { row[i] } else { largest[i] };
        }
    }
    let mut sums = [0.0_f32; UNIT];
    let weight = |row: &[f32], sums: &mut [f32; UNIT]| {
        let row: &[f32; UNIT] = row[unit..unit + UNIT].try_into().expect("a unit");
        let mut weights = [0.0_f32; UNIT];
        for i in 0..UNIT {
            weights[i] = exp_of_negative(row[i] - largest[i]);
            sums[i] += weights[i];
        }
        weights
    };
    let rows = scores.chunks(W::VALUES * width);
    for (rows, words) in rows.zip(weights.chunks_exact_mut(width)) {
        let one = weight(rows, &mut sums);
        // A position of padding weighs nothing.
        let two = if rows.len() > width { weight(&rows[width..], &mut sums) } else { [0.0; UNIT] };
        let words: &mut [u32; UNIT] = (&mut words[unit..unit + UNIT]).try_into().expect("a unit");
        for i in 0..UNIT {
            words[i] = W::word(one[i], two[i]);
        }
    }
    for (share, sum) in share.iter_mut().zip(sums) {
        *share = sum.recip();
    }
}

/// The left side of a product: word `k` of row `r` is `words[r * row + k * step]`.
#[derive(Clone, Copy)]
struct Operand<'a> {
    words: &'a [u32],
    row: usize,
    step: usize,
}

/// `out[rows, N vectors] = a[rows, depth] · b[depth, N vectors]` for up to [`ROWS`] rows.
///
/// # Safety
/// The CPU must have the instructions; `a`, `b` and `out` must have as many words as that takes.
#[inline(always)]
unsafe fn product<I: Isa, W: Word<I>, const N: usize>(
    a: Operand,
    b: &[u32],
    depth: usize,
    rows: usize,
    out: &mut [f32],
) {
    let width = N * I::LANES;
    assert!(depth > 0 && b.len() >= depth * width && out.len() >= rows * width);
    assert!(a.words.len() > (rows - 1) * a.row + (depth - 1) * a.step);
    // SAFETY: the assertions.
    unsafe {
        if rows == ROWS {
            let mut acc = [[I::zero(); N]; ROWS];
            for k in 0..depth {
                let words = a.words.as_ptr().add(k * a.step);
                let mut x = [W::load(b.as_ptr().add(k * width)); N];
                for n in 1..N {
                    x[n] = W::load(b.as_ptr().add(k * width + n * I::LANES));
                }
                for r in 0..ROWS {
                    let word = W::splat(words.add(r * a.row).read());
                    for n in 0..N {
                        acc[r][n] = W::add(acc[r][n], word, x[n]);
                    }
                }
            }
            for r in 0..ROWS {
                for n in 0..N {
                    I::store(out.as_mut_ptr().add(r * width + n * I::LANES), acc[r][n]);
                }
            }
        } else {
            for r in 0..rows {
                let mut acc = [I::zero(); N];
                for k in 0..depth {
                    let word = W::splat(a.words.as_ptr().add(r * a.row + k * a.step).read());
                    for n in 0..N {
                        let x = W::load(b.as_ptr().add(k * width + n * I::LANES));
                        acc[n] = W::add(acc[n], word, x);
                    }
                }
                for n in 0..N {
                    I::store(out.as_mut_ptr().add(r * width + n * I::LANES), acc[n]);
                }
            }
        }
    }
}
