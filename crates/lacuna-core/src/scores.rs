//! How much each weight is worth keeping.

use crate::{Error, Matrix, Result};

/// Scores of a weight matrix, same shape, every one finite and not negative.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores(Matrix);

impl Scores {
    /// Refuses the first score that is negative, infinite or NaN.
    pub fn new(scores: Matrix) -> Result<Self> {
        let fine = |s: f32| (0.0..=f32::MAX).contains(&s);
        // All at once first, without a way out that would keep the compiler from using vectors.
        if scores.data().iter().fold(true, |all, &s| all & fine(s)) {
            return Ok(Self(scores));
        }
        let i = scores.data().iter().position(|&s| !fine(s)).unwrap_or(0);
        Err(Error::BadScore { row: i / scores.cols(), col: i % scores.cols(), value: scores.data()[i] })
    }

    /// Sum of all scores.
    pub fn sum(&self) -> f64 {
        crate::sum_of(self.0.data(), |s| s)
    }

    /// The scores as a matrix.
    pub fn matrix(&self) -> &Matrix {
        &self.0
    }
}
