//! OWL: how many of a layer's scores stick out.

use lacuna_core::Matrix;

/// Half of the largest difference of density between two blocks.
pub(super) const LAMBDA: f64 = 0.08;
/// An outlier is more than so many times the mean.
const TIMES_MEAN: f64 = 5.0;

/// Share of outliers among scores.
pub(super) fn outliers(scores: &Matrix) -> f64 {
    let n = scores.data().len() as f64;
    let limit = (TIMES_MEAN * lacuna_core::sum_of(scores.data(), |s| s) / n) as f32;
    scores.data().iter().filter(|&&s| s > limit).count() as f64 / n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_counted() {
        // Mean 28 / 20; the limit is 7.
        let mut data = vec![1.0; 18];
        data.extend([7.5, 2.5]);
        assert!((outliers(&Matrix::new(4, 5, data).unwrap()) - 0.05).abs() < 1e-12);
    }
}
