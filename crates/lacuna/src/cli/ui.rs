//! How the command talks: progress and notes on stderr, results on stdout.

use std::io::{ErrorKind, Write};
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Global;

/// What the global flags say about output.
pub(super) struct Ui {
    pub(super) json: bool,
    pub(super) verbose: bool,
    pub(super) seed: u64,
    quiet: bool,
}

impl Ui {
    pub(super) fn new(global: &Global) -> Self {
        Self { json: global.json, verbose: global.verbose, seed: global.seed, quiet: global.quiet }
    }

    /// A progress bar with an ETA on stderr; nothing is drawn where stderr is no terminal.
    pub(super) fn progress(&self, what: &'static str, length: u64) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let template = "{prefix:>10} [{bar:30}] {human_pos}/{human_len} {elapsed} ETA {eta} {wide_msg}";
        let style = ProgressStyle::with_template(template).expect("a valid template").progress_chars("=> ");
        let bar = ProgressBar::new(length).with_style(style).with_prefix(what);
        bar.enable_steady_tick(Duration::from_millis(250));
        bar
    }

    /// A remark on stderr.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// The result: one JSON object, or text.
    pub(super) fn result(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.print(&(serde_json::to_string(value).expect("results serialise") + "\n"));
        } else {
            self.print(&text());
        }
    }

    /// Writes to stdout at once. A reader that went away (`| head`) ends the command quietly.
    #[allow(clippy::unused_self)] // stdout is the Ui's to write to
    pub(super) fn print(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        if let Err(e) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            if e.kind() == ErrorKind::BrokenPipe {
                std::process::exit(0);
            }
            eprintln!("error: stdout: {e}");
            std::process::exit(1);
        }
    }
}

/// Aligned columns: the first to the left, the others to the right.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).chain([head[i].chars().count()]).max();
    let widths: Vec<usize> = (0..head.len()).map(|i| width(i).unwrap_or(0)).collect();
    let head: Vec<String> = head.iter().map(|&h| h.to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(i, (c, &w))| if i == 0 { format!("{c:<w$}") } else { format!("{c:>w$}") });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// `12.3 MiB`
pub(super) fn bytes(n: u64) -> String {
    HumanBytes(n).to_string()
}
