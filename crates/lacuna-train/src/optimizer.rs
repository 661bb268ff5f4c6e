//! AdamW (Loshchilov & Hutter, arXiv 1711.05101) with warm-up, a cosine and clipping by the norm of all gradients.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::ops::{Advance, Follow};

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// How weights follow their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// highest learning rate, in units of a tensor's size: 0.01 moves its values by up to a hundredth of their root mean square a step
    pub lr: f64,
    /// share of the steps in which it rises from 0
    #[serde(default)]
    pub warmup: f64,
    /// share of `lr` that is left at the end of the cosine
    #[serde(default)]
    pub last: f64,
    /// how much of the moments stays at each step
    #[serde(default = "betas")]
    pub betas: [f64; 2],
    /// decoupled weight decay, for matrices
    #[serde(default)]
    pub weight_decay: f64,
    /// largest norm of all gradients together
    #[serde(default = "clip")]
    pub clip: f64,
}

fn betas() -> [f64; 2] {
    [0.9, 0.95]
}

fn clip() -> f64 {
    1.0
}

const EPS: f64 = 1e-8;

/// What tensors whose values are nearly 0 count as.
const LEAST_SIZE: f64 = 1e-3;

/// The root mean square of a tensor's values: steps are relative to it as those of Adafactor are (Shazeer & Stern, arXiv
/// 1804.04235, section 8), so that one learning rate suits layers and checkpoints whose weights differ in size.
pub(crate) fn size(tensor: &Tensor) -> Result<f64> {
    let mean = tensor.sqr()?.mean_all()?.to_scalar::<f32>()?;
    Ok(f64::from(mean).sqrt().max(LEAST_SIZE))
}

impl Optimizer {
    /// Learning rate of a step.
    pub fn rate(&self, step: usize, steps: usize) -> f64 {
        let (step, steps) = (step as f64 + 1.0, steps as f64);
        let rising = self.warmup * steps;
        if step < rising {
            return self.lr * step / rising;
        }
        let done = ((step - rising) / (steps - rising).max(1.0)).min(1.0);
        self.lr * (self.last + (1.0 - self.last) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))
    }
}

/// First and second moments of the gradients.
#[derive(Default)]
pub(crate) struct Moments {
    /// what steps of a parameter are relative to; 1 for those that are not here
    pub(crate) sizes: BTreeMap<String, f64>,
    pub(crate) first: Tensors,
    pub(crate) second: Tensors,
    /// updates of each so far
    pub(crate) updates: [usize; 2],
}

impl Moments {
    /// Moves parameters by one step and gives the norm that the gradients had. With `steady`, the second moments stay as they
    /// are (STEP, Lu et al., arXiv 2302.01172).
    pub(crate) fn update(
        &mut self,
        parameters: &mut Tensors,
        gradients: &Tensors,
        settings: &Optimizer,
        lr: f64,
        steady: bool,
    ) -> Result<f64> {
        let square = |gradient: &Tensor| Ok(f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?));
        let squares: Vec<f64> = gradients.par_iter().map(|(_, gradient)| square(gradient)).collect::<Result<_>>()?;
        let norm = squares.iter().sum::<f64>().sqrt();
        let scale = if norm > settings.clip { settings.clip / norm } else { 1.0 };
        let steady = steady && self.updates[1] > 0;
        self.updates[0] += 1;
        self.updates[1] += usize::from(!steady);
        let [b1, b2] = settings.betas;
        let correction = |beta: f64, updates: usize| 1.0 - beta.powi(updates.min(100_000) as i32);
        let (c1, c2) = (correction(b1, self.updates[0]), correction(b2, self.updates[1]).sqrt());
        let mean = Follow { keep: b1, rate: scale * (1.0 - b1), squared: false };
        let mean_square = Follow { keep: b2, rate: scale * scale * (1.0 - b2), squared: true };
        let move_one =
            |name: &str, parameter: &mut Tensor, gradient: &Tensor, moments: &mut [Tensor; 2]| -> Result<()> {
                let ([first, second], size) = (moments, self.sizes.get(name).copied().unwrap_or(1.0));
                mean.apply(first, gradient)?;
                if !steady {
                    mean_square.apply(second, gradient)?;
                }
                // (m / c₁) / (√(v / c₂²) + ε)
                let keep = if parameter.rank() > 1 { 1.0 - lr * settings.weight_decay } else { 1.0 };
                Ok(Advance { keep, rate: lr * size * c2 / c1, eps: EPS * c2 }.apply(parameter, first, second)?)
            };
        let mut moves = vec![];
        for (name, parameter) in parameters {
            let Some(gradient) = gradients.get(name) else { continue };
            let moment = |of: &mut Tensors| of.remove(name).map_or_else(|| gradient.zeros_like(), Ok);
            let moments = [moment(&mut self.first)?, moment(&mut self.second)?];
            moves.push((name, parameter, gradient, moments));
        }
        moves
            .par_iter_mut()
            .try_for_each(|(name, parameter, gradient, moments)| move_one(name, parameter, gradient, moments))?;
        for (name, _, _, [first, second]) in moves {
            self.first.insert(name.clone(), first);
            self.second.insert(name.clone(), second);
        }
        Ok(norm)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_rate_rises_and_falls() {
        let settings = Optimizer { lr: 2.0, warmup: 0.1, last: 0.1, betas: betas(), weight_decay: 0.0, clip: 1.0 };
        assert!((settings.rate(0, 100) - 0.2).abs() < 1e-9);
        assert!((settings.rate(9, 100) - 2.0).abs() < 1e-9);
        assert!((settings.rate(99, 100) - 0.2).abs() < 1e-9);
        assert!((settings.rate(54, 100) - 1.1).abs() < 1e-9);
    }

    /// Two steps against the formulas of the paper's algorithm 2, written out in f64.
    #[test]
    fn two_steps_are_those_of_the_paper() {
        let settings = Optimizer { lr: 0.1, warmup: 0.0, last: 0.0, betas: [0.9, 0.99], weight_decay: 0.5, clip: 1.0 };
        let tensor = |values: &[f32]| Tensor::from_slice(values, (1, values.len()), &Device::Cpu).unwrap();
        let mut parameters = Tensors::from([("w".to_owned(), tensor(&[1.0, -2.0]))]);
        let mut moments = Moments::default();
        let (mut want, mut m, mut v) = ([1.0_f64, -2.0], [0.0; 2], [0.0; 2]);
        for (step, gradient) in [[0.3_f64, 0.4], [3.0, -4.0]].iter().enumerate() {
            let narrow: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
            let gradients = Tensors::from([("w".to_owned(), tensor(&narrow))]);
            let norm = moments.update(&mut parameters, &gradients, &settings, 0.1, false).unwrap();
            let true_norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            assert!((norm - true_norm).abs() < 1e-6);
            for i in 0..2 {
                let g = gradient[i] / true_norm.max(1.0);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let power = step as i32 + 1;
                let (m, v) = (m[i] / (1.0 - 0.9_f64.powi(power)), v[i] / (1.0 - 0.99_f64.powi(power)));
                want[i] = want[i] * (1.0 - 0.1 * 0.5) - 0.1 * m / (v.sqrt() + EPS);
            }
            let got: Vec<f32> = parameters["w"].flatten_all().unwrap().to_vec1().unwrap();
            assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-6), "{got:?} {want:?}");
        }
    }

    #[test]
    fn steady_second_moments_stay() {
        let settings = Optimizer { lr: 0.1, warmup: 0.0, last: 0.0, betas: betas(), weight_decay: 0.0, clip: 10.0 };
        let tensor = |value: f32| Tensor::from_slice(&[value], (1, 1), &Device::Cpu).unwrap();
        let mut parameters = Tensors::from([("w".to_owned(), tensor(1.0))]);
        let mut moments = Moments::default();
        let mut second: Vec<f32> = vec![];
        for (gradient, steady) in [(1.0, false), (5.0, true), (5.0, false)] {
            let gradients = Tensors::from([("w".to_owned(), tensor(gradient))]);
            moments.update(&mut parameters, &gradients, &settings, 0.1, steady).unwrap();
            second.push(moments.second["w"].flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]);
        }
        assert_eq!(second[0].to_bits(), second[1].to_bits());
        assert!(second[2] > second[1], "{second:?}");
    }

    #[test]
    fn steps_are_relative_to_sizes() {
        let settings = Optimizer { lr: 0.1, warmup: 0.0, last: 0.0, betas: betas(), weight_decay: 0.0, clip: 10.0 };
        let tensor = |value: f32| Tensor::from_slice(&[value, -value], (1, 2), &Device::Cpu).unwrap();
        let mut parameters = Tensors::from([("small".to_owned(), tensor(0.5)), ("large".to_owned(), tensor(40.0))]);
        let gradients = parameters.keys().map(|name| (name.clone(), tensor(1.0))).collect();
        let sizes = parameters.iter().map(|(name, tensor)| (name.clone(), size(tensor).unwrap())).collect();
        let mut moments = Moments { sizes, ..Moments::default() };
        moments.update(&mut parameters, &gradients, &settings, 0.1, false).unwrap();
        for (name, start) in [("small", 0.5), ("large", 40.0)] {
            let moved: Vec<f32> = parameters[name].flatten_all().unwrap().to_vec1().unwrap();
            assert!(
                (moved[0] / start - 0.9).abs() < 1e-5 && (moved[1] / start + 0.9).abs() < 1e-5,
                "{name}: {moved:?}"
            );
        }
        assert!((size(&tensor(0.0)).unwrap() - LEAST_SIZE).abs() < 1e-12);
    }
}
