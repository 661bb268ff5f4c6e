//! What multiplies on this machine: the kernels there are, and the one that each layer of a model runs on.

use std::path::Path;

use anyhow::Result;
use lacuna_format::Checkpoint;
use lacuna_kernels::{dense, sparse};
use lacuna_model::family;
use serde::Serialize;

use crate::modules::linears;

/// One kernel.
#[derive(Debug, Clone, Serialize)]
pub struct KernelInfo {
    /// `sparse` or `dense`
    pub weights: &'static str,
    /// name
    pub name: &'static str,
    /// what the CPU must have
    pub needs: &'static str,
    /// whether this one has it
    pub available: bool,
}

/// One layer of a model.
#[derive(Debug, Clone, Serialize)]
pub struct LayerKernel {
    /// module name
    pub name: String,
    /// `[out_features, in_features]`
    pub shape: [usize; 2],
    /// pattern, or `dense`
    pub pattern: String,
    /// type of the stored values
    pub values: String,
    /// name of its kernel
    pub kernel: &'static str,
}

/// All kernels, sparse then dense, each in the order of preference.
pub fn list() -> Vec<KernelInfo> {
    let sparse = sparse::KERNELS.iter().map(|k| KernelInfo {
        weights: "sparse",
        name: k.name,
        needs: k.needs,
        available: (k.available)(),
    });
    let dense =
        dense::all().map(|k| KernelInfo { weights: "dense", name: k.name, needs: k.needs, available: k.available });
    sparse.chain(dense).collect()
}

/// The kernel of each linear layer of a checkpoint, block by block.
pub fn of_layers(model: &Path) -> Result<Vec<LayerKernel>> {
    let checkpoint = Checkpoint::open(model)?;
    let config = family::config(&checkpoint)?;
    let preferred = dense::kernels().next().unwrap_or("gemm");
    let mut layers = vec![];
    for layer in linears(&checkpoint, &config)? {
        let (pattern, values, kernel) = match checkpoint.packed(&layer.name)? {
            Some(packed) => {
                let pattern = packed.mask().grid().pattern().to_string();
                (pattern, packed.values().value_type().name(), sparse::choose(&packed).name)
            }
            None => ("dense".to_owned(), checkpoint.dtype(&layer.weight())?.name(), preferred),
        };
        let shape = [layer.rows, layer.cols];
        layers.push(LayerKernel { name: layer.name, shape, pattern, values: values.to_owned(), kernel });
    }
    Ok(layers)
}
