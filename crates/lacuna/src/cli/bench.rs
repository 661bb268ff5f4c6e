//! `lacuna bench`

use std::path::PathBuf;

use anyhow::Result;
use lacuna::bench::{Settings, bench};
use serde_json::json;

use super::kernel_bench;
use super::ui::{Ui, table};

/// Time a whole model, dense beside sparse; with --kernels, single products
#[derive(clap::Args)]
#[command(after_help = kernel_bench::after_help())]
pub(super) struct Args {
    /// Pruned checkpoint; a dense one is timed alone
    #[arg(required_unless_present = "kernels")]
    model: Option<PathBuf>,
    /// Tokens of each prompt or text
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = super::positive)]
    prompt_tokens: usize,
    /// Tokens that a decoder adds
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = super::positive)]
    decode_tokens: usize,
    /// Prompts, texts or images side by side
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = super::positive)]
    batch: usize,
    /// Round activations to this type before each product [default: bf16 for a bf16 checkpoint, else f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    activations: Option<super::ActivationsName>,
    #[command(flatten)]
    device: super::device::DeviceArgs,
    /// Timed rounds; the median counts
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = super::positive)]
    rounds: usize,
    /// Command line of a rival engine (bench/engines/README.md), words between blanks; may be given again. With a model it
    /// is one for whole encoders, and is given the dense export of the same model
    #[arg(long, value_name = "COMMAND")]
    engine: Vec<String>,
    #[command(flatten)]
    kernels: kernel_bench::KernelArgs,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let Some(model) = &args.model else { return kernel_bench::run(&args.kernels, &args.engine, ui) };
    let progress = ui.progress("bench", 0);
    let settings = Settings {
        device: args.device.open(args.activations)?,
        prompt: args.prompt_tokens,
        decode: args.decode_tokens,
        batch: args.batch,
        activations: args.activations.map(Into::into),
        rounds: args.rounds,
        engines: args.engine.clone(),
    };
    let rows = bench(model, &settings, &progress)?;
    progress.finish_and_clear();
    let threads = rayon::current_num_threads();
    ui.result(&json!({ "rows": rows, "threads": threads, "batch": args.batch }), || {
        let row = |r: &lacuna::bench::Row| {
            let rate = format!("{:.1}", r.tokens_per_second);
            let items = format!("{:.2}", r.items_per_second);
            let contestant = format!("{} {}", r.engine, r.variant);
            let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            let (to_dense, to_rival) = (ratio(Some(r.ratio_to_dense)), ratio(r.ratio_to_rival));
            vec![r.phase.to_owned(), contestant, rate, items, to_dense, to_rival]
        };
        let rows: Vec<Vec<String>> = rows.iter().map(row).collect();
        table(&["phase", "contestant", "tokens/s", "items/s", "to our dense", "to fastest rival"], &rows)
    });
    Ok(())
}
