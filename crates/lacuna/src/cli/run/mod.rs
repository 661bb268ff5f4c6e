//! `lacuna run`: each kind of model does what it is made for.

mod classify;
mod embed;
mod generate;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lacuna::UsageError;
use lacuna::bench::native_activations;
use lacuna::text::read_sentences;
use lacuna_format::Checkpoint;
use lacuna_model::{Config, Execution, family};

use super::ui::Ui;

/// Run a model: generate text, embed text, or classify images
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lacuna run ./sparse 'Once upon a time'
  lacuna run ./sparse 'One day' 'The cat' --temperature 0.8 --top-p 0.95 --seed 7 --json
  lacuna run ./minilm-sparse 'A man is eating.' 'Someone has lunch.' --json
  lacuna run ./minilm-sparse --file sentences.txt --output vectors.npy
  lacuna run ./vit-sparse cat.jpg dog.png photos/")]
pub(super) struct Args {
    /// Checkpoint directory, dense or pruned
    model: PathBuf,
    /// Prompts, sentences, or images and folders of them; several run as a batch
    #[arg(required_unless_present = "file")]
    inputs: Vec<String>,
    /// More prompts or sentences: a line each, or .jsonl with a "text" a line
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What to do [default: what the model is made for]
    #[arg(long, value_enum)]
    task: Option<TaskName>,
    /// Generate: new tokens at most
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    /// Generate: 0 takes the most likely token always
    #[arg(long, default_value_t = 0.0, value_name = "T", value_parser = temperature)]
    temperature: f32,
    /// Generate: draw only from the k most likely tokens
    #[arg(long, value_name = "K", value_parser = top_k)]
    top_k: Option<usize>,
    /// Generate: draw only from the fewest tokens whose probabilities sum to P
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = top_p)]
    top_p: f32,
    /// Embed: write the vectors to a .npy file, float32 [texts, features]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Embed: tokens of a text at most [default: what the checkpoint says]
    #[arg(long, value_name = "N", value_parser = super::positive)]
    max_tokens: Option<usize>,
    /// Round activations to this type before each product [default: bf16 for a bf16 checkpoint, else f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    activations: Option<super::ActivationsName>,
    #[command(flatten)]
    device: super::device::DeviceArgs,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum TaskName {
    /// continue texts
    Generate,
    /// a vector a text
    Embed,
    /// the likeliest classes of images
    Classify,
}

impl Args {
    /// Texts of the command line and of the file.
    fn texts(&self) -> Result<Vec<String>> {
        let more = self.file.as_deref().map(read_sentences).transpose()?;
        Ok(self.inputs.iter().cloned().chain(more.unwrap_or_default()).collect())
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|t| (0.0..=100.0).contains(t)).ok_or_else(|| "must be from 0 to 100".to_owned())
}

fn top_k(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&k| k >= 1).ok_or_else(|| "must be 1 or more".to_owned())
}

fn top_p(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|&p| p > 0.0 && p <= 1.0).ok_or_else(|| "must be above 0 and at most 1".to_owned())
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let config = family::config(&checkpoint)?;
    let own = match config {
        Config::Decoder(_) => TaskName::Generate,
        Config::Text(_) => TaskName::Embed,
        Config::Vision(_) => TaskName::Classify,
    };
    if args.task.is_some_and(|task| task != own) {
        let problem = format!("--task does not fit {}: it {}, so leave it out", args.model.display(), config.purpose());
        return Err(UsageError(problem).into());
    }
    let activations = args.activations.map_or_else(|| native_activations(&checkpoint, &config), Into::into);
    let execution = Execution { activations, ..Execution::EXACT };
    let device = args.device.open(args.activations)?;
    match &config {
        Config::Decoder(config) => generate::run(args, &checkpoint, config, execution, &device, ui),
        Config::Text(config) => embed::run(args, &checkpoint, config, execution, &device, ui),
        Config::Vision(config) => classify::run(args, &checkpoint, config, execution, &device, ui),
    }
}
