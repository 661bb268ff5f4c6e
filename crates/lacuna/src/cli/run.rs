//! `lacuna run`

use std::path::PathBuf;

use anyhow::Result;
use lacuna::UsageError;
use lacuna::bench::native_activations;
use lacuna_format::{Checkpoint, Tokenizer};
use lacuna_model::{Execution, Model, Sampling, family, generate};
use serde_json::json;

use super::ui::Ui;

/// Generate text
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lacuna run ./sparse 'Once upon a time'
  lacuna run ./sparse 'One day' 'The cat' --temperature 0.8 --top-p 0.95 --seed 7 --json")]
pub(super) struct Args {
    /// Checkpoint directory, dense or pruned
    model: PathBuf,
    /// Prompts; several are generated as one batch
    #[arg(required = true)]
    prompts: Vec<String>,
    /// New tokens at most
    #[arg(short = 'n', long, default_value_t = 128, value_name = "N")]
    max_new_tokens: usize,
    /// 0 takes the most likely token always
    #[arg(long, default_value_t = 0.0, value_name = "T", value_parser = temperature)]
    temperature: f32,
    /// Draw only from the k most likely tokens
    #[arg(long, value_name = "K", value_parser = top_k)]
    top_k: Option<usize>,
    /// Draw only from the fewest tokens whose probabilities sum to P
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = top_p)]
    top_p: f32,
    /// Round activations to this type before each product [default: bf16 for a bf16 checkpoint, else f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    activations: Option<super::ActivationsName>,
}

fn temperature(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|t| (0.0..=100.0).contains(t)).ok_or_else(|| "must be from 0 to 100".to_owned())
}

fn top_k(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&k| k >= 1).ok_or_else(|| "must be 1 or more".to_owned())
}

fn top_p(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|&p| p > 0.0 && p <= 1.0).ok_or_else(|| "must be above 0 and at most 1".to_owned())
}

pub(super) fn run(args: &Args, ui: &Ui) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let config = family::config(&checkpoint)?;
    let tokenizer = Tokenizer::open(&args.model, config.vocab_size, config.bos_token_id)?;
    let mut prompts = vec![];
    for prompt in &args.prompts {
        let tokens = tokenizer.encode(prompt)?;
        if tokens.is_empty() {
            return Err(
                UsageError("a prompt is empty, and this model has no BOS token to start from".to_owned()).into()
            );
        }
        if tokens.len() > config.max_positions {
            let (len, max) = (tokens.len(), config.max_positions);
            return Err(UsageError(format!("a prompt has {len} tokens; this model takes {max}, so shorten it")).into());
        }
        prompts.push(tokens);
    }
    let model = {
        let activations = args.activations.map_or_else(|| native_activations(&checkpoint), Into::into);
        Model::load(&checkpoint, &config, Execution { activations, ..Execution::EXACT })?
    };
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: ui.seed };
    let streaming = !ui.json && prompts.len() == 1;
    let mut stream = tokenizer.stream(&prompts[0]);
    if streaming {
        ui.print(&args.prompts[0]);
    }
    let mut failed = None;
    let made = generate(&model, &prompts, args.max_new_tokens, sampling, |_, token| {
        if streaming {
            match stream.push(token) {
                Ok(text) => ui.print(&text),
                Err(e) => failed = Some(e),
            }
        }
    });
    if let Some(e) = failed {
        return Err(e.into());
    }
    let mut texts = vec![];
    for (prompt, tokens) in prompts.iter().zip(&made.tokens) {
        let whole = [&prompt[..], tokens].concat();
        texts.push(tokenizer.decode(&whole)?);
    }
    let prompt_tokens: usize = prompts.iter().map(Vec::len).sum();
    // The first token of each prompt comes with its prefill.
    let decoded: usize = made.tokens.iter().map(|t| t.len().saturating_sub(1)).sum();
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    let prefill = rate(prompt_tokens, made.prefill.as_secs_f64());
    let decode = rate(decoded, made.decode.as_secs_f64());
    let outputs = args.prompts.iter().zip(&texts).zip(&made.tokens);
    let outputs: Vec<_> = outputs
        .map(|((prompt, text), tokens)| json!({ "prompt": prompt, "text": text, "tokens": tokens.len() }))
        .collect();
    let value = json!({
        "outputs": outputs,
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
    });
    ui.result(&value, || {
        if streaming { "\n".to_owned() } else { texts.iter().map(|text| format!("{text}\n\n")).collect() }
    });
    if !ui.json {
        ui.note(&format!("prefill {prefill:.0} tokens/s, decode {decode:.0} tokens/s"));
    }
    Ok(())
}
