//! Invariants of ARCHITECTURE.md that a program can check.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Files may pause here and be split.
const MAX_LINES: usize = 600;
/// Where unsafe code is allowed to live.
const UNSAFE_ROOMS: [&str; 4] = [
    "crates/lacuna-cuda/src/launch/",
    "crates/lacuna-format/src/mmap.rs",
    "crates/lacuna-kernels/src/dense/gemm.rs",
    "crates/lacuna-kernels/src/lanes/",
];
/// Which crates of ours a crate may use: the arrows of ARCHITECTURE.md.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("lacuna-core", &[]),
    ("lacuna-cuda", &["lacuna-core", "lacuna-format", "lacuna-model"]),
    ("lacuna-format", &["lacuna-core"]),
    ("lacuna-kernels", &["lacuna-core"]),
    ("lacuna-prune", &["lacuna-core", "lacuna-kernels"]),
    ("lacuna-model", &["lacuna-core", "lacuna-format", "lacuna-kernels"]),
    ("lacuna-train", &["lacuna-core", "lacuna-format", "lacuna-kernels", "lacuna-prune", "lacuna-model"]),
    (
        "lacuna",
        &[
            "lacuna-core",
            "lacuna-cuda",
            "lacuna-format",
            "lacuna-kernels",
            "lacuna-prune",
            "lacuna-model",
            "lacuna-train",
        ],
    ),
];

/// Fails with a line for every violation.
pub(crate) fn run() -> Result<()> {
    let root = crate::root();
    let mut wrong = vec![];
    let mut files = vec![];
    for dir in ["crates", "xtask", "fuzz/fuzz_targets"] {
        rust_files(&root.join(dir), &mut files)?;
    }
    for path in &files {
        let text = fs::read_to_string(path)?;
        let name = path.strip_prefix(&root)?.display().to_string();
        if !text.starts_with("//!") {
            wrong.push(format!("{name}: does not open with //!, saying what the room does"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{name}: {lines} lines (limit {MAX_LINES})"));
        }
        let keyword = ["unsafe", " "].concat();
        let blocks: Vec<usize> = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//") && line.contains(&(keyword.clone() + "{")))
            .map(|(i, _)| i)
            .collect();
        if !blocks.is_empty() && !UNSAFE_ROOMS.iter().any(|room| name.starts_with(room)) {
            wrong.push(format!("{name}: unsafe code outside its rooms"));
        }
        for &i in &blocks {
            let before: Vec<&str> = text.lines().take(i).collect();
            let reason = before.iter().rev().take_while(|line| line.trim_start().starts_with("//"));
            if !reason.into_iter().any(|line| line.contains("SAFETY:")) {
                wrong.push(format!("{name}:{}: unsafe without a SAFETY reason", i + 1));
            }
        }
    }
    for (name, allowed) in MAY_USE {
        let manifest = fs::read_to_string(root.join("crates").join(name).join("Cargo.toml"))?;
        let dependencies = manifest.split("[dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
        let used = dependencies.unwrap_or("").lines().filter_map(|line| line.split(['.', ' ']).next());
        for used in used.filter(|used| used.starts_with("lacuna") && !allowed.contains(used)) {
            wrong.push(format!("crates/{name}: must not use {used}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("tidy:\n{}", wrong.join("\n")) }
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
