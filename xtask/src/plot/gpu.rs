//! Records of `cargo xtask gpu-check` as the tables of docs/performance.md.

use anyhow::Result;

use super::record::lines;
use super::tables::LOST;

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
    let mut on = String::new();
    let mut rows = vec![];
    for line in lines(record)? {
        on = format!("{}, {}", line.field("gpu")?, line.field("date")?);
        let shown: Result<Vec<String>> = columns.iter().map(|(name, _)| Ok(show(name, line.field(name)?))).collect();
        let lost = line.field("ratio").is_ok_and(|ratio| ratio.parse::<f64>().is_ok_and(|ratio| ratio < 1.0));
        rows.push(format!("| {}{} |\n", shown?.join(" | "), if lost { format!(" {LOST}") } else { String::new() }));
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
