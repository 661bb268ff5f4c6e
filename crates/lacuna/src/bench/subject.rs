//! Models in memory, and what is timed of them.

use std::time::Instant;

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_cuda::model::Session;
use lacuna_format::Checkpoint;
use lacuna_model::{Cache, Config, Decoder, Execution, Sequences, VisionConfig};
use serde_json::{Value, json};

use super::Settings;
use crate::UsageError;
use crate::models::{DecoderModel, TextModel, VisionModel};

/// Steps of a GPU before the clock starts.
const WARM_STEPS: usize = 3;

/// A model in memory with the batch that it is given, the one of `bench/engines/README.md`.
pub(super) enum Subject<'a> {
    Decoder(DecoderModel, Vec<Vec<u32>>),
    Text(TextModel<'a>, Vec<Vec<u32>>),
    Vision(VisionModel<'a>, Vec<Vec<f32>>),
}

/// Refuses sequences that are longer than the model takes.
pub(super) fn check_lengths(config: &Config, settings: &Settings) -> Result<(), UsageError> {
    let Settings { prompt, decode, .. } = *settings;
    match config {
        Config::Decoder(config) if prompt + decode > config.max_positions => {
            let (asked, max) = (prompt + decode, config.max_positions);
            Err(UsageError(format!("--prompt-tokens and --decode-tokens ask for {asked}; this model takes {max}")))
        }
        Config::Text(config) if prompt > config.positions() => {
            Err(UsageError(format!("--prompt-tokens asks for {prompt}; this model takes {}", config.positions())))
        }
        _ if settings.device.is_cuda() && !settings.engines.is_empty() => {
            Err(UsageError("--engine times rivals on the CPU; leave --device cuda out".to_owned()))
        }
        Config::Decoder(_) if !settings.engines.is_empty() => {
            Err(UsageError("--engine with a model is for encoders; decoders are timed by `bench/run.sh`".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Phases of a model, with the tokens of each over the whole batch.
pub(super) fn phases(config: &Config, settings: &Settings) -> Vec<(&'static str, usize)> {
    let Settings { prompt, decode, batch, .. } = *settings;
    match config {
        Config::Decoder(_) => vec![("prefill", prompt * batch), ("decode", decode * batch)],
        Config::Text(_) => vec![("encode", prompt * batch)],
        Config::Vision(config) => vec![("encode", config.tokens() * batch)],
    }
}

/// What a rival engine is asked for to do the same.
pub(super) fn request(config: &Config, settings: &Settings, value_type: &str) -> Value {
    let mut request = json!({ "value_type": value_type, "batch": settings.batch, "min_seconds": 0 });
    if let Config::Text(_) = config {
        request["tokens"] = json!(settings.prompt);
    }
    request
}

/// So many prompts or texts of so many tokens each.
pub(crate) fn texts(vocab: usize, batch: usize, tokens: usize) -> Vec<Vec<u32>> {
    let token = |b: usize, t: usize| 2 + (7919 * b + 104_729 * t) % (vocab - 2).max(1);
    (0..batch).map(|b| (0..tokens).map(|t| token(b, t) as u32 % vocab as u32).collect()).collect()
}

/// So many images, as a model takes them.
pub(crate) fn images(config: &VisionConfig, batch: usize) -> Vec<Vec<f32>> {
    let size = config.pixels();
    let pixel = |i: usize| (7919 * i % 65536) as f32 / 32768.0 - 1.0;
    (0..batch).map(|b| (b * size..(b + 1) * size).map(pixel).collect()).collect()
}

impl<'a> Subject<'a> {
    pub(super) fn load(
        checkpoint: &'a Checkpoint,
        config: &Config,
        execution: Execution,
        settings: &Settings,
    ) -> Result<Self> {
        let (device, batch) = (&settings.device, settings.batch);
        let tokens = |vocab: usize| texts(vocab, batch, settings.prompt);
        Ok(match config {
            Config::Decoder(config) => {
                let model = DecoderModel::load(device, checkpoint, config, execution)?;
                Self::Decoder(model, tokens(config.vocab_size))
            }
            Config::Text(config) => {
                Self::Text(TextModel::load(device, checkpoint, config, execution)?, tokens(config.vocab_size))
            }
            Config::Vision(config) => {
                Self::Vision(VisionModel::load(device, checkpoint, config, execution)?, images(config, batch))
            }
        })
    }

    /// Seconds of each phase.
    pub(super) fn time(&self, decode: usize) -> Result<Vec<f64>> {
        match self {
            Self::Decoder(DecoderModel::Cpu(model), prompts) => Ok(time_decoder(model, prompts, decode)),
            Self::Decoder(DecoderModel::Cuda(model), prompts) => {
                let mut session = Session::new(model, prompts.len(), prompts[0].len() + decode + WARM_STEPS)?;
                let inputs: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
                let prefill = seconds(|| session.extend(&inputs).map(drop))?;
                // The first step takes memory, the second is recorded; what is timed is replayed.
                let first: Vec<u32> = prompts.iter().map(|prompt| prompt[0]).collect();
                let next = session.take_likeliest(&first, WARM_STEPS)?;
                Ok(vec![prefill, seconds(|| session.take_likeliest(&next, decode).map(drop))?])
            }
            Self::Text(model, texts) => {
                let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
                Ok(vec![seconds(|| model.embed(&texts).map(|vectors| drop(std::hint::black_box(vectors))))?])
            }
            Self::Vision(model, images) => {
                let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
                Ok(vec![seconds(|| model.logits(&images).map(|logits| drop(std::hint::black_box(logits))))?])
            }
        }
    }

    /// What an encoder makes of the batch, as a rival gives it: the vectors of all tokens, or logits. Rivals meet the CPU's.
    pub(super) fn answer(&self) -> Matrix {
        match self {
            Self::Text(TextModel::Cpu(model), texts) => {
                model.forward(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>())
            }
            Self::Vision(VisionModel::Cpu(model), images) => {
                model.logits(&images.iter().map(Vec::as_slice).collect::<Vec<_>>())
            }
            _ => Matrix::zeros(0, 0),
        }
        .transposed()
    }
}

/// Seconds of prefill and of decoding.
fn time_decoder(model: &Decoder, prompts: &[Vec<u32>], decode: usize) -> Vec<f64> {
    let mut caches = vec![Cache::new(model.config()); prompts.len()];
    let mut step = |inputs: &[Vec<u32>]| {
        let mut inputs: Vec<_> = inputs.iter().map(Vec::as_slice).zip(&mut caches).collect();
        let hidden = model.forward(&mut inputs);
        let per_sequence = hidden.cols() / prompts.len();
        let last: Vec<usize> = (1..=prompts.len()).map(|s| s * per_sequence - 1).collect();
        lacuna_model::give(std::hint::black_box(model.logits(&hidden, &last)));
    };
    let next = |i: usize| prompts.iter().map(|prompt| vec![prompt[i % prompt.len()]]).collect::<Vec<_>>();
    let started = Instant::now();
    step(prompts);
    let prefill = started.elapsed().as_secs_f64();
    (0..decode).for_each(|i| step(&next(i)));
    vec![prefill, started.elapsed().as_secs_f64() - prefill]
}

fn seconds<E>(run: impl FnOnce() -> std::result::Result<(), E>) -> std::result::Result<f64, E> {
    let started = Instant::now();
    run()?;
    Ok(started.elapsed().as_secs_f64())
}
