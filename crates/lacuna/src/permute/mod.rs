//! Another checkpoint of the same model, dense as before, whose channels are in an order that grouped masks suit: pruned
//! to a plain pattern it keeps more, and its export needs no order beside the weights.
//!
//! Every order is fused into the weights around it (`lacuna_model::ChannelOrders` knows which are legal), so nothing is
//! permuted at run time. Which order is best for all weights that share it is `lacuna_prune::permute`'s to find.

mod choose;
mod norms;
mod rewrite;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_core::Pattern;
use lacuna_format::Checkpoint;
use lacuna_model::{Config, family};
use serde::Serialize;

use crate::UsageError;
use crate::calibrate::Calibration;
use crate::modules::linears;
use crate::output::check_output;
use choose::Chooser;
use norms::Norms;
pub use rewrite::rewrite;

/// How to choose orders.
#[derive(Debug, Clone)]
pub struct Options {
    /// pattern that the checkpoint shall be pruned to
    pub pattern: Pattern,
    /// data to measure activations on; without it weights are scored by their size alone
    pub calibration: Option<Calibration>,
    /// reorder the residual stream even where its features are what the model gives out
    pub embeddings: bool,
    /// replace what is there
    pub force: bool,
}

/// What the orders did for one layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// module name
    pub name: String,
    /// share of the sum of scores that the paper's selection keeps, before
    pub retained_before: f64,
    /// and after
    pub retained_after: f64,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// the new checkpoint
    pub output: PathBuf,
    /// as printed
    pub pattern: String,
    /// whether the residual stream has another order too
    pub residual: bool,
    /// mean share of scores that the paper's selection keeps over all weights, before
    pub retained_before: f64,
    /// and after
    pub retained_after: f64,
    /// tokens of calibration
    pub calibration_tokens: usize,
    /// seconds that this run took
    pub seconds: f64,
    /// largest resident size of this process
    pub peak_rss_bytes: Option<u64>,
    /// every layer of the blocks
    pub layers: Vec<LayerReport>,
}

/// Writes `output`: the model of `source` with its channels in other orders.
pub fn permute(source: &Path, output: &Path, options: &Options, progress: &ProgressBar) -> Result<Report> {
    let started = Instant::now();
    let checkpoint = Checkpoint::open(source)?;
    if checkpoint.sparsity().is_some() {
        bail!("{}: already pruned; permute the dense checkpoint, and prune that", source.display());
    }
    let config = family::config(&checkpoint)?;
    for layer in linears(&checkpoint, &config)?.iter().filter(|layer| !layer.head) {
        let fits = options.pattern.grid(layer.rows, layer.cols);
        fits.map_err(|e| UsageError(format!("layer {}: {e}", layer.name)))?;
    }
    let residual = options.embeddings || config.hides_residual();
    check_known(&checkpoint, &config, residual)?;
    check_output(source, output, options.force)?;
    let samples = options.calibration.as_ref().map(|calibration| calibration.draw(source, &config)).transpose()?;
    let norms = samples.map(|samples| Norms::collect(&checkpoint, &config, &samples)).transpose()?;
    let calibration_tokens = norms.as_ref().map_or(0, Norms::tokens);
    let mut chooser = Chooser::new(&checkpoint, &config, options.pattern, norms.as_ref())?;
    let before = chooser.retained()?;
    chooser.choose(residual, progress)?;
    let after = chooser.retained()?;
    rewrite(&checkpoint, &config, chooser.orders(), output, options.force)?;
    let weights: usize = before.iter().map(|(layer, _)| layer.rows * layer.cols).sum();
    let mean = |retained: &[(_, f64)]| {
        let of = |(layer, share): &(lacuna_model::LinearSpec, f64)| share * (layer.rows * layer.cols) as f64;
        retained.iter().map(of).sum::<f64>() / weights.max(1) as f64
    };
    let layers = before.iter().zip(&after).map(|((layer, before), (_, after))| LayerReport {
        name: layer.name.clone(),
        retained_before: *before,
        retained_after: *after,
    });
    Ok(Report {
        output: output.to_owned(),
        pattern: options.pattern.to_string(),
        residual,
        retained_before: mean(&before),
        retained_after: mean(&after),
        calibration_tokens,
        seconds: started.elapsed().as_secs_f64(),
        peak_rss_bytes: crate::memory::peak_rss_bytes(),
        layers: layers.collect(),
    })
}

/// Refuses tensors that would have to follow an order and are not known, before any work is done.
fn check_known(checkpoint: &Checkpoint, config: &Config, residual: bool) -> Result<()> {
    for name in checkpoint.tensors().keys() {
        if residual || config.blocks().layer_of(name).is_some() {
            config.axes(checkpoint, name)?;
        }
    }
    Ok(())
}
