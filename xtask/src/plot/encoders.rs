//! The newest record of `bench/encoders.sh` as the table of docs/performance.md: a line of JSON a model and type of values.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

/// The table.
pub(super) fn table(record: &str, source: &str) -> Result<String> {
    let mut text = format!("`{source}`, batch 32, texts of 128 tokens; items are texts or images.\n\n");
    text += "| model | type | our dense, items/s | 64:2:8, items/s | fastest rival, items/s | to our dense | to the rival |\n";
    text += "|---|---|---|---|---|---|---|\n";
    for (i, line) in record.lines().enumerate() {
        let run: Value = serde_json::from_str(line).with_context(|| format!("line {}", i + 1))?;
        let rows = run["rows"].as_array().context("rows")?;
        let ours = |variant: &str| rows.iter().find(|row| row["engine"] == "lacuna" && row["variant"] == variant);
        let (dense, sparse) = (ours("dense").context("our dense row")?, ours("sparse").context("our sparse row")?);
        let rate = |row: &Value| row["items_per_second"].as_f64().unwrap_or(f64::NAN);
        let rivals = rows.iter().filter(|row| row["engine"] != "lacuna");
        let rival = rivals.max_by(|a, b| rate(a).total_cmp(&rate(b))).context("a rival's row")?;
        let ratio = |key: &str| sparse[key].as_f64().unwrap_or(f64::NAN);
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let to_rival = ratio("ratio_to_rival");
        let lost = if to_rival < 1.0 { " ▼" } else { "" };
        writeln!(
            text,
            "| {} | {} | {:.1} | {:.1} | {:.1} ({} {}) | {:.2} | {to_rival:.2}{lost} |",
            word(&run["model"]),
            word(&run["value_type"]),
            rate(dense),
            rate(sparse),
            rate(rival),
            word(&rival["engine"]),
            word(&rival["variant"]),
            ratio("ratio_to_dense"),
        )?;
    }
    Ok(text)
}
