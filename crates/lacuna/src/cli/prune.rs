//! `lacuna prune`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lacuna::UsageError;
use lacuna::calibrate::Calibration;
use lacuna::modules::Selector;
use lacuna::prune::{Aim, Order, Job, Options, Plan, Report};
use lacuna_core::{Dtype, IntType, Pattern, ScaleGroup, ValueType};
use lacuna_prune::score::{Ria, RiaParts};

use super::ui::{Ui, bytes, table};

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
    /// V:2:M keeps 2 of M values in each row and 4 of M columns in each block of V rows; 2:4 is the plain pattern
    #[arg(long)]
    pattern: Pattern,
    /// How weights are scored
    #[arg(long, value_enum, default_value_t = CriterionName::Ria)]
    criterion: CriterionName,
    /// Which of RIA's two relative importances count
    #[arg(long, value_enum, default_value_t = PartsName::Both)]
    ria_parts: PartsName,
    /// Power of the activation norm in RIA
    #[arg(long, default_value_t = 0.5, value_name = "A", value_parser = exponent)]
    ria_exponent: f32,
    /// How the 4 columns of a block are chosen
    #[arg(long, value_enum, default_value_t = SelectionName::Exact)]
    selection: SelectionName,
    #[arg(long, value_enum, default_value_t = UpdateName::None)]
    update: UpdateName,
    #[arg(long)]
    aim_dense: bool,
    #[arg(long)]
    by_layer: bool,
    /// Type of the kept values [default: that of the weights]
    #[arg(long, value_enum)]
    values: Option<ValuesName>,
    /// Kept values of a row under one scale, for --values int8 or int4 [default: 32]
    #[arg(long, value_enum, value_name = "N")]
    scale_group: Option<ScaleGroupName>,
    /// Only modules that match this glob, or regular expression after `re:` [default: all linear layers but
    /// those behind the blocks: lm_head, classifiers]
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// No modules that match this glob, or regular expression after `re:`
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Data to calibrate on: a text (.txt, or .jsonl with a "text" a line), for encoders sentences (a line each, or an STS
    /// file), for image classifiers a folder of images, of which every fifth by name is used and `eval` leaves it out
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Calibration samples at most
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = super::positive)]
    calibration_samples: usize,
    /// Tokens of a calibration sample [default: the model's context, at most 2048; of sentences: all, up to the context]
    #[arg(long, value_name = "N")]
    calibration_length: Option<usize>,
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

#[derive(Clone, Copy, ValueEnum)]
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
enum SelectionName {
    /// the columns with the largest L1 norm of scores
    Paper,
    /// the columns whose kept scores have the largest sum
    Exact,
}

#[derive(Clone, Copy, ValueEnum)]
enum UpdateName {
    None,
    Lsq,
    Sparsegpt,
    Alps,
    Dsnot,
}

#[derive(Clone, Copy, ValueEnum)]
enum ValuesName {
    F32,
    F16,
    Bf16,
    /// -127 to 127, times a scale
    Int8,
    /// -8 to 7, times a scale
    Int4,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScaleGroupName {
    #[value(name = "32")]
    Of32,
    #[value(name = "64")]
    Of64,
    #[value(name = "128")]
    Of128,
}

impl Args {
    fn options(&self, seed: u64) -> Result<Options> {
        let parts = match self.ria_parts {
            PartsName::Both => RiaParts::Both,
            PartsName::Column => RiaParts::Column,
            PartsName::Row => RiaParts::Row,
        };
        Ok(Options {
            pattern: self.pattern,
            criterion: match self.criterion {
                CriterionName::Magnitude => lacuna_prune::Criterion::Magnitude,
                CriterionName::Wanda => lacuna_prune::Criterion::Wanda,
                CriterionName::Ria => lacuna_prune::Criterion::Ria(Ria { parts, exponent: self.ria_exponent }),
            },
            selection: match self.selection {
                SelectionName::Paper => lacuna_prune::Selection::Paper,
                SelectionName::Exact => lacuna_prune::Selection::Exact,
            },
            update: match self.update {
                UpdateName::None => lacuna_prune::Update::None,
                UpdateName::Lsq => lacuna_prune::Update::Lsq,
                UpdateName::Sparsegpt => lacuna_prune::Update::SparseGpt,
                UpdateName::Alps => lacuna_prune::Update::Alps,
                UpdateName::Dsnot => lacuna_prune::Update::DsNoT,
            },
            aim: if self.aim_dense { Aim::Dense } else { Aim::Pruned },
            order: if self.by_layer { Order::Layer } else { Order::Block },
            values: self.value_type()?,
            layers: Selector::new(&self.include, &self.exclude)?,
            calibration: self.calibration.clone().map(|data| Calibration {
                data,
                samples: self.calibration_samples,
                length: self.calibration_length,
                seed,
            }),
            force: self.force,
        })
    }

    fn value_type(&self) -> Result<Option<ValueType>> {
        let group = self.scale_group.map(|group| match group {
            ScaleGroupName::Of32 => ScaleGroup::Of32,
            ScaleGroupName::Of64 => ScaleGroup::Of64,
            ScaleGroupName::Of128 => ScaleGroup::Of128,
        });
        let int = |int| ValueType::Int(int, group.unwrap_or_default());
        let values = self.values.map(|values| match values {
            ValuesName::F32 => Dtype::F32.into(),
            ValuesName::F16 => Dtype::F16.into(),
            ValuesName::Bf16 => Dtype::Bf16.into(),
            ValuesName::Int8 => int(IntType::Int8),
            ValuesName::Int4 => int(IntType::Int4),
        });
        if group.is_some() && values.and_then(ValueType::integers).is_none() {
            let problem = "--scale-group is for integers: pass --values int8 or int4 too, or leave it out";
            return Err(UsageError(problem.to_owned()).into());
        }
        Ok(values)
    }
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let job = Job::new(&args.model, args.options(ui.seed)?)?;
    if args.dry_run {
        let plan = job.plan()?;
        ui.result(&plan, || plan_text(&plan));
        return Ok(());
    }
    let progress = ui.progress("prune", job.steps());
    let report = job.run(&args.output, &progress)?;
    progress.finish_and_clear();
    if report.resumed_shards > 0 {
        ui.note(&format!("went on after {} finished shards of an interrupted run", report.resumed_shards));
    }
    ui.result(&report, || report_text(&report, ui.verbose));
    Ok(())
}

fn plan_text(plan: &Plan) -> String {
    let row = |l: &lacuna::prune::PlannedLayer| {
        let (before, after) = (bytes(l.bytes_before), bytes(l.bytes_after));
        let shape = format!("{}x{}", l.shape[0], l.shape[1]);
        vec![l.name.clone(), shape, l.pattern.clone(), format!("{:.4}", l.density), before, after]
    };
    let rows: Vec<Vec<String>> = plan.layers.iter().map(row).collect();
    format!(
        "{}\n{} layers to prune; nothing was written\nweights      {} -> {}\npeak memory  about {}\n",
        table(&["layer", "shape", "pattern", "density", "before", "after"], &rows),
        plan.layers.len(),
        bytes(plan.bytes_before),
        bytes(plan.bytes_after),
        bytes(plan.peak_memory_bytes),
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

/// The largest error of rounding to integers among the layers, if they were rounded.
fn largest_rounding(report: &Report) -> Option<f64> {
    report.layers.iter().filter_map(|layer| layer.quantization_error).max_by(f64::total_cmp)
}
