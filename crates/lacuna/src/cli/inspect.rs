//! `lacuna inspect`

use std::path::PathBuf;

use anyhow::Result;

use super::ui::{Ui, bytes, table};

/// Show layers, shapes, what can be pruned, the density and a histogram of |w|
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lacuna inspect ./llama --json | jq '.layers[].name'")]
pub(super) struct Args {
    /// Checkpoint directory
    model: PathBuf,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let progress = ui.progress("inspect", 0);
    let found = lacuna::inspect::inspect(&args.model, &progress)?;
    progress.finish_and_clear();
    ui.result(&found, || {
        let rows: Vec<Vec<String>> = found
            .layers
            .iter()
            .map(|l| {
                vec![
                    l.name.clone(),
                    format!("{}x{}", l.shape[0], l.shape[1]),
                    l.dtype.clone(),
                    bytes(l.bytes),
                    format!("{:.4}", l.density),
                    l.pattern.clone().unwrap_or_else(|| if l.prunable { "prunable" } else { "excluded" }.to_owned()),
                ]
            })
            .collect();
        let most = found.histogram.bins.iter().map(|&(_, n)| n).max().unwrap_or(1);
        let bars: Vec<Vec<String>> = found
            .histogram
            .bins
            .iter()
            .map(|&(e, n)| vec![format!("2^{e}"), n.to_string(), "#".repeat((n * 40 / most) as usize)])
            .collect();
        format!(
            "{} model, {} of weights, {} parameters, {} in linear layers, density {:.4}\n\n{}\n|w| of the linear layers \
             from each power of two, {} zeros\n{}",
            found.model_type,
            bytes(found.bytes),
            found.parameters,
            found.linear_parameters,
            found.density,
            table(&["layer", "shape", "type", "size", "density", "pattern"], &rows),
            found.histogram.zeros,
            bars.iter().map(|b| format!("{:>6} {:>12} {}\n", b[0], b[1], b[2])).collect::<String>(),
        )
    });
    Ok(())
}
