//! `lacuna bench --kernels`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lacuna::kernel_bench::{Csv, Row, Settings, Shape, cpu, kernel_bench, known_shapes, today};
use lacuna_core::{Dtype, IntType, Pattern, ScaleGroup, ValueType};
use serde_json::json;

use super::ui::{Ui, table};

#[derive(clap::Args)]
#[command(next_help_heading = "With --kernels")]
pub(super) struct KernelArgs {
    /// Time single products instead of a model: sparse kernels beside dense ones, ours and those of rival engines
    #[arg(long, conflicts_with_all = ["model", "prompt_tokens", "decode_tokens", "batch", "activations", "rounds"])]
    pub(super) kernels: bool,
    /// Weights: layers of a model by name, or ROWSxCOLS
    #[arg(long, conflicts_with = "model", value_name = "NAME", value_delimiter = ',', value_parser = shapes,
        default_value = "llama-2-7b,llama-3-8b,qwen2-0.5b,bert-base,deit-base,square-4096")]
    shapes: Vec<Named>,
    /// Patterns of the sparse contestants
    #[arg(
        long,
        conflicts_with = "model",
        value_name = "PATTERN",
        value_delimiter = ',',
        default_value = "2:4,64:2:5,64:2:6,64:2:8,64:2:16,128:2:8"
    )]
    patterns: Vec<Pattern>,
    /// Types of the values
    #[arg(
        long,
        conflicts_with = "model",
        value_enum,
        value_name = "TYPE",
        value_delimiter = ',',
        default_value = "bf16,f32,int8,int4"
    )]
    values: Vec<ValuesName>,
    /// Columns of the activations
    #[arg(long, conflicts_with = "model", value_name = "N", value_delimiter = ',', value_parser = super::positive,
        default_value = "1,4,16,64,256,1024")]
    tokens: Vec<usize>,
    /// Seconds for which each contestant of a case is timed at least, twice
    #[arg(long, conflicts_with = "model", value_name = "SECONDS", value_parser = seconds, default_value = "0.2")]
    min_seconds: f64,
    /// Write the rows to a CSV file too
    #[arg(long, conflicts_with = "model", value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Replace the CSV file if it exists
    #[arg(long, requires = "csv")]
    force: bool,
}

/// The weights that one name means.
type Named = Vec<Shape>;

fn shapes(name: &str) -> Result<Named, lacuna::UsageError> {
    Shape::named(name)
}

fn seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&s: &f64| s >= 0.0 && s.is_finite()).ok_or_else(|| "must be 0 or more".to_owned())
}

#[derive(Clone, Copy, ValueEnum)]
enum ValuesName {
    Bf16,
    F32,
    /// with a scale for every 32
    Int8,
    /// with a scale for every 32
    Int4,
}

impl From<ValuesName> for ValueType {
    fn from(name: ValuesName) -> Self {
        match name {
            ValuesName::Bf16 => Dtype::Bf16.into(),
            ValuesName::F32 => Dtype::F32.into(),
            ValuesName::Int8 => Self::Int(IntType::Int8, ScaleGroup::Of32),
            ValuesName::Int4 => Self::Int(IntType::Int4, ScaleGroup::Of32),
        }
    }
}

pub(super) fn run(args: &KernelArgs, engines: &[String], ui: &Ui) -> Result<()> {
    let settings = Settings {
        shapes: Shape::merged(args.shapes.iter().flatten().cloned()),
        patterns: args.patterns.clone(),
        values: args.values.iter().map(|&name| name.into()).collect(),
        tokens: args.tokens.clone(),
        engines: engines.to_vec(),
        min_seconds: args.min_seconds,
        seed: ui.seed,
    };
    let mut csv = args.csv.as_deref().map(|path| Csv::create(path, args.force)).transpose()?;
    let progress = ui.progress("kernels", 0);
    let rows = kernel_bench(&settings, &progress, |row| csv.as_mut().map_or(Ok(()), |csv| csv.add(row)))?;
    progress.finish_and_clear();
    csv.map_or(Ok(()), Csv::finish)?;
    let threads = rayon::current_num_threads();
    ui.result(&json!({ "rows": rows, "threads": threads, "cpu": cpu(), "date": today() }), || {
        let head = [
            "shape",
            "tokens",
            "values",
            "pattern",
            "engine",
            "kernel",
            "µs",
            "rival",
            "ratio",
            "limit",
            "share",
            "over grouped",
            "checked",
        ];
        table(&head, &rows.iter().map(cells).collect::<Vec<_>>())
    });
    Ok(())
}

fn cells(row: &Row) -> Vec<String> {
    // Several names of one shape would fill the line.
    let name = row.shape.split(" + ").next().unwrap_or_default();
    let size = format!("{}x{}", row.rows, row.cols);
    vec![
        if name.ends_with(&size) { size } else { format!("{name} {size}") },
        row.tokens.to_string(),
        row.value_type.to_owned(),
        row.pattern.clone(),
        row.engine.clone(),
        row.variant.clone(),
        format!("{:.1}", row.seconds * 1e6),
        row.rival.clone(),
        format!("{:.2}", row.ratio),
        format!("{:.2}", row.limit),
        format!("{:.2}", row.share),
        row.over_grouped.map_or_else(|| "-".to_owned(), |over| format!("{over:.3}")),
        row.checked.map_or_else(|| "-".to_owned(), |off| format!("{off:.3}")),
    ]
}

/// For the help of `--shapes`.
pub(super) fn after_help() -> String {
    format!(
        "Examples:\n  lacuna bench ./sparse --threads 2 --batch 1 --json\n  lacuna bench --kernels --shapes qwen2-0.5b \
         --tokens 1,256 --engine 'python bench/engines/pytorch.py'\n\nNames for --shapes: {}",
        known_shapes()
    )
}
