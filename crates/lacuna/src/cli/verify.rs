//! `lacuna verify`

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use lacuna_core::Pattern;

use super::ui::{Ui, table};

/// Prove that every sparse layer obeys its pattern, and name the kernel that runs it
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lacuna verify ./sparse
  lacuna verify ./dense-export --pattern 64:2:8

Exit code 1 if any layer breaks its pattern, or would run dense though it should be sparse.")]
pub(super) struct Args {
    /// Pruned checkpoint, or a dense export of one
    model: PathBuf,
    /// Pattern that the zeros of a dense export must obey
    #[arg(long)]
    pattern: Option<Pattern>,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<ExitCode> {
    let progress = ui.progress("verify", 0);
    let verdict = lacuna::verify::verify(&args.model, args.pattern, &progress)?;
    progress.finish_and_clear();
    ui.result(&verdict, || {
        let row = |l: &lacuna::verify::LayerCheck| {
            let numbers = [format!("{:.4}", l.density), l.violations.to_string(), l.kernel.clone()];
            [vec![l.name.clone(), l.pattern.clone()], numbers.to_vec()].concat()
        };
        let rows: Vec<Vec<String>> = verdict.layers.iter().map(row).collect();
        let mut text = table(&["layer", "pattern", "density", "violations", "kernel"], &rows);
        for layer in &verdict.layers {
            if let Some(problem) = &layer.problem {
                text += &format!("{}: {problem}\n", layer.name);
            }
        }
        let dense = verdict.dense_layers.len();
        text + &format!("{} layers, {} violations, {dense} layers dense by choice\n", rows.len(), verdict.violations)
    });
    Ok(if verdict.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
