//! How much each weight is worth keeping.

use crate::{Error, Matrix, Result, sum_of};

/// Scores of a weight matrix, same shape, every one finite and not negative.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    scores: Matrix,
    sum: f64,
}

impl Scores {
    /// Refuses the first score that is negative, infinite or NaN.
    pub fn new(scores: Matrix) -> Result<Self> {
        let mut sum = 0.0;
        for row in 0..scores.rows() {
            sum += look_at(row, scores.row(row))?;
        }
        Ok(Self { scores, sum })
    }

    /// The same of `rows` rows of `cols` scores, each looked at while it is in the cache: `append` adds a row at the end of
    /// the buffer.
    ///
    /// # Panics
    /// If `append` adds more or less than a row.
    pub fn of_rows(rows: usize, cols: usize, mut append: impl FnMut(usize, &mut Vec<f32>)) -> Result<Self> {
        let (mut scores, mut sum) = (Vec::with_capacity(rows * cols), 0.0);
        for row in 0..rows {
            append(row, &mut scores);
            assert_eq!(scores.len(), (row + 1) * cols, "a row of scores at a time");
            sum += look_at(row, &scores[row * cols..])?;
        }
        Ok(Self { scores: Matrix::new(rows, cols, scores)?, sum })
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

/// The sum of a row. Refuses the first score that is none.
fn look_at(row: usize, scores: &[f32]) -> Result<f64> {
    let fine = |s: f32| (0.0..=f32::MAX).contains(&s);
    // All at once first, without a way out that would keep the compiler from using vectors.
    if scores.iter().fold(true, |all, &s| all & fine(s)) {
        return Ok(sum_of(scores, |s| s));
    }
    let col = scores.iter().position(|&s| !fine(s)).unwrap_or(0);
    Err(Error::BadScore { row, col, value: scores[col] })
}
