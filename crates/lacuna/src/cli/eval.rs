//! `lacuna eval`

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use lacuna::eval::{Details, Score, Settings, Task, evaluate, split_of};
use lacuna::images::Split;
use serde::Serialize;

use super::ui::{Ui, table};

/// Measure how good a model is: perplexity, accuracy on images, correlation on pairs of sentences
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lacuna eval ./sparse --data held-out.jsonl --baseline ./llama
  lacuna eval ./llama --data wikitext2-test.txt --context 2048 --stride 512
  lacuna eval ./vit-sparse --task classify-images --data photos/ --baseline ./vit
  lacuna eval ./minilm-sparse --task embed-sts --data sts-dev.csv --baseline ./minilm")]
pub(super) struct Args {
    /// Checkpoint directory, dense or pruned
    model: PathBuf,
    /// A text (.jsonl with a \"text\" a line, or .txt), a folder of images named by their class, or an STS file
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Another checkpoint to set beside it, usually the dense one
    #[arg(long, value_name = "MODEL")]
    baseline: Option<PathBuf>,
    /// What to measure [default: what the model is made for]
    #[arg(long, value_enum)]
    task: Option<TaskName>,
    /// Perplexity: how the text is cut [default: document for .jsonl, window for .txt]
    #[arg(long, value_enum)]
    protocol: Option<ProtocolName>,
    /// Tokens of a text at most, or of a window [default: the model's context, at most 2048; of sentences 128]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Perplexity: tokens between the starts of windows [default: the context, so that windows do not overlap]
    #[arg(long, value_name = "N")]
    stride: Option<usize>,
    /// Images: which of the folder [default: held-out if a model was calibrated on images, else all]
    #[arg(long, value_enum)]
    split: Option<SplitName>,
    /// Round activations to this type before each product [default: f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    activations: Option<super::ActivationsName>,
    #[command(flatten)]
    device: super::device::DeviceArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum TaskName {
    /// how well a decoder predicts a text
    Perplexity,
    /// how often an image classifier is right
    ClassifyImages,
    /// how well a text encoder ranks pairs of sentences
    EmbedSts,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum ProtocolName {
    /// each document by itself, cut at the context
    Document,
    /// one stream of tokens under a sliding window
    Window,
}

#[derive(Clone, Copy, ValueEnum)]
enum SplitName {
    /// the whole folder
    All,
    /// every fifth, what calibration draws from
    Calibration,
    /// what calibration never sees
    HeldOut,
}

#[derive(Serialize)]
struct Output {
    #[serde(flatten)]
    score: Score,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Score>,
    /// above the baseline: nats for perplexity, else the metric itself
    #[serde(skip_serializing_if = "Option::is_none")]
    gap: Option<f64>,
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let models: Vec<_> =
        [Some(&args.model), args.baseline.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
    let settings = Settings {
        device: args.device.open(args.activations)?,
        task: args.task.map(Into::into),
        by_document: args.protocol.map(|name| name == ProtocolName::Document),
        context: args.context,
        stride: args.stride,
        split: Some(args.split.map_or_else(|| split_of(&models), |split| Ok(split.into()))?),
        activations: args.activations.map(Into::into),
    };
    let score = |model: &PathBuf| {
        let progress = ui.progress("eval", 0);
        let score = evaluate(model, &args.data, &settings, &progress);
        progress.finish_and_clear();
        score
    };
    let score_of_model = score(&args.model)?;
    let baseline = args.baseline.as_ref().map(score).transpose()?;
    let gap = baseline.as_ref().map(|baseline| score_of_model.gap_to(baseline));
    let output = Output { score: score_of_model, baseline, gap: gap.map(|(gap, _)| gap) };
    ui.result(&output, || {
        let models = [Some((&args.model, &output.score)), args.baseline.as_ref().zip(output.baseline.as_ref())];
        let rows: Vec<Vec<String>> = models.into_iter().flatten().map(|(name, score)| row(name, score)).collect();
        let mut text = table(&head(&output.score), &rows);
        if let Details::Images { split, .. } = output.score.details {
            text += &format!("images: {}\n", split.name());
        }
        if let Some((gap, unit)) = gap {
            text += &format!("gap to the baseline: {gap:+.4} {unit}\n");
        }
        text
    });
    Ok(())
}

fn head(score: &Score) -> Vec<&'static str> {
    let details: &[&str] = match score.details {
        Details::Perplexity { .. } => &["NLL", "tokens"],
        Details::Images { .. } => &["cross-entropy"],
        Details::Sts { .. } => &["pearson"],
    };
    [&["model", score.metric, "std. error"], details, &["samples"]].concat()
}

fn row(name: &Path, score: &Score) -> Vec<String> {
    let stderr = score.stderr.map_or_else(|| "-".to_owned(), |stderr| format!("{stderr:.4}"));
    let mut row = vec![name.display().to_string(), format!("{:.4}", score.value), stderr];
    match score.details {
        Details::Perplexity { nll, tokens, .. } => row.extend([format!("{nll:.4}"), tokens.to_string()]),
        Details::Images { cross_entropy, .. } => row.push(format!("{cross_entropy:.4}")),
        Details::Sts { pearson } => row.push(format!("{pearson:.4}")),
    }
    row.push(score.samples.to_string());
    row
}

impl From<TaskName> for Task {
    fn from(name: TaskName) -> Self {
        match name {
            TaskName::Perplexity => Self::Perplexity,
            TaskName::ClassifyImages => Self::ClassifyImages,
            TaskName::EmbedSts => Self::EmbedSts,
        }
    }
}

impl From<SplitName> for Split {
    fn from(name: SplitName) -> Self {
        match name {
            SplitName::All => Self::All,
            SplitName::Calibration => Self::Calibration,
            SplitName::HeldOut => Self::HeldOut,
        }
    }
}
