//! Rival engines: child processes that speak the protocol of `bench/engines/README.md`.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;

/// How long one product, or one batch, takes.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Timing {
    /// the median
    pub(crate) seconds: f64,
    /// the least
    pub(crate) minimum: f64,
    /// our kernel, or an engine's way
    pub(crate) variant: String,
}

/// An engine that runs; it ends with this.
pub(crate) struct Engine {
    /// as the user gave it
    command: String,
    hello: Hello,
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    complaints: File,
}

#[derive(Deserialize)]
struct Hello {
    engine: String,
    value_types: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Timing(Timing),
    Unsupported {
        #[serde(rename = "unsupported")]
        _why: String,
    },
}

impl Engine {
    /// Starts `command`, words between blanks, with the number of threads as its last words.
    pub(crate) fn start(command: &str, threads: usize) -> Result<Self> {
        let mut words = command.split_whitespace();
        let Some(program) = words.next() else { bail!("engine '{command}' cannot start: it names no program") };
        // A file, not a pipe: nobody has to read along, and libraries are talkative.
        let complaints = tempfile::tempfile().context("temporary file")?;
        let mut child = Command::new(program)
            .args(words)
            .arg("--threads")
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(complaints.try_clone().context("temporary file")?)
            .spawn()
            .map_err(|e| anyhow!("engine '{command}' cannot start: {e}"))?;
        let requests = child.stdin.take().expect("a pipe was asked for");
        let answers = BufReader::new(child.stdout.take().expect("a pipe was asked for"));
        let hello = Hello { engine: String::new(), value_types: vec![] };
        let mut engine = Self { command: command.to_owned(), hello, child, requests, answers, complaints };
        engine.hello = engine.read().map_err(|e| anyhow!("engine '{command}' cannot start: {e}"))?;
        Ok(engine)
    }

    /// What it calls itself.
    pub(crate) fn name(&self) -> &str {
        &self.hello.engine
    }

    /// Whether it has anything of that type at all.
    pub(crate) fn offers(&self, value_type: &str) -> bool {
        self.hello.value_types.iter().any(|offered| offered == value_type)
    }

    /// Lets it time a case, which `what` names; none if it has no such case.
    pub(crate) fn time(&mut self, request: &Value, what: &dyn Display) -> Result<Option<Timing>> {
        // If it has ended, reading says so, and why.
        let _ = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        match self.read().map_err(|e| anyhow!("engine '{}' at {what}: {e}", self.command))? {
            Answer::Timing(timing) if timing.seconds > 0.0 && timing.minimum > 0.0 => Ok(Some(timing)),
            Answer::Timing(timing) => bail!("engine '{}' at {what}: {timing:?} is no time", self.command),
            Answer::Unsupported { .. } => Ok(None),
        }
    }

    fn read<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            let status = self.child.wait()?;
            let mut said = vec![];
            self.complaints.rewind()?;
            self.complaints.read_to_end(&mut said)?;
            let said = String::from_utf8_lossy(&said);
            let last = said.lines().rev().find(|line| !line.trim().is_empty());
            bail!("it ended without an answer ({status}): {}", last.unwrap_or("it said nothing"));
        }
        let line = line.trim();
        serde_json::from_str(line).with_context(|| format!("its answer '{line}' is not of the protocol"))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Either fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
