//! `lacuna demo`

use anyhow::Result;
use lacuna::demo::demo;
use serde_json::json;

use super::ui::{Ui, bytes, table};

/// Prune a small built-in model to three patterns and show what each costs and gains
#[derive(clap::Args)]
#[command(after_help = "Example:\n  lacuna demo --seed 7")]
pub(super) struct Args {}

pub(super) fn run(_: &Args, ui: &Ui) -> Result<()> {
    let progress = ui.progress("demo", 0);
    let shown = demo(ui.seed, &progress)?;
    progress.finish_and_clear();
    ui.result(&json!({ "rows": shown.rows, "samples": shown.samples }), || {
        let row = |r: &lacuna::demo::Row| {
            vec![
                r.variant.clone(),
                format!("{:.3}", r.perplexity),
                bytes(r.linear_bytes),
                bytes(r.bytes),
                format!("{:.0}", r.prefill_tokens_per_second),
                format!("{:.0}", r.decode_tokens_per_second),
            ]
        };
        let rows: Vec<Vec<String>> = shown.rows.iter().map(row).collect();
        let head = ["variant", "perplexity", "linear layers", "whole model", "prefill tokens/s", "decode tokens/s"];
        let samples = shown.samples.iter().map(|(variant, text)| format!("\n{variant} writes: {text}\n"));
        table(&head, &rows) + &samples.collect::<String>()
    });
    Ok(())
}
