//! Rotary position embedding (Su et al., arXiv 2104.09864) in the half-split order of Hugging Face checkpoints: feature
//! `i` of a head turns with feature `i + D/2`. Scaling: none, linear, and LLaMA 3's by wavelength.

use lacuna_core::Matrix;
use serde_json::Value;

/// How positions become angles.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    theta: f64,
    scaling: Scaling,
}

#[derive(Debug, Clone, PartialEq)]
enum Scaling {
    None,
    /// all frequencies divided
    Linear {
        factor: f64,
    },
    /// low frequencies divided, high ones kept, those between blended
    Llama3 {
        factor: f64,
        low: f64,
        high: f64,
        original_positions: f64,
    },
}

impl RopeConfig {
    /// Reads `rope_parameters`, or the older `rope_theta` and `rope_scaling`, which win where both are given.
    pub(crate) fn from_config(config: &Value, max_positions: usize) -> Result<Self, String> {
        let present = |key: &str| config.get(key).filter(|value| !value.is_null());
        let settings = present("rope_scaling").or(present("rope_parameters")).unwrap_or(&Value::Null);
        let number = |key: &str| settings.get(key).and_then(Value::as_f64);
        let theta = match settings.get("rope_theta").filter(|value| !value.is_null()).or(present("rope_theta")) {
            None => 10_000.0,
            Some(value) => value.as_f64().ok_or_else(|| format!("rope_theta is {value}; it must be a number"))?,
        };
        let kind = settings.get("rope_type").or(settings.get("type")).and_then(Value::as_str).unwrap_or("default");
        let need = |key: &str| match number(key) {
            Some(value) if value > 0.0 => Ok(value),
            _ => Err(format!("rope scaling {kind} needs a positive {key}")),
        };
        let scaling = match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: need("factor")? },
            "llama3" => Scaling::Llama3 {
                factor: need("factor")?,
                low: need("low_freq_factor")?,
                high: need("high_freq_factor")?,
                original_positions: number("original_max_position_embeddings").unwrap_or(max_positions as f64),
            },
            other => {
                return Err(format!("rope scaling {other} is not supported; supported are default, linear, llama3"));
            }
        };
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("rope_theta is {theta}; it must be a positive number"));
        }
        Ok(Self { theta, scaling })
    }

    /// Radians a position, of each pair of features.
    fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        let scaled = |i: usize| {
            let frequency = self.theta.powf(-(2.0 * i as f64) / head_dim as f64);
            match self.scaling {
                Scaling::None => frequency,
                Scaling::Linear { factor } => frequency / factor,
                Scaling::Llama3 { factor, low, high, original_positions } => {
                    let turns = original_positions * frequency / std::f64::consts::TAU;
                    let blend = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - blend) * frequency / factor + blend * frequency
                }
            }
        };
        (0..head_dim / 2).map(|i| scaled(i) as f32).collect()
    }

    /// Without scaling.
    pub fn plain(theta: f64) -> Self {
        Self { theta, scaling: Scaling::None }
    }

    /// Cosines and sines of the angles at some positions, `[positions, D/2]` each.
    pub fn cosines_and_sines(&self, head_dim: usize, positions: &[usize]) -> [Vec<f32>; 2] {
        let frequencies = self.frequencies(head_dim);
        [f32::cos, f32::sin]
            .map(|f| positions.iter().flat_map(|&p| frequencies.iter().map(move |freq| f(p as f32 * freq))).collect())
    }

    /// Angles of the tokens of a batch.
    pub(crate) fn angles(&self, head_dim: usize, positions: &[usize]) -> Angles {
        let [cos, sin] = self.cosines_and_sines(head_dim, positions).map(|values| {
            let by_token = Matrix::new(positions.len(), head_dim / 2, values).expect("a value a position and pair");
            by_token.transposed().into_data()
        });
        Angles { cos, sin }
    }
}

/// Cosines and sines, `[D/2, T]`.
#[derive(Debug, Clone)]
pub(crate) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// Turns every head of `x[heads · D, T]` in place.
    pub(crate) fn rotate(&self, x: &mut [f32]) {
        let half = self.cos.len();
        if half == 0 {
            return;
        }
        for head in x.chunks_exact_mut(2 * half) {
            let (low, high) = head.split_at_mut(half);
            for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(&self.cos).zip(&self.sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
