//! Image classification: how often the true class comes first.

use std::path::Path;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_format::ImageProcessor;
use lacuna_model::log_sum_exp;
use rayon::prelude::*;

use super::{Details, Score};
use crate::images::{Split, class_of, files};
use crate::models::VisionModel;

/// Images held in memory at once.
const BATCH: usize = 32;

/// Top-1 accuracy, and the cross-entropy of the true class.
pub(super) fn score(
    classifier: &VisionModel,
    labels: &[String],
    processor: &ImageProcessor,
    folder: &Path,
    split: Split,
    progress: &ProgressBar,
) -> Result<Score> {
    let files = files(folder, split)?;
    let classes = files.iter().map(|file| class_of(file, labels)).collect::<Result<Vec<usize>>>()?;
    progress.set_length(files.len() as u64);
    let (mut right, mut losses) = (0, Vec::with_capacity(files.len()));
    for (files, classes) in files.chunks(BATCH).zip(classes.chunks(BATCH)) {
        let pixels = files.par_iter().map(|file| processor.pixels(file));
        let pixels = pixels.collect::<lacuna_format::Result<Vec<Vec<f32>>>>()?;
        let logits = classifier.logits(&pixels.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        for (i, (&class, total)) in classes.iter().zip(log_sum_exp(&logits)).enumerate() {
            let own = logits.row(class)[i];
            // Of equal logits the first class wins.
            let before = (0..class).all(|other| logits.row(other)[i] < own);
            let behind = (class + 1..labels.len()).all(|other| logits.row(other)[i] <= own);
            right += usize::from(before && behind);
            losses.push(total - f64::from(own));
        }
        progress.inc(files.len() as u64);
    }
    let n = losses.len() as f64;
    let (share, cross_entropy) = (right as f64 / n, losses.iter().sum::<f64>() / n);
    if !cross_entropy.is_finite() {
        bail!("the model's logits are not finite; the checkpoint is damaged");
    }
    let spread = losses.iter().map(|loss| (loss - cross_entropy).powi(2)).sum::<f64>();
    let stderr_of = |variance: f64| (n > 1.0).then(|| (variance / (n - 1.0)).sqrt());
    Ok(Score {
        metric: "top1",
        value: share,
        stderr: stderr_of(share * (1.0 - share)),
        samples: losses.len(),
        details: Details::Images { cross_entropy, cross_entropy_stderr: stderr_of(spread / n), split },
    })
}
