//! A dense f32 matrix, row-major.

use crate::{Error, Result};

/// A dense `[rows, cols]` matrix of f32, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// Takes `rows * cols` values in row-major order.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Result<Self> {
        match rows.checked_mul(cols) {
            Some(want) if want == data.len() => Ok(Self { rows, cols, data }),
            want => Err(Error::Length { what: "matrix", want: want.unwrap_or(usize::MAX), got: data.len() }),
        }
    }

    /// A matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// A copy of some rows.
    #[must_use]
    pub fn band(&self, rows: std::ops::Range<usize>) -> Self {
        let data = self.data[rows.start * self.cols..rows.end * self.cols].to_vec();
        Self { rows: rows.len(), cols: self.cols, data }
    }

    /// One row.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.data[r * self.cols..(r + 1) * self.cols]
    }

    /// One row, to write.
    pub fn row_mut(&mut self, r: usize) -> &mut [f32] {
        &mut self.data[r * self.cols..(r + 1) * self.cols]
    }

    /// All values, row-major.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, row by row, for keeps.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// Rows and columns exchanged, a copy.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let column = |c: usize| (0..self.rows).map(move |r| self.data[r * self.cols + c]);
        Self { rows: self.cols, cols: self.rows, data: (0..self.cols).flat_map(column).collect() }
    }

    /// All values, row-major, to write.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

/// Values summed side by side: the compiler may not reorder a sum of floats by itself, so vectors need this.
const LANES: usize = 8;

/// `Σ f(x)`: in f32 within runs short enough for it not to matter, in f64 across them.
#[inline]
pub fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let run = |run: &[f32]| {
        let (vectors, tail) = run.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for vector in vectors {
            for (sum, &x) in sums.iter_mut().zip(vector) {
                *sum += f(x);
            }
        }
        f64::from(sums.iter().sum::<f32>()) + f64::from(tail.iter().map(|&x| f(x)).sum::<f32>())
    };
    values.chunks(512).map(run).sum()
}
