//! Plans: which layer gets which pattern so that the model becomes as fast, as sparse or as small as asked for.
//!
//! Predicted time of a case = time of the dense model − Σ over the layers of what their patterns save, measured with this
//! machine's kernels for the model's own shapes (`latency`). What is predicted is then measured on the whole model under
//! random masks (`whole`), the savings are corrected by the ratio of the two, and the choice is made again, until what is
//! measured is what was asked for (`reach`).

mod candidate;
mod case;
mod choose;
mod chooser;
mod file;
mod latency;
mod predict;
mod reach;
mod space;
mod whole;

use std::path::Path;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_core::{Pattern, ValueType};
use lacuna_format::Checkpoint;
use lacuna_model::{Config, LinearSpec, family};
use serde::Serialize;

use self::candidate::Judge;
use self::chooser::Chooser;
use self::file::Heading;
use self::reach::{Times, reach};
use self::space::{Choice, Space, total};
use crate::UsageError;
use crate::modules::{Selector, linears};

pub use self::candidate::Candidate;
pub use self::case::{Case, Phase};
pub use self::file::{CaseTimes, PlanFile, PlannedLayer, Target};
pub use self::predict::diversity;

/// How patterns are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// one pattern, that with the largest mask diversity
    Diversity,
}

impl By {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diversity => "diversity",
        }
    }

    /// How what it does not choose compares.
    fn worse(self) -> &'static str {
        match self {
            Self::Diversity => "less diverse",
        }
    }
}

/// What to plan for.
#[derive(Debug, Clone)]
pub struct Options {
    /// what is to be reached
    pub target: Target,
    /// how patterns are chosen
    pub by: By,
    /// phases of a speed-up; none: decoding of a decoder, encoding of an encoder
    pub phases: Vec<Phase>,
    /// batch sizes of a speed-up
    pub batches: Vec<usize>,
    /// tokens of a prompt or text; none: 256, or as many as the model takes
    pub prompt_tokens: Option<usize>,
    /// patterns to choose among; none: [`patterns`]
    pub patterns: Vec<Pattern>,
    /// which layers
    pub layers: Selector,
    /// of everything drawn at random
    pub seed: u64,
}

/// What planning found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// the plan
    pub plan: PlanFile,
    /// every pattern with its figures, and why it was not chosen
    pub candidates: Vec<Candidate>,
}

/// The patterns that the paper searches, with fewer of the large M, and `2:4`.
pub fn patterns() -> Vec<Pattern> {
    let sizes = [5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32];
    let of = |m: usize| [16, 32, 64, 128].into_iter().filter_map(move |v| Pattern::new(v, m).ok());
    std::iter::once(Pattern::PLAIN).chain(sizes.into_iter().flat_map(of)).collect()
}

/// A model to plan for.
pub struct Job {
    checkpoint: Checkpoint,
    config: Config,
    options: Options,
    layers: Vec<LinearSpec>,
    cases: Vec<Case>,
    /// type of the kept values
    values: ValueType,
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
        let values = checkpoint.dtype(&first.weight())?.into();
        let cases = match options.target {
            Target::Speedup(_) => {
                let Options { phases, batches, prompt_tokens, .. } = &options;
                Case::of(&config, phases, batches, *prompt_tokens, whole::DECODE_TOKENS)?
            }
            Target::Density(_) | Target::Bytes(_) => vec![],
        };
        Ok(Self { checkpoint, config, options, layers, cases, values })
    }

    /// Makes the plan.
    pub fn run(&self, progress: &ProgressBar) -> Result<Outcome> {
        let Options { target, by, .. } = self.options;
        let patterns = if self.options.patterns.is_empty() { patterns() } else { self.options.patterns.clone() };
        let space = Space::new(&self.checkpoint, self.layers.clone(), patterns, self.values)?;
        let chooser = self.chooser(&space);
        let other_bytes = self.checkpoint.weight_bytes() - total(&space.bytes, &space.dense()) as u64;
        let (choice, times, cases) = match target {
            Target::Speedup(speedup) => {
                let (attempt, times) = reach(self, &space, &chooser, speedup, progress)?;
                let cases = times.report(&attempt);
                (attempt.choice, Some(times), cases)
            }
            Target::Density(_) | Target::Bytes(_) => (self.fitting(&space, &chooser, other_bytes)?, None, vec![]),
        };
        let mut plan = self.plan(&space, &choice, times.as_ref());
        plan.cases = cases;
        plan.density = space.density(&choice);
        plan.bytes_before = self.checkpoint.weight_bytes();
        plan.bytes_after = other_bytes + total(&space.bytes, &choice) as u64;
        let judge =
            Judge { space: &space, target, times: times.as_ref(), other_bytes, retained: None, worse: by.worse() };
        Ok(Outcome { candidates: judge.candidates(&choice), plan })
    }

    fn chooser(&self, space: &Space) -> Chooser {
        match self.options.by {
            By::Diversity => Chooser::Uniform { merit: space.patterns.iter().map(|&p| diversity(p)).collect() },
        }
    }

    /// The choice for a target of size.
    fn fitting(&self, space: &Space, chooser: &Chooser, other_bytes: u64) -> Result<Choice> {
        let (resource, flag) = match self.options.target {
            Target::Density(density) => (space.within_density(density), format!("--density {density}")),
            Target::Bytes(bytes) => (space.within_bytes(bytes as f64 - other_bytes as f64), format!("--bytes {bytes}")),
            Target::Speedup(_) => unreachable!("a speed-up is reached by measuring"),
        };
        if let Some(choice) = chooser.choose(space, std::slice::from_ref(&resource)) {
            return Ok(choice);
        }
        let least = chooser.least(space, &resource);
        let reachable = match self.options.target {
            Target::Density(_) => format!("{:.4}", space.density(&least)),
            _ => format!("{} bytes", other_bytes + total(&space.bytes, &least) as u64),
        };
        let problem =
            format!("{flag} is out of reach: the least is {reachable}; ask for more, or offer sparser --patterns");
        Err(UsageError(problem).into())
    }

    fn plan(&self, space: &Space, choice: &Choice, times: Option<&Times>) -> PlanFile {
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
            }
        };
        let layers = space.layers.iter().zip(choice).enumerate().map(layer).collect();
        let model = self.checkpoint.config().get("model_type").or(self.checkpoint.config().get("architecture"));
        let heading = Heading {
            model: model.and_then(serde_json::Value::as_str).unwrap_or_default().to_owned(),
            target: self.options.target,
            by: self.options.by.name().to_owned(),
            values: self.values.name().to_owned(),
        };
        PlanFile::new(heading, layers)
    }
}
