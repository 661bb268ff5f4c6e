//! Rows as a CSV file, beside what the figures hang on: machine, date, version.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::Row;
use crate::UsageError;

/// Features that kernels, ours or a rival's, are made for.
const FEATURES: [&str; 20] = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
    "sve2",
];

/// A CSV file in the making: `FILE.partial` until it is whole.
pub struct Csv {
    target: PathBuf,
    partial: PathBuf,
    file: File,
    /// what every row has behind its own fields
    tail: Vec<(&'static str, String)>,
    headed: bool,
}

impl Csv {
    /// Refuses, before anything is measured, a place that cannot be written, and one that is taken unless `force`.
    pub fn create(target: &Path, force: bool) -> Result<Self> {
        if target.exists() && !force {
            let problem = format!("{} already exists; choose another file or pass --force", target.display());
            return Err(UsageError(problem).into());
        }
        let mut partial = target.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let file = File::create(&partial).with_context(|| partial.display().to_string())?;
        let tail = vec![
            ("date", today()),
            ("cpu", cpu()),
            ("threads", rayon::current_num_threads().to_string()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        Ok(Self { target: target.to_owned(), partial, file, tail, headed: false })
    }

    /// Adds a row; it is in the file at once.
    pub fn add(&mut self, row: &Row) -> Result<()> {
        let fields: Map<String, Value> = match serde_json::to_value(row)? {
            Value::Object(fields) => fields,
            other => unreachable!("a row is an object, not {other}"),
        };
        let mut text = String::new();
        if !self.headed {
            let head = fields.keys().map(String::as_str).chain(self.tail.iter().map(|(name, _)| *name));
            text += &(head.collect::<Vec<_>>().join(",") + "\n");
            self.headed = true;
        }
        let own = fields.values().map(|value| match value {
            Value::String(text) => quoted(text),
            Value::Null => String::new(),
            other => other.to_string(),
        });
        text += &(own.chain(self.tail.iter().map(|(_, value)| quoted(value))).collect::<Vec<_>>().join(",") + "\n");
        self.file.write_all(text.as_bytes()).with_context(|| self.partial.display().to_string())
    }

    /// Gives it its name.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().with_context(|| self.partial.display().to_string())?;
        fs::rename(&self.partial, &self.target).with_context(|| self.target.display().to_string())
    }
}

/// A field, in quotes where it must be.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Model and features of this machine's CPU, as Linux tells them.
pub fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: [&str; 2]| {
        let named = info.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name.trim()).then_some(value.trim())
        });
        named.unwrap_or_default()
    };
    let name = match field(["model name", "CPU part"]) {
        "" => "unknown",
        name => name,
    };
    let has: Vec<&str> = field(["flags", "Features"]).split_whitespace().collect();
    let features = FEATURES.into_iter().filter(|feature| has.contains(feature));
    std::iter::once(name).chain(features).collect::<Vec<_>>().join(" ")
}

/// The day, UTC, as `YYYY-MM-DD`.
pub fn today() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(now / 86_400)
}

/// Counts off years, then months.
fn date(mut days: u64) -> String {
    let leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // date -d @N*86400
        for (days, want) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_015, "2000-02-28"),
            (11_016, "2000-02-29"),
            (20_453, "2025-12-31"),
            (20_454, "2026-01-01"),
        ] {
            assert_eq!(date(days), want);
        }
    }

    #[test]
    fn fields_with_commas_are_quoted() {
        assert_eq!(quoted("a b"), "a b");
        assert_eq!(quoted("a, \"b\""), "\"a, \"\"b\"\"\"");
    }
}
