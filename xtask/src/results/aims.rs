//! What was aimed at, beside what was reached: shares of what one row loses in what another does.

use std::fmt::Write;

use anyhow::Result;
use serde_json::Value;

use super::table::{dense_cross_entropy, lost, mean_and_deviation};
use super::{MIXED, MODELS, PATTERNS};

/// A row at a pattern is to lose at most a share of what another loses.
struct Aim {
    row: &'static str,
    other: &'static str,
    share: f64,
    /// both at these patterns
    patterns: &'static [(&'static str, &'static str)],
}

const SAME: &[(&str, &str)] = &[
    (PATTERNS[0], PATTERNS[0]),
    (PATTERNS[1], PATTERNS[1]),
    (PATTERNS[2], PATTERNS[2]),
    (PATTERNS[3], PATTERNS[3]),
    (PATTERNS[4], PATTERNS[4]),
];

const fn aim(
    row: &'static str,
    other: &'static str,
    share: f64,
    patterns: &'static [(&'static str, &'static str)],
) -> Aim {
    Aim { row, other, share, patterns }
}

const AIMS: [Aim; 7] = [
    aim("ours, high", "RIA", 1.0, &[("64:2:5", "2:4")]),
    aim("ours, high", "SparseGPT", 0.85, SAME),
    aim("ours, high", "ALPS", 0.95, SAME),
    aim(MIXED, "paper", 0.5, &[("64:2:8", "64:2:8")]),
    aim("ours, default", "RIA", 1.0, &[("64:2:5", "2:4")]),
    aim("ours, default", "SparseGPT", 0.85, SAME),
    aim("ours, default", "ALPS", 0.95, SAME),
];

/// A line an aim, a column a checkpoint, and one for the cross-entropy of each classifier.
pub(super) fn table(runs: &[Value]) -> Result<String> {
    let mut columns: Vec<(String, Vec<&Value>, Option<f64>)> = vec![];
    for model in &MODELS {
        let own: Vec<&Value> = runs.iter().filter(|run| run["model"] == model.name).collect();
        let dense = dense_cross_entropy(&own);
        columns.push((model.name.to_owned(), own.clone(), None));
        if dense.is_some() {
            columns.push((format!("{}, nats", model.name), own, dense));
        }
    }
    let heads: String = columns.iter().map(|(name, ..)| format!(" {name} |")).collect();
    let mut table = format!("### What was aimed at\n\n| |{heads}\n|---|{}\n", "---|".repeat(columns.len()));
    for Aim { row, other, share, patterns } in &AIMS {
        let places = match patterns {
            [(at, of)] if at == of => format!(" at {at}"),
            [(at, of)] => format!(" of {of}, itself at {at}"),
            _ => ", pattern by pattern".to_owned(),
        };
        let cell = |(_, runs, dense): &(String, Vec<&Value>, Option<f64>)| {
            let shares = patterns
                .iter()
                .map(|(at, of)| reached(&lost(runs, row, at, *dense), &lost(runs, other, of, *dense), *share));
            format!(" {} |", shares.collect::<Vec<_>>().join(", "))
        };
        let cells: String = columns.iter().map(cell).collect();
        writeln!(table, "| *{row}* at most {share:.2} of *{other}*{places} |{cells}")?;
    }
    Ok(table + "\n")
}

/// The share of the means, bold where it is too much; `·` where the other loses no more than its runs differ.
fn reached(own: &[f64], other: &[f64], most: f64) -> String {
    if own.is_empty() || other.is_empty() {
        return "–".to_owned();
    }
    let ((own, _), (base, deviation)) = (mean_and_deviation(own), mean_and_deviation(other));
    if base <= 2.0 * deviation {
        return "·".to_owned();
    }
    let share = own / base;
    if share <= most { format!("{share:.2}") } else { format!("**{share:.2}**") }
}

#[cfg(test)]
mod tests {
    use super::reached;

    #[test]
    fn shares_are_of_means() {
        assert_eq!(reached(&[1.0, 3.0], &[4.0, 4.0], 0.5), "0.50");
        assert_eq!(reached(&[1.0, 3.2], &[4.0, 4.0], 0.5), "**0.53**");
        assert_eq!(reached(&[1.0], &[0.1, -0.1], 0.5), "·");
        assert_eq!(reached(&[], &[1.0], 0.5), "–");
    }
}
