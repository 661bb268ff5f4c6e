//! What pruning says about itself: before, and after.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What pruning did to one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// module name
    pub name: String,
    /// as printed
    pub pattern: String,
    /// share of weights kept
    pub density: f64,
    /// share of the sum of scores kept
    pub retained_score: f64,
    /// `‖(W − Ŵ)·X‖ / ‖W·X‖` on the calibration tokens, or without calibration `‖W − Ŵ‖ / ‖W‖`
    pub relative_error: f64,
    /// `‖Ŵ − Ŵq‖ / ‖Ŵ‖`, the kept weights before and after they became integers
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization_error: Option<f64>,
    /// bytes of the dense weight
    pub bytes_before: u64,
    /// bytes of the packed weight
    pub bytes_after: u64,
}

/// What pruning did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// the new checkpoint
    pub output: PathBuf,
    /// bytes of all weights of the original
    pub bytes_before: u64,
    /// bytes of all weights of the new checkpoint
    pub bytes_after: u64,
    /// bytes of the pruned layers alone, before
    pub pruned_bytes_before: u64,
    /// bytes of the pruned layers alone, after
    pub pruned_bytes_after: u64,
    /// seconds that this run took
    pub seconds: f64,
    /// largest resident size of this process
    pub peak_rss_bytes: Option<u64>,
    /// tokens of calibration
    pub calibration_tokens: usize,
    /// shards taken over from an interrupted run
    pub resumed_shards: usize,
    /// every pruned layer
    pub layers: Vec<LayerReport>,
}

/// What pruning would do, known before any weight is read.
#[derive(Debug, Clone, Serialize)]
pub struct Forecast {
    /// module name, pattern, shape and sizes of every layer to prune
    pub layers: Vec<LayerForecast>,
    /// bytes of all weights of the original
    pub bytes_before: u64,
    /// expected bytes of all weights of the new checkpoint
    pub bytes_after: u64,
    /// estimate of the largest resident size
    pub peak_memory_bytes: u64,
}

/// One layer of a [`Forecast`].
#[derive(Debug, Clone, Serialize)]
pub struct LayerForecast {
    /// module name
    pub name: String,
    /// `[out_features, in_features]`
    pub shape: [usize; 2],
    /// as printed
    pub pattern: String,
    /// share of weights kept
    pub density: f64,
    /// bytes of the dense weight
    pub bytes_before: u64,
    /// bytes of the packed weight
    pub bytes_after: u64,
}
