//! How much each weight is worth keeping.

use crate::{Error, Matrix, Result};

/// Scores of a weight matrix, same shape, every one finite and not negative.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    scores: Matrix,
    sum: f64,
}

/// Scores that are checked and summed while they are in the cache: a whole number of [`crate::sum_of`]'s runs.
const LOOKED_AT: usize = 4096;

impl Scores {
    /// Refuses the first score that is negative, infinite or NaN.
    pub fn new(scores: Matrix) -> Result<Self> {
        let fine = |s: f32| (0.0..=f32::MAX).contains(&s);
        let (mut all, mut sum) = (true, 0.0);
        for part in scores.data().chunks(LOOKED_AT) {
            // All at once first, without a way out that would keep the compiler from using vectors.
            all &= part.iter().fold(true, |all, &s| all & fine(s));
            sum += crate::sum_of(part, |s| s);
        }
        if all {
            return Ok(Self { scores, sum });
        }
        let i = scores.data().iter().position(|&s| !fine(s)).unwrap_or(0);
        Err(Error::BadScore { row: i / scores.cols(), col: i % scores.cols(), value: scores.data()[i] })
    }

    /// Sum of all scores.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The scores as a matrix.
    pub fn matrix(&self) -> &Matrix {
        &self.scores
    }

    /// The same, for keeps.
    pub fn into_matrix(self) -> Matrix {
        self.scores
    }
}
