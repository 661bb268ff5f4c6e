//! Wanda: `|W_ij| · ‖X_j‖₂` (Sun et al., arXiv 2306.11695, equation 1).

use super::Scorer;

/// `norms` is `‖X_j‖₂`, `[K]`.
pub(super) fn scorer([rows, _]: [usize; 2], norms: Vec<f32>) -> Scorer {
    Scorer { row_scale: vec![0.0; norms.len()], column: norms, row: vec![0.0; rows] }
}
