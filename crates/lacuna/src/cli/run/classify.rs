//! `lacuna run` of an image classifier: the five likeliest classes of each image.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use lacuna::UsageError;
use lacuna::device::Device;
use lacuna::images::{Split, classifier, files};
use lacuna_format::Checkpoint;
use lacuna_model::{Execution, VisionConfig};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::Args;
use crate::cli::ui::Ui;

/// Classes shown of an image.
const SHOWN: usize = 5;
/// Images held in memory at once.
const BATCH: usize = 32;

pub(super) fn run(
    args: &Args,
    checkpoint: &Checkpoint,
    config: &VisionConfig,
    execution: Execution,
    device: &Device,
    ui: &Ui,
) -> Result<()> {
    if let Some(file) = &args.file {
        let problem = format!("--file {}: images are given one by one or by their folder", file.display());
        return Err(UsageError(problem).into());
    }
    let mut paths: Vec<PathBuf> = vec![];
    for input in args.inputs.iter().map(Path::new) {
        if input.is_dir() { paths.extend(files(input, Split::All)?) } else { paths.push(input.to_owned()) }
    }
    let (processor, classifier) = classifier(device, checkpoint, config, execution)?;
    let (mut outputs, mut preparing, mut running) = (vec![], Duration::ZERO, Duration::ZERO);
    for paths in paths.chunks(BATCH) {
        let started = Instant::now();
        let pixels = paths.par_iter().map(|path| processor.pixels(path));
        let pixels = pixels.collect::<lacuna_format::Result<Vec<Vec<f32>>>>()?;
        preparing += started.elapsed();
        let started = Instant::now();
        let logits = classifier.logits(&pixels.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        running += started.elapsed();
        for (i, path) in paths.iter().enumerate() {
            let column: Vec<f32> = (0..logits.rows()).map(|class| logits.row(class)[i]).collect();
            outputs.push((path, likeliest(&column)));
        }
    }
    let rate = paths.len() as f64 / running.as_secs_f64();
    let entry = |&(class, probability): &(usize, f64)| json!({ "class": class, "label": config.labels[class], "probability": probability });
    let value =
        outputs.iter().map(|(path, top)| json!({ "file": path, "top": top.iter().map(entry).collect::<Vec<Value>>() }));
    let value = json!({
        "outputs": value.collect::<Vec<_>>(),
        "images_per_second": rate,
        "preprocessing_seconds": preparing.as_secs_f64(),
    });
    ui.result(&value, || {
        let line = |&(class, probability): &(usize, f64)| {
            format!("  {:5.1} %  {}\n", 100.0 * probability, config.labels[class])
        };
        outputs
            .iter()
            .map(|(path, top)| format!("{}\n{}", path.display(), top.iter().map(line).collect::<String>()))
            .collect()
    });
    if !ui.json {
        ui.note(&format!("{} images, {rate:.1} images/s, read in {:.2} s", paths.len(), preparing.as_secs_f64()));
    }
    Ok(())
}

/// Classes by falling probability, with it; of equal ones the first.
fn likeliest(logits: &[f32]) -> Vec<(usize, f64)> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    order.into_iter().take(SHOWN).map(|class| (class, weights[class] / sum)).collect()
}
