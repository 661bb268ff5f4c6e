//! The command line: what every subcommand shares. Each subcommand is one file.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 asked wrongly.

mod bench;
mod calibration;
mod demo;
mod device;
mod doctor;
mod eval;
mod export;
mod inspect;
mod kernel_bench;
mod kernels;
mod permute;
mod plan;
mod prune;
mod recover;
mod run;
mod ui;
mod values;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
use clap::{CommandFactory, Parser, Subcommand};
use lacuna::UsageError;
use lacuna_model::Activations;

use ui::Ui;

/// Prune a transformer to V:N:M sparsity, store it compressed, run it faster, and see what it cost.
#[derive(Parser)]
#[command(name = "lacuna", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

const EXAMPLES: &str = "\
Examples:
  lacuna demo
  lacuna inspect ./llama
  lacuna prune ./llama ./llama-sparse --pattern 64:2:8 --calibration text.txt
  lacuna verify ./llama-sparse
  lacuna eval ./llama-sparse --data held-out.jsonl --baseline ./llama
  lacuna run ./llama-sparse 'Once upon a time'
  lacuna export ./llama-sparse ./llama-zeros --format dense";

/// Flags of every subcommand.
#[derive(clap::Args)]
struct Global {
    /// Print one JSON object instead of text (docs/cli.md lists the fields)
    #[arg(long, global = true)]
    json: bool,
    /// Seed of everything drawn at random
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Threads to compute with [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// No progress bars and notes
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more: a line for every layer
    #[arg(short, long, global = true)]
    verbose: bool,
}

#[derive(Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Plan(plan::Args),
    Prune(prune::Args),
    Permute(permute::Args),
    Recover(recover::Args),
    Verify(verify::Args),
    Eval(eval::Args),
    Run(run::Args),
    Bench(bench::Args),
    Kernels(kernels::Args),
    Export(export::Args),
    Demo(demo::Args),
    Doctor(doctor::Args),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  lacuna completions bash > ~/.local/share/bash-completion/completions/lacuna")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// What activations are rounded to.
#[derive(Clone, Copy, clap::ValueEnum)]
enum ActivationsName {
    /// nothing
    F32,
    /// bfloat16, where weights are bfloat16 and the CPU multiplies it
    Bf16,
}

impl From<ActivationsName> for Activations {
    fn from(name: ActivationsName) -> Self {
        match name {
            ActivationsName::F32 => Self::F32,
            ActivationsName::Bf16 => Self::Bf16,
        }
    }
}

/// A count that may not be 0.
fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n >= 1).ok_or_else(|| "must be 1 or more".to_owned())
}

/// Parses, runs, reports.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if matches!(e.kind(), DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand) => {
            e.exit()
        }
        Err(e) => {
            eprintln!("{}", one_line(&e.to_string()));
            return ExitCode::from(2);
        }
    };
    let ui = Ui::new(&cli.global);
    if let Some(threads) = cli.global.threads {
        // Fails only if a pool exists already, and nothing has run yet.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
    }
    match dispatch(cli.command, &ui) {
        Ok(code) => code,
        Err(error) => {
            // One line: an error's causes follow it after colons.
            eprintln!("error: {}", one_line(&format!("{error:#}")));
            let usage = error.chain().any(<dyn std::error::Error>::is::<UsageError>);
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// The paragraphs of a message side by side.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.fold(String::new(), |line, next| match line.chars().last() {
        None => next.to_owned(),
        Some(':') => line + " " + next,
        Some(_) => line + "; " + next,
    })
}

fn dispatch(command: Command, ui: &Ui) -> Result<ExitCode> {
    match command {
        Command::Inspect(args) => inspect::run(&args, ui)?,
        Command::Plan(args) => plan::run(&args, ui)?,
        Command::Prune(args) => prune::run(&args, ui)?,
        Command::Permute(args) => permute::run(&args, ui)?,
        Command::Recover(args) => recover::run(&args, ui)?,
        Command::Verify(args) => return verify::run(&args, ui),
        Command::Eval(args) => eval::run(&args, ui)?,
        Command::Run(args) => run::run(&args, ui)?,
        Command::Bench(args) => bench::run(&args, ui)?,
        Command::Kernels(args) => kernels::run(&args, ui)?,
        Command::Export(args) => export::run(&args, ui)?,
        Command::Demo(args) => demo::run(&args, ui)?,
        Command::Doctor(doctor::Args {}) => doctor::run(ui),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "lacuna", &mut std::io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A whole number of bytes, or a number with a unit.
fn size(text: &str) -> Result<u64, String> {
    let units = [("", 1.0), ("K", 1e3), ("M", 1e6), ("G", 1e9)];
    let binary = [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)];
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = units.iter().chain(&binary).find(|(name, _)| *name == unit).map(|(_, factor)| factor);
    let bytes = number.parse().ok().zip(factor).map(|(n, factor): (f64, _)| n * factor);
    let bytes = bytes.filter(|bytes| (1.0..1e18).contains(bytes)).map(|bytes| bytes as u64);
    bytes.ok_or_else(|| "must be a number of bytes, alone or with K, M, G, KiB, MiB or GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
