//! What training wins back, by method and setting: the same pruned checkpoint, data, batches and number of steps for all that
//! are compared.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{MODELS, Model, answer, dense, evaluate, evaluate_once, is_known, lacuna, note, work};
use crate::root;

/// Where runs are recorded.
pub(super) const RECORD: &str = "bench/record/training.jsonl";

/// What runs have alike that are compared.
pub(super) const STEPS: usize = 200;
const COMPARED: &[&str] = &["--batch", "16", "--length", "256", "--data", "self", "--self-samples", "1024"];

/// Places in a recipe, and what is there instead.
type Changed = &'static [(&'static str, f64)];

/// A longer run, of how far one gets.
pub(super) struct Long {
    pub(super) model: &'static str,
    pub(super) pattern: &'static str,
    pub(super) method: &'static str,
    pub(super) steps: usize,
    /// settings of the recipe that are changed
    pub(super) changed: Changed,
    /// of `recover`
    pub(super) flags: &'static [&'static str],
    /// what the project set out to reach, in the unit of the model's gap
    pub(super) target: &'static str,
}

const STORIES: &[&str] = &["--batch", "4", "--length", "256", "--data", "self", "--self-samples", "8192"];
const STORIES_BF16: &[&str] =
    &["--batch", "4", "--length", "256", "--data", "self", "--self-samples", "8192", "--bf16", "--lr", "0.015"];
/// Moments over more steps, where steps have few samples.
const SLOW: Changed = &[("/optimizer/betas/1", 0.999)];

/// One a checkpoint and pattern of the targets.
pub(super) const LONG: [Long; 5] = [
    stories("2:4", 8000, SLOW, STORIES_BF16, "0.12"),
    stories("64:2:5", 12000, &[], STORIES, "0.25"),
    stories("64:2:8", 3000, SLOW, STORIES_BF16, "a quarter of the gap before"),
    Long {
        model: "minilm-l6",
        pattern: "64:2:8",
        method: "text-encoder",
        steps: 300,
        changed: &[],
        flags: &["--batch", "64", "--bf16"],
        target: "3",
    },
    Long {
        model: "vit-tiny",
        pattern: "64:2:5",
        method: "image-classifier",
        steps: 600,
        changed: &[],
        flags: &["--batch", "16", "--bf16"],
        target: "3",
    },
];

const fn stories(
    pattern: &'static str,
    steps: usize,
    changed: Changed,
    flags: &'static [&'static str],
    target: &'static str,
) -> Long {
    Long { model: "stories-3m", pattern, method: "masked", steps, changed, flags, target }
}

/// Rows that are compared on a checkpoint.
pub(super) struct Comparison {
    pub(super) model: &'static str,
    pub(super) patterns: &'static [&'static str],
    pub(super) rows: &'static [Row],
}

/// All methods on the small decoder, whose runs take a quarter of the time, and what settings do there; some on the other.
pub(super) const COMPARISONS: [Comparison; 3] = [
    Comparison { model: "stories-3m", patterns: &["64:2:8"], rows: &FEW },
    Comparison { model: "tinystories-656k", patterns: &["2:4", "64:2:8"], rows: &METHODS },
    Comparison { model: "tinystories-656k", patterns: &["64:2:8"], rows: &SETTINGS },
];

/// A row: its name, the recipe, and settings of it that are changed.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// the recipe, and another one for the second half of the steps
    method: &'static str,
    then: Option<&'static str>,
    changed: Changed,
    /// how the checkpoint is pruned before
    pruned: &'static [&'static str],
    /// of `recover`
    flags: &'static [&'static str],
}

const OURS: &[&str] = &["--effort", "high"];
const RIA: &[&str] = &["--recipe", "ria"];
const PAPER: &[&str] = &["--recipe", "paper"];

const fn method(name: &'static str) -> Row {
    Row { name, method: name, then: None, changed: &[], pruned: OURS, flags: &[] }
}

const fn changed(name: &'static str, method: &'static str, changed: Changed) -> Row {
    Row { name, method, then: None, changed, pruned: OURS, flags: &[] }
}

const fn after(name: &'static str, method: &'static str, pruned: &'static [&'static str]) -> Row {
    Row { name, method, then: None, changed: &[], pruned, flags: &[] }
}

const FEW: [Row; 3] = [method("masked"), method("lora"), method("lora3")];

const METHODS: [Row; 14] = [
    method("masked"),
    method("squarehead"),
    method("ste"),
    method("sr-ste"),
    method("ast"),
    method("mdgf"),
    method("step"),
    method("dsd"),
    method("maskllm"),
    method("joint"),
    Row {
        name: "maskllm, then masked",
        method: "maskllm",
        then: Some("masked"),
        changed: &[],
        pruned: OURS,
        flags: &[],
    },
    method("lora"),
    method("lora3"),
    method("blockwise"),
];

/// What rounded products and the ends of the model do, how the stages are split, how often masks are selected again, how hard dropped weights are pulled to 0, and whether what a
/// permutation gains before training is there behind it too.
const SETTINGS: [Row; 19] = [
    Row { name: "masked, --bf16", method: "masked", then: None, changed: &[], pruned: OURS, flags: &["--bf16"] },
    changed("masked, blocks alone", "masked", &[("/ends", 0.0)]),
    changed("lora, ends too", "lora", &[("/ends", 1.0)]),
    changed("lora3, dense 2 %, masks move 30 %", "lora3", &[("/phases/1/share", 0.3)]),
    changed("lora3, dense 10 %, masks move 10 %", "lora3", &[("/phases/0/share", 0.1), ("/phases/1/share", 0.1)]),
    changed("lora3, dense 30 %, masks move 30 %", "lora3", &[("/phases/0/share", 0.3), ("/phases/1/share", 0.3)]),
    changed("ste, masks again after 1 step", "ste", &[("/phases/0/masks/refreshed/every", 1.0)]),
    changed("ste, after 40", "ste", &[("/phases/0/masks/refreshed/every", 40.0)]),
    changed("ste, after 200", "ste", &[("/phases/0/masks/refreshed/every", 200.0)]),
    changed("sr-ste, λ 2e-5", "sr-ste", &[("/phases/0/decay/0", 2e-5), ("/phases/0/decay/1", 2e-5)]),
    changed("sr-ste, λ 2e-3", "sr-ste", &[("/phases/0/decay/0", 2e-3), ("/phases/0/decay/1", 2e-3)]),
    changed("sr-ste, λ 2e-2", "sr-ste", &[("/phases/0/decay/0", 2e-2), ("/phases/0/decay/1", 2e-2)]),
    changed("sr-ste, λ 2e-1", "sr-ste", &[("/phases/0/decay/0", 0.2), ("/phases/0/decay/1", 0.2)]),
    after("masked, from RIA", "masked", RIA),
    after("masked, from RIA with permutation", "masked", PAPER),
    after("lora, from RIA", "lora", RIA),
    after("lora, from RIA with permutation", "lora", PAPER),
    after("lora3, from RIA", "lora3", RIA),
    after("lora3, from RIA with permutation", "lora3", PAPER),
];

/// Makes the runs that the record has not, until the time is over.
pub(super) fn run(until: Instant, model: Option<&str>, row: Option<&str>, pattern: Option<&str>) -> Result<()> {
    let wanted = |only: Option<&str>, name: &str| only.is_none_or(|only| only == name);
    for of in COMPARISONS.iter().filter(|of| wanted(model, of.model)) {
        for name in of.patterns.iter().filter(|name| wanted(pattern, name)) {
            for row in of.rows.iter().filter(|known| wanted(row, known.name)) {
                let key = json!({ "model": of.model, "row": row.name, "pattern": name, "steps": STEPS });
                if is_known(RECORD, &key)? {
                    continue;
                }
                if Instant::now() > until {
                    return Ok(());
                }
                let methods =
                    std::iter::once(changed_recipe(row.method, row.changed)?).chain(row.then.map(str::to_owned));
                let flags = [COMPARED, row.flags].concat();
                note(RECORD, &measure(key, row.pruned, &methods.collect::<Vec<_>>(), &flags)?)?;
            }
        }
    }
    for long in LONG.iter().filter(|long| wanted(model, long.model) && wanted(pattern, long.pattern)) {
        let Long { model, pattern, steps, method, changed, flags, .. } = long;
        let key = json!({ "model": model, "row": long.row(), "pattern": pattern, "steps": steps });
        if !wanted(row, &long.row()) || is_known(RECORD, &key)? {
            continue;
        }
        if Instant::now() > until {
            return Ok(());
        }
        note(RECORD, &measure(key, OURS, &[changed_recipe(method, changed)?], flags)?)?;
    }
    Ok(())
}

impl Long {
    /// What the run is called in the record.
    pub(super) fn row(&self) -> String {
        format!("long, {}", self.method)
    }
}

/// A built-in recipe with other settings, as a file.
fn changed_recipe(method: &str, changed: Changed) -> Result<String> {
    let file = root().join(format!("crates/lacuna/recipes/recover/{method}.json"));
    let mut settings: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    for (place, value) in changed {
        let setting = settings.pointer_mut(place).with_context(|| format!("{method} has no {place}"))?;
        *setting = match setting {
            Value::Bool(_) => json!(*value != 0.0),
            Value::Number(old) if old.is_u64() => json!(*value as u64),
            _ => json!(value),
        };
    }
    let recipe = work()?.join("recipe.json");
    std::fs::write(&recipe, settings.to_string())?;
    Ok(recipe.display().to_string())
}

/// Prunes, recovers by one method after the other, which share the steps, and evaluates; `key` says what.
fn measure(mut key: Value, prune: &[&str], methods: &[String], flags: &[&str]) -> Result<Value> {
    let shared = root().join("../shared");
    let model = MODELS.iter().find(|model| key["model"] == model.name).context("a model of the results")?;
    let (source, data) = (shared.join("models").join(model.name), shared.join("data").join(model.calibration));
    let (mut from, before) = pruned(&shared, model, prune, key["pattern"].as_str().context("a pattern")?)?;
    let steps = key["steps"].as_u64().context("steps")? / methods.len() as u64;
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    for (i, method) in methods.iter().enumerate() {
        let output = work()?.join(format!("recovered-{i}"));
        let mut recover = lacuna("recover", &[&from, &output]);
        recover.arg("--dense").arg(&source).args(["--method", method]).arg("--data").arg(&data).args(flags);
        let found = answer(recover.arg("--steps").arg(steps.to_string()).arg("--force"))?;
        for field in ["flipped", "tokens", "seconds"] {
            key[field] = json!(number(&key[field]) + number(&found[field]));
        }
        key["peak_rss_bytes"] = json!(number(&key["peak_rss_bytes"]).max(number(&found["peak_rss_bytes"])));
        from = output;
    }
    let dense = dense(&shared, model)?;
    key["before"] = json!(model.gap.between(&dense, &before)?);
    key["gap"] = json!(model.gap.between(&dense, &evaluate(&shared, model, &from)?)?);
    Ok(key)
}

/// The checkpoint that a training begins with, and what it comes to: the same for all that begin with it.
fn pruned(shared: &Path, model: &Model, flags: &[&str], pattern: &str) -> Result<(PathBuf, Value)> {
    let name = format!("{}{}-{}", model.name, flags.concat(), pattern.replace(':', "-"));
    let output = work()?.join(&name);
    if !output.exists() {
        let mut prune = lacuna("prune", &[&shared.join("models").join(model.name), &output]);
        prune.arg("--calibration").arg(shared.join("data").join(model.calibration)).args(model.calibration_flags);
        answer(prune.args(flags).args(["--pattern", pattern]))?;
    }
    let quality = evaluate_once(shared, model, &output, &name)?;
    Ok((output, quality))
}
