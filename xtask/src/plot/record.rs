//! A record: the CSV that `lacuna bench --kernels --csv` writes.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

/// A contestant in a case; docs/cli.md says what the fields are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) shape: String,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) tokens: usize,
    pub(super) value_type: String,
    pub(super) pattern: String,
    pub(super) rival: String,
    pub(super) rival_seconds: f64,
    pub(super) ratio: f64,
    pub(super) limit: f64,
    pub(super) share: f64,
}

/// All rows, and what they have in common.
pub(super) struct Record {
    /// sparse ones alone: each has its rival beside it
    pub(super) rows: Vec<Row>,
    pub(super) date: String,
    pub(super) cpu: String,
    pub(super) threads: String,
    /// all that took part
    pub(super) engines: BTreeSet<String>,
}

impl Record {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut record =
            Self { rows: vec![], date: String::new(), cpu: String::new(), threads: String::new(), engines: [].into() };
        for (i, line) in lines(text)?.into_iter().enumerate() {
            let field = |name: &str| line.field(name).map(str::to_owned);
            let number = |name: &str| {
                let text = field(name)?;
                let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
                number.with_context(|| format!("line {}: {name} is '{text}', no number", i + 2))
            };
            record.engines.insert(field("engine")?);
            (record.date, record.cpu, record.threads) = (field("date")?, field("cpu")?, field("threads")?);
            let row = Row {
                shape: field("shape")?,
                rows: number("rows")? as usize,
                cols: number("cols")? as usize,
                tokens: number("tokens")? as usize,
                value_type: field("value_type")?,
                pattern: field("pattern")?,
                rival: field("rival")?,
                rival_seconds: number("rival_seconds")?,
                ratio: number("ratio")?,
                limit: number("limit")?,
                share: number("share")?,
            };
            if row.pattern != "dense" {
                record.rows.push(row);
            }
        }
        ensure!(!record.rows.is_empty(), "no sparse rows");
        Ok(record)
    }

    /// What there is of something, each once, in the order of the record.
    pub(super) fn all<T: PartialEq>(&self, of: impl Fn(&Row) -> T) -> Vec<T> {
        let mut all = vec![];
        for row in &self.rows {
            let value = of(row);
            if !all.contains(&value) {
                all.push(value);
            }
        }
        all
    }
}

/// A line of CSV, by the heads of its columns.
pub(super) struct Line(BTreeMap<String, String>);

impl Line {
    pub(super) fn field(&self, name: &str) -> Result<&str> {
        self.0.get(name).map(String::as_str).with_context(|| format!("no column {name}"))
    }
}

/// What stands under the first line.
pub(super) fn lines(text: &str) -> Result<Vec<Line>> {
    let mut lines = text.lines();
    let head = fields(lines.next().unwrap_or_default())?;
    let line = |(i, line)| {
        let fields = fields(line).with_context(|| format!("line {}", i + 2))?;
        ensure!(fields.len() == head.len(), "line {} has {} fields, not {}", i + 2, fields.len(), head.len());
        Ok(Line(head.iter().cloned().zip(fields).collect()))
    };
    lines.enumerate().map(line).collect()
}

/// The fields of a line; none of ours has a line's end in it.
fn fields(line: &str) -> Result<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut in_quotes = false;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let last = fields.last_mut().expect("never empty");
        match c {
            '"' if in_quotes && chars.peek() == Some(&'"') => last.extend(chars.next()),
            '"' => in_quotes = !in_quotes,
            ',' if !in_quotes => fields.push(String::new()),
            c => last.push(c),
        }
    }
    ensure!(!in_quotes, "a quote stays open");
    Ok(fields)
}

#[cfg(test)]
mod tests {
    #[test]
    fn quoted_fields() {
        let got = super::fields(r#"a,"b, ""c""",,d"#).unwrap();
        assert_eq!(got, ["a", "b, \"c\"", "", "d"]);
        assert!(super::fields("\"a").is_err());
    }
}
