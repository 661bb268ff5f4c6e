//! Whole-model speed: tokens a second of prefill and decode, the sparse layers by their kernels beside the same layers
//! unpacked to dense, in one run, in turn.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_core::Dtype;
use lacuna_format::Checkpoint;
use lacuna_model::{Activations, Cache, Execution, Model, PackedAs, family};
use serde::Serialize;

use crate::UsageError;

/// What to time.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// tokens of each prompt
    pub prompt: usize,
    /// tokens decoded after it
    pub decode: usize,
    /// sequences side by side
    pub batch: usize,
    /// what activations are rounded to; none: to bfloat16 where the checkpoint is bfloat16
    pub activations: Option<Activations>,
    /// timed rounds after one that warms up; the median counts
    pub rounds: usize,
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `prefill` or `decode`
    pub phase: &'static str,
    /// `dense` or `sparse`
    pub variant: &'static str,
    /// over all sequences of the batch; median of the rounds
    pub tokens_per_second: f64,
    /// this variant's rate by that of the dense one, round by round; median
    pub ratio_to_dense: f64,
}

/// Times a checkpoint: dense and, if it is pruned, sparse.
pub fn bench(model: &Path, settings: Settings, progress: &ProgressBar) -> Result<Vec<Row>> {
    let checkpoint = Checkpoint::open(model)?;
    let config = family::config(&checkpoint)?;
    let Settings { prompt, decode, batch, rounds, .. } = settings;
    if prompt + decode > config.max_positions {
        let max = config.max_positions;
        let problem =
            format!("--prompt-tokens and --decode-tokens ask for {}; this model takes {max}", prompt + decode);
        return Err(UsageError(problem).into());
    }
    let activations = settings.activations.unwrap_or_else(|| native_activations(&checkpoint));
    let load = |packed| Model::load(&checkpoint, &config, Execution { packed, activations, ..Execution::EXACT });
    let mut variants = vec![("dense", load(PackedAs::Dense)?)];
    if checkpoint.sparsity().is_some() {
        variants.push(("sparse", load(PackedAs::Sparse)?));
    }
    progress.set_length(((rounds + 1) * variants.len()) as u64);
    // [variant][phase][round], seconds
    let mut seconds = vec![[vec![], vec![]]; variants.len()];
    for round in 0..=rounds {
        for ((_, model), times) in variants.iter().zip(&mut seconds) {
            let once = time(model, prompt, decode, batch);
            if round > 0 {
                times[0].push(once.0.as_secs_f64());
                times[1].push(once.1.as_secs_f64());
            }
            progress.inc(1);
        }
    }
    let mut rows = vec![];
    for (phase, (name, tokens)) in [("prefill", prompt * batch), ("decode", decode * batch)].into_iter().enumerate() {
        for ((variant, _), times) in variants.iter().zip(&seconds) {
            let ratios = seconds[0][phase].iter().zip(&times[phase]).map(|(dense, own)| dense / own).collect();
            rows.push(Row {
                phase: name,
                variant,
                tokens_per_second: tokens as f64 / median(times[phase].clone()),
                ratio_to_dense: median(ratios),
            });
        }
    }
    Ok(rows)
}

/// What a checkpoint's own type rounds activations to: bfloat16 if its embedding, which is never pruned, is stored so.
pub fn native_activations(checkpoint: &Checkpoint) -> Activations {
    match checkpoint.dtype("model.embed_tokens.weight") {
        Ok(Dtype::Bf16) => Activations::Bf16,
        _ => Activations::F32,
    }
}

/// Reads the prompts, then decodes token by token; speed does not depend on which tokens.
fn time(model: &Model, prompt: usize, decode: usize, batch: usize) -> (Duration, Duration) {
    let vocab = model.config().vocab_size as u32;
    let token = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % vocab;
    let prompts: Vec<Vec<u32>> = (0..batch).map(|s| (0..prompt).map(|i| token(s * prompt + i)).collect()).collect();
    let mut caches = vec![Cache::new(model.config()); batch];
    let mut step = |inputs: &[Vec<u32>]| {
        let mut inputs: Vec<_> = inputs.iter().map(Vec::as_slice).zip(&mut caches).collect();
        let hidden = model.forward(&mut inputs);
        let per_sequence = hidden.cols() / batch;
        let last: Vec<usize> = (1..=batch).map(|s| s * per_sequence - 1).collect();
        std::hint::black_box(model.logits(&hidden, &last));
    };
    let started = Instant::now();
    step(&prompts);
    let prefill = started.elapsed();
    let started = Instant::now();
    for i in 0..decode {
        step(&vec![vec![token(i)]; batch]);
    }
    (prefill, started.elapsed())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { f64::midpoint(values[(n - 1) / 2], values[n / 2]) }
}
