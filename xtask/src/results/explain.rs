//! How well figures that are cheap to have of a pattern rank what pruning to it costs.

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{MODELS, Model, answer, calibration, lacuna};

/// Where the answers are recorded.
pub(super) const RECORD: &str = "bench/record/results-explain.jsonl";

const BEGIN: &str = "<!-- tables: cargo xtask results --explain -->\n";
const END: &str = "<!-- end of tables -->";

/// What `plan --explain` says of a checkpoint.
pub(super) fn measure(shared: &Path, model: &Model) -> Result<Value> {
    let started = Instant::now();
    let mut plan = lacuna("plan", &[&shared.join("models").join(model.name)]);
    let said = answer(plan.arg("--explain").args(calibration(shared, model, 0)))?;
    Ok(json!({
        "model": model.name, "patterns": said["patterns"], "predictors": said["predictors"],
        "seconds": started.elapsed().as_secs_f64(),
    }))
}

/// The document with the table of these answers.
pub(super) fn written(text: &str, answers: &[Value]) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("docs/results.md has no place for predictors")?;
    let (_, after) = rest.split_once(END).context("docs/results.md has no end of predictors")?;
    let of = |model: &str| answers.iter().find(|answer| answer["model"] == model);
    let found: Vec<(&str, &Value)> = MODELS.iter().filter_map(|model| Some((model.name, of(model.name)?))).collect();
    let heads: String = found.iter().map(|(model, _)| format!(" {model} |")).collect();
    let mut table = format!("| |{heads}\n|---|{}\n", "---|".repeat(found.len()));
    let named = found.first().and_then(|(_, answer)| answer["predictors"].as_array()).map_or(&[][..], Vec::as_slice);
    for (i, predictor) in named.iter().enumerate() {
        let figure = |answer: &Value, of: &str| answer["predictors"][i][of].as_f64().unwrap_or(f64::NAN);
        let cell = |(_, answer): &(&str, &Value)| {
            format!(" {:.2} / {:.2} |", figure(answer, "spearman"), figure(answer, "kendall"))
        };
        let name = predictor["name"].as_str().context("a predictor has a name")?;
        writeln!(table, "| {name} |{}", found.iter().map(cell).collect::<String>())?;
    }
    Ok(format!("{before}{BEGIN}\n{table}\n{END}{after}"))
}
