//! RMSNorm (Zhang & Sennrich, arXiv 1910.07467) and LayerNorm (Ba et al., arXiv 1607.06450) of each token of `x[T, H]`.
//!
//! With `s = 1/√(mean(c²) + eps)`, `c` the token or for LayerNorm the token less its mean, `n = s·c` and `y = n ⊙ w (+ b)`:
//! `dw = Σ_t dy ⊙ n`, `db = Σ_t dy`, and with `u = dy ⊙ w`: `dx = s·(u − n·mean(u ⊙ n))`, for LayerNorm less `s·mean(u)` too.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Tensor};
use pulp::{Arch, NullaryFnOnce};

use super::{floats, on_cpu, with_floats};

/// `x / √(mean(x²) + eps) ⊙ w`
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if on_cpu(&[x, weight]) {
        return x.contiguous()?.apply_op2(weight, Norm { eps, centred: false });
    }
    composed(x, weight, None, eps)
}

/// `(x − mean(x)) / √(var(x) + eps) ⊙ w + b`
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if on_cpu(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(weight, bias, Norm { eps, centred: true });
    }
    composed(x, weight, Some(bias), eps)
}

/// By candle's operations.
fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let x = if bias.is_some() { x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)? } else { x.clone() };
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?.sqrt()?;
    let y = x.broadcast_div(&scale)?.broadcast_mul(weight)?;
    bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
}

struct Norm {
    eps: f32,
    centred: bool,
}

impl Norm {
    fn forward(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        let tokens = y.chunks_exact_mut(weight.len()).zip(x.chunks_exact(weight.len()));
        for (y, x) in tokens {
            Arch::new().dispatch(Forward { norm: self, x, weight, bias, y });
        }
        y
    }

    /// `(dx, dw, db)`
    fn backward(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let h = weight.elem_count();
        let (mut dx, mut dw, mut db) = (vec![0.0; x.elem_count()], vec![0.0; h], vec![0.0; h]);
        with_floats(x, |x| {
            with_floats(weight, |weight| {
                with_floats(dy, |dy| {
                    let tokens = dx.chunks_exact_mut(h).zip(x.chunks_exact(h).zip(dy.chunks_exact(h)));
                    for (dx, (x, dy)) in tokens {
                        Arch::new().dispatch(Backward { norm: self, x, weight, dy, dx, dw: &mut dw, db: &mut db });
                    }
                })
            })
        })???;
        let tensor = |values, shape: &Shape| Tensor::from_vec(values, shape, &Device::Cpu);
        Ok((tensor(dx, x.shape())?, tensor(dw, weight.shape())?, tensor(db, weight.shape())?))
    }

    /// Mean (0 where it stays) and scale of a token.
    #[inline(always)]
    fn statistics(&self, x: &[f32]) -> (f32, f32) {
        let count = x.len() as f32;
        let mean = if self.centred { sum(x, |v, _| v, x) / count } else { 0.0 };
        let variance = sum(x, |v, _| (v - mean) * (v - mean), x) / count;
        (mean, (variance + self.eps).sqrt().recip())
    }
}

/// `Σ f(a, b)` in 16 lanes, then the lanes: an order that is vectorised.
#[inline(always)]
fn sum(a: &[f32], f: impl Fn(f32, f32) -> f32, b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            lanes[i] += f(a[i], b[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(&a, &b)| f(a, b)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// One token forwards: a function object, so that it is compiled for the CPU's vectors.
struct Forward<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    y: &'a mut [f32],
}

impl NullaryFnOnce for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (mean, scale) = self.norm.statistics(self.x);
        for ((y, x), w) in self.y.iter_mut().zip(self.x).zip(self.weight) {
            *y = (x - mean) * scale * w;
        }
        if let Some(bias) = self.bias {
            self.y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
}

/// One token backwards.
struct Backward<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    weight: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    dw: &'a mut [f32],
    db: &'a mut [f32],
}

impl NullaryFnOnce for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { norm, x, weight, dy, dx, dw, db } = self;
        let (mean, scale) = norm.statistics(x);
        for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(weight) {
            *dx = dy * w;
        }
        let count = x.len() as f32;
        let along = sum(dx, |u, x| u * (x - mean) * scale, x) / count;
        let level = if norm.centred { sum(dx, |u, _| u, dx) / count } else { 0.0 };
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = scale * (*dx - level - (x - mean) * scale * along);
        }
        for (((dw, db), dy), x) in dw.iter_mut().zip(db).zip(dy).zip(x) {
            *dw += dy * (x - mean) * scale;
            *db += dy;
        }
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.forward(floats(x, lx)?, floats(w, lw)?, None)), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = self.backward(x, weight, dy)?;
        Ok((Some(dx), weight.track_op().then_some(dw)))
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.forward(floats(x, lx)?, floats(w, lw)?, Some(floats(b, lb)?));
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, db) = self.backward(x, weight, dy)?;
        Ok((Some(dx), weight.track_op().then_some(dw), bias.track_op().then_some(db)))
    }
}

#[cfg(test)]
mod tests {
    use super::{composed, layer_norm, rms_norm};
    use crate::ops::tests::{check, noise};

    #[test]
    fn norms_have_the_gradients_of_their_definitions() {
        let arguments = [noise(&[5, 37], 1), noise(&[37], 2), noise(&[37], 3)];
        check(&arguments[..2], |a| rms_norm(a[0], a[1], 1e-5), |a| composed(a[0], a[1], None, 1e-5));
        let ours = |a: &[&candle_core::Tensor]| layer_norm(a[0], a[1], a[2], 1e-5);
        check(&arguments, ours, |a| composed(a[0], a[1], Some(a[2]), 1e-5));
    }
}
