//! The newest records of `bench/run.sh` and `bench/encoders.sh` as a figure and as the tables of docs/performance.md.

mod encoders;
mod figure;
mod record;
mod tables;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use self::record::Record;
use crate::root;

const FIGURE: &str = "docs/performance-kernels.svg";
const PAGE: &str = "docs/performance.md";
pub(crate) fn run() -> Result<()> {
    let root = root();
    let page = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    let (kernels, text) = newest(&root, "csv")?;
    let record = Record::parse(&text).with_context(|| kernels.clone())?;
    let page = between_markers(&page, "kernels", &tables::write(&record, &kernels))?;
    let (encoders, text) = newest(&root, "jsonl")?;
    let page =
        between_markers(&page, "encoders", &encoders::table(&text, &encoders).with_context(|| encoders.clone())?)?;
    replace(&root.join(FIGURE), &figure::draw(&record))?;
    replace(&root.join(PAGE), &page)?;
    eprintln!("{kernels}: drawn to {FIGURE}; it and {encoders}: written to {PAGE}");
    Ok(())
}

/// The newest record with an extension: its path in the repository, and what is in it. Names begin with a date, so that
/// the last one is the newest.
fn newest(root: &Path, extension: &str) -> Result<(String, String)> {
    let dir = root.join("bench/record");
    let entries = fs::read_dir(&dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    match entries.filter(|path| path.extension().is_some_and(|e| e == extension)).max() {
        Some(path) => {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            Ok((path.strip_prefix(root)?.display().to_string(), text))
        }
        None => bail!("{}: no .{extension} record; bench/run.sh and bench/encoders.sh make them", dir.display()),
    }
}

/// Replaces what lies between the lines `<!-- name -->` and `<!-- /name -->`.
fn between_markers(page: &str, name: &str, text: &str) -> Result<String> {
    let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let parts = page.split_once(&open).and_then(|(before, rest)| Some((before, rest.split_once(&close)?.1)));
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
