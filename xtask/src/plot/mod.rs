//! The newest records of `bench/run.sh` and `bench/encoders.sh` as a figure and as the tables of docs/performance.md.

mod encoders;
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

/// Writes both anew.
pub(crate) fn run() -> Result<()> {
    let root = root();
    let drawn = Drawn::new(&root)?;
    replace(&root.join(FIGURE), &drawn.figure)?;
    replace(&root.join(PAGE), &drawn.page)?;
    eprintln!("{}: drawn to {FIGURE}; it and {}: written to {PAGE}", drawn.kernels, drawn.encoders);
    Ok(())
}

/// The figure and the page as the newest records have them, and those records' paths in the repository.
struct Drawn {
    figure: String,
    page: String,
    kernels: String,
    encoders: String,
}

impl Drawn {
    fn new(root: &Path) -> Result<Self> {
        let page = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
        let (kernels, text) = newest(root, "-kernels.csv")?;
        let record = Record::parse(&text).with_context(|| kernels.clone())?;
        let page = between_markers(&page, "kernels", &tables::write(&record, &kernels))?;
        let (encoders, text) = newest(root, "-encoders.jsonl")?;
        let table = encoders::table(&text, &encoders).with_context(|| encoders.clone())?;
        Ok(Self { figure: figure::draw(&record), page: between_markers(&page, "encoders", &table)?, kernels, encoders })
    }
}

/// The newest record of a kind: its path in the repository, and what is in it. Names are a date and the kind, so that the
/// last one is the newest.
fn newest(root: &Path, kind: &str) -> Result<(String, String)> {
    let dir = root.join("bench/record");
    let entries = fs::read_dir(&dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let is_kind = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(kind));
    match entries.filter(is_kind).max() {
        Some(path) => {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            Ok((path.strip_prefix(root)?.display().to_string(), text))
        }
        None => bail!("{}: no record *{kind}; bench/run.sh and bench/encoders.sh make them", dir.display()),
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

#[cfg(test)]
mod tests {
    use super::{Drawn, FIGURE, PAGE, root};

    #[test]
    fn page_and_figure_are_those_of_the_newest_records() {
        let drawn = Drawn::new(&root()).unwrap();
        for (path, want) in [(PAGE, drawn.page), (FIGURE, drawn.figure)] {
            let is = std::fs::read_to_string(root().join(path)).unwrap();
            assert!(is == want, "{path} is not what `cargo xtask plot` makes of the newest records");
        }
    }
}
