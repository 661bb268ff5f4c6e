//! The packed form: kept values beside the mask that says where they belong.
//!
//! Law: `unpack(pack(W, mask)) == mask ⊙ W`, bit for bit, for weights that the value type can hold. Integers hold what
//! their codes and scales say, and `unpack` gives just that.

use crate::{Error, KEPT_PER_GROUP, Mask, Matrix, Permutation, Result, ValueType, Values, sum_of};

/// A pruned weight `[R, K]`, stored compressed.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed {
    mask: Mask,
    /// `[R, G, 2]`, ascending column
    values: Values,
    row_order: Option<Permutation>,
}

impl Packed {
    /// Keeps what `mask` keeps of `weight`, rounded to a type of values.
    ///
    /// With a `row_order`, row `i` of the mask and of the packed values is row `row_order[i]` of `weight`.
    pub fn pack(
        weight: &Matrix,
        mask: Mask,
        values: impl Into<ValueType>,
        row_order: Option<Permutation>,
    ) -> Result<Self> {
        let grid = *mask.grid();
        if (weight.rows(), weight.cols()) != (grid.rows(), grid.cols()) {
            let (rows, cols) = (grid.rows(), grid.cols());
            return Err(Error::Shape { what: "weight", rows, cols, got_rows: weight.rows(), got_cols: weight.cols() });
        }
        let mut kept = Vec::with_capacity(grid.rows() * grid.kept_per_row());
        for row in 0..grid.rows() {
            let source = weight.row(row_order.as_ref().map_or(row, |order| order.as_slice()[row] as usize));
            for columns in mask.kept(row) {
                kept.extend(columns.map(|c| source.get(c).copied().unwrap_or(0.0)));
            }
        }
        Self::from_parts(mask, Values::round(kept, grid.kept_per_row(), values.into())?, row_order)
    }

    /// Takes values `[R, G, 2]`. Refuses wrong lengths and values other than zero in padding columns.
    pub fn from_parts(mask: Mask, values: Values, row_order: Option<Permutation>) -> Result<Self> {
        let grid = *mask.grid();
        let want = grid.rows() * grid.kept_per_row();
        if values.len() != want {
            return Err(Error::Length { what: "values", want, got: values.len() });
        }
        if let Values::Quantized(values) = &values
            && values.kept_per_row() != grid.kept_per_row()
        {
            let (want, got) = (grid.kept_per_row(), values.kept_per_row());
            return Err(Error::Length { what: "row of codes", want, got });
        }
        if let Some(order) = row_order.as_ref().filter(|order| order.len() != grid.rows()) {
            return Err(Error::Length { what: "row order", want: grid.rows(), got: order.len() });
        }
        let last = grid.groups() - 1;
        if grid.padding() > 0 {
            for row in 0..grid.rows() {
                for (i, col) in mask.kept(row).last().into_iter().flatten().enumerate() {
                    let value = values.get((row * grid.groups() + last) * KEPT_PER_GROUP + i);
                    if col >= grid.cols() && value.to_bits() != 0 {
                        return Err(Error::PaddingValue { row, group: last });
                    }
                }
            }
        }
        Ok(Self { mask, values, row_order })
    }

    /// One packed weight of the rows of several without a row order, under the conditions of [`Mask::stack`].
    pub fn stack(parts: Vec<Self>) -> Result<Self> {
        let all: usize = parts.iter().map(|part| part.values.len()).sum();
        let mut masks = Vec::with_capacity(parts.len());
        let mut values: Option<Values> = None;
        for part in parts {
            if let Some(order) = part.row_order {
                return Err(Error::Length { what: "row order of a part", want: 0, got: order.len() });
            }
            masks.push(part.mask);
            match &mut values {
                None => {
                    let values = values.insert(part.values);
                    values.reserve(all - values.len());
                }
                Some(all) => all.append(part.values)?,
            }
        }
        Self::from_parts(Mask::stack(masks)?, values.unwrap_or(Values::F32(vec![])), None)
    }

    /// The mask, in packed row order.
    pub fn mask(&self) -> &Mask {
        &self.mask
    }

    /// The kept values, `[R, G, 2]`, in packed row order.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The output permutation, if one was chosen: packed row `i` is output row `row_order[i]`.
    pub fn row_order(&self) -> Option<&Permutation> {
        self.row_order.as_ref()
    }

    /// The output row that a packed row computes.
    pub fn output_row(&self, packed_row: usize) -> usize {
        self.row_order.as_ref().map_or(packed_row, |order| order.as_slice()[packed_row] as usize)
    }

    /// The dense weight: kept values in place, +0 elsewhere.
    pub fn unpack(&self) -> Matrix {
        self.unpack_rows(|row| self.output_row(row))
    }

    /// The dense weight with its rows in packed order: the order in which it obeys the pattern.
    pub fn unpack_in_packed_order(&self) -> Matrix {
        self.unpack_rows(|row| row)
    }

    fn unpack_rows(&self, place: impl Fn(usize) -> usize) -> Matrix {
        let grid = self.mask.grid();
        let mut out = Matrix::zeros(grid.rows(), grid.cols());
        let mut values = vec![0.0; grid.kept_per_row()];
        for row in 0..grid.rows() {
            let target = out.row_mut(place(row));
            self.visit(row, target, &mut values, |weight, value| *weight = value);
        }
        out
    }

    /// Turns the weight `W` that this was packed from into `W − Ŵ`, what packing lost. Gives `‖W‖²` and `‖W − Ŵ‖²`.
    pub fn subtract_from(&self, weight: &mut Matrix) -> Result<[f64; 2]> {
        let (rows, cols) = (self.mask.grid().rows(), self.mask.grid().cols());
        if (weight.rows(), weight.cols()) != (rows, cols) {
            return Err(Error::Shape { what: "weight", rows, cols, got_rows: weight.rows(), got_cols: weight.cols() });
        }
        let energy = |row: &[f32]| sum_of(row, |w| w * w);
        let (mut whole, mut lost) = (0.0, 0.0);
        let mut values = vec![0.0; self.mask.grid().kept_per_row()];
        for row in 0..rows {
            // Both sums are of what is in the cache anyway.
            let target = weight.row_mut(self.output_row(row));
            whole += energy(target);
            self.visit(row, target, &mut values, |weight, value| *weight -= value);
            lost += energy(target);
        }
        Ok([whole, lost])
    }

    /// Calls `f` with every place of `target` that a packed row keeps and its value; `values` is a buffer for a row's.
    fn visit(&self, row: usize, target: &mut [f32], values: &mut [f32], f: impl Fn(&mut f32, f32)) {
        self.values.widen_row(row, values);
        for (columns, values) in self.mask.kept(row).zip(values.as_chunks::<KEPT_PER_GROUP>().0) {
            for (col, &value) in columns.into_iter().zip(values) {
                if let Some(weight) = target.get_mut(col) {
                    f(weight, value);
                }
            }
        }
    }
}
