//! The log of a training: a line of JSON a step.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lacuna_train::{Losses, StepReport};
use serde_json::{Value, json};

/// All steps so far.
pub(super) struct Log {
    path: PathBuf,
    lines: Vec<Line>,
}

/// What a step said.
struct Line {
    /// which of a soup
    training: usize,
    value: Value,
    /// as it was written: numbers that are read again may round otherwise
    text: String,
}

impl Log {
    /// What an interrupted run left, or nothing. A line that was cut short ends it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let text = if path.exists() {
            std::fs::read_to_string(path).with_context(|| path.display().to_string())?
        } else {
            String::new()
        };
        let parse = |line: &str| {
            let value: Value = serde_json::from_str(line).ok()?;
            Some(Line { training: value["training"].as_u64()? as usize, value, text: line.to_owned() })
        };
        Ok(Self { path: path.to_owned(), lines: text.lines().map_while(parse).collect() })
    }

    /// Forgets the steps of a training behind one that it goes on from.
    pub(super) fn cut(&mut self, training: usize, step: usize) -> Result<()> {
        let earlier = |value: &Value| value["step"].as_u64().is_some_and(|at| at <= step as u64);
        self.lines.retain(|line| line.training < training || line.training == training && earlier(&line.value));
        Ok(lacuna_format::write_whole(&self.path, self.text().as_bytes())?)
    }

    /// Adds a step.
    pub(super) fn push(&mut self, training: usize, report: &StepReport) -> Result<()> {
        let mut value = json!({ "training": training });
        let step = serde_json::to_value(report)?;
        value.as_object_mut().expect("an object").extend(step.as_object().cloned().unwrap_or_default());
        let line = Line { training, text: value.to_string(), value };
        let named = || self.path.display().to_string();
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path).with_context(named)?;
        writeln!(file, "{}", line.text).with_context(named)?;
        self.lines.push(line);
        Ok(())
    }

    fn of(&self, training: usize) -> impl DoubleEndedIterator<Item = &Value> {
        self.lines.iter().filter(move |line| line.training == training).map(|line| &line.value)
    }

    /// Numbers of a training's steps.
    pub(super) fn series(&self, training: usize, key: &str) -> Vec<(f64, f64)> {
        self.of(training).filter_map(|value| Some((value["step"].as_f64()?, value[key].as_f64()?))).collect()
    }

    /// What was lost at the first step.
    pub(super) fn first(&self, training: usize) -> Option<Losses> {
        self.of(training).next().map(|value| losses(|key| value[key].as_f64().unwrap_or(0.0)))
    }

    /// Mean over the last tenth of the steps.
    pub(super) fn last(&self, training: usize) -> Losses {
        let all: Vec<&Value> = self.of(training).collect();
        let tail = &all[all.len() - all.len().div_ceil(10)..];
        losses(|key| tail.iter().filter_map(|v| v[key].as_f64()).sum::<f64>() / tail.len().max(1) as f64)
    }

    /// Share of the kept weights that changed places, summed over all steps.
    pub(super) fn flipped(&self, training: usize) -> f64 {
        self.of(training).filter_map(|value| value["flipped"].as_f64()).fold(0.0, |sum, share| sum + share)
    }

    /// All of it, as the file has it.
    pub(super) fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{}\n", line.text)).collect()
    }
}

/// Losses of which each is a number by its name in the log.
fn losses(number: impl Fn(&str) -> f64) -> Losses {
    Losses {
        total: number("total"),
        ce: number("ce"),
        kl: number("kl"),
        squarehead: number("squarehead"),
        cosine: number("cosine"),
    }
}
