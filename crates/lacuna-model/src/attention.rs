//! Grouped-query attention: over whole sequences or with a cache of keys and values, causal within an optional sliding
//! window or over all positions.
//!
//! `q` is `[heads · D, T]`, `k` and `v` are `[kv_heads · D, T]`; the tokens of the batch's sequences lie side by side.
//! The cache keeps each head's keys and values position by position, `[positions, D]`.

use std::ops::Range;

use lacuna_core::Matrix;
use lacuna_kernels::attention::{Cached, Head, Kernel};
use lacuna_kernels::dense::{View, matmul};
use rayon::prelude::*;

use crate::buffers::{give, take};
use crate::config::{BlockConfig, View as Sight};
use crate::ops::softmax;

/// Products below which handing heads to other threads costs more than it saves.
const PARALLEL_WORK: usize = 1 << 17;

/// Queries whose scores are computed at once.
const QUERIES: usize = 64;

/// The positions that a token may see that has so many before it: within the window, up to itself.
fn past_of(window: Option<usize>, before: usize) -> Range<usize> {
    window.map_or(0, |window| (before + 1).saturating_sub(window))..before + 1
}

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone)]
pub struct LayerCache {
    /// `[kv_heads][positions, D]`
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl LayerCache {
    /// Nothing seen yet.
    pub fn new(config: &BlockConfig) -> Self {
        Self { keys: vec![vec![]; config.kv_heads], values: vec![vec![]; config.kv_heads] }
    }

    /// Adds the columns `added` of `k` and `v`, `[kv_heads · D, T]`.
    fn append(&mut self, [k, v]: [&[f32]; 2], tokens: usize, added: Range<usize>) {
        for (source, heads) in [(k, &mut self.keys), (v, &mut self.values)] {
            let dim = source.len() / tokens / heads.len();
            for (head, store) in source.chunks_exact(dim * tokens).zip(heads) {
                for token in added.clone() {
                    store.extend(head.chunks_exact(tokens).map(|feature| feature[token]));
                }
            }
        }
    }
}

/// Causal attention of the tokens of a batch, by a kernel. The heads that share keys and values look at them together.
struct Causal<'a> {
    config: &'a BlockConfig,
    kernel: Kernel,
    window: Option<usize>,
    /// `[heads · D, T]`
    queries: &'a [f32],
    /// of the sequences, with the new tokens in them
    caches: &'a [&'a LayerCache],
    /// new tokens of each sequence
    places: &'a [Range<usize>],
}

impl Causal<'_> {
    /// `out[heads · D, T]`.
    fn attend(&self, out: &mut Matrix, parallel: bool) {
        let BlockConfig { heads, kv_heads, head_dim: dim, .. } = *self.config;
        let (group, tokens) = (heads / kv_heads, out.cols());
        let at_once = (QUERIES / group).max(1);
        let jobs: Vec<(usize, Range<usize>)> = self
            .places
            .iter()
            .enumerate()
            .flat_map(|(sequence, place)| {
                let end = place.end;
                place.clone().step_by(at_once).map(move |first| (sequence, first..end.min(first + at_once)))
            })
            .collect();
        // Job after job `[D, queries]`: the rows of `out` are shared by all sequences.
        let mut mixed = take(heads * dim, tokens);
        let per_head = group * dim * tokens;
        let places = mixed.data_mut().chunks_mut(per_head).enumerate();
        let mut work = Vec::with_capacity(jobs.len() * kv_heads);
        for (kv_head, mut rest) in places {
            for (sequence, tokens) in &jobs {
                let (part, tail) = rest.split_at_mut(group * dim * tokens.len());
                work.push((kv_head, *sequence, tokens, part));
                rest = tail;
            }
        }
        let run = |(kv_head, sequence, tokens, part)| self.run(kv_head, sequence, tokens, part);
        let put = |(rows, mut mixed): (&mut [f32], &[f32])| {
            for (_, place) in &jobs {
                let (part, rest) = mixed.split_at(group * dim * place.len());
                for (d, queries) in part.chunks_exact(group * place.len()).enumerate() {
                    for (head, queries) in queries.chunks_exact(place.len()).enumerate() {
                        rows[(head * dim + d) * tokens..][place.clone()].copy_from_slice(queries);
                    }
                }
                mixed = rest;
            }
        };
        if parallel {
            work.into_par_iter().for_each(run);
            out.data_mut().par_chunks_mut(per_head).zip(mixed.data().par_chunks(per_head)).for_each(put);
        } else {
            work.into_iter().for_each(run);
            out.data_mut().chunks_mut(per_head).zip(mixed.data().chunks(per_head)).for_each(put);
        }
        give(mixed);
    }

    /// Some new tokens of a sequence, all heads that look at one head of keys: `out[D][heads][tokens]`.
    fn run(&self, kv_head: usize, sequence: usize, place: &Range<usize>, out: &mut [f32]) {
        let (dim, group) = (self.config.head_dim, self.config.heads / self.config.kv_heads);
        let all = &self.places[sequence];
        let tokens = self.queries.len() / (self.config.heads * dim);
        let (keys, values) = (&self.caches[sequence].keys[kv_head], &self.caches[sequence].values[kv_head]);
        let before = keys.len() / dim - all.len() + place.start - all.start;
        let mut queries = Vec::with_capacity(out.len());
        for d in 0..dim {
            for head in kv_head * group..(kv_head + 1) * group {
                queries.extend_from_slice(&self.queries[(head * dim + d) * tokens..][place.clone()]);
            }
        }
        let seen: Vec<Range<usize>> =
            (0..group).flat_map(|_| (0..place.len()).map(|i| past_of(self.window, before + i))).collect();
        self.kernel.attend_cached(&Cached { queries: &queries, keys, values, dim, seen: &seen }, out);
    }
}

/// The tokens of one sequence in a batch, one head.
struct Pieces<'a> {
    /// `[new tokens, D]`
    queries: View<'a>,
    /// keys and values of all tokens so far, `[positions, D]`
    keys: View<'a>,
    values: View<'a>,
}

impl Pieces<'_> {
    /// `out[D][new tokens]`; a causal token at position `p` sees `p − window < j ≤ p`, others see all.
    fn attend(&self, causal: bool, window: Option<usize>, out: &mut [&mut [f32]]) {
        let ([new, dim], [positions, _]) = (self.queries.shape(), self.keys.shape());
        let scale = (dim as f32).sqrt().recip();
        let (mut scores, mut mixed) = (vec![], vec![]);
        // A few queries at a time: causal ones see nothing behind the last one, and their scores stay in the cache.
        for first in (0..new).step_by(QUERIES) {
            let count = QUERIES.min(new - first);
            let past = positions - new + first;
            let seen = if causal { past_of(window, past).start..past + count } else { 0..positions };
            let (keys, values) = (self.keys.rows(seen.clone()), self.values.rows(seen.clone()));
            // scores[query, position] = q·k / √D
            scores.resize(count * seen.len(), 0.0);
            let queries = self.queries.rows(first..first + count);
            matmul(&mut scores, [seen.len(), 1], 0.0, scale, queries, keys.transposed(), false);
            for (query, row) in scores.chunks_exact_mut(seen.len()).enumerate() {
                if causal {
                    let Range { start, end } = past_of(window, past + query);
                    let (start, end) = (start - seen.start, end - seen.start);
                    softmax(&mut row[start..end]);
                    row[..start].fill(0.0);
                    row[end..].fill(0.0);
                } else {
                    softmax(row);
                }
            }
            let scores = View::new(&scores, [count, seen.len()], [seen.len(), 1]);
            mixed.resize(dim * count, 0.0);
            matmul(&mut mixed, [count, 1], 0.0, 1.0, values.transposed(), scores.transposed(), false);
            for (out, mixed) in out.iter_mut().zip(mixed.chunks_exact(count)) {
                out[first..first + count].copy_from_slice(mixed);
            }
        }
    }
}

/// Lets every new token look at what it may see, `out[heads · D, T]`. With `caches`, one a sequence, that includes what
/// is in them, and the new keys and values are added to them first. Without a kernel for this CPU, products by the `gemm`
/// crate.
pub(crate) fn attend<'a>(
    config: &BlockConfig,
    kernel: Option<Kernel>,
    window: Option<usize>,
    [q, k, v]: [&'a [f32]; 3],
    lengths: &[usize],
    caches: Option<&mut [&mut LayerCache]>,
) -> Matrix {
    let tokens: usize = lengths.iter().sum();
    let mut out = take(config.heads * config.head_dim, tokens);
    if tokens == 0 {
        return out;
    }
    let starts: Vec<usize> = lengths.iter().scan(0, |next, len| Some(std::mem::replace(next, *next + len))).collect();
    let places: Vec<Range<usize>> = starts.iter().zip(lengths).map(|(&start, len)| start..start + len).collect();
    let causal = config.view != Sight::All;
    // Whoever sees the past finds it in a cache, if only for this once.
    let mut own: Vec<LayerCache> = vec![];
    let mut caches: Vec<&mut LayerCache> = match caches {
        Some(caches) => caches.iter_mut().map(|cache| &mut **cache).collect(),
        None if causal => {
            own.extend(lengths.iter().map(|_| LayerCache::new(config)));
            own.iter_mut().collect()
        }
        None => vec![],
    };
    for (cache, place) in caches.iter_mut().zip(&places) {
        cache.append([k, v], tokens, place.clone());
    }
    let caches: Vec<&LayerCache> = caches.into_iter().map(|cache| &*cache).collect();
    let caches = (!caches.is_empty()).then_some(&caches[..]);
    let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
    let seen = |sequence: usize| caches.map_or(lengths[sequence], |caches| caches[sequence].keys[0].len() / dim);
    let work: usize = (0..lengths.len()).map(|sequence| lengths[sequence] * seen(sequence)).sum();
    let parallel = work * config.heads >= PARALLEL_WORK;
    if let (Some(kernel), Some(caches), true) = (kernel, caches, causal) {
        Causal { config, kernel, window, queries: q, caches, places: &places }.attend(&mut out, parallel);
        return out;
    }
    let pieces_of = |sequence: usize, head: usize| {
        // Feature-major, so one token's features are a whole row of tokens apart.
        let place = |head: usize| head * dim * tokens + starts[sequence];
        let (shape, strides) = ([lengths[sequence], dim], [1, tokens]);
        let (keys, values) = match caches {
            None => (
                View::new(&k[place(head / group)..], shape, strides),
                View::new(&v[place(head / group)..], shape, strides),
            ),
            Some(caches) => {
                let [keys, values] = [&caches[sequence].keys, &caches[sequence].values].map(|heads| {
                    let data = &heads[head / group];
                    View::new(data, [data.len() / dim, dim], [dim, 1])
                });
                (keys, values)
            }
        };
        Pieces { queries: View::new(&q[place(head)..], shape, strides), keys, values }
    };
    // One job a head and sequence: its features, a piece of each of the head's rows.
    let mut jobs: Vec<(usize, usize, Vec<&mut [f32]>)> = vec![];
    for (head, rows) in out.data_mut().chunks_exact_mut(dim * tokens).enumerate() {
        let first = jobs.len();
        jobs.extend((0..lengths.len()).map(|sequence| (head, sequence, Vec::with_capacity(dim))));
        for mut row in rows.chunks_exact_mut(tokens) {
            for (job, &len) in jobs[first..].iter_mut().zip(lengths) {
                let (piece, rest) = row.split_at_mut(len);
                job.2.push(piece);
                row = rest;
            }
        }
    }
    let whole = kernel.filter(|_| caches.is_none());
    let run = |(head, sequence, mut out): (usize, usize, Vec<&mut [f32]>)| match whole {
        Some(kernel) => {
            let from = |data: &'a [f32], head: usize| &data[head * dim * tokens + starts[sequence]..];
            let (queries, keys, values) = (from(q, head), from(k, head / group), from(v, head / group));
            kernel.attend(&Head { queries, keys, values, stride: tokens, dim, len: lengths[sequence] }, &mut out);
        }
        None => pieces_of(sequence, head).attend(causal, window, &mut out),
    };
    if parallel {
        jobs.into_par_iter().for_each(run);
    } else {
        jobs.into_iter().for_each(run);
    }
    out
}
