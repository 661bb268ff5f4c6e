//! How much each weight is worth keeping.

use crate::{Error, Matrix, Result};

/// Scores of a weight matrix, same shape, every one finite and not negative.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores(Matrix);

impl Scores {
    /// Refuses the first score that is negative, infinite or NaN.
    pub fn new(scores: Matrix) -> Result<Self> {
        match scores.data().iter().position(|s| !(s.is_finite() && *s >= 0.0)) {
            None => Ok(Self(scores)),
            Some(i) => {
                let cols = scores.cols();
                Err(Error::BadScore { row: i / cols, col: i % cols, value: scores.data()[i] })
            }
        }
    }

    /// The scores as a matrix.
    pub fn matrix(&self) -> &Matrix {
        &self.0
    }
}
