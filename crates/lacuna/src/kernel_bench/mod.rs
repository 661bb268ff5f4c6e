//! Speed of the kernels: sparse products beside dense ones, ours and those of rival engines, case by case in one run.
//!
//! A case is a weight's shape, a number of tokens and a type of values. Its contestants take turns: all are timed, then
//! all once more, and each keeps its better round, so that what else a shared machine does hits them alike.

mod own;
mod report;
mod shapes;

use std::fmt;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_core::{Matrix, Pattern, ValueType};
use serde::Serialize;
use serde_json::{Value, json};

use self::own::{Own, limit, shape_seed};
pub(crate) use self::own::{normal, random_mask};
pub use self::report::{Csv, cpu, today};
pub use self::shapes::{Shape, known as known_shapes};
use crate::UsageError;
use crate::engine::{Engine, Timing};

/// Up to so many tokens a product is timed over different copies of its weight, so that each comes from memory.
const ROTATED_TOKENS: usize = 16;
const ROUNDS: usize = 2;

/// What to time.
#[derive(Debug, Clone)]
pub struct Settings {
    /// weights, no two of the same shape
    pub shapes: Vec<Shape>,
    /// sparse contestants
    pub patterns: Vec<Pattern>,
    /// types of the values
    pub values: Vec<ValueType>,
    /// columns of the activations
    pub tokens: Vec<usize>,
    /// command lines of rival engines
    pub engines: Vec<String>,
    /// timed at least so long, each time
    pub min_seconds: f64,
    /// of weights, masks and activations
    pub seed: u64,
}

/// A contestant's figures in a case.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// whose weight
    pub shape: String,
    /// `out_features`
    pub rows: usize,
    /// `in_features`
    pub cols: usize,
    /// columns of the activations
    pub tokens: usize,
    /// as users write it
    pub value_type: &'static str,
    /// `dense`, or a pattern
    pub pattern: String,
    /// `lacuna`, or what a rival calls itself
    pub engine: String,
    /// our kernel, or an engine's way
    pub variant: String,
    /// of one product, the median
    pub seconds: f64,
    /// of one product, the least
    pub minimum: f64,
    /// the engine with the fastest dense product of the case
    pub rival: String,
    /// its median
    pub rival_seconds: f64,
    /// `rival_seconds / seconds`
    pub ratio: f64,
    /// what the ratio could be at most if the rival were as good as we
    pub limit: f64,
    /// `ratio / limit`
    pub share: f64,
    /// of a pattern with a window: `seconds` over those of the same pattern without, where it is among the contestants
    pub over_grouped: Option<f64>,
    /// largest error over tolerance of an answer of ours
    pub checked: Option<f64>,
}

/// What an engine is asked for.
#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    cols: usize,
    tokens: usize,
    value_type: &'static str,
}

impl Case {
    fn request(&self, min_seconds: f64) -> Value {
        let Self { rows, cols, tokens, value_type } = *self;
        json!({ "rows": rows, "cols": cols, "tokens": tokens, "value_type": value_type, "min_seconds": min_seconds })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}, {} tokens, {}", self.rows, self.cols, self.tokens, self.value_type)
    }
}

/// Times all cases; `each` sees every row as soon as its case is done.
pub fn kernel_bench(
    settings: &Settings,
    progress: &ProgressBar,
    mut each: impl FnMut(&Row) -> Result<()>,
) -> Result<Vec<Row>> {
    for shape in &settings.shapes {
        for pattern in &settings.patterns {
            pattern.grid(shape.rows, shape.cols).map_err(|e| UsageError(format!("--patterns: {e}")))?;
        }
    }
    let threads = rayon::current_num_threads();
    let mut engines = settings.engines.iter().map(|c| Engine::start(c, threads)).collect::<Result<Vec<_>>>()?;
    progress.set_length((settings.shapes.len() * settings.values.len() * settings.tokens.len()) as u64);
    let mut rows = vec![];
    for shape in &settings.shapes {
        let seed = shape_seed(settings.seed, shape);
        let base = normal(seed, shape.rows, shape.cols, 1.0 / (shape.cols as f32).sqrt());
        for &value_type in &settings.values {
            let rotated = settings.tokens.iter().any(|&tokens| tokens <= ROTATED_TOKENS);
            let mut own = vec![Own::dense(&base, value_type, rotated)?];
            for &pattern in &settings.patterns {
                own.push(Own::sparse(&base, pattern, value_type, rotated, seed)?);
            }
            for &tokens in &settings.tokens {
                let case = Case { rows: shape.rows, cols: shape.cols, tokens, value_type: value_type.name() };
                progress.set_message(format!("{} {case}", shape.name));
                let x = normal(seed.wrapping_add(1), shape.cols, tokens, 1.0);
                let start = rows.len();
                rows.extend(contest(&shape.name, case, &own, &mut engines, &x, settings.min_seconds)?);
                rows[start..].iter().try_for_each(&mut each)?;
                progress.inc(1);
            }
        }
    }
    Ok(rows)
}

/// All contestants of one case, in turn.
fn contest(
    name: &str,
    case: Case,
    own: &[Own],
    engines: &mut [Engine],
    x: &Matrix,
    min_seconds: f64,
) -> Result<Vec<Row>> {
    let mut y = Matrix::zeros(case.rows, case.tokens);
    let mut engines: Vec<&mut Engine> = engines.iter_mut().filter(|e| e.offers(case.value_type)).collect();
    let mut own_times = vec![None; own.len()];
    let mut engine_times = vec![None; engines.len()];
    for _ in 0..ROUNDS {
        // Dense before sparse: what is compared most lies close together.
        keep_better(&mut own_times[0], own[0].time(x, &mut y, min_seconds));
        let mut still = vec![];
        let mut still_times = vec![];
        for (engine, mut time) in engines.into_iter().zip(engine_times) {
            if let Some(timing) = engine.time(&case.request(min_seconds), &case)? {
                keep_better(&mut time, timing);
                still.push(engine);
                still_times.push(time);
            }
        }
        (engines, engine_times) = (still, still_times);
        for (own, time) in own.iter().zip(&mut own_times).skip(1) {
            keep_better(time, own.time(x, &mut y, min_seconds));
        }
    }
    let mut found: Vec<(String, Option<&Own>, Timing)> = vec![];
    let mut ours = own.iter().zip(own_times).filter_map(|(own, t)| Some(("lacuna".to_owned(), Some(own), t?)));
    found.extend(ours.next());
    found.extend(engines.iter().zip(engine_times).filter_map(|(e, t)| Some((e.name().to_owned(), None, t?))));
    let dense = found.iter().min_by(|(_, _, a), (_, _, b)| a.seconds.total_cmp(&b.seconds));
    let (rival, rival_seconds) = dense.map_or((String::new(), f64::NAN), |(name, _, t)| (name.clone(), t.seconds));
    found.extend(ours);
    let times = found.iter().filter_map(|(_, own, time)| Some(((*own)?.pattern.clone(), time.seconds)));
    let times: Vec<(String, f64)> = times.collect();
    let mut rows = vec![];
    for (engine, contestant, timing) in found {
        let checked = contestant.map(|own| own.check(x, &mut y));
        let pattern = contestant.map_or("dense", |own| &own.pattern);
        if let Some(off) = checked.filter(|&off| off > 1.0) {
            let kernel = &timing.variant;
            bail!("{name} {case}, {pattern}: kernel {kernel} is wrong by {off:.2} tolerances");
        }
        let grouped = contestant.and_then(|own| own.grouped.as_ref());
        let grouped = grouped.and_then(|grouped| times.iter().find(|(pattern, _)| pattern == grouped));
        let ratio = rival_seconds / timing.seconds;
        let limit = contestant.map_or(1.0, |contestant| limit(contestant, &own[0], case.tokens));
        rows.push(Row {
            shape: name.to_owned(),
            rows: case.rows,
            cols: case.cols,
            tokens: case.tokens,
            value_type: case.value_type,
            pattern: pattern.to_owned(),
            engine,
            variant: timing.variant,
            seconds: timing.seconds,
            minimum: timing.minimum,
            rival: rival.clone(),
            rival_seconds,
            ratio,
            limit,
            share: ratio / limit,
            over_grouped: grouped.map(|(_, seconds)| timing.seconds / seconds),
            checked,
        });
    }
    Ok(rows)
}

/// Keeps the round with the smaller median, and the least of both minima.
fn keep_better(best: &mut Option<Timing>, mut timing: Timing) {
    let Some(old) = best.take() else {
        *best = Some(timing);
        return;
    };
    let minimum = old.minimum.min(timing.minimum);
    if old.seconds < timing.seconds {
        timing = old;
    }
    *best = Some(Timing { minimum, ..timing });
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
