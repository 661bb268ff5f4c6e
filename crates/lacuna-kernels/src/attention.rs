//! Attention of one head: `out = V · softmax(Kᵀ·Q / √D)` by columns (Vaswani et al., arXiv 1706.03762), over one whole
//! sequence in which every query sees every key, or of queries that each see some of what is in a cache.
//!
//! Operands of whole sequences are feature-major, `[D, tokens]`, pieces of the projections that hold a whole batch side by
//! side. A cache holds keys and values position by position, `[positions, D]`.

use std::ops::Range;

use crate::lanes::InstructionSet;
use crate::{Activations, dense};

/// One head of one sequence. Feature `d` of token `t` is `queries[d * stride + t]`, and likewise for the others.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// from the sequence's first token and the head's first feature on
    pub queries: &'a [f32],
    /// the same
    pub keys: &'a [f32],
    /// the same
    pub values: &'a [f32],
    /// tokens of the batch: from one feature to the next
    pub stride: usize,
    /// features, D
    pub dim: usize,
    /// tokens of the sequence
    pub len: usize,
}

/// Queries that share the keys and values of a cache: those of new tokens, of all heads that look at the same ones.
#[derive(Clone, Copy)]
pub struct Cached<'a> {
    /// `[D, queries]`
    pub queries: &'a [f32],
    /// `[positions, D]`
    pub keys: &'a [f32],
    /// `[positions, D]`
    pub values: &'a [f32],
    /// features, D
    pub dim: usize,
    /// the positions that each query sees, at least one
    pub seen: &'a [Range<usize>],
}

/// What computes a head; only the functions here make one.
#[derive(Clone, Copy)]
pub struct Kernel {
    set: &'static InstructionSet,
    /// whether operands are rounded to bfloat16
    rounds: bool,
}

/// Kernels that this machine can run, the preferred one first; none, and there is no kernel for this CPU.
pub fn kernels(activations: Activations) -> impl Iterator<Item = Kernel> {
    let rounded = activations == Activations::Bf16;
    let sets = dense::SETS.iter().copied().filter(|set| (set.available)());
    sets.map(move |set| Kernel { set, rounds: rounded && set.rounds_attention() })
}

impl Kernel {
    /// Whether operands are rounded to bfloat16.
    pub fn rounds(&self) -> bool {
        self.rounds
    }

    /// Name of the instruction set.
    pub fn name(&self) -> &'static str {
        self.set.name
    }

    /// Computes a head: `out[D][len]`.
    ///
    /// # Panics
    /// If an operand is too short, or `out` has another shape.
    pub fn attend(&self, head: &Head, out: &mut [&mut [f32]]) {
        let Head { queries, keys, values, stride, dim, len } = *head;
        if dim == 0 || len == 0 {
            return;
        }
        let needed = (dim - 1) * stride + len;
        assert!(len <= stride && [queries, keys, values].iter().all(|x| x.len() >= needed), "operands too short");
        assert!(out.len() == dim && out.iter().all(|row| row.len() == len), "result of another shape");
        self.set.attend(self.rounds, head, out);
    }

    /// Computes queries against a cache, `out[D][queries]`, in f32: keys and values are read too few times for rounding to pay.
    ///
    /// # Panics
    /// If an operand has another shape, or a query sees nothing or what is not there.
    pub fn attend_cached(&self, cached: &Cached, out: &mut [f32]) {
        let Cached { queries, keys, values, dim, seen } = *cached;
        if dim == 0 || seen.is_empty() {
            return;
        }
        let positions = keys.len() / dim;
        assert!(keys.len() == positions * dim && values.len() == keys.len(), "a cache of another shape");
        assert!(queries.len() == seen.len() * dim && out.len() == queries.len(), "queries of another shape");
        assert!(seen.iter().all(|seen| seen.start < seen.end && seen.end <= positions), "positions outside the cache");
        self.set.attend_cached(cached, out);
    }
}
