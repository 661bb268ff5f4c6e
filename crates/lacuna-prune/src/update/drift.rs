//! What the layers before have lost, the drift of an input from that of the dense model, and how updates make up for it.
//!
//! On the input `X` outputs come closest to those on the dense input `X₀` by the weight `W + W·E·H⁻¹`, `E = (X₀ − X)·Xᵀ`: least
//! squares, which on few tokens learn their accidents too. So half of the tokens learns and the other half judges: the share of
//! the correction that lessens the drift of tokens that it was not made from the most.

use lacuna_core::Matrix;

use super::Hessian;
use crate::products::product;
use crate::stats::Beside;

/// Outputs that the correction is judged by: sums of features, each in units of its scale, with random signs.
const PROBES: usize = 64;

/// `I + share · E·H⁻¹`, `[K, K]`: what maps a weight to the one with so much of the correction.
pub(super) fn retarget(hessian: &Hessian, gram: &Matrix, cross: &Matrix, share: f64) -> Matrix {
    let drift = hessian.unscale(less(cross.clone(), gram));
    let mut out = hessian.unscale(product(&drift, &hessian.inverse(0.0)));
    out.data_mut().iter_mut().for_each(|v| *v *= share as f32);
    for i in 0..out.rows() {
        out.row_mut(i)[i] += 1.0;
    }
    out
}

/// How much of the correction holds, 0 to 1: `⟨P·E_B, P·D_A⟩ / ⟨P·D_A·G_B, P·D_A⟩` is the factor of the first half's correction `D_A =
/// E_A·H_A⁻¹` that comes closest to the second half's drift, on the outputs of random probes `P`.
pub(super) fn foretold(gram: &Matrix, beside: &Beside) -> f64 {
    // Where half of the tokens show nothing, nothing can be learnt of them.
    let Ok(hessian) = Hessian::of_gram(&beside.half_gram) else { return 0.0 };
    let probes = probes(hessian.scales());
    let drift = |cross: &Matrix, gram: &Matrix| less(product(&probes, cross), &product(&probes, gram));
    let first = drift(&beside.half_cross, &beside.half_gram);
    let second = less(drift(&beside.cross, gram), &first);
    let correction = hessian.solve(first);
    let made_up_for = less(product(&correction, gram), &product(&correction, &beside.half_gram));
    let (agreement, size) = (dot(&second, &correction), dot(&made_up_for, &correction));
    if size > 0.0 { (agreement / size).clamp(0.0, 1.0) } else { 0.0 }
}

/// Signs by a generator of Knuth's (MMIX), the same ones always.
fn probes(scale: &[f32]) -> Matrix {
    let mut probes = Matrix::zeros(PROBES, scale.len());
    let mut state = 0_u64;
    for row in 0..PROBES {
        for (probe, s) in probes.row_mut(row).iter_mut().zip(scale) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *probe = if state >> 63 == 0 { 1.0 / s } else { -1.0 / s };
        }
    }
    probes
}

/// `a − b`.
fn less(mut a: Matrix, b: &Matrix) -> Matrix {
    a.data_mut().iter_mut().zip(b.data()).for_each(|(a, b)| *a -= b);
    a
}

fn dot(a: &Matrix, b: &Matrix) -> f64 {
    a.data().iter().zip(b.data()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stats;

    /// `[features, tokens]`, the same numbers for the same seed.
    fn noise(features: usize, tokens: usize, seed: u64) -> Matrix {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        Matrix::new(features, tokens, (0..features * tokens).map(|_| next()).collect()).unwrap()
    }

    fn foretold_of(x: &Matrix, dense: &Matrix) -> f64 {
        let mut stats = Stats::beside_dense(x.rows(), 1.0);
        stats.observe(x, Some(dense)).unwrap();
        foretold(stats.gram(), stats.beside().unwrap())
    }

    #[test]
    fn what_depends_on_the_input_is_foretold_and_chance_is_not() {
        let x = noise(24, 480, 1);
        let mut turned = x.clone();
        for k in 0..24 {
            let other = x.row((k + 5) % 24).to_vec();
            turned.row_mut(k).iter_mut().zip(other).for_each(|(v, o)| *v += 0.3 * o);
        }
        assert!(foretold_of(&x, &turned) > 0.95);
        let mut moved = x.clone();
        moved.data_mut().iter_mut().zip(noise(24, 480, 2).data()).for_each(|(v, o)| *v += 0.3 * o);
        // 480 tokens of which half teach 24 features: what they learn is one part in ten of pure chance.
        assert!(foretold_of(&x, &moved) < 0.3);
        // One token cannot be halved: nothing is learnt.
        assert!(foretold_of(&noise(4, 1, 3), &noise(4, 1, 4)) <= 0.0);
        // Where nothing is lost there is nothing to make up for.
        assert!(foretold_of(&x, &x) <= 0.0);
    }
}
