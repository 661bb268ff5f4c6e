//! Plans: which layer gets which pattern so that the model becomes as fast, as sparse or as small as asked for.
//!
//! Predicted time of a case = time of the dense model − Σ over the layers of what their patterns save, measured with this
//! machine's kernels for the model's own shapes (`latency`). What is predicted is then measured on the whole model under
//! random masks (`whole`), the savings are corrected by the ratio of the two, and the choice is made again, until what is
//! measured is what was asked for (`reach`).

mod budget;
mod candidate;
mod case;
mod choose;
mod chooser;
mod explain;
mod file;
mod latency;
mod predict;
mod probe;
mod reach;
mod sensitivity;
mod space;
mod stand_in;
mod whole;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_core::{Pattern, ValueType};
use lacuna_format::Checkpoint;
use lacuna_model::{Config, LinearSpec, Sample, family};
use serde::Serialize;

use self::candidate::Judge;
use self::chooser::Chooser;
use self::file::Heading;
use self::reach::{Times, reach};
use self::sensitivity::{Laboratory, of_plan, retained_scores, sensitivities};
use self::space::{Choice, Space, total};
use self::stand_in::StandIns;
use crate::UsageError;
use crate::calibrate::Calibration;
use crate::modules::{Selector, linears};
use crate::recipe::Recipe;

pub use self::budget::Rule;
pub use self::candidate::Candidate;
pub use self::case::{Case, Phase};
pub use self::explain::{Explained, Explanation, Predictor};
pub use self::file::{CaseTimes, PlanFile, PlannedLayer, Target};
pub use self::predict::diversity;
pub use self::reach::{Reached, reached};

/// How patterns are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// one pattern, that with the largest mask diversity
    Diversity,
    /// one pattern, that which keeps the largest share of the scores
    Retained,
    /// each layer's own, by what pruning it alone does to the model's answers
    Sensitivity,
    /// each layer's own, by a rule that looks at weights or places
    Rule(Rule),
}

impl By {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diversity => "diversity",
            Self::Retained => "retained",
            Self::Sensitivity => "sensitivity",
            Self::Rule(rule) => rule.name(),
        }
    }

    /// Whether it needs samples.
    fn needs_samples(self) -> bool {
        match self {
            Self::Diversity => false,
            Self::Retained | Self::Sensitivity => true,
            Self::Rule(rule) => rule.needs_samples(),
        }
    }

    /// How what it does not choose compares to a pattern.
    fn worse(self) -> &'static str {
        match self {
            Self::Diversity => "less diverse than",
            Self::Retained => "keeps less of the scores than",
            Self::Sensitivity | Self::Rule(_) => "no layer's best beside",
        }
    }
}

/// What to plan for.
#[derive(Debug, Clone)]
pub struct Options {
    /// how patterns are chosen
    pub by: By,
    /// phases of a speed-up; none: decoding of a decoder, encoding of an encoder
    pub phases: Vec<Phase>,
    /// batch sizes of a speed-up
    pub batches: Vec<usize>,
    /// tokens of a prompt or text; none: 256, or as many as the model takes
    pub prompt_tokens: Option<usize>,
    /// patterns to choose among; none: those of [`By::patterns`]
    pub patterns: Vec<Pattern>,
    /// which layers
    pub layers: Selector,
    /// samples, of which every fourth is held back to measure on
    pub calibration: Option<Calibration>,
    /// what kept values are rounded to; none: the type of the weights
    pub values: Option<ValueType>,
    /// a plan whose sensitivities stand for what would be measured anew
    pub measured: Option<PlanFile>,
    /// the recipe that layers will be pruned by, by name or file
    pub recipe: String,
    /// of everything drawn at random
    pub seed: u64,
}

impl Options {
    /// Refuses sensitivities of layers that were pruned otherwise.
    fn check_measured(&self, measured: &PlanFile, values: ValueType) -> Result<()> {
        let problem = if self.by != By::Sensitivity {
            format!("--measured is for --by sensitivity, not {}", self.by.name())
        } else if measured.recipe != self.recipe {
            let (its, own) = (&measured.recipe, &self.recipe);
            format!("the plan of --measured is for the recipe {its}, not {own}; pass --recipe {its} or measure again")
        } else if measured.value_type()? != values {
            let (its, own) = (&measured.values, values.name());
            format!("the plan of --measured is for values of type {its}, not {own}; measure again")
        } else {
            return Ok(());
        };
        Err(UsageError(problem).into())
    }
}

/// What planning found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// the plan
    pub plan: PlanFile,
    /// every pattern with its figures, and why it was not chosen
    pub candidates: Vec<Candidate>,
}

impl By {
    /// The patterns that are chosen among unless told otherwise: for all layers together those that the paper searches, with
    /// fewer of the large M, for each layer those with V of 64; `2:4` with both.
    pub fn patterns(self) -> Vec<Pattern> {
        let (rows, columns): (&[usize], &[usize]) = match self {
            Self::Diversity | Self::Retained => (&[16, 32, 64, 128], &[5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32]),
            Self::Sensitivity | Self::Rule(_) => (&[64], &[5, 6, 7, 8, 10, 12, 16, 24, 32]),
        };
        let of = |&m: &usize| rows.iter().filter_map(move |&v| Pattern::new(v, m).ok());
        std::iter::once(Pattern::PLAIN).chain(columns.iter().flat_map(of)).collect()
    }
}

/// Tokens of a decoder's sample unless told otherwise: many samples are gone through many times.
const SAMPLE_TOKENS: usize = 256;

/// A progress bar begins anew, with so many steps.
fn stage(progress: &ProgressBar, steps: u64) {
    progress.reset();
    progress.set_length(steps);
}

/// What was measured to choose by.
#[derive(Default)]
struct Known {
    /// share of the scores that each pattern keeps
    retained: Option<Vec<f64>>,
    /// of each option of each layer
    sensitivities: Option<Vec<Vec<f64>>>,
}

/// A model to plan for.
pub struct Job {
    checkpoint: Checkpoint,
    config: Config,
    options: Options,
    layers: Vec<LinearSpec>,
    /// type of the weights
    stored: ValueType,
    /// type of the kept values
    values: ValueType,
    recipe: Recipe,
    samples: Vec<Sample>,
}

impl Job {
    /// Opens the checkpoint, chooses the layers, checks what was asked for.
    pub fn new(source: &Path, options: Options) -> Result<Self> {
        let checkpoint = Checkpoint::open(source)?;
        if checkpoint.sparsity().is_some() {
            bail!("{}: already pruned; plan for the dense checkpoint", source.display());
        }
        let config = family::config(&checkpoint)?;
        let layers = options.layers.select(linears(&checkpoint, &config)?)?;
        if let Some(head) = layers.iter().find(|layer| layer.head) {
            let problem = format!("{} lies behind the blocks, where plans do not reach; leave it out", head.name);
            return Err(UsageError(problem).into());
        }
        let Some(first) = layers.first() else {
            return Err(UsageError("--include and --exclude leave no layer to plan for".to_owned()).into());
        };
        let stored = checkpoint.dtype(&first.weight())?.into();
        let values = options.values.unwrap_or(stored);
        let recipe = Recipe::named(&options.recipe)?;
        if let Some(measured) = &options.measured {
            options.check_measured(measured, values)?;
        }
        let samples = match &options.calibration {
            None => vec![],
            Some(calibration) => {
                let length = match &config {
                    Config::Decoder(config) => calibration.length.or(Some(SAMPLE_TOKENS.min(config.max_positions))),
                    Config::Text(_) | Config::Vision(_) => calibration.length,
                };
                Calibration { length, ..calibration.clone() }.draw(source, &config)?
            }
        };
        Ok(Self { checkpoint, config, options, layers, stored, values, recipe, samples })
    }

    /// Makes the plan for a target.
    pub fn run(&self, target: Target, progress: &ProgressBar) -> Result<Outcome> {
        let Options { by, phases, batches, prompt_tokens, measured, .. } = &self.options;
        if by.needs_samples() && self.samples.is_empty() && measured.is_none() {
            let problem = format!("--by {} looks at what layers do: pass --calibration", by.name());
            return Err(UsageError(problem).into());
        }
        let cases = match target {
            Target::Speedup(_) => Case::of(&self.config, phases, batches, *prompt_tokens, whole::DECODE_TOKENS)?,
            Target::Density(_) | Target::Bytes(_) => vec![],
        };
        let patterns = if self.options.patterns.is_empty() { by.patterns() } else { self.options.patterns.clone() };
        let space = Space::new(&self.checkpoint, self.layers.clone(), patterns, self.stand_ins())?;
        let (chooser, known) = self.chooser(&space, progress)?;
        let other_bytes = self.checkpoint.weight_bytes() - total(&space.bytes, &space.dense()) as u64;
        let (choice, times, cases) = match target {
            Target::Speedup(speedup) => {
                let (attempt, times) = reach(self, &space, &chooser, (speedup, &cases), progress)?;
                let cases = times.report(&attempt);
                (attempt.choice, Some(times), cases)
            }
            Target::Density(_) | Target::Bytes(_) => (fitting(target, &space, &chooser, other_bytes)?, None, vec![]),
        };
        let mut plan = self.plan(target, &space, &choice, times.as_ref());
        plan.cases = cases;
        plan.density = space.density(&choice);
        plan.bytes_before = self.checkpoint.weight_bytes();
        plan.bytes_after = other_bytes + total(&space.bytes, &choice) as u64;
        if !self.samples.is_empty() {
            let laboratory = self.laboratory()?;
            plan.distance = Some(laboratory.distance(&space, &choice, &laboratory.dense()?)?);
        }
        if let Known { sensitivities: Some(sensitivities), .. } = &known {
            for ((layer, own), &option) in plan.layers.iter_mut().zip(sensitivities).zip(&choice) {
                layer.sensitivity = Some(own[option]);
                let known = space.patterns.iter().zip(&own[1..]).filter(|(_, sensitivity)| sensitivity.is_finite());
                layer.sensitivities = known.map(|(pattern, sensitivity)| (pattern.to_string(), *sensitivity)).collect();
            }
        }
        let judge = Judge {
            space: &space,
            target,
            times: times.as_ref(),
            other_bytes,
            retained: known.retained.as_deref(),
            worse: by.worse(),
        };
        Ok(Outcome { candidates: judge.candidates(&choice), plan })
    }

    /// How to choose, and what had to be found out for it.
    fn chooser(&self, space: &Space, progress: &ProgressBar) -> Result<(Chooser, Known)> {
        let effects = |answers| {
            stage(progress, Laboratory::steps(space));
            self.laboratory()?.effects(space, answers, progress)
        };
        Ok(match self.options.by {
            By::Diversity => {
                let merit = space.patterns.iter().map(|&p| diversity(p)).collect();
                (Chooser::Uniform { merit }, Known::default())
            }
            By::Retained => {
                let retained = retained_scores(space, &effects(false)?);
                (Chooser::Uniform { merit: retained.clone() }, Known { retained: Some(retained), sensitivities: None })
            }
            By::Sensitivity => {
                let (retained, losses) = match &self.options.measured {
                    Some(plan) => (None, of_plan(plan, space)?),
                    None => {
                        let effects = effects(true)?;
                        (Some(retained_scores(space, &effects)), sensitivities(&effects))
                    }
                };
                (Chooser::Mixed { losses: losses.clone() }, Known { retained, sensitivities: Some(losses) })
            }
            By::Rule(rule) => {
                let laboratory = rule.needs_samples().then(|| self.laboratory()).transpose()?;
                let budget = rule.budget(&self.checkpoint, &self.config, space, laboratory.as_ref(), progress)?;
                (Chooser::Budget(budget), Known::default())
            }
        })
    }

    /// Ranks patterns by what is said to predict quality, and by quality.
    pub fn explain(&self, progress: &ProgressBar) -> Result<Explanation> {
        let patterns =
            if self.options.patterns.is_empty() { explain::patterns() } else { self.options.patterns.clone() };
        let space = Space::new(&self.checkpoint, self.layers.clone(), patterns, self.stand_ins())?;
        explain::explain(&space, &self.laboratory()?, progress)
    }

    /// What passes for pruned layers before there are any.
    fn stand_ins(&self) -> StandIns<'_> {
        StandIns { recipe: &self.recipe, values: self.values }
    }

    fn laboratory(&self) -> Result<Laboratory<'_>> {
        Laboratory::new(&self.checkpoint, &self.config, self.stand_ins(), &self.samples)
    }

    fn plan(&self, target: Target, space: &Space, choice: &Choice, times: Option<&Times>) -> PlanFile {
        let layer = |(i, (layer, &option)): (usize, (&LinearSpec, &usize))| {
            let seconds =
                |option: usize| times.map_or(vec![], |t| t.layers.iter().map(|case| case[i][option]).collect());
            PlannedLayer {
                name: layer.name.clone(),
                shape: [layer.rows, layer.cols],
                pattern: space.pattern(option),
                dense_seconds: seconds(0),
                seconds: seconds(option),
                sensitivity: None,
                sensitivities: BTreeMap::new(),
            }
        };
        let layers = space.layers.iter().zip(choice).enumerate().map(layer).collect();
        let model = self.checkpoint.config().get("model_type").or(self.checkpoint.config().get("architecture"));
        let heading = Heading {
            model: model.and_then(serde_json::Value::as_str).unwrap_or_default().to_owned(),
            target,
            by: self.options.by.name().to_owned(),
            recipe: self.options.recipe.clone(),
            values: self.values,
        };
        PlanFile::new(heading, layers)
    }
}

/// The choice for a target of size.
fn fitting(target: Target, space: &Space, chooser: &Chooser, other_bytes: u64) -> Result<Choice> {
    let (resource, flag) = match target {
        Target::Density(density) => (space.within_density(density), format!("--density {density}")),
        Target::Bytes(bytes) => (space.within_bytes(bytes as f64 - other_bytes as f64), format!("--bytes {bytes}")),
        Target::Speedup(_) => unreachable!("a speed-up is reached by measuring"),
    };
    if let Some(choice) = chooser.choose(space, std::slice::from_ref(&resource)) {
        return Ok(choice);
    }
    let least = chooser.least(space, &resource);
    let reachable = match target {
        Target::Density(_) => format!("{:.4}", space.density(&least)),
        _ => format!("{} bytes", other_bytes + total(&space.bytes, &least) as u64),
    };
    let problem =
        format!("{flag} is out of reach: the least is {reachable}; ask for more, or offer sparser --patterns");
    Err(UsageError(problem).into())
}
