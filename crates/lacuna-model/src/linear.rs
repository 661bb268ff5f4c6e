//! A linear layer, dense or sparse behind the same call.

use lacuna_core::{Matrix, Packed, ValueType, Values};
use lacuna_format::{Checkpoint, Error, Result};
use lacuna_kernels::{Activations, Weight, dense, sparse};

use crate::{LinearSpec, buffers};

/// How the linear layers of a checkpoint are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Execution {
    /// what becomes of packed layers
    pub packed: PackedAs,
    /// what activations are rounded to before a product
    pub activations: Activations,
    /// what the values of dense layers are rounded to; none: run as they are stored
    pub dense_values: Option<ValueType>,
}

/// What becomes of packed layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedAs {
    /// run by sparse kernels
    Sparse,
    /// unpacked, run by dense kernels on the same type of values: what the sparse kernels have to beat
    Dense,
}

impl Execution {
    /// Sparse kernels, nothing rounded: what figures of quality are measured with.
    pub const EXACT: Self = Self { packed: PackedAs::Sparse, activations: Activations::F32, dense_values: None };
}

/// `y = W·x + b`.
pub struct Linear {
    spec: LinearSpec,
    weight: Box<dyn Weight>,
}

impl Linear {
    /// Reads a layer: packed if the checkpoint says so, else dense. Refuses a shape other than config.json implies.
    pub(crate) fn load(checkpoint: &Checkpoint, spec: LinearSpec, execution: Execution) -> Result<Self> {
        let Some(packed) = checkpoint.packed(&spec.name)? else {
            let values = checkpoint.values(&spec.weight(), &[spec.rows, spec.cols])?;
            return Self::dense(checkpoint, spec, values, execution);
        };
        match execution.packed {
            PackedAs::Sparse => Self::sparse(checkpoint, spec, &packed, execution.activations),
            PackedAs::Dense => {
                check_packed(&spec, &packed)?;
                let value_type = packed.values().value_type();
                let unpacked = Values::F32(packed.unpack().into_data());
                Self::dense(checkpoint, spec, unpacked, Execution { dense_values: Some(value_type), ..execution })
            }
        }
    }

    /// A layer with packed weights `[R, K]`; its bias is read. Refuses weights of another shape.
    pub(crate) fn sparse(
        checkpoint: &Checkpoint,
        spec: LinearSpec,
        packed: &Packed,
        activations: Activations,
    ) -> Result<Self> {
        check_packed(&spec, packed)?;
        let bias = bias(checkpoint, &spec)?;
        let weight = (sparse::choose(packed).prepare)(packed, bias.as_deref(), activations);
        Ok(Self { spec, weight })
    }

    /// A layer with dense weights `[R, K]`; its bias is read.
    pub(crate) fn dense(
        checkpoint: &Checkpoint,
        spec: LinearSpec,
        values: Values,
        execution: Execution,
    ) -> Result<Self> {
        let shape = [spec.rows, spec.cols];
        let values = match execution.dense_values {
            Some(wanted) if wanted != values.value_type() => {
                let floats = (0..values.len()).map(|i| values.get(i)).collect();
                Values::round(floats, spec.cols, wanted).map_err(|e| Error::tensor(&spec.weight(), e.to_string()))?
            }
            _ => values,
        };
        let weight = dense::prepare(&values, shape, bias(checkpoint, &spec)?.as_deref(), execution.activations);
        Ok(Self { spec, weight })
    }

    /// Takes other weights, packed ones; the bias is read again.
    pub(crate) fn replace(&mut self, checkpoint: &Checkpoint, packed: &Packed, execution: Execution) -> Result<()> {
        check_packed(&self.spec, packed)?;
        let bias = bias(checkpoint, &self.spec)?;
        self.weight = (sparse::choose(packed).prepare)(packed, bias.as_deref(), execution.activations);
        Ok(())
    }

    /// Name and shape.
    pub fn spec(&self) -> &LinearSpec {
        &self.spec
    }

    /// `[R, T]` from `[K, T]`.
    pub fn forward(&self, x: &Matrix) -> Matrix {
        let mut y = buffers::take(self.weight.rows(), x.cols());
        self.weight.multiply(x, &mut y);
        y
    }
}

fn bias(checkpoint: &Checkpoint, spec: &LinearSpec) -> Result<Option<Vec<f32>>> {
    spec.bias.then(|| checkpoint.floats(&spec.bias_name(), &[spec.rows])).transpose()
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
