//! The STS benchmark (Cer et al., arXiv 1708.00055): do the cosines of a text encoder's vectors rank pairs of sentences as
//! people do?

use std::path::Path;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_format::Tokenizer;

use super::{Details, Score};
use crate::models::TextModel;
use crate::text::read_pairs;

/// Sentences that are encoded between two steps of the progress bar.
const BATCH: usize = 64;

/// Spearman's correlation of cosines and scores.
pub(super) fn score(
    encoder: &TextModel,
    tokenizer: &Tokenizer,
    file: &Path,
    max_tokens: usize,
    progress: &ProgressBar,
) -> Result<Score> {
    let pairs = read_pairs(file)?;
    if pairs.len() < 4 {
        bail!("{}: holds {} pairs; a correlation needs 4 or more", file.display(), pairs.len());
    }
    let mut tokens = vec![];
    for sentence in pairs.iter().flat_map(|pair| &pair.sentences) {
        let own = tokenizer.encode_with_specials(sentence, max_tokens)?;
        if own.is_empty() {
            bail!(
                "{}: the sentence '{sentence}' has no tokens, so it has no vector; leave its pair out",
                file.display()
            );
        }
        tokens.push(own);
    }
    progress.set_length(tokens.len() as u64);
    let mut vectors = vec![];
    for batch in tokens.chunks(BATCH) {
        let batch: Vec<&[u32]> = batch.iter().map(Vec::as_slice).collect();
        vectors.extend(encoder.embed(&batch)?);
        progress.inc(batch.len() as u64);
    }
    let cosines: Vec<f64> = vectors.as_chunks::<2>().0.iter().map(|[a, b]| cosine(a, b)).collect();
    if cosines.iter().any(|cosine| !cosine.is_finite()) {
        bail!("the model's vectors are not finite; the checkpoint is damaged");
    }
    let scores: Vec<f64> = pairs.iter().map(|pair| pair.score).collect();
    let spearman = pearson(&ranks(&cosines), &ranks(&scores));
    // By Fisher's transformation with the variance of Bonett & Wright (Psychometrika 65, 2000).
    let n = pairs.len() as f64;
    let stderr = (1.0 - spearman * spearman) * ((1.0 + spearman * spearman / 2.0) / (n - 3.0)).sqrt();
    Ok(Score {
        metric: "spearman",
        value: spearman,
        stderr: Some(stderr),
        samples: pairs.len(),
        details: Details::Sts { pearson: pearson(&cosines, &scores) },
    })
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(f64::MIN_POSITIVE)
}

/// Places in ascending order; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|&a, &b| values[a].total_cmp(&values[b]).is_eq()) {
        for &i in equal {
            ranks[i] = first as f64 + (equal.len() - 1) as f64 / 2.0;
        }
        first += equal.len();
    }
    ranks
}

/// 0 where one side does not vary.
fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let moment = |f: &dyn Fn(f64, f64) -> f64| -> f64 { a.iter().zip(b).map(|(a, b)| f(a - mean_a, b - mean_b)).sum() };
    let (covariance, var_a, var_b) = (moment(&|a, b| a * b), moment(&|a, _| a * a), moment(&|_, b| b * b));
    if var_a > 0.0 && var_b > 0.0 { covariance / (var_a * var_b).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_their_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
    }

    #[test]
    fn order_alone_counts() {
        let a = [0.1, 0.4, 0.2, 0.9, 0.5];
        let cubes: Vec<f64> = a.iter().map(|x: &f64| x.powi(3)).collect();
        assert!((pearson(&ranks(&a), &ranks(&cubes)) - 1.0).abs() < 1e-12);
        let falling: Vec<f64> = a.iter().map(|x| -x).collect();
        assert!((pearson(&ranks(&a), &ranks(&falling)) + 1.0).abs() < 1e-12);
        assert!(pearson(&a, &[1.0; 5]).abs() < 1e-12);
    }
}
