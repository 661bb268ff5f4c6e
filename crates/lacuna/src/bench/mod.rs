//! Whole-model speed: tokens a second of prefill and decode, or of encoding. The sparse layers by their kernels beside the
//! same layers unpacked to dense, and rival engines beside them, in one run, in turn.

mod subject;

use std::path::Path;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use lacuna_core::Dtype;
use lacuna_format::Checkpoint;
use lacuna_model::{Activations, Config, Execution, PackedAs, family};
use serde::Serialize;
use serde_json::{Value, json};

use self::subject::{Subject, check_lengths, phases, request};
pub(crate) use self::subject::{images, texts};
use crate::device::Device;
use crate::engine::{Engine, Timing};

/// What to time.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// where the model runs
    pub device: Device,
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
    /// command lines of rival engines for whole encoders (`bench/engines/README.md`)
    pub engines: Vec<String>,
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// `prefill` or `decode` of a decoder, `encode` of an encoder
    pub phase: &'static str,
    /// `lacuna`, or what a rival calls itself
    pub engine: String,
    /// ours: `dense` or `sparse`; an engine's way
    pub variant: String,
    /// over all sequences of the batch; median of the rounds
    pub tokens_per_second: f64,
    /// texts or images of the batch; median of the rounds
    pub items_per_second: f64,
    /// this contestant's rate by that of our dense one, round by round; median
    pub ratio_to_dense: f64,
    /// this contestant's rate by that of the fastest rival, round by round; median
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_to_rival: Option<f64>,
    /// a rival's answer: `‖theirs − ours‖ / ‖ours‖`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<f64>,
}

/// A contestant with what it needed: `seconds[round][phase]`.
struct Contestant {
    engine: String,
    variant: String,
    seconds: Vec<Vec<f64>>,
    difference: Option<f64>,
}

/// Times a checkpoint: dense, if it is pruned sparse, and rivals.
pub fn bench(model: &Path, settings: &Settings, progress: &ProgressBar) -> Result<Vec<Row>> {
    let checkpoint = Checkpoint::open(model)?;
    let config = family::config(&checkpoint)?;
    check_lengths(&config, settings)?;
    let activations = settings.activations.unwrap_or_else(|| native_activations(&checkpoint, &config));
    let value_type = match activations {
        Activations::F32 => "f32",
        Activations::Bf16 => "bf16",
    };
    let load =
        |packed| Subject::load(&checkpoint, &config, Execution { packed, activations, ..Execution::EXACT }, settings);
    let ours = |variant: &str| Contestant {
        engine: "lacuna".to_owned(),
        variant: variant.to_owned(),
        seconds: vec![],
        difference: None,
    };
    let mut own = vec![(load(PackedAs::Dense)?, ours("dense"))];
    if checkpoint.sparsity().is_some() {
        own.push((load(PackedAs::Sparse)?, ours("sparse")));
    }
    let request = request(&config, settings, value_type);
    let mut rivals = vec![];
    for command in &settings.engines {
        let mut engine = Engine::start(command, rayon::current_num_threads())?;
        // Built, warmed up and checked now.
        if let Some(rival) = first_answer(&mut engine, &request, &own[0].0, value_type)? {
            rivals.push((engine, rival));
        }
    }
    progress.set_length((settings.rounds * (own.len() + rivals.len()) + own.len()) as u64);
    for round in 0..=settings.rounds {
        for (subject, contestant) in &mut own {
            let seconds = subject.time(settings.decode)?;
            if round > 0 {
                contestant.seconds.push(seconds);
            }
            progress.inc(1);
        }
        for (engine, contestant) in rivals.iter_mut().filter(|_| round > 0) {
            let Some(timing) = engine.time(&request, &contestant.variant)? else {
                bail!("{request}: no longer offered")
            };
            contestant.seconds.push(vec![timing.seconds]);
            progress.inc(1);
        }
    }
    let contestants: Vec<Contestant> =
        own.into_iter().map(|(_, c)| c).chain(rivals.into_iter().map(|(_, c)| c)).collect();
    Ok(rows(&contestants, &phases(&config, settings), settings.batch))
}

/// The first answer of an engine, held against our dense one; none if it has no such case.
fn first_answer(engine: &mut Engine, request: &Value, dense: &Subject, value_type: &str) -> Result<Option<Contestant>> {
    let output = tempfile::NamedTempFile::new().context("temporary file")?;
    let mut asked = request.clone();
    asked["output"] = json!(output.path());
    let Some(Timing { variant, .. }) = engine.time(&asked, &request)? else { return Ok(None) };
    let bytes = std::fs::read(output.path()).context("temporary file")?;
    let theirs = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    let ours = dense.answer();
    if theirs.len() != ours.data().len() {
        bail!("engine '{}' gives {} values where {} belong", engine.name(), theirs.len(), ours.data().len());
    }
    let norm = lacuna_core::sum_of(ours.data(), |v| v * v).sqrt();
    let off = theirs.zip(ours.data()).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt() / norm;
    // Rounding to bfloat16 adds up through the layers, in other places in every engine.
    let allowed = if value_type == "f32" { 1e-3 } else { 0.1 };
    if off.is_nan() || off > allowed {
        let ways = "give it the dense export of this model";
        bail!("engine '{}' answers {off:.4} off (limit {allowed}); {ways}", engine.name());
    }
    let variant = format!("{value_type}, {variant}");
    Ok(Some(Contestant { engine: engine.name().to_owned(), variant, seconds: vec![], difference: Some(off) }))
}

/// Figures of all contestants; the first is our dense one.
fn rows(contestants: &[Contestant], phases: &[(&'static str, usize)], batch: usize) -> Vec<Row> {
    let mut rows = vec![];
    for (phase, &(name, tokens)) in phases.iter().enumerate() {
        let of = |c: &Contestant| median(c.seconds.iter().map(|round| round[phase]).collect());
        let rivals = contestants.iter().filter(|c| c.engine != "lacuna");
        let rival = rivals.min_by(|a, b| of(a).total_cmp(&of(b)));
        let ratio = |to: &Contestant, c: &Contestant| {
            median(to.seconds.iter().zip(&c.seconds).map(|(to, own)| to[phase] / own[phase]).collect())
        };
        for contestant in contestants {
            let seconds = of(contestant);
            rows.push(Row {
                phase: name,
                engine: contestant.engine.clone(),
                variant: contestant.variant.clone(),
                tokens_per_second: tokens as f64 / seconds,
                items_per_second: batch as f64 / seconds,
                ratio_to_dense: ratio(&contestants[0], contestant),
                ratio_to_rival: rival.map(|rival| ratio(rival, contestant)),
                difference: contestant.difference,
            });
        }
    }
    rows
}

/// What a checkpoint's own type rounds activations to: bfloat16 if its embedding, which is never pruned, is stored so.
pub fn native_activations(checkpoint: &Checkpoint, config: &Config) -> Activations {
    match checkpoint.dtype(&config.embedding()) {
        Ok(Dtype::Bf16) => Activations::Bf16,
        _ => Activations::F32,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 { f64::NAN } else { f64::midpoint(values[(n - 1) / 2], values[n / 2]) }
}
