//! Losses and their gradients: cross-entropy, divergence from a teacher, SquareHead (Kurtic et al., arXiv 2310.06927), and the
//! distance of vectors.
//!
//! Of logits `z` and a teacher's `t`, with `p = softmax(z)`: cross-entropy `−ln p_y`, gradient `p − e_y`. With `p`, `q` the
//! distributions of `z/τ` and `t/τ`: `τ²·KL(q ‖ p)`, gradient `τ·(p − q)` (Hinton et al., arXiv 1503.02531).

use lacuna_kernels::exp_of_negative;
use pulp::{Arch, NullaryFnOnce};
use serde::{Deserialize, Serialize};

/// How much of each loss there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// cross-entropy of the next token or of the class, in nats
    #[serde(default)]
    pub ce: f64,
    /// divergence of the predicted distribution from the dense model's, in nats
    #[serde(default)]
    pub kl: f64,
    /// temperature of that divergence
    #[serde(default = "one")]
    pub temperature: f64,
    /// SquareHead: mean over the blocks of `MSE(h, h_dense) / mean(h_dense²)`
    #[serde(default)]
    pub squarehead: f64,
    /// of text encoders: 1 − cosine of the vector and the dense model's
    #[serde(default)]
    pub cosine: f64,
}

fn one() -> f64 {
    1.0
}

impl Loss {
    /// Whether the dense model's answers are asked for.
    pub fn needs_answers(&self) -> bool {
        self.kl != 0.0 || self.cosine != 0.0
    }

    /// Whether a dense model has to run along.
    pub fn needs_teacher(&self) -> bool {
        self.needs_answers() || self.squarehead != 0.0
    }
}

/// What losses came to, as sums of shares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Losses {
    /// the weighted sum
    pub total: f64,
    /// cross-entropy
    pub ce: f64,
    /// divergence
    pub kl: f64,
    /// SquareHead
    pub squarehead: f64,
    /// 1 − cosine
    pub cosine: f64,
}

impl std::ops::AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.ce += other.ce;
        self.kl += other.kl;
        self.squarehead += other.squarehead;
        self.cosine += other.cosine;
    }
}

/// One answer: its logits become their gradient times `share`, what it lost is added to `losses`.
pub(crate) fn of_logits(
    loss: &Loss,
    logits: &mut [f32],
    teacher: Option<&[f32]>,
    target: Option<u32>,
    share: f64,
    losses: &mut Losses,
) {
    let (mut ce, mut kl) = (0.0, 0.0);
    let mut gradient = vec![0.0; logits.len()];
    if let Some(target) = target.filter(|_| loss.ce != 0.0) {
        let mut p = logits.to_vec();
        let log_sum = distribution(&mut p, 1.0);
        ce = log_sum - f64::from(logits[target as usize]);
        let weight = (loss.ce * share) as f32;
        gradient.iter_mut().zip(&p).for_each(|(g, p)| *g = weight * p);
        gradient[target as usize] -= weight;
    }
    if let Some(teacher) = teacher.filter(|_| loss.kl != 0.0) {
        let (mut p, mut q) = (logits.to_vec(), teacher.to_vec());
        let (tau, rate) = (loss.temperature, loss.temperature.recip() as f32);
        let log_p = distribution(&mut p, rate);
        let log_q = distribution(&mut q, rate);
        let weight = (loss.kl * share * tau) as f32;
        let mean = Arch::new().dispatch(Divergence { logits, teacher, q: &q, p: &p, gradient: &mut gradient, weight });
        kl = tau * tau * (mean * f64::from(rate) + log_p - log_q);
    }
    logits.copy_from_slice(&gradient);
    losses.ce += share * ce;
    losses.kl += share * kl;
    losses.total += share * (loss.ce * ce + loss.kl * kl);
}

/// `softmax(rate·z)` in place, and `ln Σ exp(rate·z)`.
fn distribution(z: &mut [f32], rate: f32) -> f64 {
    Arch::new().dispatch(Softmax { z, rate })
}

/// A function object, so that it is compiled for the CPU's vectors.
struct Softmax<'a> {
    z: &'a mut [f32],
    rate: f32,
}

impl NullaryFnOnce for Softmax<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let Self { z, rate } = self;
        // In lanes as well: one after the other, each comparison would wait for the one before.
        let larger = |a: f32, b: f32| if b > a { b } else { a };
        let mut lanes = [f32::NEG_INFINITY; 16];
        for chunk in z.chunks(16) {
            lanes.iter_mut().zip(chunk).for_each(|(max, &v)| *max = larger(*max, v));
        }
        let max = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
        let mut lanes = [0.0_f32; 16];
        for chunk in z.chunks_mut(16) {
            for (v, sum) in chunk.iter_mut().zip(&mut lanes) {
                *v = exp_of_negative((*v - max) * rate);
                *sum += *v;
            }
        }
        let sum: f32 = lanes.iter().sum();
        for v in z.iter_mut() {
            *v *= sum.recip();
        }
        f64::from(sum.ln()) + f64::from(max) * f64::from(rate)
    }
}

/// `Σ q·(t − z)`, and `weight·(p − q)` added to the gradient.
struct Divergence<'a> {
    logits: &'a [f32],
    teacher: &'a [f32],
    p: &'a [f32],
    q: &'a [f32],
    gradient: &'a mut [f32],
    weight: f32,
}

impl NullaryFnOnce for Divergence<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let Self { logits, teacher, p, q, gradient, weight } = self;
        let mut lanes = [0.0_f32; 16];
        for (((z, t), q), i) in logits.chunks(16).zip(teacher.chunks(16)).zip(q.chunks(16)).zip(0..) {
            let (p, gradient) = (&p[i * 16..], &mut gradient[i * 16..]);
            for (((((z, t), q), p), g), sum) in z.iter().zip(t).zip(q).zip(p).zip(gradient).zip(&mut lanes) {
                *sum += q * (t - z);
                *g += weight * (p - q);
            }
        }
        lanes.iter().map(|&sum| f64::from(sum)).sum()
    }
}

/// `weight·MSE(h, target)/mean(target²)`, and its gradient added to `gradient`.
pub(crate) fn square_head(h: &[f32], target: &[f32], weight: f64, gradient: &mut [f32]) -> f64 {
    // In lanes: one after the other, each sum would wait for the one before.
    let mut lanes = [0.0_f64; 16];
    for chunk in target.chunks(16) {
        chunk.iter().zip(&mut lanes).for_each(|(&t, sum)| *sum += f64::from(t * t));
    }
    let energy = lanes.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let scale = (2.0 * weight / energy) as f32;
    let mut lanes = [0.0_f64; 16];
    for ((h, t), g) in h.chunks(16).zip(target.chunks(16)).zip(gradient.chunks_mut(16)) {
        for (((h, t), g), sum) in h.iter().zip(t).zip(g).zip(&mut lanes) {
            let difference = h - t;
            *sum += f64::from(difference * difference);
            *g += scale * difference;
        }
    }
    weight * lanes.iter().sum::<f64>() / energy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_have_the_gradients_of_their_definitions() {
        let z = [0.3_f32, -1.2, 2.0, 0.7, 0.1];
        let t = [1.0_f32, 0.2, -0.5, 0.9, -2.0];
        for (ce, kl, temperature) in [(1.0, 0.0, 1.0), (0.0, 1.0, 1.0), (0.3, 0.7, 2.0)] {
            let loss = Loss { ce, kl, temperature, ..Loss::default() };
            let value = |z: &[f32]| {
                let wide = |z: &[f32], tau: f64| -> Vec<f64> {
                    let exps: Vec<f64> = z.iter().map(|&v| (f64::from(v) / tau).exp()).collect();
                    let sum: f64 = exps.iter().sum();
                    exps.iter().map(|e| e / sum).collect()
                };
                let (p, q) = (wide(z, temperature), wide(&t, temperature));
                let divergence: f64 = q.iter().zip(&p).map(|(q, p)| q * (q / p).ln()).sum();
                -ce * wide(z, 1.0)[3].ln() + kl * temperature * temperature * divergence
            };
            let (mut gradient, mut losses) = (z, Losses::default());
            of_logits(&loss, &mut gradient, Some(&t), Some(3), 0.5, &mut losses);
            assert!((losses.total - 0.5 * value(&z)).abs() < 1e-6, "{losses:?}");
            for i in 0..z.len() {
                let moved = |by: f32| {
                    let mut z = z;
                    z[i] += by;
                    value(&z)
                };
                let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
                assert!((f64::from(gradient[i]) - 0.5 * slope).abs() < 1e-4, "{i}: {} {slope}", gradient[i]);
            }
        }
    }

    #[test]
    fn square_head_is_relative_to_the_target() {
        let (h, target) = ([1.0_f32, 2.0, 3.0], [1.0_f32, 1.0, 5.0]);
        let mut gradient = [0.0; 3];
        let lost = square_head(&h, &target, 2.0, &mut gradient);
        assert!((lost - 2.0 * 5.0 / 27.0).abs() < 1e-9);
        let want = [0.0, 4.0 / 27.0, -8.0 / 27.0];
        assert!(gradient.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-6));
    }
}
