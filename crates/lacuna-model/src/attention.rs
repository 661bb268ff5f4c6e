//! Causal grouped-query attention with a cache of keys and values, optionally within a sliding window.
//!
//! `q` is `[heads · D, T]`, `k` and `v` are `[kv_heads · D, T]`; the tokens of the batch's sequences lie side by side.
//! The cache keeps each head's keys and values position by position, `[positions, D]`.

use lacuna_core::Matrix;
use lacuna_kernels::dense::{View, matmul};
use rayon::prelude::*;

use crate::DecoderConfig;
use crate::ops::softmax;

/// Products below which handing heads to other threads costs more than it saves.
const PARALLEL_WORK: usize = 1 << 17;

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
    let mut out = Matrix::zeros(q.rows(), tokens);
    let run_head = |(head, out): (usize, &mut [f32])| {
        let q = &q.data()[head * dim * tokens..(head + 1) * dim * tokens];
        for (span, &start) in spans.iter().zip(&starts) {
            let (keys, values) = (&span.cache.keys[head / per_kv_head], &span.cache.values[head / per_kv_head]);
            let positions = keys.len() / dim;
            let keys = View::new(keys, [positions, dim], [dim, 1]);
            let values = View::new(values, [positions, dim], [dim, 1]);
            let queries = View::new(&q[start..], [span.len, dim], [1, tokens]);
            // scores[token, position] = q·k / √D
            let mut scores = vec![0.0; span.len * positions];
            let scale = (dim as f32).sqrt().recip();
            matmul(&mut scores, [positions, 1], 0.0, scale, queries, keys.transposed(), false);
            for (token, row) in scores.chunks_exact_mut(positions).enumerate() {
                let end = positions - span.len + token + 1;
                let begin = window.map_or(0, |window| end.saturating_sub(window));
                softmax(&mut row[begin..end]);
                row[..begin].fill(0.0);
                row[end..].fill(0.0);
            }
            let scores = View::new(&scores, [span.len, positions], [positions, 1]);
            matmul(&mut out[start..], [tokens, 1], 0.0, 1.0, values.transposed(), scores.transposed(), false);
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
