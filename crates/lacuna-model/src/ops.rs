//! The small operations between the linear layers, on feature-major activations `[features, T]`.

use lacuna_core::Matrix;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::buffers::take;

/// Values that one thread works on at a time: a quarter of an L2 cache.
const PART: usize = 1 << 15;

/// `eˣ`, off by at most 2 units in the last place, 0 below −87.3 and infinite above 88.7. Without calls and branches, so
/// that loops over it are vectorised.
///
/// `x = n·ln 2 + r`, `|r| ≤ ln 2 / 2`: `eʳ` by its Taylor polynomial of degree 7, `2ⁿ` by its bits. `ln 2` is split in two so
/// that `n·ln 2` loses nothing (Cody & Waite, Software Manual for the Elementary Functions, ch. 6).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-88.0, 89.0);
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    let shifted = clamped * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = clamped - n * HIGH - n * LOW;
    let p = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let polynomial = p.iter().fold(1.0 / 5040.0, |sum, c| sum * r + c);
    // Its last bits are n: no conversion, which would have to look for NaN and overflow.
    let n = shifted.to_bits().cast_signed().wrapping_sub(12_582_912.0_f32.to_bits().cast_signed());
    // Two factors: 2ⁿ alone overflows a little before eˣ does.
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned());
    let result = polynomial * power(half) * power(n.wrapping_sub(half));
    // Not a clamp's answer: NaN stays NaN, -inf is 0.
    if x < -87.33 {
        0.0
    } else if x.is_nan() {
        x
    } else {
        result
    }
}

/// `x / √(mean(x²) + eps) · weight`, each token by itself (Zhang & Sennrich, arXiv 1910.07467).
pub(crate) fn rms_norm(x: &Matrix, weight: &[f32], eps: f32) -> Matrix {
    let mut squares = vec![0.0_f32; x.cols()];
    for k in 0..x.rows() {
        for (sum, v) in squares.iter_mut().zip(x.row(k)) {
            *sum += v * v;
        }
    }
    let scale: Vec<f32> = squares.iter().map(|sum| (sum / x.rows() as f32 + eps).sqrt().recip()).collect();
    let mut out = take(x.rows(), x.cols());
    for (k, w) in weight.iter().enumerate() {
        for ((out, v), s) in out.row_mut(k).iter_mut().zip(x.row(k)).zip(&scale) {
            *out = v * (s * w);
        }
    }
    out
}

/// `gate · σ(gate) · up`, in place of `gate` (SwiGLU, Shazeer, arXiv 2002.05202).
pub(crate) fn silu_mul(gate: &mut Matrix, up: &Matrix) {
    let part = |(gate, up): (&mut [f32], &[f32])| {
        // Inlined, or it would be compiled without the instructions that are dispatched to.
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for (g, u) in gate.iter_mut().zip(up) {
                    *g = *g / (1.0 + exp(-*g)) * u;
                }
            },
        );
    };
    gate.data_mut().par_chunks_mut(PART).zip(up.data().par_chunks(PART)).for_each(part);
}

/// `x += y`.
pub(crate) fn add(x: &mut Matrix, y: &Matrix) {
    for (a, b) in x.data_mut().iter_mut().zip(y.data()) {
        *a += b;
    }
}

/// Turns scores into probabilities in place; those that shall not be seen are left out by the caller.
pub(crate) fn softmax(scores: &mut [f32]) {
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
            *s = exp(*s - max);
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
    use super::exp;

    #[test]
    fn exp_is_close_to_the_library() {
        for i in -8_730..=8_870 {
            let x = i as f32 / 100.0 + 0.003;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            let off = (got - want).abs() / want;
            assert!(off < 2.5e-7 || want > f64::from(f32::MAX) || x < -87.33, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert!(exp(f32::INFINITY).is_infinite());
        assert!(exp(f32::NAN).is_nan());
    }
}
