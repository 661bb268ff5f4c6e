//! `lacuna prune`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lacuna::UsageError;
use lacuna::modules::Selector;
use lacuna::plan::{PlanFile, Reached, reached};
use lacuna::prune::{Forecast, Job, Options, Patterns, Report};
use lacuna::recipe::{Order, Recipe};
use lacuna_core::Pattern;
use lacuna_prune::score::{Ria, RiaParts};
use lacuna_prune::{Criterion, Permute, Selection, Update};

use super::calibration::CalibrationArgs;
use super::ui::{Ui, bytes, table};
use super::values::ValueArgs;

/// Where `--help` lists the settings of a recipe.
const RECIPE: &str = "Settings of the recipe";

/// Prune a dense checkpoint to a V:N:M pattern and store it packed
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lacuna prune ./llama ./sparse --pattern 64:2:8 --calibration text.txt
  lacuna prune ./llama ./sparse --pattern 2:4 --criterion magnitude --dry-run
  lacuna prune ./llama ./sparse --pattern 64:2:5 --calibration text.jsonl --exclude '*.layers.0.*' --values bf16
  lacuna prune ./llama ./sparse --pattern 64:2:8 --calibration text.txt --values int4 --scale-group 64

An interrupted run goes on where it stopped when the same command is given again.")]
pub(super) struct Args {
    /// Dense checkpoint directory
    model: PathBuf,
    /// Directory to write
    output: PathBuf,
    /// V:2:M keeps 2 of M values in each row and 4 of M columns in each block of V rows; 2:4 is the plain pattern; @W behind it
    /// lets the groups of a block choose among W columns, @all among all
    #[arg(long, required_unless_present = "plan")]
    pattern: Option<Pattern>,
    /// The patterns of a plan that `lacuna plan` made for this model, layer by layer; the speed-up that it was made for is measured
    /// at the end
    #[arg(long, value_name = "FILE", conflicts_with = "pattern")]
    plan: Option<PathBuf>,
    /// How much time to spend: which of the recipes low, default and high [default: default, or what the plan was made for]
    #[arg(long, value_enum, conflicts_with = "recipe")]
    effort: Option<Effort>,
    /// A built-in recipe (magnitude, wanda, ria, paper, sparsegpt, alps, dsnot, low, default, high), or a file of one. The settings below
    /// change it
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// How weights are scored
    #[arg(long, value_enum, help_heading = RECIPE)]
    criterion: Option<CriterionName>,
    /// Which of RIA's two relative importances count
    #[arg(long, value_enum, help_heading = RECIPE)]
    ria_parts: Option<PartsName>,
    /// Power of the activation norm in RIA
    #[arg(long, value_name = "A", value_parser = exponent, help_heading = RECIPE)]
    ria_exponent: Option<f32>,
    /// In which order the rows and columns of a layer are when its mask is chosen; it is stored with the layer
    #[arg(long, value_enum, help_heading = RECIPE)]
    permute: Option<PermuteName>,
    /// How the columns of a mask are chosen
    #[arg(long, value_enum, help_heading = RECIPE)]
    selection: Option<SelectionName>,
    /// Among how many columns at most the groups of a block choose; not for 2:4
    #[arg(long, value_name = "W", value_parser = super::positive, help_heading = RECIPE)]
    window: Option<usize>,
    /// What becomes of the kept weights
    #[arg(long, value_enum, help_heading = RECIPE)]
    update: Option<UpdateName>,
    /// How much of what the layers before have lost an update makes up for, 0 to 1
    #[arg(long, value_name = "SHARE", help_heading = RECIPE)]
    aim: Option<f64>,
    /// What a layer has before it in its block when it is calibrated: dense layers (one look a block), or pruned ones
    #[arg(long, value_enum, help_heading = RECIPE)]
    order: Option<OrderName>,
    #[command(flatten)]
    values: ValueArgs,
    /// Only modules that match this glob, or regular expression after `re:` [default: all linear layers but
    /// those behind the blocks: lm_head, classifiers]
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// No modules that match this glob, or regular expression after `re:`
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    device: super::device::DeviceArgs,
    /// Refuse to begin if more than this many bytes of memory are expected, also written as 500M or 1.5GiB
    #[arg(long, value_name = "BYTES", value_parser = super::size)]
    max_memory: Option<u64>,
    /// Only write the calibration samples, a line of token ids each, for other tools to prune on the same
    #[arg(long, value_name = "FILE", requires = "calibration")]
    write_samples: Option<PathBuf>,
    /// Only say what would be done: layers, peak memory, sizes
    #[arg(long)]
    dry_run: bool,
    /// Replace the output if it exists, discard unfinished output of other settings
    #[arg(long)]
    force: bool,
}

fn exponent(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|&a: &f32| a >= 0.0 && a.is_finite()).ok_or_else(|| "must be 0 or more".to_owned())
}

/// Which built-in recipe.
#[derive(Clone, Copy, ValueEnum)]
enum Effort {
    /// masks only
    Low,
    /// masks of free columns, and least squares
    Default,
    /// all there is
    High,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CriterionName {
    /// |W|
    Magnitude,
    /// |W|·‖X‖
    Wanda,
    /// relative importance and activations
    Ria,
}

#[derive(Clone, Copy, ValueEnum)]
enum PartsName {
    /// their sum, as published
    Both,
    /// relative to the input channel
    Column,
    /// relative to the output channel
    Row,
}

#[derive(Clone, Copy, ValueEnum)]
enum PermuteName {
    /// as they are
    None,
    /// rows that keep the same columns together
    Rows,
    /// rows and columns by the paper's alternating assignments
    Paper,
}

#[derive(Clone, Copy, ValueEnum)]
enum SelectionName {
    /// the columns of a block with the largest L1 norm of scores
    Paper,
    /// the columns of a block whose kept scores have the largest sum
    Exact,
    /// the best columns of a window, put in groups
    Top,
    /// the columns of a window by linear assignment to groups
    Assignment,
}

#[derive(Clone, Copy, ValueEnum)]
enum UpdateName {
    /// nothing
    None,
    /// masked least squares
    Lsq,
    /// the SparseGPT sweep, which chooses its mask itself
    Sparsegpt,
    /// ADMM, in which mask and weights settle together, and least squares
    Alps,
    /// the mask moves, the weights stay
    Dsnot,
}

#[derive(Clone, Copy, ValueEnum)]
enum OrderName {
    /// dense layers
    Block,
    /// pruned layers
    Layer,
}

impl Args {
    fn options(&self, seed: u64) -> Result<Options> {
        let plan = self.plan.as_deref().map(PlanFile::read).transpose()?;
        let recipe = self.recipe(plan.as_ref())?;
        let planned_values = plan.as_ref().map(PlanFile::value_type).transpose()?;
        Ok(Options {
            recipe,
            values: self.values.value_type()?.or(planned_values),
            patterns: match (self.pattern, plan) {
                (Some(pattern), _) => Patterns::Uniform(pattern),
                (None, Some(plan)) => Patterns::Planned(Box::new(plan)),
                (None, None) => return Err(UsageError("pass --pattern or --plan".to_owned()).into()),
            },
            layers: Selector::new(&self.include, &self.exclude)?,
            calibration: self.calibration.calibration(None, seed),
            device: self.device.open(None)?,
            force: self.force,
        })
    }

    /// The named recipe, or the one that a plan was made for, with the settings that are given beside it.
    fn recipe(&self, plan: Option<&PlanFile>) -> Result<Recipe> {
        let named = match (&self.recipe, self.effort) {
            (Some(name), _) => name,
            (None, Some(Effort::Low)) => "low",
            (None, Some(Effort::Default)) => "default",
            (None, Some(Effort::High)) => "high",
            (None, None) => plan.map_or("default", |plan| &plan.recipe),
        };
        let mut recipe = Recipe::named(named)?;
        match self.criterion {
            Some(CriterionName::Magnitude) => recipe.criterion = Criterion::Magnitude,
            Some(CriterionName::Wanda) => recipe.criterion = Criterion::Wanda,
            Some(CriterionName::Ria) => recipe.criterion = Criterion::Ria(Ria::default()),
            None => {}
        }
        match &mut recipe.criterion {
            Criterion::Ria(ria) => {
                ria.exponent = self.ria_exponent.unwrap_or(ria.exponent);
                match self.ria_parts {
                    Some(PartsName::Both) => ria.parts = RiaParts::Both,
                    Some(PartsName::Column) => ria.parts = RiaParts::Column,
                    Some(PartsName::Row) => ria.parts = RiaParts::Row,
                    None => {}
                }
            }
            other if self.ria_parts.is_some() || self.ria_exponent.is_some() => {
                let problem = format!("--ria-parts and --ria-exponent are for RIA; the criterion is {}", other.name());
                return Err(UsageError(problem).into());
            }
            _ => {}
        }
        match self.permute {
            Some(PermuteName::None) => recipe.permute = Permute::None,
            Some(PermuteName::Rows) => recipe.permute = Permute::Rows,
            Some(PermuteName::Paper) => recipe.permute = Permute::Paper,
            None => {}
        }
        match self.selection {
            Some(SelectionName::Paper) => recipe.selection = Selection::Paper,
            Some(SelectionName::Exact) => recipe.selection = Selection::Exact,
            Some(SelectionName::Top) => recipe.selection = Selection::Top,
            Some(SelectionName::Assignment) => recipe.selection = Selection::Assignment,
            None => {}
        }
        if matches!(self.selection, Some(SelectionName::Paper | SelectionName::Exact)) && self.window.is_none() {
            recipe.window = None;
        }
        recipe.window = self.window.or(recipe.window);
        match self.update {
            Some(UpdateName::None) => recipe.update = Update::None,
            Some(UpdateName::Lsq) => recipe.update = Update::Lsq,
            Some(UpdateName::Sparsegpt) => recipe.update = Update::SparseGpt,
            Some(UpdateName::Alps) => recipe.update = Update::Alps,
            Some(UpdateName::Dsnot) => recipe.update = Update::DsNoT,
            None => {}
        }
        recipe.aim = self.aim.unwrap_or(recipe.aim);
        match self.order {
            Some(OrderName::Block) => recipe.order = Order::Block,
            Some(OrderName::Layer) => recipe.order = Order::Layer,
            None => {}
        }
        recipe.checked().map_err(|problem| UsageError(problem).into())
    }
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let job = Job::new(&args.model, args.options(ui.seed)?)?;
    if let Some(path) = &args.write_samples {
        job.write_samples(path)?;
        ui.note(&format!("wrote {}; nothing was pruned", path.display()));
        return Ok(());
    }
    if args.dry_run {
        let forecast = job.forecast()?;
        ui.result(&forecast, || forecast_text(&forecast));
        return Ok(());
    }
    if let Some(most) = args.max_memory {
        let expected = job.forecast()?.peak_memory_bytes;
        if expected > most {
            let (expected, most) = (bytes(expected), bytes(most));
            let ways = "give fewer --calibration-samples, a lower --effort or --aim 0, or allow more";
            return Err(UsageError(format!("--max-memory {most}: about {expected} are needed; {ways}")).into());
        }
    }
    let progress = ui.progress("prune", job.steps());
    let report = job.run(&args.output, &progress)?;
    progress.finish_and_clear();
    if report.resumed_shards > 0 {
        ui.note(&format!("went on after {} finished shards of an interrupted run", report.resumed_shards));
    }
    let reached = job.plan().map_or(Ok(vec![]), |plan| reached(plan, &args.output))?;
    let mut json = serde_json::to_value(&report)?;
    if job.plan().is_some() {
        json["reached"] = serde_json::to_value(&reached)?;
    }
    ui.result(&json, || report_text(&report, ui.verbose) + &reached_text(&reached));
    Ok(())
}

fn forecast_text(forecast: &Forecast) -> String {
    let row = |l: &lacuna::prune::LayerForecast| {
        let (before, after) = (bytes(l.bytes_before), bytes(l.bytes_after));
        let shape = format!("{}x{}", l.shape[0], l.shape[1]);
        vec![l.name.clone(), shape, l.pattern.clone(), format!("{:.4}", l.density), before, after]
    };
    let rows: Vec<Vec<String>> = forecast.layers.iter().map(row).collect();
    format!(
        "{}\n{} layers to prune; nothing was written\nweights      {} -> {}\npeak memory  about {}\n",
        table(&["layer", "shape", "pattern", "density", "before", "after"], &rows),
        forecast.layers.len(),
        bytes(forecast.bytes_before),
        bytes(forecast.bytes_after),
        bytes(forecast.peak_memory_bytes),
    )
}

fn report_text(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    if verbose {
        let row = |l: &lacuna::prune::LayerReport| {
            let numbers = [l.density, l.retained_score, l.relative_error].into_iter().chain(l.quantization_error);
            let texts = numbers.map(|n| format!("{n:.4}"));
            [l.name.clone(), l.pattern.clone()].into_iter().chain(texts).collect()
        };
        let rows: Vec<Vec<String>> = report.layers.iter().map(row).collect();
        let mut heads = vec!["layer", "pattern", "density", "score kept", "relative error"];
        heads.extend(largest_rounding(report).map(|_| "rounding error"));
        text += &table(&heads, &rows);
        text.push('\n');
    }
    let share = |after: u64, before: u64| format!("{:.3}", after as f64 / before.max(1) as f64);
    let line = |what: &str, before, after| {
        format!("{what}  {} -> {}  ({} of before)\n", bytes(before), bytes(after), share(after, before))
    };
    text += &format!("pruned {} layers into {}\n", report.layers.len(), report.output.display());
    text += &line("pruned layers", report.pruned_bytes_before, report.pruned_bytes_after);
    text += &line("whole model  ", report.bytes_before, report.bytes_after);
    if let Some(error) = largest_rounding(report) {
        text += &format!("rounding       at most {error:.4} of the kept weights of a layer\n");
    }
    text += &format!("{:.1} s", report.seconds);
    if let Some(peak) = report.peak_rss_bytes {
        text += &format!(", peak memory {}", bytes(peak));
    }
    text.push('\n');
    text
}

/// What a plan promised, beside what came of it.
fn reached_text(reached: &[Reached]) -> String {
    let line = |r: &Reached| format!("speed-up       {:.2} at {} (target {:.2})\n", r.speedup, r.case, r.target);
    reached.iter().map(line).collect()
}

/// The largest error of rounding to integers among the layers, if they were rounded.
fn largest_rounding(report: &Report) -> Option<f64> {
    report.layers.iter().filter_map(|layer| layer.quantization_error).max_by(f64::total_cmp)
}
