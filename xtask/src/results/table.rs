//! The record as tables.

use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{BUDGETS, DENSE, HIGH, MIXED, MODELS, PATTERNS, ROWS, TIMED, aims, training};

/// What stands around the tables in docs/results.md.
const BEGIN: &str = "<!-- tables: cargo xtask results -->\n";
const END: &str = "<!-- end of tables -->";

const TRAINING_BEGIN: &str = "<!-- tables: cargo xtask results --training -->\n";

/// Rows for which the methods' authors have public code, and what `scripts/authors.py` calls it.
const AUTHORS: [(&str, &str); 7] = [
    ("magnitude", "magnitude"),
    ("Wanda", "wanda"),
    ("RIA", "ria"),
    ("paper", "ria-permuted"),
    ("DSnoT", "dsnot"),
    ("SparseGPT", "sparsegpt"),
    ("ALPS", "alps"),
];

/// The document with the tables of these runs.
pub(super) fn written(text: &str, runs: &[Value], authors: &[Value], times: &[Value]) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("docs/results.md has no place for tables")?;
    let (_, after) = rest.split_once(END).context("docs/results.md has no end of tables")?;
    let mut tables = String::new();
    for model in &MODELS {
        let own: Vec<&Value> = runs.iter().filter(|run| run["model"] == model.name).collect();
        if own.is_empty() {
            continue;
        }
        writeln!(tables, "### {}\n\n{}.\n", model.name, model.metric)?;
        let timed: Vec<&Value> = times.iter().filter(|run| run["model"] == model.name).collect();
        tables += &losses(&own, &timed)?;
        tables += &cross_entropies(&own)?;
        tables += &beside_authors(model.name, &own, authors)?;
    }
    tables += &budgets(runs)?;
    tables += &aims::table(runs)?;
    Ok(format!("{before}{BEGIN}\n{tables}{END}{after}"))
}

/// What the runs of a row at a pattern lose: of the metric, or with the dense model's cross-entropy of that.
pub(super) fn lost(own: &[&Value], row: &str, pattern: &str, dense: Option<f64>) -> Vec<f64> {
    let runs = own.iter().filter(|run| run["row"] == row && run["pattern"] == pattern);
    let loss = |run: &&Value| match dense {
        Some(dense) => Some(run["cross_entropy"].as_f64()? - dense),
        None => run["gap"].as_f64(),
    };
    runs.filter_map(loss).collect()
}

/// That of a classifier before pruning.
pub(super) fn dense_cross_entropy(own: &[&Value]) -> Option<f64> {
    own.iter().find(|run| run["row"] == DENSE)?["cross_entropy"].as_f64()
}

/// What each row loses of a checkpoint, and takes.
fn losses(own: &[&Value], timed: &[&Value]) -> Result<String> {
    let heads: Vec<String> = PATTERNS.iter().map(|pattern| format!(" {pattern} |")).collect();
    let lines = "---|".repeat(PATTERNS.len());
    let mut table = format!("| |{} seconds | peak memory |\n|---|{lines}---|---|\n", heads.concat());
    for row in ROWS.iter().map(|row| row.name) {
        let is_row = |run: &&&Value| run["row"] == *row;
        if !own.iter().any(|run| is_row(&run)) {
            continue;
        }
        let cell = |pattern: &&str| format!(" {} |", spread(&lost(own, row, pattern, None)));
        let cells: String = PATTERNS.iter().map(cell).collect();
        let time = timed.iter().find(is_row);
        let figure = |field: &str| time.and_then(|run| run[field].as_f64());
        let seconds = figure("seconds").map_or("–".to_owned(), |seconds| format!("{seconds:.1}"));
        let memory = figure("peak_rss_bytes").map_or("–".to_owned(), |bytes| format!("{:.0} MB", bytes / 1e6));
        writeln!(table, "| {row} |{cells} {seconds} | {memory} |")?;
    }
    Ok(table + "\n")
}

/// The cross-entropy of a classifier, which still tells methods apart where no answer is right any more.
fn cross_entropies(own: &[&Value]) -> Result<String> {
    let Some(dense) = dense_cross_entropy(own) else { return Ok(String::new()) };
    let heads: Vec<String> = PATTERNS.iter().map(|pattern| format!(" {pattern} |")).collect();
    let lines = "---|".repeat(PATTERNS.len());
    let mut table = format!(
        "Nats of cross-entropy above the dense model ({dense:.3}) on the same images:\n\n| |{}\n|---|{lines}\n",
        heads.concat()
    );
    for row in ROWS.iter().map(|row| row.name) {
        let cell = |pattern: &&str| format!(" {} |", spread(&lost(own, row, pattern, Some(dense))));
        let cells: String = PATTERNS.iter().map(cell).collect();
        writeln!(table, "| {row} |{cells}")?;
    }
    Ok(table + "\n")
}

/// What ways to share out a density among layers lose, beside none and beside the measured one.
fn budgets(runs: &[Value]) -> Result<String> {
    let rows: Vec<&str> = [HIGH].into_iter().chain(BUDGETS.iter().map(|row| row.name)).chain([MIXED]).collect();
    let heads: String = rows.iter().map(|row| format!(" {row} |")).collect();
    let mut table = format!(
        "### Layer budgets\n\nThe density of {TIMED}, shared out among the layers in different ways:\n\n| |{heads}\n|---|{}\n",
        "---|".repeat(rows.len())
    );
    for model in &MODELS {
        let own: Vec<&Value> = runs.iter().filter(|run| run["model"] == model.name).collect();
        for (unit, dense) in [("", None), (", nats", dense_cross_entropy(&own))] {
            if unit.is_empty() || dense.is_some() {
                let cells: String =
                    rows.iter().map(|row| format!(" {} |", spread(&lost(&own, row, TIMED, dense)))).collect();
                writeln!(table, "| {}{unit} |{cells}", model.name)?;
            }
        }
    }
    Ok(table + "\n")
}

/// The document with the table of these trainings.
pub(super) fn with_training(text: &str, runs: &[Value]) -> Result<String> {
    let (before, rest) = text.split_once(TRAINING_BEGIN).context("docs/results.md has no place for trainings")?;
    let (_, after) = rest.split_once(END).context("docs/results.md has no end of trainings")?;
    let mut table = String::new();
    for of in &training::COMPARISONS {
        table += &compared(of, runs)?;
    }
    table += "| | pattern | method | steps | flags | before | after | target | seconds | peak memory |\n|---|---|---|---|---|---|---|---|---|---|\n";
    for long in &training::LONG {
        let row = long.row();
        let key = [("model", long.model), ("row", row.as_str()), ("pattern", long.pattern)];
        let found =
            runs.iter().find(|run| key.iter().all(|(field, value)| run[field] == *value) && run["steps"] == long.steps);
        let Some(run) = found else { continue };
        let number = |field: &str| run[field].as_f64().unwrap_or(f64::NAN);
        let (seconds, memory) = (number("seconds"), number("peak_rss_bytes") / 1e6);
        let gaps = format!("{:.2} | {:.2}", number("before"), number("gap"));
        let training::Long { model, pattern, method, steps, changed, flags, target } = long;
        let changed = changed.iter().map(|(place, value)| format!("{place} {value}"));
        let flags = flags.iter().map(|&flag| flag.to_owned()).chain(changed).collect::<Vec<_>>().join(" ");
        writeln!(
            table,
            "| {model} | {pattern} | {method} | {steps} | `{flags}` | {gaps} | {target} | {seconds:.0} | {memory:.0} MB |"
        )?;
    }
    Ok(format!("{before}{TRAINING_BEGIN}\n{table}\n{END}{after}"))
}

/// Trainings of a checkpoint by some rows, if there are any.
fn compared(of: &training::Comparison, runs: &[Value]) -> Result<String> {
    let mut rows = String::new();
    for row in of.rows {
        let is_of_row =
            |run: &&Value| run["model"] == of.model && run["row"] == row.name && run["steps"] == training::STEPS;
        let of_pattern = |pattern: &&str| runs.iter().filter(is_of_row).find(|run| run["pattern"] == *pattern);
        let found: Vec<Option<&Value>> = of.patterns.iter().map(of_pattern).collect();
        let Some(last) = found.iter().flatten().next_back() else { continue };
        let cell = |run: Option<&Value>| {
            let gap = run.and_then(|run| Some(format!("{:.2} → {:.2}", run["before"].as_f64()?, run["gap"].as_f64()?)));
            format!(" {} |", gap.unwrap_or_else(|| "–".to_owned()))
        };
        let cells: String = found.iter().copied().map(cell).collect();
        let flipped = last["flipped"].as_f64().map_or("–".to_owned(), |share| format!("{:.1} %", 100.0 * share));
        let memory = last["peak_rss_bytes"].as_f64().unwrap_or(f64::NAN) / 1e6;
        writeln!(rows, "| {} |{cells} {flipped} | {memory:.0} MB |", row.name)?;
    }
    if rows.is_empty() {
        return Ok(rows);
    }
    let heads: Vec<String> = of.patterns.iter().map(|pattern| format!(" {pattern} |")).collect();
    let lines = "---|".repeat(of.patterns.len());
    let head = format!("| {} |{} mask changed | peak memory |", of.model, heads.concat());
    Ok(format!("{head}\n|---|{lines}---|---|\n{rows}\n"))
}

/// Our runs at 2:4 beside those of the authors' code on the same tokens.
fn beside_authors(model: &str, own: &[&Value], authors: &[Value]) -> Result<String> {
    let mut rows = String::new();
    for (row, method) in AUTHORS {
        let theirs = authors.iter().filter(|run| run["model"] == model && run["method"] == method);
        let theirs: Vec<f64> = theirs.filter_map(|run| run["gap"].as_f64()).collect();
        let ours = lost(own, row, "2:4", None);
        if !theirs.is_empty() && !ours.is_empty() {
            writeln!(rows, "| {row} | {} | {} |", spread(&ours), spread(&theirs))?;
        }
    }
    let head = "Plain 2:4 beside the public code of the methods' authors, on the same calibration tokens:\n\n\
                | | ours | theirs |\n|---|---|---|\n";
    Ok(if rows.is_empty() { rows } else { format!("{head}{rows}\n") })
}

/// Mean and standard deviation over seeds, written; a single run has no deviation, and none is a dash.
fn spread(gaps: &[f64]) -> String {
    let (mean, deviation) = mean_and_deviation(gaps);
    match gaps.len() {
        0 => "–".to_owned(),
        1 => format!("{mean:.2}"),
        _ => format!("{mean:.2} ± {deviation:.2}"),
    }
}

/// Of a sample; the deviation of one value is 0.
pub(super) fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (squares / (values.len().max(2) - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_spread_is_that_of_a_sample() {
        assert_eq!(spread(&[]), "–");
        assert_eq!(spread(&[1.0]), "1.00");
        assert_eq!(spread(&[1.0, 2.0, 3.0]), "2.00 ± 1.00");
    }
}
