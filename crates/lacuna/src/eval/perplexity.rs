//! Perplexity: how well a model predicts a text.

use std::path::Path;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_format::Tokenizer;
use lacuna_model::{DecoderConfig, log_sum_exp, runs};
use rayon::prelude::*;

use super::{Details, Score};
use crate::UsageError;
use crate::models::DecoderModel;
use crate::text::read_documents;

/// Tokens that run through the model together.
const BATCH_TOKENS: usize = 2048;
/// Columns of logits held at once.
const LOGIT_COLUMNS: usize = 256;

/// How a text is cut into sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// each document by itself, cut at `context` tokens; every token after the first is predicted
    Document {
        /// tokens of the longest sequence
        context: usize,
    },
    /// one stream of tokens (documents joined by a blank line) under a window of `context` tokens that moves on by
    /// `stride`; of each window those tokens are predicted that no window before it predicted
    Window {
        /// tokens of a window
        context: usize,
        /// tokens between the starts of windows
        stride: usize,
    },
}

/// A sequence, and from which token on its tokens count as predicted.
type Scored = (Vec<u32>, usize);

/// Sequences of a text file under a protocol.
pub fn sequences(
    file: &Path,
    tokenizer: &Tokenizer,
    protocol: Protocol,
    config: &DecoderConfig,
) -> Result<Vec<Scored>> {
    let (Protocol::Document { context } | Protocol::Window { context, .. }) = protocol;
    if !(2..=config.max_positions).contains(&context) {
        let max = config.max_positions;
        return Err(UsageError(format!("--context is {context}; this model takes 2 to {max} tokens")).into());
    }
    let documents = read_documents(file)?;
    let sequences: Vec<Scored> = match protocol {
        Protocol::Document { .. } => {
            let cut = |document: &String| {
                let mut tokens = tokenizer.encode(document)?;
                tokens.truncate(context);
                Ok((tokens, 1))
            };
            documents.par_iter().map(cut).collect::<Result<_>>()?
        }
        Protocol::Window { stride, .. } => {
            if !(1..=context).contains(&stride) {
                return Err(
                    UsageError(format!("--stride is {stride}; it must be from 1 to the context {context}")).into()
                );
            }
            windows(&tokenizer.encode(&documents.join("\n\n"))?, context, stride)
        }
    };
    let sequences: Vec<Scored> = sequences.into_iter().filter(|(tokens, from)| tokens.len() > *from).collect();
    if sequences.is_empty() {
        bail!("{}: too short to predict a single token", file.display());
    }
    Ok(sequences)
}

/// The windows over a stream of tokens. With `stride == context` they do not overlap and each predicts `context − 1`
/// tokens; otherwise each after the first predicts its last `stride` tokens.
fn windows(tokens: &[u32], context: usize, stride: usize) -> Vec<Scored> {
    let (mut windows, mut start, mut predicted) = (vec![], 0, 1);
    while predicted < tokens.len() {
        let end = (start + context).min(tokens.len());
        windows.push((tokens[start..end].to_vec(), predicted.max(start + 1) - start));
        predicted = end;
        start += stride;
    }
    windows
}

/// Perplexity over all predicted tokens of all sequences. Its standard error takes the sequences as the sample: tokens of
/// one text are not independent.
pub fn score(model: &DecoderModel, sequences: &[Scored], progress: &ProgressBar) -> Result<Score> {
    progress.set_length(sequences.iter().map(|(tokens, _)| tokens.len() as u64).sum());
    // (sum of negative log-likelihoods, tokens predicted) of each sequence
    let mut found: Vec<(f64, usize)> = vec![];
    let lengths: Vec<usize> = sequences.iter().map(|(tokens, _)| tokens.len()).collect();
    for run in runs(&lengths, BATCH_TOKENS) {
        found.extend(score_batch(model, &sequences[run.clone()])?);
        progress.inc(lengths[run].iter().sum::<usize>() as u64);
    }
    let tokens: usize = found.iter().map(|&(_, tokens)| tokens).sum();
    let nll = found.iter().map(|&(sum, _)| sum).sum::<f64>() / tokens as f64;
    if !nll.is_finite() {
        bail!("the model's logits are not finite; the checkpoint is damaged");
    }
    // Of a ratio of two sums (Cochran, Sampling Techniques, 2.11): the spread of each sequence around the common mean.
    let spread = found.iter().map(|&(sum, n)| (sum - nll * n as f64).powi(2)).sum::<f64>();
    let n = found.len() as f64;
    let nll_stderr = (n > 1.0).then(|| (spread * n / (n - 1.0)).sqrt() / tokens as f64);
    Ok(Score {
        metric: "perplexity",
        value: nll.exp(),
        stderr: nll_stderr.map(|stderr| nll.exp() * stderr),
        samples: found.len(),
        details: Details::Perplexity { nll, perplexity: nll.exp(), tokens },
    })
}

/// Of each sequence the sum of negative log-likelihoods, and how many.
fn score_batch(model: &DecoderModel, sequences: &[Scored]) -> Result<Vec<(f64, usize)>> {
    let hidden = model.forward(&sequences.iter().map(|(tokens, _)| &tokens[..]).collect::<Vec<_>>())?;
    // (sequence, column that predicts, token that came)
    let mut predictions = vec![];
    let mut start = 0;
    for (sequence, (tokens, from)) in sequences.iter().enumerate() {
        predictions.extend((*from..tokens.len()).map(|i| (sequence, start + i - 1, tokens[i] as usize)));
        start += tokens.len();
    }
    let mut found = vec![(0.0, 0); sequences.len()];
    for part in predictions.chunks(LOGIT_COLUMNS) {
        let columns: Vec<usize> = part.iter().map(|&(_, column, _)| column).collect();
        let logits = model.logits(&hidden, &columns)?;
        let totals = log_sum_exp(&logits);
        for (i, &(sequence, _, token)) in part.iter().enumerate() {
            found[sequence].0 += totals[i] - f64::from(logits.row(token)[i]);
            found[sequence].1 += 1;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_of_the_stream_is_predicted_once_if_windows_overlap() {
        let tokens: Vec<u32> = (0..23).collect();
        let mut predicted: Vec<u32> = vec![];
        for (window, from) in windows(&tokens, 8, 3) {
            predicted.extend(&window[from..]);
        }
        assert_eq!(predicted, (1..23).collect::<Vec<_>>());
    }

    #[test]
    fn windows_that_do_not_overlap_predict_context_minus_one() {
        let tokens: Vec<u32> = (0..20).collect();
        let windows = windows(&tokens, 8, 8);
        let predicted: Vec<usize> = windows.iter().map(|(tokens, from)| tokens.len() - from).collect();
        assert_eq!(predicted, [7, 7, 3]);
    }
}
