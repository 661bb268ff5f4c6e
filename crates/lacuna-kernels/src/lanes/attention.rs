//! Attention of one head, queries in lanes: those of a whole sequence, or those that look at the same cache.
//!
//! A tile of `N` vectors of queries at a time: the scores of every key with them, `[len, tile]`, by broadcasts of the keys;
//! the softmax down each column; the values times that, `[D, tile]`, again by broadcasts. Nothing is summed across lanes,
//! and both products are one loop. With bfloat16 a word holds a pair along the sum, as the dense kernels have it.

use std::ops::Range;

use super::Isa;
use super::aligned::Aligned;
use crate::attention::{Cached, Head};
use crate::exp_of_negative;

/// Computes a head: `out[D][len]`. Only to be called where the instructions it was compiled for were detected.
pub(crate) type Attend = unsafe fn(&Head, &mut [&mut [f32]]);

/// Computes queries against a cache: `out[D][queries]`. Likewise.
pub(crate) type AttendCached = unsafe fn(&Cached, &mut [f32]);

/// Queries in a unit of a tile: a vector, or two or four of shorter ones.
const UNIT: usize = 16;
/// Rows of a register tile, and of one that is a single vector wide: sums enough to hide how long an addition takes.
const ROWS: usize = 4;
const MORE_ROWS: usize = 8;

/// Register tiles of keys between that which is multiplied and that which is asked for.
const AHEAD: usize = 2;

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
    let tile = Tile {
        queries: head.queries,
        stride,
        first: 0,
        real: len,
        keys: Operand { words: &keys, row: 1, step: len },
        values: Operand { words: &values, row: positions, step: 1 },
        dim,
        len,
        from: 0,
        seen: &[],
    };
    for (first, width) in tiles::<I>(len) {
        let real = width.min(len - first);
        // SAFETY: the caller's promise.
        unsafe { Tile { first, real, ..tile }.run_any::<I, W>(width, out) };
    }
    keys.shelve();
    values.shelve();
}

/// Queries against a cache, read where it lies.
///
/// # Safety
/// The CPU must have the instructions of `I`; every query must see something that is there.
#[inline(always)]
pub(super) unsafe fn attend_cached<I: Isa>(cached: &Cached, out: &mut [f32]) {
    let Cached { queries, keys, values, dim, seen } = *cached;
    let count = seen.len();
    let mut out: Vec<&mut [f32]> = out.chunks_exact_mut(count).collect();
    for (first, width) in tiles::<I>(count) {
        let real = width.min(count - first);
        let seen = &seen[first..first + real];
        let from = seen.iter().map(|seen| seen.start).min().unwrap_or(0);
        let to = seen.iter().map(|seen| seen.end).max().unwrap_or(0);
        let [keys, values] = [keys, values].map(|of| &bytemuck::cast_slice(of)[from * dim..to * dim]);
        let tile = Tile {
            queries,
            stride: count,
            first,
            real,
            keys: Operand { words: keys, row: dim, step: 1 },
            values: Operand { words: values, row: 1, step: dim },
            dim,
            len: to - from,
            from,
            seen,
        };
        // SAFETY: the caller's promise.
        unsafe { tile.run_any::<I, Single>(width, &mut out) };
    }
}

/// First query and width of the tiles for so many queries, all about as wide.
fn tiles<I: Isa>(count: usize) -> impl Iterator<Item = (usize, usize)> {
    let units = count.div_ceil(UNIT);
    // Four vectors: 16 sums, or 8 of 256 bits, of which there are half as many registers.
    let widest = (4 * I::LANES / UNIT).min(if I::WIDE { 4 } else { 1 });
    let tiles = units.div_ceil(widest);
    let first = move |tile: usize| units * tile / tiles * UNIT;
    (0..tiles).map(move |tile| (first(tile), first(tile + 1) - first(tile)))
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

/// Some queries, and the keys and values that any of them sees.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// feature `d` of query `t` is `queries[d * stride + t]`
    queries: &'a [f32],
    stride: usize,
    /// the first query, and how many there are
    first: usize,
    real: usize,
    /// a row a key
    keys: Operand<'a>,
    /// a row a feature
    values: Operand<'a>,
    dim: usize,
    /// keys
    len: usize,
    /// the position of the first key
    from: usize,
    /// the positions that each query sees; none: all see all
    seen: &'a [Range<usize>],
}

impl Tile<'_> {
    /// The tile in so many lanes.
    ///
    /// # Safety
    /// As for [`attend`].
    #[inline(always)]
    unsafe fn run_any<I: Isa, W: Word<I>>(&self, width: usize, out: &mut [&mut [f32]]) {
        // SAFETY: the caller's promise.
        unsafe {
            match (width / UNIT) * (UNIT / I::LANES) {
                1 => self.run::<I, W, 1, MORE_ROWS>(out),
                2 => self.run::<I, W, 2, ROWS>(out),
                3 => self.run::<I, W, 3, ROWS>(out),
                4 => self.run::<I, W, 4, ROWS>(out),
                other => unreachable!("{other} vectors"),
            }
        }
    }

    /// `N` vectors of queries, `R` rows of sums at once.
    ///
    /// # Safety
    /// As for [`attend`].
    #[inline(always)]
    unsafe fn run<I: Isa, W: Word<I>, const N: usize, const R: usize>(&self, out: &mut [&mut [f32]]) {
        let Self { queries, stride, first, real, dim, len, .. } = *self;
        let (features, positions) = (dim.div_ceil(W::VALUES), len.div_ceil(W::VALUES));
        let width = N * I::LANES;
        assert!(width.is_multiple_of(UNIT) && real <= width);
        let scale = (dim as f32).sqrt().recip();
        let mut tile = Aligned::<u32>::scratch(features * width);
        for (i, words) in tile.chunks_exact_mut(width).enumerate() {
            pair_rows::<I, W>(&queries[first..], stride, W::VALUES * i, dim, scale, &mut words[..real]);
            words[real..].fill(0);
        }
        let mut scores = Aligned::<f32>::scratch(len * width);
        for (start, scores) in (0..len).step_by(R).zip(scores.chunks_mut(R * width)) {
            if !self.seen.is_empty() {
                // What lies in a cache is read some rows or some features at a time, which no hardware sees coming.
                for place in (start * dim..(start + R).min(len) * dim).step_by(16) {
                    I::prefetch(self.keys.words.as_ptr().wrapping_add(AHEAD * R * dim + place).cast());
                    I::prefetch(self.values.words.as_ptr().wrapping_add(place).cast());
                }
            }
            // SAFETY: keys and the tile have `features` rows, and the scores as many as there are keys left.
            unsafe { product::<I, W, N, R>(self.keys.from(start), &tile, features, R.min(len - start), scores) };
        }
        for (query, seen) in self.seen.iter().enumerate() {
            for key in (0..seen.start - self.from).chain(seen.end - self.from..len) {
                scores[key * width + query] = f32::NEG_INFINITY;
            }
        }
        let mut weights = Aligned::<u32>::scratch(positions * width);
        let mut shares = [0.0; 4 * UNIT];
        for unit in (0..width).step_by(UNIT) {
            let share = &mut shares[unit..unit + UNIT];
            softmax::<I, W>(&scores, &mut weights, width, unit, share);
        }
        let mut rows = [0.0_f32; 4 * ROWS * UNIT];
        for (start, out) in (0..dim).step_by(R).zip(out.chunks_mut(R)) {
            // SAFETY: values and weights have `positions` columns and rows.
            unsafe { product::<I, W, N, R>(self.values.from(start), &weights, positions, out.len(), &mut rows) };
            for (out, row) in out.iter_mut().zip(rows.chunks_exact(width)) {
                for ((out, sum), share) in out[first..first + real].iter_mut().zip(row).zip(&shares) {
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
            // What a query does not see weighs nothing at all.
            weights[i] = if row[i] == f32::NEG_INFINITY { 0.0 } else { exp_of_negative(row[i] - largest[i]) };
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

impl Operand<'_> {
    /// The rows from one on.
    #[inline(always)]
    fn from(self, row: usize) -> Self {
        Self { words: &self.words[row * self.row..], ..self }
    }
}

/// `out[rows, N vectors] = a[rows, depth] · b[depth, N vectors]` for up to `R` rows.
///
/// # Safety
/// The CPU must have the instructions; `a`, `b` and `out` must have as many words as that takes.
#[inline(always)]
unsafe fn product<I: Isa, W: Word<I>, const N: usize, const R: usize>(
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
        if rows == R {
            let mut acc = [[I::zero(); N]; R];
            for k in 0..depth {
                let words = a.words.as_ptr().add(k * a.step);
                let mut x = [W::load(b.as_ptr().add(k * width)); N];
                for n in 1..N {
                    x[n] = W::load(b.as_ptr().add(k * width + n * I::LANES));
                }
                for r in 0..R {
                    let word = W::splat(words.add(r * a.row).read());
                    for n in 0..N {
                        acc[r][n] = W::add(acc[r][n], word, x[n]);
                    }
                }
            }
            for r in 0..R {
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
