//! What is in a checkpoint: layers, shapes, what can be pruned, how dense it is, how its weights are distributed.

use std::path::Path;

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_core::Matrix;
use lacuna_format::Checkpoint;
use lacuna_model::family;
use serde::Serialize;

use crate::modules::{Selector, linears};

/// Smallest and largest power of two with a bin of its own.
const EXPONENTS: std::ops::Range<i32> = -24..8;

/// One linear layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerInfo {
    /// module name
    pub name: String,
    /// `[out_features, in_features]`
    pub shape: [usize; 2],
    /// storage type of the weight or of its kept values
    pub dtype: String,
    /// pattern, if it is sparse
    pub pattern: Option<String>,
    /// share of weights that are not zero
    pub density: f64,
    /// whether `prune` takes it without being told to
    pub prunable: bool,
    /// bytes on disk
    pub bytes: u64,
}

/// Weights of the linear layers by magnitude.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Histogram {
    /// weights that are zero
    pub zeros: u64,
    /// `(e, count)`: weights with `2^e <= |w| < 2^(e+1)`; the ends take what lies beyond them
    pub bins: Vec<(i32, u64)>,
}

/// What is in a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// `model_type` of config.json, or timm's `architecture`
    pub model_type: String,
    /// bytes of all weights
    pub bytes: u64,
    /// all weights, counted as if dense
    pub parameters: u64,
    /// weights in the linear layers, counted as if dense
    pub linear_parameters: u64,
    /// share of the linear layers' weights that are not zero
    pub density: f64,
    /// the linear layers
    pub layers: Vec<LayerInfo>,
    /// of the linear layers' weights
    pub histogram: Histogram,
}

/// Reads a checkpoint once.
pub fn inspect(model: &Path, progress: &ProgressBar) -> Result<Inspection> {
    let checkpoint = Checkpoint::open(model)?;
    let config = family::config(&checkpoint)?;
    let all = linears(&checkpoint, &config)?;
    let prunable = Selector::default().select(all.clone())?;
    progress.set_length(all.len() as u64);
    let mut counts = vec![0_u64; EXPONENTS.len()];
    let (mut layers, mut non_zero, mut linear_parameters) = (vec![], 0_u64, 0_u64);
    for layer in all {
        progress.set_message(layer.name.clone());
        let (weight, dtype, pattern, bytes) = match checkpoint.packed(&layer.name)? {
            Some(packed) => {
                let pattern = packed.mask().grid().pattern().to_string();
                let bytes = lacuna_format::bytes_of(&packed) as u64;
                (packed.unpack(), packed.values().value_type(), Some(pattern), bytes)
            }
            None => {
                let name = layer.weight();
                let bytes = checkpoint.info(&name)?.len as u64;
                (checkpoint.matrix(&name, layer.rows, layer.cols)?, checkpoint.dtype(&name)?.into(), None, bytes)
            }
        };
        let kept = count(&weight, &mut counts);
        let size = (layer.rows * layer.cols) as u64;
        non_zero += kept;
        linear_parameters += size;
        layers.push(LayerInfo {
            shape: [layer.rows, layer.cols],
            dtype: dtype.name().to_owned(),
            density: kept as f64 / size as f64,
            // A tiny layer may have less columns than a block; the pattern says so when it is chosen.
            prunable: pattern.is_none() && prunable.contains(&layer),
            pattern,
            bytes,
            name: layer.name,
        });
        progress.inc(1);
    }
    let bins: Vec<(i32, u64)> = EXPONENTS.zip(counts).collect();
    let used = |&(_, n): &(i32, u64)| n > 0;
    let (first, last) = (bins.iter().position(used), bins.iter().rposition(used));
    let bins = first.zip(last).map_or(vec![], |(first, last)| bins[first..=last].to_vec());
    let others = checkpoint.tensors().iter().filter(|(name, _)| {
        let layer = name.rsplit_once('.').map_or("", |(layer, _)| layer);
        !layers.iter().any(|l| l.name == layer && name.rsplit_once('.').is_none_or(|(_, part)| part != "bias"))
    });
    let other_parameters: u64 = others.map(|(_, info)| info.shape.iter().product::<usize>() as u64).sum();
    Ok(Inspection {
        model_type: ["model_type", "architecture"]
            .iter()
            .find_map(|&key| checkpoint.config()[key].as_str())
            .unwrap_or_default()
            .to_owned(),
        bytes: checkpoint.weight_bytes(),
        parameters: linear_parameters + other_parameters,
        linear_parameters,
        density: non_zero as f64 / linear_parameters.max(1) as f64,
        layers,
        histogram: Histogram { zeros: linear_parameters - non_zero, bins },
    })
}

/// Adds a weight's magnitudes to the bins; how many are not zero.
fn count(weight: &Matrix, counts: &mut [u64]) -> u64 {
    let mut non_zero = 0;
    for w in weight.data().iter().filter(|&&w| w != 0.0) {
        // The exponent field: floor(log2 |w|) for all but subnormals, which belong to the lowest bin anyway.
        let exponent = (w.to_bits() >> 23 & 0xff) as i32 - 127;
        counts[(exponent.clamp(EXPONENTS.start, EXPONENTS.end - 1) - EXPONENTS.start) as usize] += 1;
        non_zero += 1;
    }
    non_zero
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_fall_into_powers_of_two() {
        let weight = Matrix::new(1, 7, vec![0.0, -0.0, 1.0, -1.99, 0.5, 1e-30, 1e9]).unwrap();
        let mut counts = vec![0; EXPONENTS.len()];
        assert_eq!(count(&weight, &mut counts), 5);
        let bins: Vec<(i32, u64)> = EXPONENTS.zip(counts).filter(|&(_, n)| n > 0).collect();
        assert_eq!(bins, [(-24, 1), (-1, 1), (0, 2), (7, 1)]);
    }
}
