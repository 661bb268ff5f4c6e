//! From a target speed-up to a choice that reaches it: predict, choose, measure the whole model, correct, choose again.

use std::path::Path;

use anyhow::{Result, anyhow};
use indicatif::ProgressBar;
use lacuna_format::Checkpoint;
use lacuna_model::{Execution, LinearSpec, PackedAs, family};
use serde::Serialize;

use super::Job;
use super::case::Case;
use super::choose::Resource;
use super::chooser::Chooser;
use super::file::{CaseTimes, PlanFile, Target};
use super::latency::Settings;
use super::space::{Choice, Space, total};
use super::stage;
use super::whole::{Comparison, Input, Whole, compare};
use crate::UsageError;
use crate::bench::native_activations;

/// How often a choice is measured.
const ATTEMPTS: usize = 4;
/// A choice aims at this much more than asked for, so that noise does not leave it short.
const MARGIN: f64 = 1.01;
/// Of the target: what counts as reached, and what is no more than needed.
const REACHED: f64 = 0.995;
const ENOUGH: f64 = 1.05;

/// Times of a model's layers, and of the whole.
pub(super) struct Times {
    pub(super) cases: Vec<Case>,
    /// seconds of a pass, `[case][layer][option]`
    pub(super) layers: Vec<Vec<Vec<f64>>>,
    /// seconds of the whole dense model, of each case
    pub(super) dense: Vec<f64>,
    /// what a second saved in the layers saves of the whole, of each case
    pub(super) correction: Vec<f64>,
}

/// A choice that was measured.
pub(super) struct Attempt {
    pub(super) choice: Choice,
    /// whole model, of each case
    pub(super) speedups: Vec<f64>,
}

impl Times {
    /// Times every option of every layer.
    fn measure(job: &Job, space: &Space, cases: &[Case], execution: Execution, progress: &ProgressBar) -> Result<Self> {
        let mut shapes: Vec<[usize; 2]> = space.layers.iter().map(|layer| [layer.rows, layer.cols]).collect();
        shapes.sort_unstable();
        shapes.dedup();
        stage(progress, (shapes.len() * space.patterns.len() + ATTEMPTS) as u64);
        let settings = Settings {
            cases,
            patterns: &space.patterns,
            stand_ins: job.stand_ins(),
            activations: execution.activations,
            model_weights: space.weights() as usize,
            seed: job.options.seed,
        };
        let mut layers = vec![vec![vec![]; space.layers.len()]; cases.len()];
        for shape in shapes {
            progress.set_message(format!("{}x{}", shape[0], shape[1]));
            let times = settings.time(shape, progress)?;
            for (layer, spec) in space.layers.iter().enumerate().filter(|(_, l)| [l.rows, l.cols] == shape) {
                debug_assert_eq!([spec.rows, spec.cols], shape);
                for (case, times) in times.iter().enumerate() {
                    layers[case][layer].clone_from(times);
                }
            }
        }
        Ok(Self {
            dense: vec![f64::INFINITY; cases.len()],
            correction: vec![1.0; cases.len()],
            cases: cases.to_vec(),
            layers,
        })
    }

    /// Seconds that a choice saves in the layers of a case, by their own times.
    fn saved(&self, case: usize, choice: &[usize]) -> f64 {
        self.layers[case].iter().zip(choice).map(|(times, &option)| times[0] - times[option]).sum()
    }

    /// Speed-up of the whole model in each case, as predicted.
    pub(super) fn predicted(&self, choice: &[usize]) -> Vec<f64> {
        let of = |case: usize| self.dense[case] / (self.dense[case] - self.correction[case] * self.saved(case, choice));
        (0..self.cases.len()).map(of).collect()
    }

    /// What the layers of each case may take for the whole model to be so much faster.
    fn resources(&self, speedup: f64) -> Vec<Resource> {
        let of = |case: usize| {
            let to_save = self.dense[case] * (1.0 - 1.0 / speedup) / self.correction[case];
            let dense: f64 = self.layers[case].iter().map(|times| times[0]).sum();
            Resource { costs: self.layers[case].clone(), limit: dense - to_save }
        };
        (0..self.cases.len()).map(of).collect()
    }

    /// Learns from a measurement.
    fn learn(&mut self, case: usize, choice: &[usize], dense: f64, speedup: f64) {
        self.dense[case] = self.dense[case].min(dense);
        let saved = self.saved(case, choice);
        // Where layers save next to nothing, the ratio of two differences says nothing either.
        if saved > 0.01 * self.dense[case] {
            self.correction[case] = (self.dense[case] * (1.0 - 1.0 / speedup) / saved).clamp(0.2, 5.0);
        }
    }

    /// What a plan says of its cases.
    pub(super) fn report(&self, attempt: &Attempt) -> Vec<CaseTimes> {
        let predicted = self.predicted(&attempt.choice);
        let case = |(case, (predicted, &measured)): (usize, (f64, &f64))| {
            let layers = &self.layers[case];
            let dense: f64 = layers.iter().map(|times| times[0]).sum();
            CaseTimes {
                case: self.cases[case],
                dense_seconds: self.dense[case],
                predicted_linear_speedup: dense / total(layers, &attempt.choice),
                predicted_speedup: predicted,
                measured_speedup: measured,
            }
        };
        predicted.into_iter().zip(&attempt.speedups).enumerate().map(case).collect()
    }
}

/// Finds a choice that makes the model `speedup` times as fast in every case.
pub(super) fn reach(
    job: &Job,
    space: &Space,
    chooser: &Chooser,
    (speedup, cases): (f64, &[Case]),
    progress: &ProgressBar,
) -> Result<(Attempt, Times)> {
    let activations = native_activations(&job.checkpoint, &job.config);
    let execution = Execution { packed: PackedAs::Sparse, activations, dense_values: None };
    let mut times = Times::measure(job, space, cases, execution, progress)?;
    progress.set_message("whole model");
    let dense = dense(job, space.layers.iter(), execution)?;
    let inputs: Vec<(Input, f64)> =
        cases.iter().map(Case::timed).map(|(case, share)| (dense.input(&case), share)).collect();
    for (time, (input, share)) in times.dense.iter_mut().zip(&inputs) {
        *time = compare(&dense, &dense, input).dense / share;
    }
    let mut attempts: Vec<Attempt> = vec![];
    for _ in 0..ATTEMPTS {
        progress.inc(1);
        let resources = times.resources(speedup * MARGIN);
        // Of what cannot be reached as predicted, the fastest is measured: predictions may be wrong.
        let choice = chooser.choose(space, &resources).unwrap_or_else(|| fastest(chooser, space, &resources, &times));
        if attempts.iter().any(|attempt| attempt.choice == choice) {
            break;
        }
        let attempt = measure(job, space, &mut times, (&dense, &inputs), choice, execution)?;
        let share = worst(&attempt.speedups) / speedup;
        attempts.push(attempt);
        if (REACHED..ENOUGH).contains(&share) {
            break;
        }
    }
    // Of those that suffice the slowest, which prunes least; else the fastest.
    attempts.sort_by(|a, b| worst(&a.speedups).total_cmp(&worst(&b.speedups)));
    let enough = attempts.iter().position(|attempt| worst(&attempt.speedups) >= REACHED * speedup);
    match enough {
        Some(i) => Ok((attempts.swap_remove(i), times)),
        None => Err(out_of_reach(speedup, &attempts.pop().expect("one was made"), &times.cases)),
    }
}

/// What a pruned model reached.
#[derive(Debug, Clone, Serialize)]
pub struct Reached {
    /// the case
    #[serde(flatten)]
    pub case: Case,
    /// what the plan was made for
    pub target: f64,
    /// the pruned model beside the same layers by dense kernels
    pub speedup: f64,
}

/// Times a checkpoint that was pruned by a plan, in the plan's cases; none if the plan is for no speed-up.
pub fn reached(plan: &PlanFile, pruned: &Path) -> Result<Vec<Reached>> {
    let Target::Speedup(target) = plan.target else { return Ok(vec![]) };
    let checkpoint = Checkpoint::open(pruned)?;
    let config = family::config(&checkpoint)?;
    let activations = native_activations(&checkpoint, &config);
    let load = |packed| Whole::load(&checkpoint, &config, Execution { packed, activations, dense_values: None });
    let (dense, sparse) = (load(PackedAs::Dense)?, load(PackedAs::Sparse)?);
    let time = |CaseTimes { case, .. }: &CaseTimes| {
        let input = dense.input(&case.timed().0);
        Reached { case: *case, target, speedup: compare(&dense, &sparse, &input).speedup }
    };
    Ok(plan.cases.iter().map(time).collect())
}

/// The dense model, with the values of some layers rounded as those of pruned ones will be.
fn dense<'a>(job: &Job, layers: impl Iterator<Item = &'a LinearSpec>, execution: Execution) -> Result<Whole> {
    let mut dense = Whole::load(&job.checkpoint, &job.config, execution)?;
    if job.values != job.stored {
        dense.round(&job.checkpoint, &job.config, layers, (job.values, execution))?;
    }
    Ok(dense)
}

/// Builds a model by a choice and times it beside the dense one.
fn measure(
    job: &Job,
    space: &Space,
    times: &mut Times,
    (dense, inputs): (&Whole, &[(Input, f64)]),
    choice: Choice,
    execution: Execution,
) -> Result<Attempt> {
    let mut sparse = Whole::load(&job.checkpoint, &job.config, execution)?;
    let layers = || space.layers.iter().zip(&choice).filter_map(|(layer, &o)| Some((layer, space.pattern(o)?)));
    sparse.disguise(&job.checkpoint, &job.config, layers(), (job.stand_ins(), execution))?;
    // Layers that are not pruned stay as they are stored, on both sides.
    let mixed = job.values != job.stored && choice.contains(&0);
    let own = mixed.then(|| self::dense(job, layers().map(|(layer, _)| layer), execution)).transpose()?;
    let dense = own.as_ref().unwrap_or(dense);
    let mut speedups = vec![];
    for (case, (input, share)) in inputs.iter().enumerate() {
        let Comparison { dense, speedup } = compare(dense, &sparse, input);
        times.learn(case, &choice, dense / share, speedup);
        speedups.push(speedup);
    }
    Ok(Attempt { choice, speedups })
}

/// The choice that comes closest to what cannot be reached: the fastest in the case that lacks most.
fn fastest(chooser: &Chooser, space: &Space, resources: &[Resource], times: &Times) -> Choice {
    let choices = resources.iter().map(|resource| chooser.least(space, resource));
    let best = choices.max_by(|a, b| worst(&times.predicted(a)).total_cmp(&worst(&times.predicted(b))));
    best.expect("a speed-up has a case")
}

fn worst(speedups: &[f64]) -> f64 {
    speedups.iter().copied().fold(f64::INFINITY, f64::min)
}

fn out_of_reach(speedup: f64, best: &Attempt, cases: &[Case]) -> anyhow::Error {
    let reached = cases.iter().zip(&best.speedups).map(|(case, s)| format!("{s:.2} ({case})")).collect::<Vec<_>>();
    anyhow!(UsageError(format!(
        "--speedup {speedup} is out of reach: the largest measured on this machine is {}; ask for less, or offer sparser \
         --patterns",
        reached.join(", ")
    )))
}
