//! What pruning without training costs: every recipe on every checkpoint at every pattern, with several seeds. Runs are
//! lines of a record; those that are there already are not made again. The record becomes the tables of `docs/results.md`.

mod aims;
mod explain;
mod table;
mod training;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::root;

/// Where runs are recorded, and what the public code of the methods' authors came to.
const RECORD: &str = "bench/record/results.jsonl";
const AUTHORS: &str = "bench/record/results-authors.jsonl";
/// What each row takes, all of them on one machine.
const TIMES: &str = "bench/record/results-times.jsonl";
/// The pattern that rows are timed at, and budgets compared.
const TIMED: &str = "64:2:8";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Make no run that would begin after so many minutes; what is missing stays missing in the tables
    #[arg(long, default_value_t = 720)]
    minutes: u64,
    /// What training wins back, instead of what pruning costs; needs `cargo build --release --features train`
    #[arg(long, conflicts_with = "seeds")]
    training: bool,
    /// Time every row at 64:2:8 instead: on an idle machine, and all of them on the same one
    #[arg(long, conflicts_with_all = ["training", "seeds", "pattern"])]
    times: bool,
    /// Ask instead how well figures of a pattern rank what pruning to it costs (`plan --explain`)
    #[arg(long, conflicts_with_all = ["training", "times", "seeds", "pattern", "row"])]
    explain: bool,
    /// Only this checkpoint
    #[arg(long)]
    model: Option<String>,
    /// Only this row of the tables
    #[arg(long)]
    row: Option<String>,
    /// Only this pattern
    #[arg(long)]
    pattern: Option<String>,
    /// Seeds 0 to N - 1
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: u64,
}

/// A checkpoint of `../shared`, with the data that it is calibrated and measured on.
struct Model {
    name: &'static str,
    calibration: &'static str,
    /// fewer than there are, so that seeds differ
    calibration_flags: &'static [&'static str],
    evaluation: &'static str,
    evaluation_flags: &'static [&'static str],
    /// what the tables show of it, and how a loss of the metric is written
    metric: &'static str,
    gap: Gap,
}

/// How far a pruned model is from the dense one.
#[derive(Clone, Copy)]
enum Gap {
    /// of the mean negative log-likelihood
    Nats,
    /// of a metric between 0 and 1, in hundredths
    Points,
}

impl Gap {
    fn between(self, dense: &Value, other: &Value) -> Result<f64> {
        Ok(match self {
            Self::Nats => number(other, "nll")? - number(dense, "nll")?,
            Self::Points => 100.0 * (number(dense, "value")? - number(other, "value")?),
        })
    }
}

const STORIES: &[&str] = &["--calibration-samples", "64", "--calibration-length", "512"];
const MODELS: [Model; 4] = [
    Model {
        name: "stories-3m",
        calibration: "text/tinystories-calib.txt",
        calibration_flags: STORIES,
        evaluation: "text/tinystories-eval.jsonl",
        evaluation_flags: &[],
        metric: "nats of NLL above the dense model on tinystories-eval; 64 calibration samples of 512 tokens",
        gap: Gap::Nats,
    },
    Model {
        name: "tinystories-656k",
        calibration: "text/tinystories-calib.txt",
        calibration_flags: STORIES,
        evaluation: "text/tinystories-eval.jsonl",
        evaluation_flags: &[],
        metric: "nats of NLL above the dense model on tinystories-eval; 64 calibration samples of 512 tokens",
        gap: Gap::Nats,
    },
    Model {
        name: "minilm-l6",
        calibration: "stsb/sts-train.csv",
        calibration_flags: &["--calibration-samples", "512"],
        evaluation: "stsb/sts-dev.csv",
        evaluation_flags: &[],
        metric: "hundredths of Spearman lost on STS-B dev; 512 sentences of STS-B train",
        gap: Gap::Points,
    },
    Model {
        name: "vit-tiny",
        calibration: "imagenet-sample",
        calibration_flags: &["--calibration-samples", "64"],
        evaluation: "imagenet-sample",
        evaluation_flags: &["--split", "held-out"],
        metric: "points of top-1 lost on the 400 held-out images; 64 images of the calibration split",
        gap: Gap::Points,
    },
];

const PATTERNS: [&str; 5] = ["2:4", "64:2:5", "64:2:6", "64:2:8", "64:2:16"];
/// What `mixed` chooses among.
const MIXED_PATTERNS: &str = "2:4,64:2:5,64:2:6,64:2:7,64:2:8,64:2:10,64:2:12,64:2:16,64:2:24,64:2:32";

/// A row of the tables.
struct Row {
    name: &'static str,
    /// those of `prune`
    flags: &'static [&'static str],
    /// how `plan` gives each layer a pattern of its own, at the density of the uniform one
    by: Option<&'static str>,
}

const fn uniform(name: &'static str, flags: &'static [&'static str]) -> Row {
    Row { name, flags, by: None }
}

const fn budget(name: &'static str, by: &'static str) -> Row {
    Row { name, flags: &["--effort", "high"], by: Some(by) }
}

/// 2:4 is plain in all of them.
const ROWS: [Row; 10] = [
    uniform("magnitude", &["--recipe", "magnitude"]),
    uniform("Wanda", &["--recipe", "wanda"]),
    uniform("RIA", &["--recipe", "ria"]),
    uniform("paper", &["--recipe", "paper"]),
    uniform("DSnoT", &["--recipe", "dsnot"]),
    uniform("SparseGPT", &["--recipe", "sparsegpt"]),
    uniform("ALPS", &["--recipe", "alps"]),
    uniform("ours, default", &["--effort", "default"]),
    uniform(HIGH, &["--effort", "high"]),
    budget(MIXED, SENSITIVITY),
];
const HIGH: &str = "ours, high";
const MIXED: &str = "ours, mixed";
const SENSITIVITY: &str = "sensitivity";
/// Cheaper ways than sensitivity to share out a density, at one pattern.
const BUDGETS: [Row; 3] =
    [budget("ours, OWL", "owl"), budget("ours, AlphaPruning", "alpha"), budget("ours, ATP", "atp")];
/// A line of the record that is no row: the model before pruning.
const DENSE: &str = "dense";

pub(crate) fn run(args: &Args) -> Result<()> {
    let shared = root().join("../shared");
    if !shared.join("models").is_dir() {
        bail!("../shared is not here: results are measured on its checkpoints");
    }
    let until = Instant::now() + Duration::from_secs(60 * args.minutes);
    if args.training {
        training::run(until, args.model.as_deref(), args.row.as_deref(), args.pattern.as_deref())?;
        return write_tables();
    }
    let wanted = |only: &Option<String>, name: &str| only.as_ref().is_none_or(|only| only == name);
    if args.explain {
        for model in MODELS.iter().filter(|model| wanted(&args.model, model.name)) {
            if Instant::now() < until && !is_known(explain::RECORD, &json!({ "model": model.name }))? {
                note(explain::RECORD, &explain::measure(&shared, model)?)?;
            }
        }
        return write_tables();
    }
    if args.times {
        for model in MODELS.iter().filter(|model| wanted(&args.model, model.name)) {
            for row in ROWS.iter().filter(|row| wanted(&args.row, row.name)) {
                if Instant::now() < until && !is_known(TIMES, &json!({ "model": model.name, "row": row.name }))? {
                    note(TIMES, &measure(&shared, model, row, TIMED, 0)?)?;
                }
            }
        }
        return write_tables();
    }
    for model in MODELS.iter().filter(|model| wanted(&args.model, model.name)) {
        let mut key = json!({ "model": model.name, "row": DENSE });
        if !is_known(RECORD, &key)? {
            let quality = dense(&shared, model)?;
            for field in ["value", "cross_entropy"] {
                key[field] = quality[field].clone();
            }
            note(RECORD, &key)?;
        }
    }
    // A seed of everything before the next seed, so that a run cut short has whole tables.
    'runs: for seed in 0..args.seeds {
        for model in MODELS.iter().filter(|model| wanted(&args.model, model.name)) {
            for pattern in PATTERNS.iter().filter(|pattern| wanted(&args.pattern, pattern)) {
                let budgets = BUDGETS.iter().filter(|_| *pattern == TIMED);
                for row in ROWS.iter().chain(budgets).filter(|row| wanted(&args.row, row.name)) {
                    if Instant::now() > until {
                        eprintln!("results: {} minutes are over", args.minutes);
                        break 'runs;
                    }
                    let key = json!({ "model": model.name, "row": row.name, "pattern": pattern, "seed": seed });
                    if !is_known(RECORD, &key)? {
                        let started = Instant::now();
                        let line = measure(&shared, model, row, pattern, seed)?;
                        eprintln!("{:.0} s", started.elapsed().as_secs_f64());
                        note(RECORD, &line)?;
                    }
                }
            }
        }
    }
    write_tables()
}

fn write_tables() -> Result<()> {
    let path = root().join("docs/results.md");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let text = table::written(&text, &lines(RECORD)?, &lines(AUTHORS)?, &lines(TIMES)?)?;
    let text = explain::written(&text, &lines(explain::RECORD)?)?;
    std::fs::write(&path, table::with_training(&text, &lines(training::RECORD)?)?)?;
    Ok(())
}

/// Adds a run to a record.
fn note(record: &str, line: &Value) -> Result<()> {
    eprintln!("{line}");
    let path = root().join(record);
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    writeln!(file, "{line}").with_context(|| path.display().to_string())
}

/// Whether a record has a run that is all that the key says.
fn is_known(record: &str, key: &Value) -> Result<bool> {
    let key = key.as_object().context("a key is an object")?;
    Ok(lines(record)?.iter().any(|line| key.iter().all(|(field, value)| line[field] == *value)))
}

fn lines(path: &str) -> Result<Vec<Value>> {
    let path = root().join(path);
    let text = if path.exists() { std::fs::read_to_string(&path)? } else { String::new() };
    text.lines().map(|line| serde_json::from_str(line).with_context(|| path.display().to_string())).collect()
}

/// Prunes and evaluates.
fn measure(shared: &Path, model: &Model, row: &Row, pattern: &str, seed: u64) -> Result<Value> {
    let work = work()?;
    let (source, output, plan) = (shared.join("models").join(model.name), work.join("model"), work.join("plan.json"));
    let calibration = calibration(shared, model, seed);
    let mut prune = lacuna("prune", &[&source, &output]);
    prune.args(&calibration).args(row.flags).arg("--force");
    let mut plan_seconds = 0.0;
    if let Some(by) = row.by {
        let m: f64 = pattern.rsplit(':').next().and_then(|m| m.parse().ok()).context("a pattern")?;
        let density = (2.0 / m).to_string();
        let mut planning = lacuna("plan", &[&source, &plan]);
        planning.args(["--by", by, "--density", &density, "--patterns", MIXED_PATTERNS, "--force"]);
        if by == SENSITIVITY {
            let (measured, seconds) = sensitivities(&source, &calibration, &format!("{}-{seed}", model.name))?;
            plan_seconds = seconds;
            planning.arg("--measured").arg(&measured);
        } else {
            planning.args(&calibration);
        }
        let started = Instant::now();
        answer(&mut planning)?;
        plan_seconds += started.elapsed().as_secs_f64();
        prune.arg("--plan").arg(&plan);
    } else {
        prune.args(["--pattern", pattern]);
    }
    let pruned = answer(&mut prune)?;
    let (quality, dense) = (evaluate(shared, model, &output)?, dense(shared, model)?);
    let gap = model.gap.between(&dense, &quality)?;
    Ok(json!({
        "model": model.name, "row": row.name, "pattern": pattern, "seed": seed, "gap": gap,
        "value": quality["value"], "cross_entropy": quality["cross_entropy"],
        "bytes": pruned["pruned_bytes_after"], "seconds": number(&pruned, "seconds")? + plan_seconds,
        "peak_rss_bytes": pruned["peak_rss_bytes"],
    }))
}

/// The flags of a checkpoint's calibration data.
fn calibration(shared: &Path, model: &Model, seed: u64) -> Vec<String> {
    let data = shared.join("data").join(model.calibration).display().to_string();
    let mut flags = vec!["--calibration".to_owned(), data, "--seed".to_owned(), seed.to_string()];
    flags.extend(model.calibration_flags.iter().map(|flag| (*flag).to_owned()));
    flags
}

/// A plan that has the sensitivities of a checkpoint's layers, and the seconds that it took: made once for all densities.
fn sensitivities(source: &PathBuf, calibration: &[String], name: &str) -> Result<(PathBuf, f64)> {
    let (plan, took) = (work()?.join(format!("{name}-plan.json")), work()?.join(format!("{name}-plan-seconds.json")));
    if !took.exists() {
        let started = Instant::now();
        let mut planning = lacuna("plan", &[source, &plan]);
        planning.args(["--by", SENSITIVITY, "--density", "0.25", "--patterns", MIXED_PATTERNS, "--force"]);
        answer(planning.args(calibration))?;
        std::fs::write(&took, started.elapsed().as_secs_f64().to_string())?;
    }
    Ok((plan, std::fs::read_to_string(&took)?.parse()?))
}

fn evaluate(shared: &Path, model: &Model, checkpoint: &PathBuf) -> Result<Value> {
    let data = shared.join("data").join(model.evaluation);
    answer(lacuna("eval", &[checkpoint]).arg("--data").arg(data).args(model.evaluation_flags))
}

/// What the dense model comes to.
fn dense(shared: &Path, model: &Model) -> Result<Value> {
    evaluate_once(shared, model, &shared.join("models").join(model.name), model.name)
}

/// What a checkpoint that stays as it is comes to: measured once, then found by its name.
fn evaluate_once(shared: &Path, model: &Model, checkpoint: &PathBuf, name: &str) -> Result<Value> {
    let path = work()?.join(format!("{name}.json"));
    if !path.exists() {
        std::fs::write(&path, evaluate(shared, model, checkpoint)?.to_string())?;
    }
    Ok(serde_json::from_str(&std::fs::read_to_string(&path)?)?)
}

/// Where checkpoints and evaluations are kept between runs.
fn work() -> Result<PathBuf> {
    let work = root().join("target/results");
    std::fs::create_dir_all(&work)?;
    Ok(work)
}

fn number(value: &Value, field: &str) -> Result<f64> {
    value[field].as_f64().with_context(|| format!("no {field} in {value}"))
}

fn lacuna(command: &str, paths: &[&PathBuf]) -> Command {
    let mut lacuna = Command::new(root().join("target/release/lacuna"));
    lacuna.arg(command).args(paths).args(["--json", "--quiet"]);
    lacuna
}

/// What a command of ours answers.
fn answer(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("{command:?}: build it with cargo build --release"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
