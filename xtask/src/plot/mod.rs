//! The newest records of `bench/run.sh`, `bench/encoders.sh`, `bench/plans.py` and `cargo xtask gpu-check` as figures and as the tables of docs/performance.md.

mod encoders;
mod figure;
mod gpu;
mod plans;
mod record;
mod tables;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use self::record::Record;
use crate::root;

const RECORDS: &str = "bench/record";
const PAGE: &str = "docs/performance.md";

/// Writes all anew.
pub(crate) fn run() -> Result<()> {
    let root = root();
    for (path, text) in drawn(&root)? {
        replace(&root.join(&path), &text)?;
        eprintln!("{}", path.display());
    }
    Ok(())
}

/// The page and its figures as the newest records have them, by their paths in the repository.
///
/// Records lie in a folder for each kind of machine, named for the kernel that it prefers or for its GPU; each has places of
/// its own in the page.
fn drawn(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mut page = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    let mut files = vec![];
    for folder in sorted(&root.join(RECORDS))?.into_iter().filter(|path| path.is_dir()) {
        let machine = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((name, text)) = newest(root, &folder, "-kernels.csv")? {
            let record = Record::parse(&text).with_context(|| name.clone())?;
            page = between_markers(&page, &format!("kernels {machine}"), &tables::write(&record, &name))?;
            files.push((format!("docs/performance-kernels-{machine}.svg").into(), figure::draw(&record)));
        }
        if let Some((name, text)) = newest(root, &folder, "-encoders.jsonl")? {
            let table = encoders::table(&text, &name).with_context(|| name.clone())?;
            page = between_markers(&page, &format!("encoders {machine}"), &table)?;
        }
        if let Some((name, text)) = newest(root, &folder, "-plans.jsonl")? {
            let table = plans::table(&text, &name).with_context(|| name.clone())?;
            page = between_markers(&page, &format!("plans {machine}"), &table)?;
        }
        let mut of_gpu = vec![];
        for (kind, columns) in gpu::KINDS {
            if let Some((name, text)) = newest(root, &folder, kind)? {
                of_gpu.push(gpu::table(&text, columns, &name).with_context(|| name.clone())?);
            }
        }
        if !of_gpu.is_empty() {
            page = between_markers(&page, &format!("gpu {machine}"), &of_gpu.join("\n"))?;
        }
    }
    if files.is_empty() {
        bail!("{RECORDS}: no record; bench/run.sh and bench/encoders.sh make them");
    }
    files.push((PAGE.into(), page));
    Ok(files)
}

/// What is in a folder, by name.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The newest record of a kind: its path in the repository, and what is in it. Names are a date and the kind, so that the
/// last one is the newest.
fn newest(root: &Path, folder: &Path, kind: &str) -> Result<Option<(String, String)>> {
    let is_kind = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(kind));
    let Some(path) = sorted(folder)?.into_iter().rfind(is_kind) else { return Ok(None) };
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(Some((path.strip_prefix(root)?.display().to_string(), text)))
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
    use super::{drawn, root};

    #[test]
    fn page_and_figures_are_those_of_the_newest_records() {
        for (path, want) in drawn(&root()).unwrap() {
            let is = std::fs::read_to_string(root().join(&path)).unwrap();
            assert!(is == want, "{} is not what `cargo xtask plot` makes of the newest records", path.display());
        }
    }
}
