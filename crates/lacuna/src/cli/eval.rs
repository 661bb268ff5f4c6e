//! `lacuna eval`

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lacuna::eval::{Protocol, Score, evaluate};
use lacuna_model::Activations;
use serde::Serialize;

use super::ui::{Ui, table};

/// Measure perplexity on a text
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lacuna eval ./sparse --data held-out.jsonl --baseline ./llama
  lacuna eval ./llama --data wikitext2-test.txt --context 2048 --stride 512")]
pub(super) struct Args {
    /// Checkpoint directory, dense or pruned
    model: PathBuf,
    /// Text: .jsonl with a "text" a line, or .txt
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Another checkpoint to set beside it, usually the dense one
    #[arg(long, value_name = "MODEL")]
    baseline: Option<PathBuf>,
    /// How the text is cut [default: document for .jsonl, window for .txt]
    #[arg(long, value_enum)]
    protocol: Option<ProtocolName>,
    /// Tokens of a document at most, or of a window [default: the model's context, at most 2048]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Tokens between the starts of windows [default: the context, so that windows do not overlap]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Round activations to this type before each product [default: f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    activations: Option<super::ActivationsName>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum ProtocolName {
    /// each document by itself, cut at the context
    Document,
    /// one stream of tokens under a sliding window
    Window,
}

#[derive(Serialize)]
struct Output {
    #[serde(flatten)]
    score: Score,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Score>,
    /// nats above the baseline
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<f64>,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let documents = args.data.extension().is_some_and(|e| e == "jsonl");
    let name = args.protocol.unwrap_or(if documents { ProtocolName::Document } else { ProtocolName::Window });
    let activations = args.activations.map_or(Activations::F32, Into::into);
    let score = |model: &PathBuf| {
        let progress = ui.progress("eval", 0);
        let score =
            evaluate(model, &args.data, |config| protocol(args, name, config.max_positions), activations, &progress);
        progress.finish_and_clear();
        score
    };
    let own = score(&args.model)?;
    let baseline = args.baseline.as_ref().map(score).transpose()?;
    let output = Output { score: own, baseline, gap: baseline.map(|baseline| own.nll - baseline.nll) };
    ui.result(&output, || {
        let row = |name: &PathBuf, s: &Score| {
            let numbers = [format!("{:.4}", s.nll), format!("{:.3}", s.perplexity), s.tokens.to_string()];
            [vec![name.display().to_string()], numbers.to_vec()].concat()
        };
        let mut rows = vec![row(&args.model, &output.score)];
        rows.extend(args.baseline.iter().zip(&baseline).map(|(name, s)| row(name, s)));
        let mut text = table(&["model", "NLL", "perplexity", "tokens"], &rows);
        if let Some(gap) = output.gap {
            text += &format!("gap to the baseline: {gap:+.4} nats\n");
        }
        text
    });
    Ok(())
}

fn protocol(args: &Args, name: ProtocolName, max_positions: usize) -> Protocol {
    let context = args.context.unwrap_or(max_positions.min(2048));
    match name {
        ProtocolName::Document => Protocol::Document { context },
        ProtocolName::Window => Protocol::Window { context, stride: args.stride.unwrap_or(context) },
    }
}
