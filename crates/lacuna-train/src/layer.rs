//! A pruned layer in training: its mask as the pattern has it, and what follows from it for weights and gradients.

use candle_core::{Device, Tensor};
use lacuna_core::{Mask, Matrix, Packed, Permutation, ValueType};
use lacuna_model::LinearSpec;
use lacuna_prune::{Criterion, Selection};

use crate::Result;

/// What masks do at a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rule {
    /// whether there are masks at all
    pub(crate) sparse: bool,
    /// whether dropped weights get a gradient
    pub(crate) straight_through: bool,
    /// what dropped weights count
    pub(crate) leak: f64,
    /// their pull to 0
    pub(crate) decay: f64,
    /// temperature and scale, where masks are drawn
    pub(crate) drawn: Option<[f64; 2]>,
    /// seed of that draw
    pub(crate) seed: u64,
}

impl Rule {
    /// Fixed masks and nothing else: what a training ends with.
    pub(crate) const FINAL: Self =
        Self { sparse: true, straight_through: false, leak: 0.0, decay: 0.0, drawn: None, seed: 0 };
}

/// A layer with its mask. Weights are held once: here, if none but those that are kept ever count and they stay as they are.
pub(crate) struct Layer {
    pub(crate) spec: LinearSpec,
    /// in the order of packed rows
    pub(crate) mask: Mask,
    row_order: Option<Permutation>,
    values: ValueType,
    frozen: Option<Packed>,
}

impl Layer {
    pub(crate) fn new(spec: LinearSpec, packed: &Packed) -> Self {
        let (mask, row_order) = (packed.mask().clone(), packed.row_order().cloned());
        Self { spec, mask, row_order, values: packed.values().value_type(), frozen: None }
    }

    /// A layer whose dropped weights never count and whose kept ones stay as they are.
    pub(crate) fn frozen(spec: LinearSpec, packed: Packed) -> Self {
        let layer = Self::new(spec, &packed);
        Self { frozen: Some(packed), ..layer }
    }

    /// Whether neither its weights nor its mask ever change.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// The weight with zeros for what is dropped, if it is held here.
    pub(crate) fn frozen_weight(&self, device: &Device) -> Option<Result<Tensor>> {
        self.frozen.as_ref().map(|packed| tensor(&packed.unpack(), device))
    }

    /// The row of the weight that a packed row is.
    pub(crate) fn output_row(&self, packed_row: usize) -> usize {
        self.row_order.as_ref().map_or(packed_row, |order| order.as_slice()[packed_row] as usize)
    }

    /// What counts of each weight, `[R, K]`: 1, or for dropped ones `leak`.
    pub(crate) fn factors(&self, leak: f64, device: &Device) -> Result<Tensor> {
        let (rows, cols) = (self.spec.rows, self.spec.cols);
        let mut factors = vec![leak as f32; rows * cols];
        for row in 0..rows {
            let start = self.output_row(row) * cols;
            for col in self.mask.kept(row).flatten().filter(|&col| col < cols) {
                factors[start + col] = 1.0;
            }
        }
        Ok(Tensor::from_vec(factors, (rows, cols), device)?)
    }

    /// The weights that are kept, packed as they were.
    pub(crate) fn pack(&self, weight: &Matrix) -> Result<Packed> {
        self.pack_by(weight, self.mask.clone())
    }

    /// The same under another mask.
    pub(crate) fn pack_by(&self, weight: &Matrix, mask: Mask) -> Result<Packed> {
        Ok(Packed::pack(weight, mask, self.values, self.row_order.clone())?)
    }

    /// Selects the mask again for other weights and says how much of it moved. `norms` as in
    /// [`Criterion::scorer_by_norms`].
    pub(crate) fn select(
        &mut self,
        weight: &Matrix,
        norms: Option<Vec<f32>>,
        criterion: Criterion,
        selection: Selection,
    ) -> Result<Moved> {
        let ordered = match &self.row_order {
            Some(order) => order.permute_rows(weight)?,
            None => weight.clone(),
        };
        let scores = criterion.scorer_by_norms(&ordered, norms)?.scores(0, &ordered)?;
        let mask = selection.improve(&scores, &self.mask)?;
        let moved = Moved::between(&self.mask, &mask);
        self.mask = mask;
        Ok(moved)
    }
}

/// How much of a mask moved.
pub(crate) struct Moved {
    /// places that were kept and are no more
    lost: usize,
    /// places that were kept
    kept: usize,
}

impl Moved {
    /// From one mask of a layer to another.
    pub(crate) fn between(before: &Mask, after: &Mask) -> Self {
        let (before, after) = (before.to_bools(), after.to_bools());
        let lost = before.as_slice().iter().zip(after.as_slice()).filter(|(before, after)| **before && !**after);
        Self { lost: lost.count(), kept: before.as_slice().iter().filter(|&&kept| kept).count() }
    }

    /// The share that moved of several masks together.
    pub(crate) fn share(masks: impl Iterator<Item = Self>) -> f64 {
        let (lost, kept) = masks.fold((0, 0), |(lost, kept), mask| (lost + mask.lost, kept + mask.kept));
        lost as f64 / kept.max(1) as f64
    }
}

/// A matrix on a device.
pub(crate) fn tensor(matrix: &Matrix, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(matrix.data(), (matrix.rows(), matrix.cols()), device)?)
}

/// A matrix from a device.
pub(crate) fn matrix(tensor: &Tensor) -> Result<Matrix> {
    let (rows, cols) = tensor.dims2()?;
    Ok(Matrix::new(rows, cols, tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?)?)
}
