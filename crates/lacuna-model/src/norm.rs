//! The norms between sublayers, over feature-major activations `[H, T]`: RMSNorm (Zhang & Sennrich, arXiv 1910.07467)
//! and LayerNorm (Ba et al., arXiv 1607.06450).

use lacuna_core::Matrix;
use lacuna_format::{Checkpoint, Result};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::buffers::take;
use crate::config::{BlockConfig, NormKind};
use crate::ops::PART;

/// Tokens whose statistics are taken together: their features stay in the cache between the two passes.
const TOKENS: usize = 64;

/// A norm with its weights.
pub(crate) struct Norm {
    /// `[H]`
    weight: Vec<f32>,
    /// `[H]`; that of a LayerNorm
    bias: Option<Vec<f32>>,
    eps: f32,
}

impl Norm {
    /// Reads the norm with a module name.
    pub(crate) fn load(checkpoint: &Checkpoint, config: &BlockConfig, name: &str) -> Result<Self> {
        let floats = |part: &str| checkpoint.floats(&format!("{name}.{part}"), &[config.hidden_size]);
        let bias = match config.norm {
            NormKind::Rms => None,
            NormKind::Layer => Some(floats("bias")?),
        };
        Ok(Self { weight: floats("weight")?, bias, eps: config.norm_eps })
    }

    /// Norms each token of `x[H, T]` by itself.
    pub(crate) fn apply(&self, x: &Matrix) -> Matrix {
        let tokens = x.cols();
        let mut out = take(x.rows(), tokens);
        if tokens == 0 {
            return out;
        }
        // y = x · scale + shift, by token
        let (mut scale, mut shift) = (vec![0.0; tokens], vec![0.0; tokens]);
        let blocks = scale.par_chunks_mut(TOKENS).zip(shift.par_chunks_mut(TOKENS)).enumerate();
        let statistics = |(block, (scale, shift)): (usize, (&mut [f32], &mut [f32]))| {
            let centred = self.bias.is_some();
            Arch::new().dispatch(Statistics { x, first: block * TOKENS, centred, eps: self.eps, scale, shift });
        };
        blocks.for_each(statistics);
        let rows_a_part = (PART / tokens).max(1);
        let parts = out.data_mut().par_chunks_mut(rows_a_part * tokens).enumerate();
        parts.for_each(|(part, out)| {
            let first = part * rows_a_part;
            Arch::new().dispatch(Apply { norm: self, x, first, scale: &scale, shift: &shift, out });
        });
        out
    }
}

/// Scale and shift of some tokens: a function object, so that it is compiled for the CPU's vectors.
struct Statistics<'a> {
    x: &'a Matrix,
    /// first token
    first: usize,
    /// whether the mean is taken away
    centred: bool,
    eps: f32,
    scale: &'a mut [f32],
    shift: &'a mut [f32],
}

impl NullaryFnOnce for Statistics<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { x, first, centred, eps, scale, shift } = self;
        let (tokens, count) = (first..first + scale.len(), x.rows() as f32);
        let (mut means, mut squares) = ([0.0_f32; TOKENS], [0.0_f32; TOKENS]);
        if centred {
            for k in 0..x.rows() {
                for (sum, v) in means.iter_mut().zip(&x.row(k)[tokens.clone()]) {
                    *sum += v;
                }
            }
            for sum in &mut means {
                *sum /= count;
            }
        }
        // Around the mean, not by the difference of two sums, which would cancel where the mean is large.
        for k in 0..x.rows() {
            for ((sum, v), mean) in squares.iter_mut().zip(&x.row(k)[tokens.clone()]).zip(&means) {
                *sum += (v - mean) * (v - mean);
            }
        }
        for (((scale, shift), square), mean) in scale.iter_mut().zip(shift).zip(&squares).zip(&means) {
            *scale = (square / count + eps).sqrt().recip();
            *shift = -mean * *scale;
        }
    }
}

/// Normed features of all tokens.
struct Apply<'a> {
    norm: &'a Norm,
    x: &'a Matrix,
    /// first feature
    first: usize,
    scale: &'a [f32],
    shift: &'a [f32],
    /// `[features, T]`
    out: &'a mut [f32],
}

impl NullaryFnOnce for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { norm, x, first, scale, shift, out } = self;
        for (k, out) in (first..).zip(out.chunks_exact_mut(x.cols())) {
            let (weight, bias) = (norm.weight[k], norm.bias.as_ref().map_or(0.0, |bias| bias[k]));
            for (((out, v), scale), shift) in out.iter_mut().zip(x.row(k)).zip(scale).zip(shift) {
                *out = (v * scale + shift) * weight + bias;
            }
        }
    }
}
