//! candle on the CPU: `Tensor::matmul` for f32; its quantized products for bf16, int8 (Q8_0) and int4 (Q4_0, Q4_K).
//!
//! `candle-engine --threads 2` speaks the protocol of `../README.md`; `../protocol.py` is the same in Python.

use std::collections::HashMap;
use std::io::{BufRead, Write, stdin, stdout};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Result, Tensor, bail};
use rand::{SeedableRng, rngs::StdRng};
use rand_distr::{Distribution, StandardNormal};

const ROTATED_BYTES: f64 = (128 << 20) as f64;
const ROTATED_TOKENS: usize = 16;
const MINIMUM_SWEEPS: usize = 5;

/// Name, bytes a value, the largest sound relative error, and the ways to run a product (`None`: a plain tensor).
type ValueType = (&'static str, f64, f64, &'static [Option<GgmlDType>]);
const VALUE_TYPES: [ValueType; 4] = [
    ("f32", 4.0, 1e-5, &[None]),
    ("bf16", 2.0, 1e-2, &[Some(GgmlDType::BF16)]),
    ("int8", 1.0, 3e-2, &[Some(GgmlDType::Q8_0)]),
    ("int4", 0.5, 2e-1, &[Some(GgmlDType::Q4_0), Some(GgmlDType::Q4K)]),
];

#[derive(serde::Deserialize)]
struct Request {
    rows: usize,
    cols: usize,
    tokens: usize,
    value_type: String,
    #[serde(default = "default_seconds")]
    min_seconds: f64,
}

fn default_seconds() -> f64 {
    0.2
}

fn random(rows: usize, cols: usize, scale: f32, seed: u64) -> Vec<f32> {
    let mut generator = StdRng::seed_from_u64(seed);
    (0..rows * cols).map(|_| scale * Distribution::<f32>::sample(&StandardNormal, &mut generator)).collect()
}

/// One case: copies of a weight, each with its rows rotated by its number, and the activations `[T, K]`.
struct Case {
    weights: Vec<QMatMul>,
    x: Tensor,
}

impl Case {
    fn build(kind: Option<GgmlDType>, base: &[f32], rows: usize, x: &Tensor, copies: usize) -> Result<Self> {
        let cols = base.len() / rows;
        if let Some(kind) = kind.filter(|kind| !cols.is_multiple_of(kind.block_size())) {
            bail!("{cols} columns are no multiple of a block of {}", kind.block_size());
        }
        let mut base = base.to_vec();
        let mut weights = Vec::new();
        for _ in 0..copies {
            let weight = Tensor::from_slice(&base, (rows, cols), &Device::Cpu)?;
            weights.push(match kind {
                None => QMatMul::Tensor(weight),
                Some(kind) => QMatMul::from_qtensor(QTensor::quantize(&weight, kind)?)?,
            });
            base.rotate_right(cols);
        }
        Ok(Self { weights, x: x.clone() })
    }

    fn sweep(&self) -> Result<()> {
        for weight in &self.weights {
            std::hint::black_box(weight.forward(&self.x)?);
        }
        Ok(())
    }

    /// Median and minimum of the seconds one product takes, and how many were run.
    fn measure(&self, min_seconds: f64) -> Result<(f64, f64, usize)> {
        self.sweep()?;
        self.sweep()?;
        let mut seconds = Vec::new();
        let end = Instant::now() + Duration::from_secs_f64(min_seconds);
        while seconds.len() < MINIMUM_SWEEPS || Instant::now() < end {
            let start = Instant::now();
            self.sweep()?;
            seconds.push(start.elapsed().as_secs_f64() / self.weights.len() as f64);
        }
        seconds.sort_by(f64::total_cmp);
        Ok((seconds[seconds.len() / 2], seconds[0], seconds.len() * self.weights.len()))
    }
}

/// Compares every way to run a product with sums in f64 on a small shape.
fn check() -> Result<()> {
    let (rows, cols, tokens, copies) = (256, 512, 5, 3);
    let base = random(rows, cols, 1.0 / (cols as f32).sqrt(), 0);
    let activations = random(tokens, cols, 1.0, 1);
    for (name, _, tolerance, kinds) in VALUE_TYPES {
        for &kind in kinds {
            for tokens in [1, tokens] {
                let x = Tensor::from_slice(&activations[..tokens * cols], (tokens, cols), &Device::Cpu)?;
                let case = Case::build(kind, &base, rows, &x, copies)?;
                let (mut error, mut norm) = (0.0, 0.0);
                for (copy, weight) in case.weights.iter().enumerate() {
                    for (t, outputs) in weight.forward(&x)?.to_vec2::<f32>()?.iter().enumerate() {
                        for (r, &output) in outputs.iter().enumerate() {
                            let row = (r + rows - copy) % rows;
                            let pairs = base[row * cols..][..cols].iter().zip(&activations[t * cols..]);
                            let expected: f64 = pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                            error += (f64::from(output) - expected).powi(2);
                            norm += expected.powi(2);
                        }
                    }
                }
                let relative = (error / norm).sqrt();
                if relative.is_nan() || relative > tolerance {
                    bail!("candle: {name} {kind:?}, {tokens} tokens: relative error {relative:.2e}");
                }
            }
        }
    }
    Ok(())
}

fn variant(kind: Option<GgmlDType>) -> String {
    kind.map_or("matmul".into(), |kind| format!("{kind:?}"))
}

type Key = (usize, usize, usize, String);

/// The last case stays built, and a shape's fastest variant is remembered.
#[derive(Default)]
struct Cases {
    last: Option<(Key, Option<GgmlDType>, Case)>,
    fastest: HashMap<Key, Option<GgmlDType>>,
}

impl Cases {
    fn answer(&mut self, request: Request) -> Result<serde_json::Value> {
        let Request { rows, cols, tokens, value_type, min_seconds } = request;
        let key = (rows, cols, tokens, value_type);
        let mut best: Option<(f64, f64, usize)> = None;
        if self.last.as_ref().is_none_or(|last| last.0 != key) {
            self.last = None;
            let Some((_, bytes, _, kinds)) = VALUE_TYPES.iter().find(|(name, ..)| *name == key.3) else {
                bail!("value type {}", key.3);
            };
            let size = rows as f64 * cols as f64 * bytes;
            let copies = if tokens > ROTATED_TOKENS { 1 } else { (ROTATED_BYTES / size) as usize + 1 };
            let base = random(rows, cols, 1.0 / (cols as f32).sqrt(), 0);
            let x = Tensor::from_vec(random(tokens, cols, 1.0, 1), (tokens, cols), &Device::Cpu)?;
            let remembered = self.fastest.get(&key).map(std::slice::from_ref);
            let mut reason = None;
            for &kind in remembered.unwrap_or(kinds) {
                let case = match Case::build(kind, &base, rows, &x, copies) {
                    Ok(case) => case,
                    Err(error) => {
                        reason = Some(error);
                        continue;
                    }
                };
                let found = case.measure(min_seconds)?;
                // By the minimum: the median would mind the neighbours.
                if best.is_none_or(|best| found.1 < best.1) {
                    best = Some(found);
                    self.last = Some((key.clone(), kind, case));
                }
            }
            if let (None, Some(reason)) = (&self.last, reason) {
                return Err(reason);
            }
        }
        let Some((key, kind, case)) = &self.last else { bail!("no such product") };
        self.fastest.insert(key.clone(), *kind);
        let (seconds, minimum, repetitions) = match best {
            Some(best) => best,
            None => case.measure(min_seconds)?,
        };
        let variant = variant(*kind);
        Ok(serde_json::json!({"seconds": seconds, "minimum": minimum, "repetitions": repetitions, "variant": variant}))
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, flag, threads] = &arguments[..] else { return Err("usage: candle-engine --threads N".into()) };
    if flag != "--threads" {
        return Err("usage: candle-engine --threads N".into());
    }
    // candle reads its number of threads from the environment only: start again with it set.
    if std::env::var("RAYON_NUM_THREADS").as_ref() != Ok(threads) {
        return Err(Command::new(std::env::current_exe()?)
            .args(&arguments[1..])
            .env("RAYON_NUM_THREADS", threads)
            .exec()
            .into());
    }
    let threads: usize = threads.parse()?;
    check()?;
    let value_types: Vec<_> = VALUE_TYPES.iter().map(|(name, ..)| name).collect();
    let hello =
        serde_json::json!({"engine": "candle", "version": VERSION, "value_types": value_types, "threads": threads});
    println!("{hello}");
    let mut cases = Cases::default();
    for line in stdin().lock().lines() {
        let answer = match cases.answer(serde_json::from_str(&line?)?) {
            Ok(answer) => answer,
            // What follows the first line is a backtrace, where those are on.
            Err(error) => serde_json::json!({"unsupported": error.to_string().lines().next()}),
        };
        println!("{answer}");
        stdout().flush()?;
    }
    Ok(())
}

/// That of `Cargo.toml`.
const VERSION: &str = "0.11.1";
