//! Magnitude: `|W_ij|` (Han et al., arXiv 1506.02626).

use lacuna_core::Matrix;

use super::map_weights;

pub(super) fn scores(weight: &Matrix) -> Matrix {
    map_weights(weight, |_, _, w| w)
}
