//! The functions inside an MLP: `f(x)`, and gated `f(g) ⊙ u` (Shazeer, arXiv 2002.05202).

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};
use lacuna_kernels::exp;
use lacuna_model::{Activation, normal_cdf};
use pulp::{Arch, NullaryFnOnce};

use super::{floats, on_cpu, with_floats};

/// `f(x)`
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if on_cpu(&[x]) { x.contiguous()?.apply_op1(Function(activation)) } else { composed(x, activation) }
}

/// `f(gate) ⊙ up`
pub(crate) fn gate_by(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if on_cpu(&[gate, up]) {
        gate.contiguous()?.apply_op2(&up.contiguous()?, Function(activation))
    } else {
        composed(gate, activation)?.mul(up)
    }
}

/// By candle's operations.
fn composed(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::GeluErf => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        // σ(z) = (1 + tanh(z/2)) / 2
        Activation::GeluSigmoid => x * (x * 0.851)?.tanh()?.affine(0.5, 0.5)?,
        Activation::Relu => x.relu(),
    }
}

struct Function(Activation);

/// What a function is and how steep it is, at once.
trait Curve {
    fn at(x: f32) -> [f32; 2];
}

/// `x·σ(a·x)`
#[inline(always)]
fn sigmoid_gated(x: f32, a: f32) -> [f32; 2] {
    let sigmoid = (1.0 + exp(-a * x)).recip();
    [x * sigmoid, sigmoid * (1.0 + a * x * (1.0 - sigmoid))]
}

struct Silu;
impl Curve for Silu {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        sigmoid_gated(x, 1.0)
    }
}

struct GeluSigmoid;
impl Curve for GeluSigmoid {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        sigmoid_gated(x, 1.702)
    }
}

struct GeluErf;
impl Curve for GeluErf {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        let (phi, density) = (normal_cdf(x), 0.398_942_3 * exp(-0.5 * x * x));
        [x * phi, phi + x * density]
    }
}

struct GeluTanh;
impl Curve for GeluTanh {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        // (1 + tanh u) / 2 = σ(2u), u = √(2/π)·(x + 0.044715 x³)
        const SCALE: f32 = 1.595_769;
        let sigmoid = (1.0 + exp(-SCALE * (x + 0.044_715 * x * x * x))).recip();
        let slope = SCALE * (1.0 + 0.134_145 * x * x);
        [x * sigmoid, sigmoid * (1.0 + x * slope * (1.0 - sigmoid))]
    }
}

struct Relu;
impl Curve for Relu {
    #[inline(always)]
    fn at(x: f32) -> [f32; 2] {
        [x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }]
    }
}

/// A loop over values that is compiled once for each function.
trait Loop {
    fn run<C: Curve>(self);
}

impl Function {
    /// Compiled for the CPU's vectors.
    fn over(&self, over: impl Loop) {
        struct Compiled<L, C>(L, std::marker::PhantomData<C>);
        impl<L: Loop, C: Curve> NullaryFnOnce for Compiled<L, C> {
            type Output = ();

            #[inline(always)]
            fn call(self) {
                self.0.run::<C>();
            }
        }
        fn dispatch<C: Curve>(over: impl Loop) {
            Arch::new().dispatch(Compiled(over, std::marker::PhantomData::<C>));
        }
        match self.0 {
            Activation::Silu => dispatch::<Silu>(over),
            Activation::GeluErf => dispatch::<GeluErf>(over),
            Activation::GeluTanh => dispatch::<GeluTanh>(over),
            Activation::GeluSigmoid => dispatch::<GeluSigmoid>(over),
            Activation::Relu => dispatch::<Relu>(over),
        }
    }
}

/// `y = f(x)`
struct Alone<'a>(&'a [f32], &'a mut [f32]);

impl Loop for Alone<'_> {
    #[inline(always)]
    fn run<C: Curve>(self) {
        self.1.iter_mut().zip(self.0).for_each(|(y, &x)| *y = C::at(x)[0]);
    }
}

/// `dx = dy · f'(x)`; `dx` comes in as `dy`
struct AloneBack<'a>(&'a [f32], &'a mut [f32]);

impl Loop for AloneBack<'_> {
    #[inline(always)]
    fn run<C: Curve>(self) {
        self.1.iter_mut().zip(self.0).for_each(|(d, &x)| *d *= C::at(x)[1]);
    }
}

/// `y = f(g)·u`; `y` comes in as `u`
struct Gated<'a>(&'a [f32], &'a mut [f32]);

impl Loop for Gated<'_> {
    #[inline(always)]
    fn run<C: Curve>(self) {
        self.1.iter_mut().zip(self.0).for_each(|(y, &g)| *y *= C::at(g)[0]);
    }
}

/// `dg = dy · u · f'(g)`, `du = dy · f(g)`; they come in as `dy` and `u`
struct GatedBack<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);

impl Loop for GatedBack<'_> {
    #[inline(always)]
    fn run<C: Curve>(self) {
        for ((&g, dg), du) in self.0.iter().zip(self.1).zip(self.2) {
            let (value, slope, up, dy) = (C::at(g)[0], C::at(g)[1], *du, *dg);
            (*dg, *du) = (dy * up * slope, dy * value);
        }
    }
}

impl CustomOp1 for Function {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(x, lx)?;
        let mut y = vec![0.0; x.len()];
        self.over(Alone(x, &mut y));
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = with_floats(dy, <[f32]>::to_vec)?;
        with_floats(x, |x| self.over(AloneBack(x, &mut dx)))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), &Device::Cpu)?))
    }
}

impl CustomOp2 for Function {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(&self, g: &CpuStorage, lg: &Layout, u: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = floats(u, lu)?.to_vec();
        self.over(Gated(floats(g, lg)?, &mut y));
        Ok((CpuStorage::F32(y), lg.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut dg, mut du) = (with_floats(dy, <[f32]>::to_vec)?, with_floats(up, <[f32]>::to_vec)?);
        with_floats(gate, |gate| self.over(GatedBack(gate, &mut dg, &mut du)))?;
        let tensor = |values| Tensor::from_vec(values, gate.shape(), &Device::Cpu);
        Ok((Some(tensor(dg)?), Some(tensor(du)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{check, noise};

    #[test]
    fn activations_have_the_gradients_of_their_definitions() {
        // Away from 0, where relu has no slope.
        let x = (noise(&[4, 33], 1) * 2.5).unwrap();
        let x = (&x + (x.sign().unwrap() * 0.05).unwrap()).unwrap();
        let all =
            [Activation::Silu, Activation::GeluErf, Activation::GeluTanh, Activation::GeluSigmoid, Activation::Relu];
        for activation in all {
            check(std::slice::from_ref(&x), |a| activate(a[0], activation), |a| composed(a[0], activation));
            let arguments = [x.clone(), noise(&[4, 33], 2)];
            let theirs = |a: &[&Tensor]| composed(a[0], activation)?.mul(a[1]);
            check(&arguments, |a| gate_by(a[0], a[1], activation), theirs);
        }
    }
}
