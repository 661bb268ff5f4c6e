//! The small operations between the linear layers, on feature-major activations `[features, T]`.

use lacuna_core::Matrix;
use lacuna_kernels::{exp, exp_of_negative};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::Activation;

/// Values that one thread works on at a time: a quarter of an L2 cache.
pub(crate) const PART: usize = 1 << 15;

/// `f(x)`, in place.
pub(crate) fn activate(x: &mut Matrix, activation: Activation) {
    x.data_mut().par_chunks_mut(PART).for_each(|x| with_function(activation, Alone(x)));
}

/// `f(gate) · up`, in place of `gate` (Shazeer, arXiv 2002.05202).
pub(crate) fn gate_by(gate: &mut Matrix, up: &Matrix, activation: Activation) {
    let parts = gate.data_mut().par_chunks_mut(PART).zip(up.data().par_chunks(PART));
    parts.for_each(|(gate, up)| with_function(activation, Gated(gate, up)));
}

/// A loop over values that applies a function to each.
trait Loop {
    fn run(self, f: impl Fn(f32) -> f32);
}

/// Runs a loop compiled for the CPU's vectors, once for each function: a choice inside the loop would not be.
fn with_function(activation: Activation, over: impl Loop) {
    struct Compiled<L, F>(L, F);
    impl<L: Loop, F: Fn(f32) -> f32> NullaryFnOnce for Compiled<L, F> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            self.0.run(self.1);
        }
    }
    let arch = Arch::new();
    match activation {
        Activation::Silu => arch.dispatch(Compiled(over, silu)),
        Activation::GeluErf => arch.dispatch(Compiled(over, gelu_erf)),
        Activation::GeluTanh => arch.dispatch(Compiled(over, gelu_tanh)),
        Activation::GeluSigmoid => arch.dispatch(Compiled(over, gelu_sigmoid)),
        Activation::Relu => arch.dispatch(Compiled(over, relu)),
    }
}

struct Alone<'a>(&'a mut [f32]);

impl Loop for Alone<'_> {
    #[inline(always)]
    fn run(self, f: impl Fn(f32) -> f32) {
        for v in self.0.iter_mut() {
            *v = f(*v);
        }
    }
}

struct Gated<'a>(&'a mut [f32], &'a [f32]);

impl Loop for Gated<'_> {
    #[inline(always)]
    fn run(self, f: impl Fn(f32) -> f32) {
        for (gate, up) in self.0.iter_mut().zip(self.1) {
            *gate = f(*gate) * up;
        }
    }
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    x.max(0.0)
}

/// `x · σ(1.702 x)`
#[inline(always)]
fn gelu_sigmoid(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

/// `x · σ(x)`
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x · Φ(x)` (Hendrycks & Gimpel, arXiv 1606.08415).
#[inline(always)]
fn gelu_erf(x: f32) -> f32 {
    x * normal_cdf(x)
}

/// `Φ(x)`, the normal distribution, off by at most `2.2·10⁻⁷`: as PyTorch's `(1 + erf(x / √2)) / 2`, a tail is no more exact
/// than the half that it is the rest of.
///
/// `½ + x · P(x²) / Q(x²)`, fitted on `|x| ≤ 5.5` to `10⁻⁸`; beyond that it is 0 and 1 in f32. No exponential: a GELU by one, with
/// exact tails, takes a small encoder a tenth more time.
#[inline(always)]
#[must_use]
pub fn normal_cdf(x: f32) -> f32 {
    const P: [f32; 5] = [6.351_954_6e-6, 1.688_127_1e-4, 4.677_181_6e-3, 3.385_145_5e-2, 3.989_422_3e-1];
    const Q: [f32; 5] = [7.364_294e-5, 1.884_372_1e-3, 2.864_517_4e-2, 2.515_189_3e-1, 1.0];
    let x = x.clamp(-5.5, 5.5);
    let square = x * x;
    let upper = P.iter().fold(2.274_988_6e-8, |sum, c| sum * square + c);
    let lower = Q.iter().fold(1.197_507e-6, |sum, c| sum * square + c);
    0.5 + x * upper / lower
}

/// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`, with `(1 + tanh u) / 2 = 1 / (1 + e⁻²ᵘ)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const TWICE_SQRT_2_BY_PI: f32 = 1.595_769;
    x / (1.0 + exp(-TWICE_SQRT_2_BY_PI * (x + 0.044_715 * x * x * x)))
}

/// `x += y`.
pub(crate) fn add(x: &mut Matrix, y: &Matrix) {
    let part = |(x, y): (&mut [f32], &[f32])| {
        for (a, b) in x.iter_mut().zip(y) {
            *a += b;
        }
    };
    x.data_mut().par_chunks_mut(PART).zip(y.data().par_chunks(PART)).for_each(part);
}

/// Turns scores into probabilities in place; those that shall not be seen are left out by the caller.
pub fn softmax(scores: &mut [f32]) {
    Arch::new().dispatch(Softmax(scores));
}

/// A function object, not a closure: it is inlined for certain into code compiled for the CPU's vectors.
struct Softmax<'a>(&'a mut [f32]);

impl NullaryFnOnce for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let max = fold(self.0, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        for s in self.0.iter_mut() {
            *s = exp_of_negative(*s - max);
        }
        let part = fold(self.0, 0.0, |a, b| a + b).recip();
        for s in self.0.iter_mut() {
            *s *= part;
        }
    }
}

/// Folds in 16 lanes, then the lanes: an order that is vectorised.
#[inline(always)]
fn fold(values: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [start; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for chunk in whole {
        for i in 0..16 {
            lanes[i] = f(lanes[i], chunk[i]);
        }
    }
    lanes.iter().chain(rest).fold(start, |a, &b| f(a, b))
}

/// The given columns of a matrix, in that order.
pub(crate) fn select_columns(x: &Matrix, columns: &[usize]) -> Matrix {
    let data = (0..x.rows()).flat_map(|k| columns.iter().map(move |&c| x.row(k)[c])).collect();
    Matrix::new(x.rows(), columns.len(), data).expect("as many values as selected")
}

#[cfg(test)]
mod tests {
    use super::{gelu_erf, gelu_tanh};

    /// `Φ(x)` by its power series (Abramowitz & Stegun 26.2.11), good where little cancels.
    fn normal_cdf(x: f64) -> f64 {
        let mut term = x;
        let mut sum = x;
        for k in 1..200 {
            term *= x * x / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
    }

    #[test]
    fn gelu_is_close_to_its_definition() {
        for i in -1_200..=1_200 {
            let x = i as f32 / 200.0 + 0.001;
            let wide = f64::from(x);
            let (got, want) = (f64::from(gelu_erf(x)), wide * normal_cdf(wide));
            assert!((got - want).abs() <= 2.2e-7 * wide.abs(), "gelu({x}) = {got}, not {want}");
            let allowed = (4e-7 + 6e-8 * wide * wide) * want.abs() + 1e-14;
            assert!(x < 0.0 || (got - want).abs() <= allowed, "gelu({x}) = {got}, not {want}");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let (got, want) = (f64::from(gelu_tanh(x)), 0.5 * wide * (1.0 + inner.tanh()));
            assert!((got - want).abs() <= 4.0 * allowed + 1e-13, "tanh gelu({x}) = {got}, not {want}");
        }
        for x in [-20.0, -200.0, f32::MIN] {
            assert_eq!((gelu_erf(x).abs(), gelu_tanh(x).abs()), (0.0, 0.0));
        }
        for x in [20.0, 200.0, f32::MAX] {
            assert_eq!((gelu_erf(x).to_bits(), gelu_tanh(x).to_bits()), (x.to_bits(), x.to_bits()));
        }
    }
}
