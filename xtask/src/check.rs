//! Everything that must hold, in the order in which it fails fastest.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::root;

/// Training is left out of a plain build; here everything is looked at.
pub(crate) const TRAIN: &str = "lacuna/train";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the round trip through Hugging Face transformers, which installs PyTorch (some GB) on its first run
    #[arg(long)]
    no_hf: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    step("format", &mut cargo(&["fmt", "--all", "--check"]))?;
    eprintln!("== tidy");
    crate::tidy::run()?;
    step(
        "lints",
        &mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            TRAIN,
            "--quiet",
            "--",
            "--deny",
            "warnings",
        ]),
    )?;
    let mut docs = cargo(&["doc", "--workspace", "--no-deps", "--features", TRAIN, "--quiet"]);
    step("docs", docs.env("RUSTDOCFLAGS", "--deny warnings"))?;
    step("a build without training", &mut cargo(&["check", "--quiet"]))?;
    // All that runs here is what ships, in one profile: nothing is compiled twice.
    let build = ["test", "--release", "--workspace", "--features", TRAIN];
    step("build", cargo(&build).args(["--no-run", "--quiet"]))?;
    crate::cuda::check()?;
    if args.no_hf {
        eprintln!("== round trip: SKIPPED (--no-hf)");
    } else {
        step("round trip", Command::new("bash").arg("scripts/round_trip.sh"))?;
    }
    step("tests", &mut cargo(&build))
}

pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(args);
    command
}

/// Runs a command in the repository's root and says how long it took.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("== {name}");
    let started = std::time::Instant::now();
    let status = command.current_dir(root()).status().with_context(|| format!("cannot start the step {name}"))?;
    if !status.success() {
        bail!("{name} failed");
    }
    eprintln!("== {name}: {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
