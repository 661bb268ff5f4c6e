//! A linear layer, dense or sparse behind the same call.

use std::sync::Arc;

use lacuna_core::{Matrix, Packed};
use lacuna_format::{Checkpoint, Error, Result};
use lacuna_kernels::{dense, sparse};

use crate::LinearSpec;

/// How the sparse layers of a checkpoint are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Execution {
    /// by sparse kernels
    Sparse,
    /// unpacked, by the dense product: what the sparse kernels have to beat
    Dense,
}

/// What multiplies the activations.
pub(crate) enum Weights {
    /// `[R, K]`, shared where the head is the embedding
    Dense(Arc<Matrix>),
    /// made ready for a kernel
    Sparse(Box<dyn sparse::SparseWeight>),
}

/// `y = W·x + b`.
pub struct Linear {
    spec: LinearSpec,
    weights: Weights,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Reads a layer: packed if the checkpoint says so, else dense. Refuses a shape other than config.json implies.
    pub(crate) fn load(checkpoint: &Checkpoint, spec: LinearSpec, execution: Execution) -> Result<Self> {
        let weights = match checkpoint.packed(&spec.name)? {
            Some(packed) => {
                check_packed(&spec, &packed)?;
                match execution {
                    Execution::Sparse => {
                        Weights::Sparse((sparse::choose(&packed).prepare)(&packed, sparse::Activations::F32))
                    }
                    Execution::Dense => Weights::Dense(Arc::new(packed.unpack())),
                }
            }
            None => Weights::Dense(Arc::new(checkpoint.matrix(&spec.weight(), spec.rows, spec.cols)?)),
        };
        Self::with_weights(checkpoint, spec, weights)
    }

    /// A layer whose weights are given; its bias is read.
    pub(crate) fn with_weights(checkpoint: &Checkpoint, spec: LinearSpec, weights: Weights) -> Result<Self> {
        let bias = if spec.bias { Some(checkpoint.floats(&spec.bias_name(), &[spec.rows])?) } else { None };
        Ok(Self { spec, weights, bias })
    }

    /// Name and shape.
    pub fn spec(&self) -> &LinearSpec {
        &self.spec
    }

    /// `[R, T]` from `[K, T]`.
    pub fn forward(&self, x: &Matrix) -> Matrix {
        let mut y = match &self.weights {
            Weights::Dense(weight) => dense::linear(weight, x),
            Weights::Sparse(weight) => {
                let mut y = Matrix::zeros(weight.rows(), x.cols());
                weight.multiply(x, &mut y);
                y
            }
        };
        for (row, bias) in self.bias.iter().flatten().enumerate() {
            y.row_mut(row).iter_mut().for_each(|v| *v += bias);
        }
        y
    }
}

/// Refuses a packed layer of another shape than config.json implies.
fn check_packed(spec: &LinearSpec, packed: &Packed) -> Result<()> {
    let grid = packed.mask().grid();
    let (got, want) = ([grid.rows(), grid.cols()], [spec.rows, spec.cols]);
    if got == want {
        return Ok(());
    }
    let problem = format!("packed as {got:?}, config.json asks for {want:?}; prune the checkpoint again");
    Err(Error::tensor(&spec.name, problem))
}

impl LinearSpec {
    /// Name of the weight's tensor.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Name of the bias's tensor.
    pub fn bias_name(&self) -> String {
        format!("{}.bias", self.name)
    }
}
