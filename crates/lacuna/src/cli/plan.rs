//! `lacuna plan`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use lacuna::UsageError;
use lacuna::modules::Selector;
use lacuna::plan::{
    By, Candidate, CaseTimes, Explained, Explanation, Job, Options, Outcome, Phase, PlanFile, Predictor, Rule, Target,
};
use lacuna_core::Pattern;
use serde_json::json;

use super::calibration::CalibrationArgs;
use super::ui::{Ui, bytes, table};
use super::values::ValueArgs;

/// Calibration samples unless told otherwise: each is gone through many times.
const SAMPLES: usize = 32;

/// Choose each layer's pattern for a target speed-up on this machine, a share of weights, or a size
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lacuna plan ./llama plan.json --speedup 1.6 --batch 1,32
  lacuna plan ./bert plan.json --density 0.3
  lacuna plan ./llama plan.json --bytes 500MiB
  lacuna plan ./llama sparser.json --by sensitivity --density 0.2 --measured plan.json

A speed-up is that of the whole model over our own dense kernels, as `lacuna bench` measures it, in every phase and at every
batch size asked for.")]
#[command(group(clap::ArgGroup::new("target").required(true).args(["speedup", "density", "bytes", "explain"])))]
pub(super) struct Args {
    /// Dense checkpoint directory
    model: PathBuf,
    /// File to write
    #[arg(required_unless_present = "explain")]
    output: Option<PathBuf>,
    /// So many times as fast as the dense model
    #[arg(long, value_name = "S", value_parser = more_than_one)]
    speedup: Option<f64>,
    /// Keep this share of the layers' weights
    #[arg(long, value_name = "D", value_parser = share)]
    density: Option<f64>,
    /// Bytes of all weights of the model, also written as 500M or 1.5GiB
    #[arg(long, value_name = "B", value_parser = super::size)]
    bytes: Option<u64>,
    /// How patterns are chosen
    #[arg(long, value_enum, default_value_t = ByName::Diversity)]
    by: ByName,
    /// Prompts, texts or images side by side; the speed-up is reached at each
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = super::positive, default_value = "1",
        conflicts_with_all = ["density", "bytes"])]
    batch: Vec<usize>,
    /// What is to become faster [default: decode of a decoder, encode of an encoder]
    #[arg(long, value_enum, value_delimiter = ',', conflicts_with_all = ["density", "bytes"])]
    phase: Vec<PhaseName>,
    /// Tokens of each prompt or text [default: 256, or as many as the model takes]
    #[arg(long, value_name = "N", value_parser = super::positive, conflicts_with_all = ["density", "bytes"])]
    prompt_tokens: Option<usize>,
    /// Instead of a plan: how well figures of patterns, ln K among them, rank the quality of this model pruned to them
    #[arg(long, requires = "calibration", conflicts_with_all = ["output", "by", "batch", "phase", "prompt_tokens", "force"])]
    explain: bool,
    /// Patterns to choose among [default: 2:4, and V of 16, 32, 64, 128 with M from 5 to 32; only V of 64 where each layer
    /// has its own]
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    patterns: Vec<Pattern>,
    /// Only modules that match this glob, or regular expression after `re:`
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// No modules that match this glob, or regular expression after `re:`
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    // Every fourth sample is held back to measure on.
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    values: ValueArgs,
    /// Take the sensitivities of this plan instead of measuring them, to plan for another target in no time
    #[arg(long, value_name = "PLAN", conflicts_with = "explain")]
    measured: Option<PathBuf>,
    /// The recipe that `prune` shall follow, by name or file: masks like those that it makes are timed, and what it keeps is
    /// measured
    #[arg(long, value_name = "NAME|FILE", default_value = "default")]
    recipe: String,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ByName {
    /// one pattern, that with the most masks (the paper's mask diversity)
    Diversity,
    /// one pattern, that which keeps most of the scores
    Retained,
    /// each layer's own, by what pruning it alone does to the model's answers
    Sensitivity,
    /// each layer's own: blocks with more outliers stay denser
    Owl,
    /// each layer's own: heavy-tailed spectra stay denser
    Alpha,
    /// each layer's own: blocks become sparser in equal steps
    Atp,
}

#[derive(Clone, Copy, ValueEnum)]
enum PhaseName {
    Prefill,
    Decode,
    Encode,
}

fn more_than_one(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&s: &f64| s > 1.0 && s.is_finite());
    number.ok_or_else(|| "must be more than 1".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&d: &f64| d > 0.0 && d < 1.0);
    number.ok_or_else(|| "must be more than 0 and less than 1".to_owned())
}

impl Args {
    /// None: explain.
    fn target(&self) -> Option<Target> {
        let speedup = self.speedup.map(Target::Speedup);
        speedup.or(self.density.map(Target::Density)).or(self.bytes.map(Target::Bytes))
    }

    fn options(&self, seed: u64) -> Result<Options> {
        Ok(Options {
            by: match self.by {
                ByName::Diversity => By::Diversity,
                ByName::Retained => By::Retained,
                ByName::Sensitivity => By::Sensitivity,
                ByName::Owl => By::Rule(Rule::Owl),
                ByName::Alpha => By::Rule(Rule::Alpha),
                ByName::Atp => By::Rule(Rule::Atp),
            },
            phases: self.phase.iter().map(|&phase| phase.into()).collect(),
            batches: self.batch.clone(),
            prompt_tokens: self.prompt_tokens,
            patterns: self.patterns.clone(),
            layers: Selector::new(&self.include, &self.exclude)?,
            calibration: self.calibration.calibration(Some(SAMPLES), seed),
            values: self.values.value_type()?,
            measured: self.measured.as_deref().map(PlanFile::read).transpose()?,
            recipe: self.recipe.clone(),
            seed,
        })
    }
}

impl From<PhaseName> for Phase {
    fn from(name: PhaseName) -> Self {
        match name {
            PhaseName::Prefill => Self::Prefill,
            PhaseName::Decode => Self::Decode,
            PhaseName::Encode => Self::Encode,
        }
    }
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let exists = args.output.as_ref().filter(|output| output.exists() && !args.force);
    if let Some(output) = exists {
        let problem = format!("{} already exists; choose another output or pass --force", output.display());
        return Err(UsageError(problem).into());
    }
    let job = Job::new(&args.model, args.options(ui.seed)?)?;
    let progress = ui.progress("plan", 0);
    let (Some(target), Some(output)) = (args.target(), &args.output) else {
        let explanation = job.explain(&progress)?;
        progress.finish_and_clear();
        ui.result(&explanation, || explanation_text(&explanation));
        return Ok(());
    };
    let outcome = job.run(target, &progress)?;
    progress.finish_and_clear();
    outcome.plan.write(output)?;
    let result = json!({ "output": output, "plan": outcome.plan, "candidates": outcome.candidates });
    ui.result(&result, || text(&outcome, output, ui.verbose));
    Ok(())
}

fn explanation_text(explanation: &Explanation) -> String {
    let row = |p: &Explained| {
        let figures = [p.density, p.diversity, p.retained_score, p.layer_error, p.sensitivity, p.distance];
        [p.pattern.clone()].into_iter().chain(figures.map(|f| format!("{f:.4}"))).collect()
    };
    let rows: Vec<Vec<String>> = explanation.patterns.iter().map(row).collect();
    let heads = ["pattern", "density", "ln K", "score kept", "layer error", "sensitivity", "distance"];
    let mut text = table(&heads, &rows);
    let row = |p: &Predictor| vec![p.name.to_owned(), format!("{:.3}", p.spearman), format!("{:.3}", p.kendall)];
    let rows: Vec<Vec<String>> = explanation.predictors.iter().map(row).collect();
    text += "\n";
    text + &table(&["rank correlation with quality", "Spearman", "Kendall"], &rows)
}

fn text(outcome: &Outcome, output: &Path, verbose: bool) -> String {
    let Outcome { plan, candidates } = outcome;
    let mut text = candidates_text(candidates, &plan.cases);
    if verbose {
        text += &format!("\n{}", layers_text(plan));
    }
    let pruned = plan.layers.iter().filter(|layer| layer.pattern.is_some()).count();
    text += &format!("\nwrote {}\n", output.display());
    let dense = plan.layers.len() - pruned;
    text += &format!("{} pruned, {dense} dense; density {:.4}\n", layers(pruned), plan.density);
    text += &format!("whole model  {} -> {}\n", bytes(plan.bytes_before), bytes(plan.bytes_after));
    if let Some(distance) = plan.distance {
        text += &format!("distance of answers from the dense model's, on samples held back: {distance:.4}\n");
    }
    for case in &plan.cases {
        let CaseTimes { predicted_linear_speedup, predicted_speedup, measured_speedup, .. } = case;
        let linear = format!("linear layers {predicted_linear_speedup:.2}");
        text += &format!(
            "{}: {measured_speedup:.2} times as fast (predicted {predicted_speedup:.2}, {linear})\n",
            case.case
        );
    }
    text
}

fn layers(n: usize) -> String {
    if n == 1 { "1 layer".to_owned() } else { format!("{n} layers") }
}

fn candidates_text(candidates: &[Candidate], cases: &[CaseTimes]) -> String {
    let mut heads = vec!["pattern".to_owned(), "density".to_owned(), "ln K".to_owned()];
    heads.extend(cases.iter().map(|case| case.case.to_string()));
    let scored = candidates.iter().any(|c| c.retained_score.is_some());
    heads.extend(scored.then(|| "score kept".to_owned()));
    heads.push("verdict".to_owned());
    let row = |c: &Candidate| {
        let verdict = c.rejected.clone().unwrap_or_else(|| format!("chosen for {}", layers(c.layers)));
        let figures = [c.pattern.clone(), format!("{:.4}", c.density), format!("{:.4}", c.diversity)];
        let speedups = c.speedups.iter().map(|s| format!("{s:.2}"));
        let score = c.retained_score.map(|s| format!("{s:.4}"));
        figures.into_iter().chain(speedups).chain(score).chain([verdict]).collect()
    };
    let rows: Vec<Vec<String>> = candidates.iter().map(row).collect();
    table(&heads.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
}

fn layers_text(plan: &PlanFile) -> String {
    let row = |layer: &lacuna::plan::PlannedLayer| {
        let pattern = layer.pattern.map_or_else(|| "dense".to_owned(), |pattern| pattern.to_string());
        let [rows, cols] = layer.shape;
        let times = layer.dense_seconds.iter().zip(&layer.seconds);
        let times = times.map(|(dense, own)| format!("{:.1} -> {:.1} us", dense * 1e6, own * 1e6));
        [layer.name.clone(), format!("{rows}x{cols}"), pattern].into_iter().chain(times).collect()
    };
    let mut heads = vec!["layer".to_owned(), "shape".to_owned(), "pattern".to_owned()];
    heads.extend(plan.cases.iter().map(|case| case.case.to_string()));
    let rows: Vec<Vec<String>> = plan.layers.iter().map(row).collect();
    table(&heads.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
}
