//! RIA, relative importance and activations (Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method
//! for Large Language Models", ICLR 2024, equation 4):
//! `(|W_ij| / Σ_k |W_kj| + |W_ij| / Σ_k |W_ik|) · ‖X_j‖₂^a`.

use serde::{Deserialize, Serialize};

use super::Scorer;
use crate::Weight;

/// Rows that are looked at at once.
const ROWS: usize = 64;

/// Which of the two relative importances count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RiaParts {
    /// their sum, as published
    Both,
    /// relative to the input channel: `|W_ij| / Σ_k |W_kj|`
    Column,
    /// relative to the output channel: `|W_ij| / Σ_k |W_ik|`
    Row,
}

/// RIA with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ria {
    /// which parts count
    pub parts: RiaParts,
    /// `a`, the power of the activation norm; 0.5 in the authors' code
    pub exponent: f32,
}

impl Default for Ria {
    fn default() -> Self {
        Self { parts: RiaParts::Both, exponent: 0.5 }
    }
}

impl Ria {
    /// `norms` is `‖X_j‖₂`, `[K]`. In a row or column of zeros, 0 / 0 counts as 0.
    pub(super) fn scorer<W: Weight>(self, weight: &W, norms: &[f32]) -> Result<Scorer, W::Error> {
        let [rows, cols] = weight.shape();
        let mut column_sums = vec![0.0_f64; cols];
        let mut row_sums = vec![0.0_f64; rows];
        for (i, row_sums) in row_sums.chunks_mut(ROWS).enumerate() {
            let band = weight.band(i * ROWS..i * ROWS + row_sums.len())?;
            for (row, row_sum) in row_sums.iter_mut().enumerate() {
                for (w, column_sum) in band.row(row).iter().zip(&mut column_sums) {
                    *column_sum += f64::from(w.abs());
                    *row_sum += f64::from(w.abs());
                }
            }
        }
        let inverse = |sums: Vec<f64>, counts: bool| -> Vec<f32> {
            sums.into_iter().map(|s| if counts && s > 0.0 { (1.0 / s) as f32 } else { 0.0 }).collect()
        };
        let by_column = inverse(column_sums, self.parts != RiaParts::Row);
        let by_row = inverse(row_sums, self.parts != RiaParts::Column);
        let activation: Vec<f32> = norms.iter().map(|n| n.powf(self.exponent)).collect();
        let column = by_column.iter().zip(&activation).map(|(c, a)| c * a).collect();
        Ok(Scorer { column, row: by_row, row_scale: activation })
    }
}
