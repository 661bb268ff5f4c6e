//! Whole-model speed: tokens a second of prefill and decode, or of encoding, the sparse layers by their kernels beside the
//! same layers unpacked to dense, in one run, in turn.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_core::Dtype;
use lacuna_format::Checkpoint;
use lacuna_model::{Activations, Cache, Config, Decoder, Execution, PackedAs, TextEncoder, VisionEncoder, family};
use serde::Serialize;

use crate::UsageError;

/// What to time.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// tokens of each prompt or text; images have as many as they have
    pub prompt: usize,
    /// tokens that a decoder adds to it
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
    /// `prefill` or `decode` of a decoder, `encode` of an encoder
    pub phase: &'static str,
    /// `dense` or `sparse`
    pub variant: &'static str,
    /// over all sequences of the batch; median of the rounds
    pub tokens_per_second: f64,
    /// texts or images of the batch; median of the rounds
    pub items_per_second: f64,
    /// this variant's rate by that of the dense one, round by round; median
    pub ratio_to_dense: f64,
}

/// A model in memory, and what is timed of it.
enum Subject {
    Decoder(Decoder),
    Text(TextEncoder),
    Vision(VisionEncoder),
}

/// Times a checkpoint: dense and, if it is pruned, sparse.
pub fn bench(model: &Path, settings: Settings, progress: &ProgressBar) -> Result<Vec<Row>> {
    let checkpoint = Checkpoint::open(model)?;
    let config = family::config(&checkpoint)?;
    check_lengths(&config, settings)?;
    let activations = settings.activations.unwrap_or_else(|| native_activations(&checkpoint, &config));
    let load = |packed| Subject::load(&checkpoint, &config, Execution { packed, activations, ..Execution::EXACT });
    let mut variants = vec![("dense", load(PackedAs::Dense)?)];
    if checkpoint.sparsity().is_some() {
        variants.push(("sparse", load(PackedAs::Sparse)?));
    }
    let (rounds, batch) = (settings.rounds, settings.batch);
    progress.set_length(((rounds + 1) * variants.len()) as u64);
    // [variant][round][phase], seconds
    let mut seconds: Vec<Vec<Vec<f64>>> = vec![vec![]; variants.len()];
    for round in 0..=rounds {
        for ((_, subject), times) in variants.iter().zip(&mut seconds) {
            let once = subject.time(settings);
            if round > 0 {
                times.push(once);
            }
            progress.inc(1);
        }
    }
    let phases = match &config {
        Config::Decoder(_) => vec![("prefill", settings.prompt * batch), ("decode", settings.decode * batch)],
        Config::Text(_) => vec![("encode", settings.prompt * batch)],
        Config::Vision(config) => vec![("encode", config.tokens() * batch)],
    };
    let mut rows = vec![];
    for (phase, &(name, tokens)) in phases.iter().enumerate() {
        for ((variant, _), times) in variants.iter().zip(&seconds) {
            let ratios = seconds[0].iter().zip(times).map(|(dense, own)| dense[phase] / own[phase]).collect();
            let seconds = median(times.iter().map(|round| round[phase]).collect());
            rows.push(Row {
                phase: name,
                variant,
                tokens_per_second: tokens as f64 / seconds,
                items_per_second: batch as f64 / seconds,
                ratio_to_dense: median(ratios),
            });
        }
    }
    Ok(rows)
}

/// Refuses sequences that are longer than the model takes.
fn check_lengths(config: &Config, settings: Settings) -> Result<(), UsageError> {
    let Settings { prompt, decode, .. } = settings;
    match config {
        Config::Decoder(config) if prompt + decode > config.max_positions => {
            let (asked, max) = (prompt + decode, config.max_positions);
            Err(UsageError(format!("--prompt-tokens and --decode-tokens ask for {asked}; this model takes {max}")))
        }
        Config::Text(config) if prompt > config.positions() => {
            Err(UsageError(format!("--prompt-tokens asks for {prompt}; this model takes {}", config.positions())))
        }
        _ => Ok(()),
    }
}

/// What a checkpoint's own type rounds activations to: bfloat16 if its embedding, which is never pruned, is stored so.
pub fn native_activations(checkpoint: &Checkpoint, config: &Config) -> Activations {
    match checkpoint.dtype(&config.embedding()) {
        Ok(Dtype::Bf16) => Activations::Bf16,
        _ => Activations::F32,
    }
}

impl Subject {
    fn load(checkpoint: &Checkpoint, config: &Config, execution: Execution) -> Result<Self> {
        Ok(match config {
            Config::Decoder(config) => Self::Decoder(Decoder::load(checkpoint, config, execution)?),
            Config::Text(config) => Self::Text(TextEncoder::load(checkpoint, config, execution)?),
            Config::Vision(config) => Self::Vision(VisionEncoder::load(checkpoint, config, execution)?),
        })
    }

    /// Seconds of each phase. Speed does not depend on which tokens or pixels come in.
    fn time(&self, settings: Settings) -> Vec<f64> {
        let Settings { prompt, decode, batch, .. } = settings;
        match self {
            Self::Decoder(model) => {
                let prompts = token_batch(model.config().vocab_size, batch, prompt);
                let mut caches = vec![Cache::new(model.config()); batch];
                let mut step = |inputs: &[Vec<u32>]| {
                    let mut inputs: Vec<_> = inputs.iter().map(Vec::as_slice).zip(&mut caches).collect();
                    let hidden = model.forward(&mut inputs);
                    let per_sequence = hidden.cols() / batch;
                    let last: Vec<usize> = (1..=batch).map(|s| s * per_sequence - 1).collect();
                    std::hint::black_box(model.logits(&hidden, &last));
                };
                let prefill = seconds(|| step(&prompts));
                let decode = seconds(|| (0..decode).for_each(|i| step(&vec![vec![prompts[0][i % prompt]]; batch])));
                vec![prefill, decode]
            }
            Self::Text(model) => {
                let texts = token_batch(model.config().vocab_size, batch, prompt);
                let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
                vec![seconds(|| drop(std::hint::black_box(model.embed(&texts))))]
            }
            Self::Vision(model) => {
                let image = vec![0.5; model.config().pixels()];
                let images = vec![&image[..]; batch];
                vec![seconds(|| drop(std::hint::black_box(model.logits(&images))))]
            }
        }
    }
}

/// Any tokens, `[batch][length]`.
fn token_batch(vocab: usize, batch: usize, length: usize) -> Vec<Vec<u32>> {
    let token = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % vocab as u32;
    (0..batch).map(|s| (0..length).map(|i| token(s * length + i)).collect()).collect()
}

fn seconds(run: impl FnOnce()) -> f64 {
    let started = Instant::now();
    run();
    started.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { f64::midpoint(values[(n - 1) / 2], values[n / 2]) }
}
