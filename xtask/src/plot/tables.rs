//! A record as Markdown.

use super::record::{Record, Row};

/// Marks a case in which the fastest dense product is faster than ours.
pub(super) const LOST: &str = "▼";

pub(super) fn write(record: &Record, source: &str) -> String {
    let Record { rows, date, cpu, threads, engines } = record;
    let engines: Vec<&str> = engines.iter().map(String::as_str).collect();
    let lost = rows.iter().filter(|row| row.ratio < 1.0).count();
    let mut text = format!(
        "`{source}`: {date}, {threads} threads of {cpu}; dense contestants: {}.\n\n\
         Each cell is the time of the case's fastest dense product by ours, and in brackets the share of the limit. \
         {lost} of {} cases are lost ({LOST}).\n",
        engines.join(", "),
        rows.len(),
    );
    for value_type in record.all(|row| row.value_type.clone()) {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.value_type == value_type).collect();
        let mut tokens: Vec<usize> = rows.iter().map(|row| row.tokens).collect();
        tokens.sort_unstable();
        tokens.dedup();
        text += &format!("\n### {value_type}\n\n");
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        text += &line(
            [String::new(), "tokens".to_owned()].into_iter().chain(tokens.iter().map(usize::to_string)).collect(),
        );
        text += &format!("|---|---|{}\n", "---|".repeat(tokens.len()));
        for (shape, r, k) in record.all(|row| (row.shape.clone(), row.rows, row.cols)) {
            let of_shape: Vec<&Row> = rows.iter().copied().filter(|row| (row.rows, row.cols) == (r, k)).collect();
            let cells = |first: [String; 2], cell: &dyn Fn(&Row) -> String, pattern: Option<&str>| {
                let cells = tokens.iter().map(|&tokens| {
                    let mut found = of_shape.iter().filter(|row| row.tokens == tokens);
                    let found = found.find(|row| pattern.is_none_or(|pattern| row.pattern == pattern));
                    found.map_or_else(|| "–".to_owned(), |row| cell(row))
                });
                line(first.into_iter().chain(cells).collect())
            };
            let rival = |row: &Row| format!("{} {}", time(row.rival_seconds), row.rival);
            let ours = |row: &Row| {
                let lost = if row.ratio < 1.0 { format!(" {LOST}") } else { String::new() };
                format!("{:.2} ({:.0} %){lost}", row.ratio, row.share * 100.0)
            };
            let name = format!("**{r} × {k}**: {}", shape.replace(" + ", ", "));
            text += &cells([name, "fastest dense".to_owned()], &rival, None);
            for pattern in record.all(|row| row.pattern.clone()) {
                if of_shape.iter().any(|row| row.pattern == pattern) {
                    text += &cells([String::new(), pattern.clone()], &ours, Some(&pattern));
                }
            }
        }
    }
    text
}

/// Three digits, more or less.
fn time(seconds: f64) -> String {
    match seconds {
        s if s < 99.5e-6 => format!("{:.1} µs", s * 1e6),
        s if s < 999.5e-6 => format!("{:.0} µs", s * 1e6),
        s if s < 99.5e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} ms", s * 1e3),
    }
}
