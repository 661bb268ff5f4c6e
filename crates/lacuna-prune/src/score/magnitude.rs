//! Magnitude: `|W_ij|` (Han et al., arXiv 1506.02626).

use lacuna_core::Matrix;

use super::Scorer;

pub(super) fn scorer(weight: &Matrix) -> Scorer {
    let (rows, cols) = (weight.rows(), weight.cols());
    Scorer { column: vec![1.0; cols], row: vec![0.0; rows], row_scale: vec![0.0; cols] }
}
