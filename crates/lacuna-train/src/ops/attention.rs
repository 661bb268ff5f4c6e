//! Grouped-query attention over whole sequences that lie one after the other: `q[T, heads·D]`, `k` and `v[T, kv_heads·D]`,
//! with rotary embedding inside, so that nothing of the size of the scores outlives a head.
//!
//! `P = softmax(q·kᵀ/√D)` over what a token sees, `o = P·v`; backwards `dv = Pᵀ·do`, `dP = do·vᵀ`,
//! `dS = P ⊙ (dP − Σ_row(dP ⊙ P))`, `dq = dS·k/√D`, `dk = dSᵀ·q/√D`, and rotations are undone by the opposite angle.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, D, Device, Layout, Result, Shape, Tensor};
use lacuna_kernels::dense::{View, matmul};
use lacuna_model::{BlockConfig, View as Sight, softmax};
use pulp::{Arch, NullaryFnOnce};

use super::{floats, on_cpu, with_floats};

/// Queries whose scores are computed at once: causal ones see nothing behind the last of them.
const QUERIES: usize = 128;

/// The sequences of a batch, and what tokens of one layer see.
#[derive(Debug, Clone)]
pub(crate) struct Sequences {
    lengths: Vec<usize>,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    causal: bool,
    window: Option<usize>,
    /// cosines and sines `[positions, D/2]`
    angles: Option<[Vec<f32>; 2]>,
}

impl Sequences {
    /// Sequences of these lengths in a layer.
    pub(crate) fn new(config: &BlockConfig, layer: usize, lengths: &[usize]) -> Self {
        let positions: Vec<usize> = (0..lengths.iter().copied().max().unwrap_or(0)).collect();
        let (causal, window, angles) = match &config.view {
            Sight::All => (false, None, None),
            Sight::Past { rope, windows } => {
                (true, windows[layer], Some(rope.cosines_and_sines(config.head_dim, &positions)))
            }
        };
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        Self { lengths: lengths.to_vec(), heads, kv_heads, dim, causal, window, angles }
    }

    /// Turns the heads of every token of `x[T, n·D]` by its position, or back.
    fn rotate(&self, x: &mut [f32], width: usize, back: bool) {
        let Some([cos, sin]) = &self.angles else { return };
        let half = self.dim / 2;
        let positions = self.lengths.iter().flat_map(|&len| 0..len);
        for (token, position) in x.chunks_exact_mut(width).zip(positions) {
            let place = position * half..(position + 1) * half;
            for head in token.chunks_exact_mut(self.dim) {
                let (low, high) = head.split_at_mut(half);
                for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(&cos[place.clone()]).zip(&sin[place.clone()]) {
                    let sin = if back { -sin } else { *sin };
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }

    /// What the token at a position of a sequence sees of it.
    fn seen(&self, position: usize, len: usize) -> Range<usize> {
        if self.causal {
            self.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1
        } else {
            0..len
        }
    }

    /// Features of a token's queries, and of its keys or values.
    fn widths(&self) -> [usize; 2] {
        [self.heads * self.dim, self.kv_heads * self.dim]
    }

    /// So many tokens of one head of `x[T, width]`, from a place on.
    fn tokens<'a>(&self, x: &'a [f32], from: usize, tokens: usize, width: usize) -> View<'a> {
        View::new(&x[from..], [tokens, self.dim], [width, 1])
    }

    /// Shows every head of every sequence in pieces.
    fn visit(&self, q: &[f32], k: &[f32], v: &[f32], mut f: impl FnMut(Piece)) {
        let [q_width, kv_width] = self.widths();
        let (mut q, mut k) = (q.to_vec(), k.to_vec());
        self.rotate(&mut q, q_width, false);
        self.rotate(&mut k, kv_width, false);
        let mut p = vec![];
        for head in 0..self.heads {
            let kv_head = head / (self.heads / self.kv_heads);
            let mut first = 0;
            for &len in &self.lengths {
                for start in (0..len).step_by(QUERIES) {
                    let queries = start..len.min(start + QUERIES);
                    let keys = self.seen(start, len).start..self.seen(queries.end - 1, len).end;
                    let from_q = (first + queries.start) * q_width + head * self.dim;
                    let from_kv = (first + keys.start) * kv_width + kv_head * self.dim;
                    let q = self.tokens(&q, from_q, queries.len(), q_width);
                    let k = self.tokens(&k, from_kv, keys.len(), kv_width);
                    let v = self.tokens(v, from_kv, keys.len(), kv_width);
                    p.resize(queries.len() * keys.len(), 0.0);
                    matmul(&mut p, [keys.len(), 1], 0.0, self.scale(), q, k.transposed(), false);
                    for (row, query) in p.chunks_exact_mut(keys.len()).zip(queries) {
                        let seen = self.seen(query, len);
                        let seen = seen.start - keys.start..seen.end - keys.start;
                        row[..seen.start].fill(0.0);
                        softmax(&mut row[seen.clone()]);
                        row[seen.end..].fill(0.0);
                    }
                    f(Piece { q, k, v, p: &p, from_q, from_kv });
                }
                first += len;
            }
        }
    }

    /// `1/√D`
    fn scale(&self) -> f32 {
        (self.dim as f32).sqrt().recip()
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let [q_width, _] = self.widths();
        let mut out = vec![0.0; q.len()];
        self.visit(q, k, v, |piece| {
            matmul(&mut out[piece.from_q..], [q_width, 1], 0.0, 1.0, piece.of_scores(piece.p), piece.v, false);
        });
        out
    }

    /// `(dq, dk, dv)`
    fn backward(&self, q: &[f32], k: &[f32], v: &[f32], dout: &[f32]) -> [Vec<f32>; 3] {
        let [q_width, kv_width] = self.widths();
        let [mut dq, mut dk, mut dv] = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]];
        let mut dp = vec![];
        self.visit(q, k, v, |piece| {
            let Piece { q, k, v, p, from_q, from_kv } = piece;
            let [queries, keys] = [q.shape()[0], k.shape()[0]];
            let dout = self.tokens(dout, from_q, queries, q_width);
            matmul(&mut dv[from_kv..], [kv_width, 1], 1.0, 1.0, piece.of_scores(p).transposed(), dout, false);
            dp.resize(p.len(), 0.0);
            matmul(&mut dp, [keys, 1], 0.0, 1.0, dout, v.transposed(), false);
            Arch::new().dispatch(Scores { p, dp: &mut dp, width: keys });
            let ds = piece.of_scores(&dp);
            matmul(&mut dq[from_q..], [q_width, 1], 1.0, self.scale(), ds, k, false);
            matmul(&mut dk[from_kv..], [kv_width, 1], 1.0, self.scale(), ds.transposed(), q, false);
        });
        self.rotate(&mut dq, q_width, true);
        self.rotate(&mut dk, kv_width, true);
        [dq, dk, dv]
    }
}

/// Some queries of one head, with the keys and values that they see.
struct Piece<'a> {
    /// rotated `[queries, D]`
    q: View<'a>,
    /// rotated `[keys, D]`
    k: View<'a>,
    /// `[keys, D]`
    v: View<'a>,
    /// `[queries, keys]`
    p: &'a [f32],
    /// where `q` begins in `[T, heads·D]`
    from_q: usize,
    /// where `k` and `v` begin in `[T, kv_heads·D]`
    from_kv: usize,
}

impl Piece<'_> {
    /// Values of the shape of `p`.
    fn of_scores<'a>(&self, values: &'a [f32]) -> View<'a> {
        let [queries, keys] = [self.q.shape()[0], self.k.shape()[0]];
        View::new(values, [queries, keys], [keys, 1])
    }
}

/// `dS = P ⊙ (dP − Σ_row(dP ⊙ P))` in place of `dP`.
struct Scores<'a> {
    p: &'a [f32],
    dp: &'a mut [f32],
    width: usize,
}

impl NullaryFnOnce for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (dp, p) in self.dp.chunks_exact_mut(self.width).zip(self.p.chunks_exact(self.width)) {
            let mut lanes = [0.0_f32; 16];
            for (dp, p) in dp.chunks(16).zip(p.chunks(16)) {
                lanes.iter_mut().zip(dp).zip(p).for_each(|((sum, dp), p)| *sum += dp * p);
            }
            let sum: f32 = lanes.iter().sum();
            dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - sum));
        }
    }
}

/// Lets every token look at what it may see, `[T, heads·D]`.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, sequences: &Sequences) -> Result<Tensor> {
    if on_cpu(&[q, k, v]) {
        return q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, Attention(sequences.clone()));
    }
    composed(q, k, v, sequences)
}

/// By candle's operations, a sequence after the other.
fn composed(q: &Tensor, k: &Tensor, v: &Tensor, s: &Sequences) -> Result<Tensor> {
    let device = q.device();
    let (mut outs, mut first) = (vec![], 0);
    for &len in s.lengths.iter().filter(|&&len| len > 0) {
        // [heads, len, D]
        let heads = |x: &Tensor, count: usize| -> Result<Tensor> {
            x.narrow(0, first, len)?.reshape((len, count, s.dim))?.transpose(0, 1)?.contiguous()
        };
        let turn = |x: Tensor| -> Result<Tensor> {
            let Some([cos, sin]) = &s.angles else { return Ok(x) };
            let half = s.dim / 2;
            let table = |values: &[f32]| Tensor::from_slice(&values[..len * half], (1, len, half), device);
            let (cos, sin) = (table(cos)?, table(sin)?);
            let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
            let low = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            Tensor::cat(&[low, (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?], D::Minus1)
        };
        let shared = |x: Tensor| -> Result<Tensor> {
            let group = s.heads / s.kv_heads;
            let wide = x.unsqueeze(1)?.broadcast_as((s.kv_heads, group, len, s.dim))?;
            wide.reshape((s.heads, len, s.dim))
        };
        let (q, k) = (turn(heads(q, s.heads)?)?, shared(turn(heads(k, s.kv_heads)?)?)?);
        let v = shared(heads(v, s.kv_heads)?)?;
        let hidden = (0..len).flat_map(|i| {
            let seen = s.seen(i, len);
            (0..len).map(move |j| if seen.contains(&j) { 0.0 } else { f32::NEG_INFINITY })
        });
        let hidden = Tensor::from_vec(hidden.collect(), (1, len, len), device)?;
        let scores = (q.matmul(&k.t()?)? * f64::from(s.scale()))?.broadcast_add(&hidden)?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        outs.push(weights.matmul(&v)?.transpose(0, 1)?.reshape((len, s.heads * s.dim))?);
        first += len;
    }
    Tensor::cat(&outs, 0)
}

struct Attention(Sequences);

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.0.forward(floats(q, lq)?, floats(k, lk)?, floats(v, lv)?);
        Ok((CpuStorage::F32(out), lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = with_floats(q, |q| {
            with_floats(k, |k| with_floats(v, |v| with_floats(dout, |dout| self.0.backward(q, k, v, dout))))
        })????;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), &Device::Cpu).map(Some);
        Ok((tensor(dq, q)?, tensor(dk, k)?, tensor(dv, v)?))
    }
}

#[cfg(test)]
mod tests {
    use lacuna_model::RopeConfig;

    use super::*;
    use crate::ops::tests::{check, noise};

    #[test]
    fn attention_has_the_gradients_of_its_definition() {
        let rope = RopeConfig::plain(10_000.0);
        let positions: Vec<usize> = (0..150).collect();
        let rotary = || Some(rope.cosines_and_sines(4, &positions));
        for (causal, window, lengths, angles) in [
            (false, None, vec![3, 0, 5], None),
            (true, None, vec![4, 6], rotary()),
            (true, Some(3), vec![7], rotary()),
            (true, None, vec![150], rotary()),
        ] {
            let tokens = lengths.iter().sum();
            let sequences = Sequences { lengths, heads: 4, kv_heads: 2, dim: 4, causal, window, angles };
            let arguments = [noise(&[tokens, 16], 1), noise(&[tokens, 8], 2), noise(&[tokens, 8], 3)];
            let ours = |a: &[&Tensor]| attend(a[0], a[1], a[2], &sequences);
            check(&arguments, ours, |a| composed(a[0], a[1], a[2], &sequences));
        }
    }
}
