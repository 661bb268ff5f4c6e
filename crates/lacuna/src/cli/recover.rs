//! `lacuna recover`

use std::path::PathBuf;

use anyhow::Result;
#[cfg(not(feature = "train"))]
use lacuna::UsageError;

use super::positive;
use super::ui::Ui;

/// Train a pruned checkpoint towards the dense one, with its pattern intact
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  lacuna recover ./sparse ./recovered --dense ./llama --data self --data text.txt --steps 2000"
)]
pub(super) struct Args {
    /// Pruned checkpoint
    model: PathBuf,
    /// Directory to write
    output: PathBuf,
    /// The dense checkpoint that it came from
    #[arg(long, value_name = "DIR")]
    dense: Option<PathBuf>,
    /// What to train on: a text (.txt, .jsonl), a folder of images, or `self` for texts that the dense model writes; several are
    /// put together
    #[arg(long, value_name = "DATA", required = true)]
    data: Vec<String>,
    /// Texts that the dense model writes for `--data self`
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = positive)]
    self_samples: usize,
    /// How: a built-in recipe, or a file (docs/cli.md has both)
    #[arg(long, value_name = "NAME", default_value = "masked")]
    method: String,
    /// Steps of the optimizer
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = positive)]
    steps: usize,
    /// Samples of a step
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = positive)]
    batch: usize,
    /// Tokens of a sample [default: the model's context, at most 512]
    #[arg(long, value_name = "N")]
    length: Option<usize>,
    /// Highest learning rate, relative to the size of each tensor's values [default: the recipe's]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Round what is multiplied to bfloat16: faster on a CPU with AMX, on others only more work
    #[arg(long)]
    bf16: bool,
    /// Compute activations again on the way back: less memory, more time
    #[arg(long)]
    recompute: bool,
    /// Steps between two saved states, to go on from after an interruption
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = positive)]
    save_every: usize,
    /// Average so many trainings that differ in their seeds
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    soup: usize,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
}

#[cfg(not(feature = "train"))]
pub(super) fn run(_: &Args, _: &Ui) -> Result<()> {
    let how = "build it in with `cargo build --release --features train`, or `cargo install --path crates/lacuna --features train`";
    Err(UsageError(format!("this lacuna was built without training; {how}")).into())
}

#[cfg(feature = "train")]
pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    use super::ui::bytes;
    use lacuna::recover::{DataSource, Job, Options, recipe};

    let mut recipe = recipe(&args.method)?;
    if let Some(lr) = args.lr {
        recipe.optimizer.lr = lr;
        let checked = recipe.checked();
        recipe = checked.map_err(|problem| lacuna::UsageError(format!("--lr: {problem}")))?;
    }
    let source = |data: &String| match data.as_str() {
        "self" => DataSource::Generated(args.self_samples),
        path => DataSource::Path(path.into()),
    };
    let options = Options {
        dense: args.dense.clone(),
        data: args.data.iter().map(source).collect(),
        method: args.method.clone(),
        recipe,
        steps: args.steps,
        batch: args.batch,
        length: args.length,
        seed: ui.seed,
        bf16: args.bf16,
        recompute: args.recompute,
        save_every: args.save_every,
        soup: args.soup,
        force: args.force,
    };
    let job = Job::new(&args.model, options)?;
    let progress = ui.progress("recover", job.steps());
    let report = job.run(&args.output, &progress)?;
    progress.finish_and_clear();
    ui.result(&report, || {
        let first = report.first.map_or(f64::NAN, |losses| losses.total);
        let memory = report.peak_rss_bytes.map_or(String::new(), |peak| format!(", peak memory {}", bytes(peak)));
        format!(
            "wrote {}: {} by {} steps, loss {first:.4} -> {:.4}, {} tokens, {:.2} % of the mask changed, {:.0} s{memory}\n",
            report.output.display(),
            report.method,
            report.steps,
            report.last.total,
            report.tokens,
            100.0 * report.flipped,
            report.seconds,
        )
    });
    Ok(())
}
