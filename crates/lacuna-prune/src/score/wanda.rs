//! Wanda: `|W_ij| · ‖X_j‖₂` (Sun et al., arXiv 2306.11695, equation 1).

use lacuna_core::Matrix;

use super::map_weights;

/// `norms` is `‖X_j‖₂`, `[K]`.
pub(super) fn scores(weight: &Matrix, norms: &[f32]) -> Matrix {
    map_weights(weight, |_, col, w| w * norms[col])
}
