//! The newest record of `bench/plans.py` as the table of docs/performance.md: a line of JSON a plan.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

/// What a plan may fall short of its target and go beyond it.
const BAND: [f64; 2] = [0.97, 1.15];

/// The table.
pub(super) fn table(record: &str, source: &str) -> Result<String> {
    let mut text = format!("`{source}`; ▼ what was reached is outside of −3 % to +15 % of what was asked for.\n\n");
    text += "| model, phase | batch | by | asked for | patterns (layers) | foreseen | measured by the plan | reached | metric |\n";
    text += "|---|---|---|---|---|---|---|---|---|\n";
    for (i, line) in record.lines().enumerate() {
        let run: Value = serde_json::from_str(line).with_context(|| format!("line {}", i + 1))?;
        let word = |field: &str| run[field].as_str().unwrap_or_default().to_owned();
        let number = |field: &str| run[field].as_f64().unwrap_or(f64::NAN);
        let (model, by, asked) = (word("model"), word("by"), number("speedup"));
        let start = format!("| {model} | {} | {by} | {asked:.1} |", run["batch"]);
        if let Some(refused) = run["refused"].as_str() {
            writeln!(text, "{start} refused: {refused} | | | | |")?;
            continue;
        }
        let counts = run["patterns"].as_object().context("patterns")?;
        let patterns: Vec<String> = counts.iter().map(|(pattern, layers)| format!("{pattern} ({layers})")).collect();
        let reached = number("reached");
        let outside = if (BAND[0]..=BAND[1]).contains(&(reached / asked)) { "" } else { " ▼" };
        let quality = &run["quality"];
        let metric = match (quality["metric"].as_str(), quality["dense"].as_f64(), quality["pruned"].as_f64()) {
            (Some(metric), Some(dense), Some(pruned)) => format!("{metric} {dense:.4} → {pruned:.4}"),
            _ => "–".to_owned(),
        };
        writeln!(
            text,
            "| {model}, {} | {} | {by} | {asked:.1} | {} | {:.2} | {:.2} | **{reached:.2}**{outside} | {metric} |",
            word("phase"),
            run["batch"],
            patterns.join(", "),
            number("predicted"),
            number("measured"),
        )?;
    }
    Ok(text)
}
