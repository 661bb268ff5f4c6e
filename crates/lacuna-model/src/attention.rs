//! Grouped-query attention: over whole sequences or with a cache of keys and values, causal within an optional sliding
//! window or over all positions.
//!
//! `q` is `[heads · D, T]`, `k` and `v` are `[kv_heads · D, T]`; the tokens of the batch's sequences lie side by side.
//! The cache keeps each head's keys and values position by position, `[positions, D]`.

use std::ops::Range;

use lacuna_core::Matrix;
use lacuna_kernels::attention::{Head, Kernel};
use lacuna_kernels::dense::{View, matmul};
use rayon::prelude::*;

use crate::buffers::take;
use crate::config::{BlockConfig, View as Sight};
use crate::ops::softmax;

/// Products below which handing heads to other threads costs more than it saves.
const PARALLEL_WORK: usize = 1 << 17;

/// Queries whose scores are computed at once.
const QUERIES: usize = 64;

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
            let seen = if causal {
                window.map_or(0, |window| (past + 1).saturating_sub(window))..past + count
            } else {
                0..positions
            };
            let (keys, values) = (self.keys.rows(seen.clone()), self.values.rows(seen.clone()));
            // scores[query, position] = q·k / √D
            scores.resize(count * seen.len(), 0.0);
            let queries = self.queries.rows(first..first + count);
            matmul(&mut scores, [seen.len(), 1], 0.0, scale, queries, keys.transposed(), false);
            for (query, row) in scores.chunks_exact_mut(seen.len()).enumerate() {
                if causal {
                    let end = past + query + 1;
                    let from = window.map_or(0, |window| end.saturating_sub(window)) - seen.start;
                    softmax(&mut row[from..end - seen.start]);
                    row[..from].fill(0.0);
                    row[end - seen.start..].fill(0.0);
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
/// is in them, and the new keys and values are added to them first. The kernel is for whole sequences that see all of
/// themselves; without one, and for others, products by the `gemm` crate.
pub(crate) fn attend<'a>(
    config: &BlockConfig,
    kernel: Option<Kernel>,
    window: Option<usize>,
    [q, k, v]: [&'a [f32]; 3],
    lengths: &[usize],
    mut caches: Option<&mut [&mut LayerCache]>,
) -> Matrix {
    let tokens: usize = lengths.iter().sum();
    let mut out = take(config.heads * config.head_dim, tokens);
    if tokens == 0 {
        return out;
    }
    let starts: Vec<usize> = lengths.iter().scan(0, |next, len| Some(std::mem::replace(next, *next + len))).collect();
    for (cache, (&start, len)) in caches.iter_mut().flat_map(|c| c.iter_mut()).zip(starts.iter().zip(lengths)) {
        cache.append([k, v], tokens, start..start + len);
    }
    let caches = caches.as_deref();
    let (dim, group) = (config.head_dim, config.heads / config.kv_heads);
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
    let whole = kernel.filter(|_| config.view == Sight::All && caches.is_none());
    let run = |(head, sequence, mut out): (usize, usize, Vec<&mut [f32]>)| match whole {
        Some(kernel) => {
            let from = |data: &'a [f32], head: usize| &data[head * dim * tokens + starts[sequence]..];
            let (queries, keys, values) = (from(q, head), from(k, head / group), from(v, head / group));
            kernel.attend(&Head { queries, keys, values, stride: tokens, dim, len: lengths[sequence] }, &mut out);
        }
        None => pieces_of(sequence, head).attend(config.view != Sight::All, window, &mut out),
    };
    let seen = |sequence: usize| caches.map_or(lengths[sequence], |caches| caches[sequence].keys[0].len() / dim);
    let work: usize = (0..lengths.len()).map(|sequence| lengths[sequence] * seen(sequence)).sum();
    if work * config.heads < PARALLEL_WORK {
        jobs.into_iter().for_each(run);
    } else {
        jobs.into_par_iter().for_each(run);
    }
    out
}
