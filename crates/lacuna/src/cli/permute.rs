//! `lacuna permute`

use std::path::PathBuf;

use anyhow::Result;
use lacuna::permute::{Options, Report, permute};
use lacuna_core::Pattern;

use super::calibration::CalibrationArgs;
use super::ui::{Ui, bytes, table};

/// Reorder the channels of a dense checkpoint so that a V:N:M mask keeps more; what it computes stays the same
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lacuna permute ./llama ./llama-ordered --pattern 64:2:8 --calibration text.txt
  lacuna prune ./llama-ordered ./sparse --pattern 64:2:8 --recipe ria --calibration text.txt
  lacuna export ./sparse ./zeros --format dense")]
pub(super) struct Args {
    /// Dense checkpoint directory
    model: PathBuf,
    /// Directory to write
    output: PathBuf,
    /// Pattern that the checkpoint shall be pruned to
    #[arg(long)]
    pattern: Pattern,
    // Without data weights are scored by their size alone.
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Reorder also the features of the vectors that an encoder gives out: cosines between vectors of the new model stay,
    /// but its vectors cannot be mixed with those of the old one
    #[arg(long)]
    embeddings: bool,
    /// Replace the output if it exists, discard unfinished output of other settings
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let options = Options {
        pattern: args.pattern,
        calibration: args.calibration.calibration(None, ui.seed),
        embeddings: args.embeddings,
        force: args.force,
    };
    let progress = ui.progress("permute", 0);
    let report = permute(&args.model, &args.output, &options, &progress)?;
    progress.finish_and_clear();
    ui.result(&report, || text(&report, ui.verbose));
    Ok(())
}

fn text(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    if verbose {
        let row = |l: &lacuna::permute::LayerReport| {
            vec![l.name.clone(), format!("{:.4}", l.retained_before), format!("{:.4}", l.retained_after)]
        };
        let rows: Vec<Vec<String>> = report.layers.iter().map(row).collect();
        text += &table(&["layer", "score kept before", "after"], &rows);
        text.push('\n');
    }
    let (before, after) = (report.retained_before, report.retained_after);
    text += &format!("reordered {} layers into {}\n", report.layers.len(), report.output.display());
    text += &format!("score kept by {}  {before:.4} -> {after:.4}\n", report.pattern);
    if !report.residual {
        text += "residual stream  as it was: its features are what the model gives out (--embeddings)\n";
    }
    text += &format!("{:.1} s", report.seconds);
    if let Some(peak) = report.peak_rss_bytes {
        text += &format!(", peak memory {}", bytes(peak));
    }
    text.push('\n');
    text
}
