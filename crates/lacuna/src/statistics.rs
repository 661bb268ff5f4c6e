//! Statistics of the inputs of some layers.

use std::collections::BTreeMap;

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_model::{Block, LinearSpec};
use lacuna_prune::Stats;

use crate::calibrate::Stream;
use crate::device::Device;

/// Statistics of the distinct inputs of some layers.
pub(crate) struct Statistics {
    aim: f64,
    /// where products are computed
    device: Device,
    inputs: Vec<Stats>,
    of_layer: BTreeMap<String, usize>,
}

impl Statistics {
    /// `aim` as in [`Stats::beside_dense`]; 0 without the dense model's inputs.
    pub(crate) fn new(aim: f64, device: &Device) -> Self {
        Self { aim, device: device.clone(), inputs: vec![], of_layer: BTreeMap::new() }
    }

    /// Of some layers of a block, on what a stream brings it. `dense` as in [`Stream::observe`].
    pub(crate) fn of_block(
        stream: &Stream,
        block: &Block,
        dense: Option<&Block>,
        layers: &[&LinearSpec],
        aim: f64,
        device: &Device,
    ) -> Result<Self> {
        let mut stats = Self::new(aim, device);
        let mut done = Ok(());
        stream.observe(block, dense, &mut |sharing, x, beside| {
            if done.is_ok() && sharing.iter().any(|layer| layers.contains(layer)) {
                done = stats.observe(sharing, x, beside);
            }
        });
        done.map(|()| stats)
    }

    /// Adds the input `x[K, T]` of layers that share it, and what it is in the dense model where that runs along.
    pub(crate) fn observe(&mut self, sharing: &[&LinearSpec], x: &Matrix, dense: Option<&Matrix>) -> Result<()> {
        let input = *self.of_layer.entry(sharing[0].name.clone()).or_insert_with(|| {
            let stats = dense.map_or_else(|| Stats::new(x.rows()), |_| Stats::beside_dense(x.rows(), self.aim));
            self.inputs.push(match self.device.products() {
                Some(products) => stats.multiplied_by(products),
                None => stats,
            });
            self.inputs.len() - 1
        });
        for layer in sharing {
            self.of_layer.insert(layer.name.clone(), input);
        }
        Ok(self.inputs[input].observe(x, dense)?)
    }

    pub(crate) fn of(&self, layer: &LinearSpec) -> Option<&Stats> {
        self.of_layer.get(&layer.name).map(|&input| &self.inputs[input])
    }
}
