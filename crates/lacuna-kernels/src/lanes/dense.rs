//! Dense weights by the same means: rows in lanes, two columns at a time, each activation broadcast. Strips hold no
//! positions; `S` strips × `N` tokens of sums stay in registers over all of K, for few tokens and for many.

use half::f16;
use lacuna_core::{Matrix, Values};
use rayon::prelude::*;

use super::aligned::Aligned;
use super::inputs::{Element, InputTile, MAX_TOKENS};
use super::isa::Isa;
use super::layout::{CHUNK, Form, put_pair};
use super::product::{FloatValues, InBf16, InF32, InInt, IntValues, SUMS, Sums, Work, prefetch};
use super::{Code, PARALLEL_WORK, write_sums};
use crate::weight::{Bias, Weight, check_shapes};

/// Columns of a chunk.
const CHUNK_COLUMNS: usize = 2 * CHUNK;

/// Strips of a tile: what is computed at once with few tokens.
pub(super) const TILE_STRIPS: usize = 4;

/// A dense weight, laid out: strips of chunks of 8 pairs of columns, pair by pair the values of each row.
pub(super) struct DenseLayout {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) form: Form,
    lanes: usize,
    pub(super) chunks: usize,
    /// chunks under one scale
    pub(super) block_chunks: usize,
    pub(super) streams: Aligned<u8>,
    pub(super) strip_bytes: usize,
    /// `[strips, blocks, lanes]`; none for floats
    pub(super) scales: Vec<f16>,
}

impl DenseLayout {
    pub(super) fn new(values: &Values, [rows, cols]: [usize; 2], lanes: usize, form: Form) -> Self {
        assert_eq!(values.len(), rows * cols, "another number of values than the shape has");
        let chunks = cols.div_ceil(CHUNK_COLUMNS);
        let chunk_bytes = lanes * CHUNK * form.pair_bytes();
        let strip_bytes = (chunks * chunk_bytes).next_multiple_of(64);
        let strips = rows.div_ceil(lanes);
        let mut streams = Aligned::<u8>::zeros(strips * strip_bytes);
        streams.par_chunks_mut(strip_bytes.max(1)).enumerate().for_each(|(strip, stream)| {
            let own = strip * lanes..rows.min((strip + 1) * lanes);
            for (chunk, out) in stream.chunks_exact_mut(chunk_bytes).enumerate() {
                for column in (chunk * CHUNK_COLUMNS..cols.min((chunk + 1) * CHUNK_COLUMNS)).step_by(2) {
                    for (lane, row) in own.clone().enumerate() {
                        let pair = row * cols + column..row * cols + cols.min(column + 2);
                        put_pair(out, form, [lanes, lane], column % CHUNK_COLUMNS / 2, values, pair);
                    }
                }
            }
        });
        let (mut scales, mut block_chunks) = (vec![], chunks);
        if let Values::Quantized(quantized) = values {
            block_chunks = quantized.group().values() / CHUNK_COLUMNS;
            let blocks = quantized.blocks();
            scales = vec![f16::ZERO; strips * blocks * lanes];
            for (i, &scale) in quantized.scales().iter().enumerate() {
                let (row, block) = (i / blocks, i % blocks);
                scales[(row / lanes * blocks + block) * lanes + row % lanes] = scale;
            }
        }
        Self { rows, cols, form, lanes, chunks, block_chunks, streams, strip_bytes, scales }
    }

    /// Bytes of a strip's chunk.
    pub(super) fn chunk_bytes(&self) -> usize {
        self.lanes * CHUNK * self.form.pair_bytes()
    }

    /// Values of `S` strips, and their scales.
    fn strips<const S: usize>(&self, first: usize) -> ([*const u8; S], [*const f16; S]) {
        let strip_scales = self.chunks.div_ceil(self.block_chunks) * self.lanes;
        let stream = |s| self.streams[(first + s) * self.strip_bytes..(first + s + 1) * self.strip_bytes].as_ptr();
        let scales = |s| self.scales.get((first + s) * strip_scales..).map_or(std::ptr::null(), <[f16]>::as_ptr);
        (std::array::from_fn(stream), std::array::from_fn(scales))
    }
}

/// Strips `first..first + strips`.
#[derive(Clone, Copy)]
pub(super) struct DenseTile {
    pub(super) first: usize,
    pub(super) strips: usize,
}

/// Some tokens of the activations, pairs of columns side by side.
pub(super) struct PairTile<E> {
    start: usize,
    width: usize,
    /// `[pairs, width]`; 0 behind the last column
    pairs: Aligned<[E; 2]>,
    /// `[blocks, width]`, or none
    scales: Vec<f32>,
}

impl<E: Element> PairTile<E> {
    fn new(input: InputTile<E>, cols: usize, chunks: usize) -> Self {
        let InputTile { start, width, data, scales } = input;
        let mut pairs = Aligned::<[E; 2]>::scratch(chunks * CHUNK * width);
        for (g, out) in pairs.chunks_exact_mut(width).enumerate() {
            let row = |column: usize| &data[column.min(cols) * width..][..width];
            for ((out, &a), &b) in out.iter_mut().zip(row(2 * g)).zip(row(2 * g + 1)) {
                *out = [a, b];
            }
        }
        data.shelve();
        Self { start, width, pairs, scales }
    }
}

/// A dense weight made ready for one instruction set and one value type; see [`super::Lanes`].
pub(super) struct DenseLanes<E: 'static> {
    pub(super) layout: DenseLayout,
    pub(super) bias: Bias,
    pub(super) code: &'static Code<E>,
}

impl<E: Element> DenseLanes<E> {
    /// Whether a product with so many tokens is large enough to be shared between threads.
    pub(super) fn is_worth_sharing(&self, tokens: usize) -> bool {
        self.layout.rows * self.layout.cols * tokens >= PARALLEL_WORK
    }

    /// Computes all tiles of `y[R, T]`, of so many strips, each `[rows, T]` by `run`; adds the bias.
    pub(super) fn for_tiles(&self, y: &mut Matrix, strips: usize, run: impl Fn(DenseTile, &mut [f32]) + Sync + Send) {
        let (lanes, tokens) = (self.layout.lanes, y.cols());
        let run_tile = |(i, part): (usize, &mut [f32])| {
            let first = i * strips;
            run(DenseTile { first, strips: part.len().div_ceil(lanes * tokens) }, part);
            self.bias.add_to(first * lanes, part, tokens);
        };
        let tile_values = (strips * lanes * tokens).max(1);
        if self.is_worth_sharing(tokens) {
            y.data_mut().par_chunks_mut(tile_values).enumerate().for_each(run_tile);
        } else {
            y.data_mut().chunks_mut(tile_values).enumerate().for_each(run_tile);
        }
    }
}

impl<E: Element> Weight for DenseLanes<E> {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        let layout = &self.layout;
        check_shapes(layout.rows, layout.cols, x, y);
        let tokens = x.cols();
        let tile = |start: usize| {
            let width = (tokens - start).next_power_of_two().min(MAX_TOKENS);
            // SAFETY: `prepare_dense` has seen that the CPU has the features.
            let input = unsafe { (self.code.input)(x, start, width, layout.block_chunks * CHUNK_COLUMNS) };
            PairTile::new(input, layout.cols, layout.chunks)
        };
        let starts: Vec<usize> = (0..tokens).step_by(MAX_TOKENS).collect();
        let inputs: Vec<PairTile<E>> = if self.is_worth_sharing(tokens) {
            starts.into_par_iter().map(tile).collect()
        } else {
            starts.into_iter().map(tile).collect()
        };
        self.for_tiles(y, TILE_STRIPS, |tile, part| {
            for input in &inputs {
                // SAFETY: `prepare_dense` has seen the features and made the layout.
                unsafe { (self.code.dense)(layout, tile, input, part, tokens) };
            }
        });
        for input in inputs {
            input.pairs.shelve();
        }
    }

    fn rows(&self) -> usize {
        self.layout.rows
    }
}

/// One way to multiply: the arithmetic of [`super::product::Product`] without positions.
pub(super) trait DenseProduct<I: Isa> {
    /// What activations are rounded to.
    type Input: Element;

    /// Sums over all columns.
    ///
    /// # Safety
    /// The CPU must have the instructions of `I`, and `work` must point at strips of this value type.
    unsafe fn dense_sums<const S: usize, const N: usize>(work: &Work<S>, sums: &mut Sums);
}

impl<I: Isa, V: FloatValues<I>> DenseProduct<I> for InF32<V> {
    type Input = f32;

    #[inline(always)]
    unsafe fn dense_sums<const S: usize, const N: usize>(work: &Work<S>, sums: &mut Sums) {
        // SAFETY: the caller's promise. There are `chunks` chunks of 8 pairs in each stream, and `N` pairs of activations
        // for each.
        unsafe {
            let mut acc = [[I::zero(); N]; S];
            let (asks_ahead, mut streams) = (I::asks_ahead(), work.streams);
            let mut x: *const [f32; 2] = work.x.cast();
            for _ in 0..work.chunks {
                for stream in streams {
                    prefetch::<I>(asks_ahead, stream, CHUNK * V::PAIR);
                }
                for _ in 0..CHUNK {
                    let mut values = [[I::zero(); 2]; S];
                    for s in 0..S {
                        values[s] = V::load(streams[s]);
                        streams[s] = streams[s].add(V::PAIR * I::LANES);
                    }
                    for t in 0..N {
                        let [a, b] = *x.add(t);
                        let (a, b) = (I::splat(a), I::splat(b));
                        for s in 0..S {
                            acc[s][t] = I::fma(values[s][0], a, acc[s][t]);
                        }
                        for s in 0..S {
                            acc[s][t] = I::fma(values[s][1], b, acc[s][t]);
                        }
                    }
                    x = x.add(N);
                }
            }
            for (i, sum) in acc.as_flattened().iter().enumerate() {
                I::store(sums[i].as_mut_ptr(), *sum);
            }
        }
    }
}

impl<I: Isa> DenseProduct<I> for InBf16 {
    type Input = half::bf16;

    #[inline(always)]
    unsafe fn dense_sums<const S: usize, const N: usize>(work: &Work<S>, sums: &mut Sums) {
        // SAFETY: as in `InF32`.
        unsafe {
            let mut acc = [[I::zero(); N]; S];
            let (asks_ahead, mut streams) = (I::asks_ahead(), work.streams);
            let mut x: *const u32 = work.x.cast();
            for _ in 0..work.chunks {
                for stream in streams {
                    prefetch::<I>(asks_ahead, stream, CHUNK * 4);
                }
                for _ in 0..CHUNK {
                    let mut values = [I::zero_words(); S];
                    for s in 0..S {
                        values[s] = I::load_words(streams[s].cast());
                        streams[s] = streams[s].add(4 * I::LANES);
                    }
                    for t in 0..N {
                        let pair = I::splat_word(x.add(t).read_unaligned());
                        for s in 0..S {
                            acc[s][t] = I::dot_bf16(acc[s][t], values[s], pair);
                        }
                    }
                    x = x.add(N);
                }
            }
            for (i, sum) in acc.as_flattened().iter().enumerate() {
                I::store(sums[i].as_mut_ptr(), *sum);
            }
        }
    }
}

impl<I: Isa, V: IntValues<I>> DenseProduct<I> for InInt<V> {
    type Input = i16;

    #[inline(always)]
    unsafe fn dense_sums<const S: usize, const N: usize>(work: &Work<S>, sums: &mut Sums) {
        // SAFETY: as in `InF32`; there is a vector of scales and `N` scales of activations for each block.
        unsafe {
            let mut total = [[I::zero(); N]; S];
            let asks_ahead = I::asks_ahead();
            let (mut streams, mut scales) = (work.streams, work.scales);
            let mut x: *const u32 = work.x.cast();
            let mut x_scales = work.x_scales;
            let mut chunks = work.chunks;
            while chunks > 0 {
                let block = chunks.min(work.block_chunks);
                chunks -= block;
                let mut acc = [[I::zero_words(); N]; S];
                for _ in 0..block {
                    for stream in streams {
                        prefetch::<I>(asks_ahead, stream, CHUNK * V::PAIR);
                    }
                    for pair in 0..CHUNK {
                        let mut values = [I::zero_words(); S];
                        for s in 0..S {
                            values[s] = V::load(streams[s], pair);
                        }
                        for t in 0..N {
                            let both = I::splat_word(x.add(t).read_unaligned());
                            for s in 0..S {
                                acc[s][t] = I::dot_i16(acc[s][t], values[s], both);
                            }
                        }
                        x = x.add(N);
                    }
                    for stream in &mut streams {
                        *stream = stream.add(CHUNK * V::PAIR * I::LANES);
                    }
                }
                for s in 0..S {
                    let scale = I::load_f16(scales[s]);
                    for t in 0..N {
                        let both = I::mul(scale, I::splat(*x_scales.add(t)));
                        total[s][t] = I::fma(I::to_float(acc[s][t]), both, total[s][t]);
                    }
                    scales[s] = scales[s].add(I::LANES);
                }
                x_scales = x_scales.add(N);
            }
            for (i, sum) in total.as_flattened().iter().enumerate() {
                I::store(sums[i].as_mut_ptr(), *sum);
            }
        }
    }
}

/// A tile's rows for the tokens of one input tile.
///
/// # Safety
/// The CPU must have the instructions of `I`; `layout` must have been made for its lanes and for `P`.
#[inline(always)]
pub(super) unsafe fn run_dense<I: Isa, P: DenseProduct<I>>(
    layout: &DenseLayout,
    tile: DenseTile,
    input: &PairTile<P::Input>,
    y: &mut [f32],
    tokens: usize,
) {
    assert!(input.pairs.len() == layout.chunks * CHUNK * input.width);
    assert!(
        input.scales.len() == layout.chunks.div_ceil(layout.block_chunks.max(1)) * input.width
            || layout.scales.is_empty()
    );
    let mut strip = 0;
    while strip < tile.strips {
        let mut sums = [[0.0; 16]; SUMS];
        macro_rules! go {
            ($s:literal, $n:literal) => {{
                let (streams, scales) = layout.strips::<$s>(tile.first + strip);
                let work = Work {
                    streams,
                    scales,
                    chunks: layout.chunks,
                    block_chunks: layout.block_chunks,
                    x: input.pairs.as_ptr().cast(),
                    x_scales: input.scales.as_ptr(),
                };
                // SAFETY: the caller's promise; the pointers are those of whole strips and as many pairs.
                unsafe { P::dense_sums::<$s, $n>(&work, &mut sums) };
                $s
            }};
        }
        let done = match (input.width, tile.strips - strip) {
            (1, 4..) => go!(4, 1),
            (1, 2..) => go!(2, 1),
            (1, _) => go!(1, 1),
            (2, 4..) => go!(4, 2),
            (2, 2..) => go!(2, 2),
            (2, _) => go!(1, 2),
            (4, 4..) if I::WIDE => go!(4, 4),
            (4, 2..) => go!(2, 4),
            (4, _) => go!(1, 4),
            (_, 2..) if I::WIDE => go!(2, 8),
            _ => go!(1, 8),
        };
        let rows = [strip * I::LANES, (strip + done) * I::LANES];
        write_sums(&sums, [input.start, input.width], y, tokens, rows, I::LANES);
        strip += done;
    }
}
