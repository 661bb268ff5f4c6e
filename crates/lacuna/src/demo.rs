//! The demo: a small story model of our own (`demo/` in the repository), pruned without any training.

use std::path::Path;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use lacuna_format::{Checkpoint, Tokenizer};
use lacuna_model::{Execution, Sampling, family};
use serde::Serialize;

use crate::bench::{Settings, bench};
use crate::calibrate::Calibration;
use crate::device::Device;
use crate::eval::{Protocol, score, sequences};
use crate::models::DecoderModel;
use crate::modules::Selector;
use crate::prune::{Job, Options, Patterns};
use crate::recipe::Recipe;

/// The patterns shown, from mild to strong.
const PATTERNS: [&str; 3] = ["2:4", "64:2:5", "64:2:8"];
const PROMPT: &str = "Once upon a time";

macro_rules! demo_files {
    ($($name:literal),*) => { [$(($name, include_bytes!(concat!("../../../demo/", $name)).as_slice())),*] };
}

/// The checkpoint and its texts, part of the program so that the demo needs nothing else.
static FILES: [(&str, &[u8]); 6] = demo_files!(
    "checkpoint/config.json",
    "checkpoint/model.safetensors",
    "checkpoint/tokenizer.json",
    "checkpoint/tokenizer_config.json",
    "calibration.txt",
    "held-out.jsonl"
);

/// One line of the demo's table.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `dense` or the pattern
    pub variant: String,
    /// on the held-out stories
    pub perplexity: f64,
    /// bytes of all weights
    pub bytes: u64,
    /// bytes of the layers that are pruned
    pub linear_bytes: u64,
    /// reading a prompt
    pub prefill_tokens_per_second: f64,
    /// writing
    pub decode_tokens_per_second: f64,
}

/// What the demo shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// dense first, then each pattern
    pub rows: Vec<Row>,
    /// variant and what it wrote
    pub samples: Vec<(String, String)>,
}

/// Prunes the built-in checkpoint to each pattern in a temporary directory and measures all of them.
pub fn demo(seed: u64, progress: &ProgressBar) -> Result<Shown> {
    let dir = tempfile::tempdir().context("temporary directory")?;
    for (name, bytes) in FILES {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(dir.path()))?;
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    }
    let dense = dir.path().join("checkpoint");
    let held_out = dir.path().join("held-out.jsonl");
    progress.set_length(PATTERNS.len() as u64 + 1);
    let mut shown = Shown { rows: vec![], samples: vec![] };
    for pattern in PATTERNS {
        let options = Options {
            patterns: Patterns::Uniform(pattern.parse()?),
            recipe: Recipe::named("default")?,
            values: None,
            layers: Selector::default(),
            calibration: Some(Calibration {
                data: dir.path().join("calibration.txt"),
                samples: None,
                length: None,
                seed,
            }),
            device: Device::Cpu,
            force: false,
        };
        let pruned = dir.path().join(pattern.replace(':', "-"));
        let report = Job::new(&dense, options)?.run(&pruned, &ProgressBar::hidden())?;
        if shown.rows.is_empty() {
            measure(&mut shown, "dense", &dense, &held_out, report.pruned_bytes_before, seed)?;
            progress.inc(1);
        }
        measure(&mut shown, pattern, &pruned, &held_out, report.pruned_bytes_after, seed)?;
        progress.inc(1);
    }
    Ok(shown)
}

/// Adds the figures and a sample of one checkpoint.
fn measure(shown: &mut Shown, variant: &str, dir: &Path, held_out: &Path, linear_bytes: u64, seed: u64) -> Result<()> {
    let checkpoint = Checkpoint::open(dir)?;
    let config = family::decoder(&checkpoint)?;
    let tokenizer = Tokenizer::open(dir, config.vocab_size, config.bos_token_id)?;
    let model = DecoderModel::load(&Device::Cpu, &checkpoint, &config, Execution::EXACT)?;
    let protocol = Protocol::Document { context: config.max_positions };
    let found = score(&model, &sequences(held_out, &tokenizer, protocol, &config)?, &ProgressBar::hidden())?;
    let settings = Settings { prompt: 128, decode: 32, batch: 1, rounds: 5, ..Settings::default() };
    let rates = bench(dir, &settings, &ProgressBar::hidden())?;
    // The last row of a phase is the variant's own: dense alone, or sparse after dense.
    let rate = |phase: &str| rates.iter().rev().find(|r| r.phase == phase).map_or(0.0, |r| r.tokens_per_second);
    shown.rows.push(Row {
        variant: variant.to_owned(),
        perplexity: found.value,
        bytes: checkpoint.weight_bytes(),
        linear_bytes,
        prefill_tokens_per_second: rate("prefill"),
        decode_tokens_per_second: rate("decode"),
    });
    let sampling = Sampling { temperature: 0.7, top_k: None, top_p: 0.9, seed };
    let prompt = tokenizer.encode(PROMPT)?;
    let made = model.generate(std::slice::from_ref(&prompt), 60, sampling, |_, _| {})?;
    let text = tokenizer.decode(&[&prompt[..], &made.tokens[0]].concat())?;
    shown.samples.push((variant.to_owned(), text.split_whitespace().collect::<Vec<_>>().join(" ")));
    Ok(())
}
