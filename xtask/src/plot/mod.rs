//! The newest record of `bench/run.sh` as a figure and as the tables of docs/performance.md.

mod figure;
mod record;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::record::Record;
use crate::root;

const FIGURE: &str = "docs/performance-kernels.svg";
const PAGE: &str = "docs/performance.md";
/// What lies between these lines is written here.
const MARKERS: [&str; 2] = ["<!-- kernels -->", "<!-- /kernels -->"];

pub(crate) fn run() -> Result<()> {
    let root = root();
    let path = newest(&root.join("bench/record"))?;
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let record = Record::parse(&text).with_context(|| path.display().to_string())?;
    let page = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    let source = path.strip_prefix(&root)?.display().to_string();
    let page = between_markers(&page, &tables::write(&record, &source))?;
    replace(&root.join(FIGURE), &figure::draw(&record))?;
    replace(&root.join(PAGE), &page)?;
    eprintln!("{source}: drawn to {FIGURE}, written to {PAGE}");
    Ok(())
}

/// Names begin with a date, so that the last one is the newest.
fn newest(dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    match entries.filter(|path| path.extension().is_some_and(|e| e == "csv")).max() {
        Some(path) => Ok(path),
        None => bail!("{}: no record; bench/run.sh makes one", dir.display()),
    }
}

fn between_markers(page: &str, text: &str) -> Result<String> {
    let [open, close] = MARKERS;
    let parts = page.split_once(open).and_then(|(before, rest)| Some((before, rest.split_once(close)?.1)));
    match parts {
        Some((before, after)) => Ok(format!("{before}{open}\n\n{text}\n{close}{after}")),
        None => bail!("{PAGE} lacks the lines {open} and {close}"),
    }
}

/// Whole or not at all.
fn replace(path: &Path, text: &str) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, text).with_context(|| partial.display().to_string())?;
    fs::rename(&partial, path).with_context(|| path.display().to_string())
}
