//! The project's one door: `cargo xtask check` runs everything that must hold, `cargo xtask emulate` the same for kernels
//! of another architecture, `cargo xtask synth` makes large test checkpoints, `cargo xtask plot` shows what was measured.
//! Nothing here is part of the product.

#![forbid(unsafe_code)]

mod check;
mod cuda;
mod emulate;
mod plot;
mod results;
mod synth;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Checks and generators of the Lacuna repository")]
enum Task {
    /// Run every check: format, lints, tidy, tests, docs, and the round trip through Hugging Face transformers
    Check(check::Args),
    /// Run the kernels' tests for 64-bit ARM under QEMU; says what to install where something is missing
    Emulate,
    /// Compile the CUDA kernels for every architecture, with no GPU, and look at the machine code
    CudaCompile,
    /// On a machine with a GPU: run every CUDA kernel against the definition, and time them beside dense products
    GpuCheck,
    /// Hold the tree against the invariants of ARCHITECTURE.md
    Tidy,
    /// Write a randomly initialised checkpoint of a known model's shapes
    Synth(synth::Args),
    /// Draw the newest record of bench/run.sh and write its tables into docs/performance.md
    Plot,
    /// Prune the checkpoints of ../shared by every recipe, and write the tables of docs/results.md
    Results(results::Args),
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Check(args) => check::run(&args),
        Task::Emulate => emulate::run(),
        Task::CudaCompile => cuda::compile(),
        Task::GpuCheck => cuda::gpu_check(),
        Task::Tidy => tidy::run(),
        Task::Synth(args) => synth::run(&args),
        Task::Plot => plot::run(),
        Task::Results(args) => results::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_owned()
}
