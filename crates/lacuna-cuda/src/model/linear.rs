//! A linear layer, dense or sparse behind the same call.

use lacuna_format::Checkpoint;
use lacuna_model::{LinearSpec, PackedAs};

use crate::activations::{Activations, upload_f32};
use crate::error::{Error, Result};
use crate::machine::{Buffer, Machine};
use crate::ops;
use crate::tiles::HalfType;
use crate::weights::{Dense, Sparse};

/// `y = W·x + b`.
pub enum Linear {
    /// with its bias in it
    Sparse(Box<Sparse>),
    /// a weight and its bias, which is rounded on its way to the sum
    Dense(Dense, Option<Buffer>),
}

impl Linear {
    /// Reads a layer: packed if the checkpoint says so, else dense. Refuses a shape other than config.json implies, and
    /// patterns and values that the kernels do not take.
    pub fn load(
        machine: &dyn Machine,
        checkpoint: &Checkpoint,
        spec: &LinearSpec,
        half: HalfType,
        packed_as: PackedAs,
    ) -> Result<Self> {
        let bias = spec.bias.then(|| checkpoint.floats(&spec.bias_name(), &[spec.rows])).transpose()?;
        let in_layer = |why: Error| Error::Layer { layer: spec.name.clone(), why: Box::new(why) };
        let dense = |values: &mut dyn ExactSizeIterator<Item = f32>| {
            let weight = Dense::upload(machine, half, [spec.rows, spec.cols], values).map_err(in_layer)?;
            let bias = bias.as_ref().map(|bias| upload_f32(machine, bias)).transpose()?;
            Ok(Self::Dense(weight, bias))
        };
        let Some(packed) = checkpoint.packed(&spec.name)? else {
            let values = checkpoint.values(&spec.weight(), &[spec.rows, spec.cols])?;
            return dense(&mut (0..values.len()).map(|i| values.get(i)));
        };
        let grid = packed.mask().grid();
        if [grid.rows(), grid.cols()] != [spec.rows, spec.cols] {
            let what = "weights of a packed layer";
            let (want, got) = (spec.rows * spec.cols, grid.rows() * grid.cols());
            return Err(in_layer(Error::Shape { what, want, got }));
        }
        match packed_as {
            PackedAs::Dense => dense(&mut packed.unpack().into_data().into_iter()),
            PackedAs::Sparse => Sparse::upload(machine, &packed, bias.as_deref(), half)
                .map(|weight| Self::Sparse(Box::new(weight)))
                .map_err(in_layer),
        }
    }

    /// `y = W x + b`.
    pub fn forward(&self, machine: &dyn Machine, x: &Activations, y: &mut Activations) -> Result<()> {
        match self {
            Self::Sparse(weight) => weight.multiply(machine, x, y),
            Self::Dense(weight, None) => weight.multiply(machine, x, y),
            Self::Dense(weight, Some(bias)) => {
                ops::bias(machine, bias, y, false)?;
                weight.multiply_add(machine, x, y)
            }
        }
    }

    /// `y = W x + b` of some layers: of sparse ones together.
    pub fn forward_all(machine: &dyn Machine, x: &Activations, all: Vec<(&Self, &mut Activations)>) -> Result<()> {
        let mut sparse = vec![];
        for (layer, y) in all {
            match layer {
                Self::Sparse(weight) => sparse.push((&**weight, y)),
                Self::Dense(..) => layer.forward(machine, x, y)?,
            }
        }
        Sparse::multiply_all(machine, x, &mut sparse)
    }

    /// `y += W x + b`.
    pub fn add(&self, machine: &dyn Machine, x: &Activations, y: &mut Activations) -> Result<()> {
        match self {
            Self::Sparse(weight) => weight.multiply_add(machine, x, y),
            Self::Dense(weight, bias) => {
                if let Some(bias) = bias {
                    ops::bias(machine, bias, y, true)?;
                }
                weight.multiply_add(machine, x, y)
            }
        }
    }

    /// Bytes of the weight.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Sparse(weight) => weight.bytes(),
            Self::Dense(weight, _) => weight.bytes(),
        }
    }
}
