//! Proof that every sparse layer of a checkpoint obeys its pattern, and the name of the kernel that would run it.

use std::path::Path;

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use lacuna_core::{BoolMask, Mask, Matrix, Pattern};
use lacuna_format::Checkpoint;
use lacuna_kernels::sparse;
use lacuna_model::family;
use serde::Serialize;

use crate::UsageError;
use crate::modules::linears;

/// What was found about one layer.
#[derive(Debug, Clone, Serialize)]
pub struct LayerCheck {
    /// module name
    pub name: String,
    /// as printed
    pub pattern: String,
    /// share of weights that are not zero
    pub density: f64,
    /// blocks or rows that break the pattern, or 1 for a layer that cannot be read
    pub violations: usize,
    /// kernel that would run it; `dense` for a layer without a packed form
    pub kernel: String,
    /// the first violation, in words
    pub problem: Option<String>,
}

/// What was found about a checkpoint.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    /// every layer that should be sparse
    pub layers: Vec<LayerCheck>,
    /// sum over the layers
    pub violations: usize,
    /// linear layers that are dense because nobody chose them for pruning
    pub dense_layers: Vec<String>,
}

/// Checks a pruned checkpoint, or with `pattern` a dense one whose linear layers should obey it.
pub fn verify(model: &Path, pattern: Option<Pattern>, progress: &ProgressBar) -> Result<Verdict> {
    let checkpoint = Checkpoint::open(model)?;
    let config = family::config(&checkpoint)?;
    let mut layers = vec![];
    let mut dense_layers = vec![];
    match (checkpoint.sparsity(), pattern) {
        (Some(_), Some(_)) => {
            let problem = format!("{}: carries its own patterns; leave --pattern out", model.display());
            return Err(UsageError(problem).into());
        }
        (None, None) => {
            let ways = "prune it first, or pass --pattern to check the zeros of a dense export";
            bail!("{}: not a pruned checkpoint; {ways}", model.display());
        }
        (Some(sparsity), None) => {
            // Layers by the model's own list: one that the block names and the model lacks is a violation too.
            let model_layers = linears(&checkpoint, &config)?;
            progress.set_length(sparsity.layers.len() as u64);
            for name in sparsity.layers.keys() {
                let known = model_layers.iter().find(|layer| layer.name == *name);
                let shape = known.map(|layer| [layer.rows, layer.cols]);
                layers.push(check_packed(&checkpoint, name, shape));
                progress.inc(1);
            }
            dense_layers = model_layers.into_iter().map(|l| l.name).collect();
            dense_layers.retain(|name| !sparsity.layers.contains_key(name));
        }
        (None, Some(pattern)) if !pattern.is_grouped() => {
            let problem = format!("--pattern {pattern}: zeros do not tell which columns of a window make a group");
            return Err(UsageError(format!(
                "{problem}; verify the packed checkpoint, or leave out what follows the @"
            ))
            .into());
        }
        (None, Some(pattern)) => {
            let model_layers = linears(&checkpoint, &config)?;
            progress.set_length(model_layers.len() as u64);
            for layer in model_layers.into_iter().filter(|layer| !layer.head) {
                let weight = checkpoint.matrix(&layer.weight(), layer.rows, layer.cols)?;
                layers.push(check(layer.name, pattern, &weight, "dense"));
                progress.inc(1);
            }
        }
    }
    let violations = layers.iter().map(|layer| layer.violations).sum();
    Ok(Verdict { layers, violations, dense_layers })
}

/// A layer that should be packed: read with all checks, unpacked, and its zeros held against the pattern once more, or
/// where only the stored columns tell the groups of a window, against those.
fn check_packed(checkpoint: &Checkpoint, name: &str, shape: Option<[usize; 2]>) -> LayerCheck {
    let (pattern, packed_shape) = checkpoint.sparsity().and_then(|s| s.layer(name)).expect("listed layer");
    let broken = |problem: String| LayerCheck {
        name: name.to_owned(),
        pattern: pattern.to_string(),
        density: 0.0,
        violations: 1,
        kernel: "none".to_owned(),
        problem: Some(problem),
    };
    if shape != Some(packed_shape) {
        return broken(format!("the block in config.json says {packed_shape:?}, the model has {shape:?}"));
    }
    if checkpoint.has(&format!("{name}.weight")) {
        return LayerCheck { kernel: "dense".to_owned(), ..broken("a dense weight is stored too".to_owned()) };
    }
    match checkpoint.packed(name) {
        Ok(Some(packed)) => {
            let (weight, kernel) = (packed.unpack_in_packed_order(), sparse::choose(&packed).name);
            if pattern.is_grouped() {
                return check(name.to_owned(), pattern, &weight, kernel);
            }
            let covered = packed.mask().covers(&BoolMask::non_zero(&weight));
            checked(
                name.to_owned(),
                pattern,
                &weight,
                kernel,
                covered.err().map(|e| e.to_string()).into_iter().collect(),
            )
        }
        Ok(None) => broken("not packed".to_owned()),
        Err(e) => broken(e.to_string()),
    }
}

/// Holds the zeros of a weight against a pattern, row block by row block.
fn check(name: String, pattern: Pattern, weight: &Matrix, kernel: &str) -> LayerCheck {
    let rows = weight.rows();
    let mut problems = vec![];
    for start in (0..rows).step_by(pattern.v()) {
        let end = (start + pattern.v()).min(rows);
        let fits = Mask::try_from((pattern, &BoolMask::non_zero(&weight.band(start..end))));
        problems.extend(fits.err().map(|e| format!("rows {start}..{end}: {e}")));
    }
    checked(name, pattern, weight, kernel, problems)
}

fn checked(name: String, pattern: Pattern, weight: &Matrix, kernel: &str, problems: Vec<String>) -> LayerCheck {
    LayerCheck {
        name,
        pattern: pattern.to_string(),
        density: weight.data().iter().filter(|&&w| w != 0.0).count() as f64 / weight.data().len() as f64,
        violations: problems.len(),
        kernel: kernel.to_owned(),
        problem: problems.into_iter().next(),
    }
}
