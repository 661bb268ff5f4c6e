//! Reordering, and nothing else, of rows or channels.

use crate::{Error, Matrix, Result};

/// A bijection of `0..len`: entry `i` says which old index comes to place `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permutation(Vec<u32>);

impl Permutation {
    /// Refuses the first entry that is out of range or used twice.
    pub fn new(order: Vec<u32>) -> Result<Self> {
        let len = order.len();
        let mut seen = vec![false; len];
        for (index, &value) in order.iter().enumerate() {
            match seen.get_mut(value as usize) {
                Some(used) if !*used => *used = true,
                _ => return Err(Error::NotAPermutation { index, value, len }),
            }
        }
        Ok(Self(order))
    }

    /// The order that leaves everything where it is.
    pub fn identity(len: usize) -> Self {
        Self((0..len as u32).collect())
    }

    /// Length.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it permutes nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Old index of each new place.
    pub fn as_slice(&self) -> &[u32] {
        &self.0
    }

    /// The bijection that undoes this one.
    #[must_use]
    pub fn inverse(&self) -> Self {
        let mut inverse = vec![0; self.0.len()];
        for (new, &old) in self.0.iter().enumerate() {
            inverse[old as usize] = new as u32;
        }
        Self(inverse)
    }

    /// This order, and then `next`: entry `i` is `self[next[i]]`. The lengths must agree.
    pub fn then(&self, next: &Self) -> Result<Self> {
        if next.len() != self.len() {
            return Err(Error::Length { what: "order", want: self.len(), got: next.len() });
        }
        Ok(Self(next.0.iter().map(|&i| self.0[i as usize]).collect()))
    }

    /// Undoes [`Self::permute_rows`]: row `self[i]` of the result is row `i` of `matrix`. The lengths must agree.
    pub fn restore_rows(&self, matrix: &Matrix) -> Result<Matrix> {
        if matrix.rows() != self.len() {
            return Err(Error::Length { what: "row order", want: matrix.rows(), got: self.len() });
        }
        let mut out = Matrix::zeros(matrix.rows(), matrix.cols());
        for (new, &old) in self.0.iter().enumerate() {
            out.row_mut(old as usize).copy_from_slice(matrix.row(new));
        }
        Ok(out)
    }

    /// Row `i` of the result is row `self[i]` of `matrix`. The lengths must agree.
    pub fn permute_rows(&self, matrix: &Matrix) -> Result<Matrix> {
        if matrix.rows() != self.len() {
            return Err(Error::Length { what: "row order", want: matrix.rows(), got: self.len() });
        }
        let mut out = Matrix::zeros(matrix.rows(), matrix.cols());
        for (new, &old) in self.0.iter().enumerate() {
            out.row_mut(new).copy_from_slice(matrix.row(old as usize));
        }
        Ok(out)
    }

    /// Column `j` of the result is column `self[j]` of `matrix`. The lengths must agree.
    pub fn permute_columns(&self, matrix: &Matrix) -> Result<Matrix> {
        if matrix.cols() != self.len() {
            return Err(Error::Length { what: "column order", want: matrix.cols(), got: self.len() });
        }
        let mut out = Matrix::zeros(matrix.rows(), matrix.cols());
        for row in 0..matrix.rows() {
            let source = matrix.row(row);
            for (value, &old) in out.row_mut(row).iter_mut().zip(&self.0) {
                *value = source[old as usize];
            }
        }
        Ok(out)
    }
}
