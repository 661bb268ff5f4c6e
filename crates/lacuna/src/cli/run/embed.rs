//! `lacuna run` of a text encoder: a vector a text, as JSON or in NumPy's format.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use lacuna::UsageError;
use lacuna::device::Device;
use lacuna::models::TextModel;
use lacuna_format::{Checkpoint, Tokenizer};
use lacuna_model::{Execution, TextConfig};
use serde_json::json;

use super::Args;
use crate::cli::ui::Ui;

pub(super) fn run(
    args: &Args,
    checkpoint: &Checkpoint,
    config: &TextConfig,
    execution: Execution,
    device: &Device,
    ui: &Ui,
) -> Result<()> {
    if let Some(path) = args.output.as_deref().filter(|path| path.extension().is_none_or(|e| e != "npy")) {
        return Err(UsageError(format!("--output {}: only .npy is written; name it so", path.display())).into());
    }
    let tokenizer = Tokenizer::open(&args.model, config.vocab_size, None)?;
    let max = args.max_tokens.unwrap_or(config.max_tokens);
    if !(3..=config.max_tokens).contains(&max) {
        let problem = format!("--max-tokens is {max}; this model takes 3 to {}", config.max_tokens);
        return Err(UsageError(problem).into());
    }
    let texts = args.texts()?;
    let tokens = texts.iter().map(|text| Ok(tokenizer.encode_with_specials(text, max)?)).collect::<Result<Vec<_>>>()?;
    if let Some(text) = texts.iter().zip(&tokens).find(|(_, tokens)| tokens.is_empty()).map(|(text, _)| text) {
        return Err(UsageError(format!("the text '{text}' has no tokens, so it has no vector")).into());
    }
    let encoder = TextModel::load(device, checkpoint, config, execution)?;
    let started = Instant::now();
    let vectors = encoder.embed(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    let seconds = started.elapsed().as_secs_f64();
    if let Some(path) = &args.output {
        write_npy(path, &vectors)?;
    }
    let count: usize = tokens.iter().map(Vec::len).sum();
    let (texts_per_second, tokens_per_second) = (texts.len() as f64 / seconds, count as f64 / seconds);
    let outputs: Vec<_> = texts
        .iter()
        .zip(&tokens)
        .zip(&vectors)
        .map(|((text, tokens), vector)| match args.output {
            // The vectors are in the file.
            Some(_) => json!({ "text": text, "tokens": tokens.len() }),
            None => json!({ "text": text, "tokens": tokens.len(), "vector": vector }),
        })
        .collect();
    let value = json!({
        "outputs": outputs,
        "texts_per_second": texts_per_second,
        "tokens_per_second": tokens_per_second,
    });
    ui.result(&value, || match args.output {
        Some(_) => String::new(),
        None => vectors.iter().map(|vector| json!(vector).to_string() + "\n").collect(),
    });
    if !ui.json {
        ui.note(&format!("{} texts, {texts_per_second:.0} texts/s, {tokens_per_second:.0} tokens/s", texts.len()));
    }
    Ok(())
}

/// NumPy's format, version 1.0: a magic, the length of a header, the header as a Python dict filled up to a multiple of
/// 64 bytes, the values (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
fn write_npy(path: &Path, vectors: &[Vec<f32>]) -> Result<()> {
    let features = vectors.first().map_or(0, Vec::len);
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {features}), }}", vectors.len());
    let before_dict = 10;
    let length = (before_dict + dict.len() + 1).next_multiple_of(64) - before_dict;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(length).expect("a short header").to_le_bytes());
    bytes.extend(format!("{dict:<width$}\n", width = length - 1).as_bytes());
    bytes.extend(vectors.iter().flatten().flat_map(|v| v.to_le_bytes()));
    let mut file =
        tempfile::NamedTempFile::new_in(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
            .with_context(|| path.display().to_string())?;
    std::io::Write::write_all(&mut file, &bytes).with_context(|| path.display().to_string())?;
    file.persist(path).with_context(|| path.display().to_string())?;
    Ok(())
}
