//! How good a model is at its task, with the standard error of the figure.

mod classify_images;
mod embed_sts;
mod perplexity;

use std::path::Path;

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_format::{Checkpoint, Tokenizer};
use lacuna_model::{Activations, Config, Execution, family};
use serde::Serialize;

use crate::UsageError;
use crate::device::Device;
use crate::images::{Split, classifier};
use crate::models::{DecoderModel, TextModel};
pub use perplexity::{Protocol, score, sequences};

/// Tokens of a sentence at most, unless told otherwise: the protocol of the STS benchmark's published figures.
const STS_TOKENS: usize = 128;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// perplexity of a decoder on a text
    Perplexity,
    /// share of images whose class an image classifier ranks first
    ClassifyImages,
    /// rank correlation of a text encoder's cosines with people's judgement of pairs of sentences
    EmbedSts,
}

impl Task {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Perplexity => "perplexity",
            Self::ClassifyImages => "classify-images",
            Self::EmbedSts => "embed-sts",
        }
    }

    /// The task that a model is made for.
    pub fn of(config: &Config) -> Self {
        match config {
            Config::Decoder(_) => Self::Perplexity,
            Config::Text(_) => Self::EmbedSts,
            Config::Vision(_) => Self::ClassifyImages,
        }
    }
}

/// How to measure; what is left out follows from the model and the data.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// where the model runs
    pub device: Device,
    /// what is measured; none: what the model is made for
    pub task: Option<Task>,
    /// how a text is cut for perplexity; none: `.jsonl` by document, others under a window
    pub by_document: Option<bool>,
    /// tokens of a sequence at most
    pub context: Option<usize>,
    /// tokens between the starts of windows; none: the context
    pub stride: Option<usize>,
    /// which images; none: those that [`split_of`] says
    pub split: Option<Split>,
    /// what activations are rounded to; none: not at all
    pub activations: Option<Activations>,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// name of the figure
    pub metric: &'static str,
    /// the figure
    pub value: f64,
    /// its standard error; none: there are too few samples to tell
    pub stderr: Option<f64>,
    /// how many texts, images or pairs it is over
    pub samples: usize,
    /// more of the same evaluation
    #[serde(flatten)]
    pub details: Details,
}

/// What a task tells beside its figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Details {
    /// of a decoder
    Perplexity {
        /// mean negative log-likelihood of the predicted tokens, in nats
        nll: f64,
        /// `exp(nll)`
        perplexity: f64,
        /// tokens predicted
        tokens: usize,
    },
    /// of an image classifier
    Images {
        /// mean negative log-likelihood of the true class, in nats
        cross_entropy: f64,
        /// its standard error
        cross_entropy_stderr: Option<f64>,
        /// which images of the folder
        split: Split,
    },
    /// of a text encoder
    Sts {
        /// linear correlation of the same values
        pearson: f64,
    },
}

impl Score {
    /// The figure by which two models are compared, and its unit: what a loss of quality adds up in.
    pub fn gap_to(&self, baseline: &Self) -> (f64, &'static str) {
        match (&self.details, &baseline.details) {
            (Details::Perplexity { nll: own, .. }, Details::Perplexity { nll: other, .. }) => (own - other, "nats"),
            _ => (self.value - baseline.value, self.metric),
        }
    }
}

/// Which images of a folder some models can be compared on: only those held out, if one of them was calibrated on images.
pub fn split_of(models: &[&Path]) -> Result<Split> {
    for model in models {
        let checkpoint = Checkpoint::open(model)?;
        let recipe = checkpoint.sparsity().map(|sparsity| &sparsity.recipe);
        if recipe.is_some_and(|recipe| recipe["calibration"]["split"].is_string()) {
            return Ok(Split::HeldOut);
        }
    }
    Ok(Split::All)
}

/// Evaluates a checkpoint on a file or folder.
pub fn evaluate(model: &Path, data: &Path, settings: &Settings, bar: &ProgressBar) -> Result<Score> {
    let checkpoint = Checkpoint::open(model)?;
    let config = family::config(&checkpoint)?;
    let own = Task::of(&config);
    if let Some(task) = settings.task.filter(|&task| task != own) {
        let (asked, purpose) = (task.name(), config.purpose());
        let problem = format!("--task {asked} does not fit {}: it {purpose}, so try {}", model.display(), own.name());
        return Err(UsageError(problem).into());
    }
    let activations = settings.activations.unwrap_or(Activations::F32);
    let execution = Execution { activations, ..Execution::EXACT };
    match &config {
        Config::Decoder(config) => {
            let tokenizer = Tokenizer::open(model, config.vocab_size, config.bos_token_id)?;
            let context = settings.context.unwrap_or(config.max_positions.min(2048));
            let by_document = data.extension().is_some_and(|e| e == "jsonl");
            let protocol = if settings.by_document.unwrap_or(by_document) {
                Protocol::Document { context }
            } else {
                Protocol::Window { context, stride: settings.stride.unwrap_or(context) }
            };
            let sequences = sequences(data, &tokenizer, protocol, config)?;
            score(&DecoderModel::load(&settings.device, &checkpoint, config, execution)?, &sequences, bar)
        }
        Config::Text(config) => {
            let tokenizer = Tokenizer::open(model, config.vocab_size, None)?;
            let max = config.max_tokens;
            let context = settings.context.unwrap_or(STS_TOKENS.min(max));
            if !(3..=max).contains(&context) {
                let problem = format!("--context is {context}; this model takes 3 to {max} tokens");
                return Err(UsageError(problem).into());
            }
            let encoder = TextModel::load(&settings.device, &checkpoint, config, execution)?;
            embed_sts::score(&encoder, &tokenizer, data, context, bar)
        }
        Config::Vision(config) => {
            let split = settings.split.map_or_else(|| split_of(&[model]), Ok)?;
            let (processor, classifier) = classifier(&settings.device, &checkpoint, config, execution)?;
            classify_images::score(&classifier, &config.labels, &processor, data, split, bar)
        }
    }
}
