//! How far a pruned model's answers are from the dense model's, on samples that calibration does not see.
//!
//! Decoders and classifiers: `KL(dense ‖ pruned)` of the predicted distributions, in nats, the mean over tokens or images.
//! Text encoders: 1 − cosine of the two vectors, the mean over texts.

use anyhow::{Result, bail};
use lacuna_core::Matrix;
use lacuna_format::Checkpoint;
use lacuna_model::{Config, Ending, Execution, divergences};

use crate::calibrate::{Batch, Stream};

/// Logits of a decoder that are held for each batch at most: with a large vocabulary some tokens are left out.
const HELD_LOGITS: usize = 1 << 24;

/// The dense model's answers.
pub(super) struct Probe {
    ending: Ending,
    /// whether answers are vectors, not logits
    vectors: bool,
    /// places whose answers are looked at: every so many-th column of the stream
    every: usize,
    /// `[features, answers]` of each batch
    dense: Vec<Matrix>,
}

impl Probe {
    /// `stream` is that of the dense model behind its last block.
    pub(super) fn new(checkpoint: &Checkpoint, config: &Config, stream: &Stream) -> Result<Self> {
        let every = match config {
            Config::Decoder(config) => {
                let longest = stream.batches().iter().map(|batch| batch.hidden.cols()).max().unwrap_or(1);
                (longest * config.vocab_size).div_ceil(HELD_LOGITS)
            }
            Config::Vision(config) if config.labels.is_empty() => {
                bail!("{}: has no classifier to measure by; plan by diversity", checkpoint.dir().display())
            }
            Config::Text(_) | Config::Vision(_) => 1,
        };
        let ending = Ending::load(checkpoint, config, Execution::EXACT)?;
        let vectors = matches!(config, Config::Text(_));
        let mut probe = Self { ending, vectors, every, dense: vec![] };
        probe.dense = probe.answers(stream);
        Ok(probe)
    }

    fn answers(&self, stream: &Stream) -> Vec<Matrix> {
        let answer = |Batch { hidden, lengths, .. }: &Batch| match self.every {
            1 => self.ending.apply(hidden, lengths),
            every => {
                let columns = |k: usize| hidden.row(k).iter().copied().step_by(every);
                let picked: Vec<f32> = (0..hidden.rows()).flat_map(columns).collect();
                let picked = Matrix::new(hidden.rows(), hidden.cols().div_ceil(every), picked);
                self.ending.apply(&picked.expect("as many values as picked"), lengths)
            }
        };
        stream.batches().iter().map(answer).collect()
    }

    /// Mean distance of the answers to a stream behind the last block of a pruned model from the dense model's.
    pub(super) fn distance(&self, stream: &Stream) -> f64 {
        let pruned = self.answers(stream);
        let distances = self.dense.iter().zip(&pruned).map(|(dense, pruned)| {
            let columns = if self.vectors { cosine_distances(dense, pruned) } else { divergences(dense, pruned) };
            columns.iter().sum::<f64>()
        });
        distances.sum::<f64>() / pruned.iter().map(Matrix::cols).sum::<usize>() as f64
    }
}

/// `1 − cosine` of each pair of columns.
fn cosine_distances(a: &Matrix, b: &Matrix) -> Vec<f64> {
    let mut sums = vec![[0.0_f64; 3]; a.cols()];
    for row in 0..a.rows() {
        for (sums, (&a, &b)) in sums.iter_mut().zip(a.row(row).iter().zip(b.row(row))) {
            let (a, b) = (f64::from(a), f64::from(b));
            *sums = [sums[0] + a * b, sums[1] + a * a, sums[2] + b * b];
        }
    }
    sums.iter().map(|[ab, aa, bb]| 1.0 - ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_their_definitions() {
        let a = Matrix::new(2, 2, vec![1.0, 1.0, 0.0, 0.0]).unwrap();
        let b = Matrix::new(2, 2, vec![2.0, 3.0, 0.0, 3.0]).unwrap();
        let found = cosine_distances(&a, &b);
        assert!(found[0].abs() < 1e-12 && (found[1] - (1.0 - 0.5_f64.sqrt())).abs() < 1e-6, "{found:?}");
    }
}
