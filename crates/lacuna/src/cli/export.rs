//! `lacuna export`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lacuna::export::export_dense;

use super::ui::{Ui, bytes};

/// Write a pruned checkpoint in a form that other programs load
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lacuna export ./sparse ./zeros --format dense")]
pub(super) struct Args {
    /// Pruned checkpoint
    model: PathBuf,
    /// Directory to write
    output: PathBuf,
    /// Form to write
    #[arg(long, value_enum, default_value_t = Format::Dense)]
    format: Format,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// plain safetensors with zeros, as Hugging Face transformers loads them
    Dense,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let progress = ui.progress("export", 0);
    let exported = match args.format {
        Format::Dense => export_dense(&args.model, &args.output, args.force, &progress)?,
    };
    progress.finish_and_clear();
    ui.result(&exported, || format!("wrote {}, {}\n", exported.output.display(), bytes(exported.bytes)));
    Ok(())
}
