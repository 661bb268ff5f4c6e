//! Records of `cargo xtask gpu-check` as the tables of docs/performance.md.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

/// The kinds of records, and of each the columns that are shown, with their heads.
pub(super) const KINDS: [(&str, &[(&str, &str)]); 4] = [
    ("-gpu-micro.csv", &[("probe", "probe"), ("rate", "rate"), ("unit", "unit")]),
    ("-gpu-products.csv", PRODUCTS),
    ("-gpu-cusparselt.csv", PRODUCTS),
    (
        "-gpu-models.csv",
        &[
            ("model", "model"),
            ("layers", "layers"),
            ("batch", "batch"),
            ("variant", "weights"),
            ("prefill_tokens_per_second", "prefill, tokens/s"),
            ("decode_tokens_per_second", "decode, tokens/s"),
            ("ratio", "decode, to dense"),
        ],
    ),
];

const PRODUCTS: &[(&str, &str)] = &[
    ("shape", "shape"),
    ("tokens", "tokens"),
    ("value_type", "values"),
    ("pattern", "pattern"),
    ("variant", "kernel"),
    ("seconds", "µs"),
    ("ratio", "to dense"),
    ("limit", "limit"),
    ("share", "share"),
];

/// One record as a table.
pub(super) fn table(record: &str, columns: &[(&str, &str)], source: &str) -> Result<String> {
    let mut lines = record.lines();
    let head: Vec<&str> = lines.next().context("a head")?.split(',').collect();
    let mut on = String::new();
    let mut rows = vec![];
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        if cells.len() != head.len() {
            bail!("{source}: a row of {} cells under {} heads", cells.len(), head.len());
        }
        let row: BTreeMap<&str, &str> = head.iter().copied().zip(cells).collect();
        let cell = |name: &str| row.get(name).copied().with_context(|| format!("{source} lacks the column {name}"));
        on = format!("{}, {}", cell("gpu")?, cell("date")?);
        let shown: Result<Vec<String>> = columns.iter().map(|(name, _)| Ok(show(name, cell(name)?))).collect();
        let lost = cell("ratio").ok().and_then(|ratio| ratio.parse::<f64>().ok()).is_some_and(|ratio| ratio < 1.0);
        rows.push(format!("| {}{} |\n", shown?.join(" | "), if lost { " ▼" } else { "" }));
    }
    let heads: Vec<&str> = columns.iter().map(|(_, head)| *head).collect();
    let ruler = "---|".repeat(columns.len());
    Ok(format!("`{source}`: {on}.\n\n| {} |\n|{ruler}\n{}", heads.join(" | "), rows.concat()))
}

/// Seconds as microseconds; everything else as it stands.
fn show(name: &str, cell: &str) -> String {
    match (name, cell.parse::<f64>()) {
        ("seconds", Ok(seconds)) => format!("{:.1}", seconds * 1e6),
        _ => cell.to_owned(),
    }
}
