//! Magnitude: `|W_ij|` (Han et al., arXiv 1506.02626).

use super::Scorer;

pub(super) fn scorer([rows, cols]: [usize; 2]) -> Scorer {
    Scorer { column: vec![1.0; cols], row: vec![0.0; rows], row_scale: vec![0.0; cols] }
}
