//! `lacuna kernels`

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::ui::{Ui, table};

/// List the kernels, whether this CPU can run them, and which one each layer of a model uses
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  lacuna kernels\n  lacuna kernels ./sparse --json")]
pub(super) struct Args {
    /// Checkpoint directory, dense or pruned
    model: Option<PathBuf>,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let kernels = lacuna::kernels::list();
    let layers = args.model.as_deref().map(lacuna::kernels::of_layers).transpose()?;
    ui.result(&json!({ "kernels": kernels, "layers": layers }), || {
        let row = |k: &lacuna::kernels::KernelInfo| {
            let here = if k.available { "yes" } else { "no" };
            [k.weights, k.name, k.needs, here].map(str::to_owned).to_vec()
        };
        let rows: Vec<Vec<String>> = kernels.iter().map(row).collect();
        let mut text = table(&["weights", "kernel", "needs", "here"], &rows);
        if let Some(layers) = &layers {
            let row = |l: &lacuna::kernels::LayerKernel| {
                let shape = format!("{} x {}", l.shape[0], l.shape[1]);
                vec![l.name.clone(), shape, l.pattern.clone(), l.values.clone(), l.kernel.to_owned()]
            };
            let rows: Vec<Vec<String>> = layers.iter().map(row).collect();
            text += "\n";
            text += &table(&["layer", "shape", "pattern", "values", "kernel"], &rows);
        }
        text
    });
    Ok(())
}
