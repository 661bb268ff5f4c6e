//! `lacuna run` of a decoder: continues texts.

use anyhow::Result;
use lacuna::UsageError;
use lacuna::device::Device;
use lacuna::models::DecoderModel;
use lacuna_format::{Checkpoint, Tokenizer};
use lacuna_model::{DecoderConfig, Execution, Sampling};
use serde_json::json;

use super::Args;
use crate::cli::ui::Ui;

pub(super) fn run(
    args: &Args,
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    execution: Execution,
    device: &Device,
    ui: &Ui,
) -> Result<()> {
    let tokenizer = Tokenizer::open(&args.model, config.vocab_size, config.bos_token_id)?;
    let texts = args.texts()?;
    let mut prompts = vec![];
    for prompt in &texts {
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
    let model = DecoderModel::load(device, checkpoint, config, execution)?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: ui.seed };
    let streaming = !ui.json && prompts.len() == 1;
    let mut stream = tokenizer.stream(&prompts[0]);
    if streaming {
        ui.print(&texts[0]);
    }
    let mut failed = None;
    let made = model.generate(&prompts, args.max_new_tokens, sampling, |_, token| {
        if streaming {
            match stream.push(token) {
                Ok(text) => ui.print(&text),
                Err(e) => failed = Some(e),
            }
        }
    })?;
    if let Some(e) = failed {
        return Err(e.into());
    }
    let mut written = vec![];
    for (prompt, tokens) in prompts.iter().zip(&made.tokens) {
        let whole = [&prompt[..], tokens].concat();
        written.push(tokenizer.decode(&whole)?);
    }
    let prompt_tokens: usize = prompts.iter().map(Vec::len).sum();
    // The first token of each prompt comes with its prefill.
    let decoded: usize = made.tokens.iter().map(|t| t.len().saturating_sub(1)).sum();
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    let prefill = rate(prompt_tokens, made.prefill.as_secs_f64());
    let decode = rate(decoded, made.decode.as_secs_f64());
    let outputs = texts.iter().zip(&written).zip(&made.tokens);
    let outputs: Vec<_> = outputs
        .map(|((prompt, text), tokens)| json!({ "prompt": prompt, "text": text, "tokens": tokens.len() }))
        .collect();
    let value = json!({
        "outputs": outputs,
        "prefill_tokens_per_second": prefill,
        "decode_tokens_per_second": decode,
    });
    ui.result(&value, || {
        if streaming { "\n".to_owned() } else { written.iter().map(|text| format!("{text}\n\n")).collect() }
    });
    if !ui.json {
        ui.note(&format!("prefill {prefill:.0} tokens/s, decode {decode:.0} tokens/s"));
    }
    Ok(())
}
