//! Causal grouped-query attention with a cache of keys and values, optionally within a sliding window.
//!
//! `q` is `[heads · D, T]`, `k` and `v` are `[kv_heads · D, T]`; the tokens of the batch's sequences lie side by side.
//! The cache keeps each head's keys and values position by position, `[positions, D]`.

use lacuna_core::Matrix;
use lacuna_kernels::dense::{View, matmul};
use rayon::prelude::*;

use crate::DecoderConfig;
use crate::buffers::take;
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
    pub fn new(config: &DecoderConfig) -> Self {
        Self { keys: vec![vec![]; config.kv_heads], values: vec![vec![]; config.kv_heads] }
    }

    /// Adds columns `start..start + len` of `k` and `v`.
    fn append(&mut self, k: &Matrix, v: &Matrix, start: usize, len: usize) {
        let dim = k.rows() / self.keys.len();
        for (source, heads) in [(k, &mut self.keys), (v, &mut self.values)] {
            for (head, store) in heads.iter_mut().enumerate() {
                for token in start..start + len {
                    store.extend((head * dim..(head + 1) * dim).map(|feature| source.row(feature)[token]));
                }
            }
        }
    }
}

/// The tokens of one sequence in a batch: how many, and what came before them.
pub(crate) struct Span<'a> {
    pub(crate) len: usize,
    pub(crate) cache: &'a mut LayerCache,
}

/// Adds the new keys and values to the caches, then lets every new token look at what it may see: positions
/// `p − window < j ≤ p`.
pub(crate) fn attend(
    config: &DecoderConfig,
    window: Option<usize>,
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    spans: &mut [Span],
) -> Matrix {
    let mut starts = Vec::with_capacity(spans.len());
    let mut start = 0;
    for span in spans.iter_mut() {
        span.cache.append(k, v, start, span.len);
        starts.push(start);
        start += span.len;
    }
    let (dim, tokens) = (config.head_dim, q.cols());
    let per_kv_head = config.heads / config.kv_heads;
    let spans: &[Span] = spans;
    let mut out = take(q.rows(), tokens);
    let run_head = |(head, out): (usize, &mut [f32])| {
        let q = &q.data()[head * dim * tokens..(head + 1) * dim * tokens];
        let mut scores = vec![];
        for (span, &start) in spans.iter().zip(&starts) {
            let (keys, values) = (&span.cache.keys[head / per_kv_head], &span.cache.values[head / per_kv_head]);
            let positions = keys.len() / dim;
            let scale = (dim as f32).sqrt().recip();
            // A few queries at a time: none of them sees what comes after the last one, and their scores stay in the cache.
            for first in (0..span.len).step_by(QUERIES) {
                let count = QUERIES.min(span.len - first);
                let past = positions - span.len + first;
                let begin = window.map_or(0, |window| (past + 1).saturating_sub(window));
                let seen = begin..past + count;
                let queries = View::new(&q[start + first..], [count, dim], [1, tokens]);
                let keys = View::new(&keys[begin * dim..], [seen.len(), dim], [dim, 1]);
                let values = View::new(&values[begin * dim..], [seen.len(), dim], [dim, 1]);
                // scores[query, position] = q·k / √D
                scores.resize(count * seen.len(), 0.0);
                matmul(&mut scores, [seen.len(), 1], 0.0, scale, queries, keys.transposed(), false);
                for (query, row) in scores.chunks_exact_mut(seen.len()).enumerate() {
                    let end = past + query + 1;
                    let from = window.map_or(0, |window| end.saturating_sub(window)) - begin;
                    softmax(&mut row[from..end - begin]);
                    row[..from].fill(0.0);
                    row[end - begin..].fill(0.0);
                }
                let scores = View::new(&scores, [count, seen.len()], [seen.len(), 1]);
                let (out, values) = (&mut out[start + first..], values.transposed());
                matmul(out, [tokens, 1], 0.0, 1.0, values, scores.transposed(), false);
            }
        }
    };
    let seen: usize = spans.iter().map(|span| span.len * span.cache.keys[0].len()).sum();
    if seen * config.heads < PARALLEL_WORK {
        out.data_mut().chunks_mut(dim * tokens).enumerate().for_each(run_head);
    } else {
        out.data_mut().par_chunks_mut(dim * tokens).enumerate().for_each(run_head);
    }
    out
}
