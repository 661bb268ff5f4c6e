//! In one pass over the weight files, each layer as it comes by: without calibration none has to wait for another.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_format::Passing;

use super::shards::{PrunedLayer, Shards};
use super::{Chosen, Job};
use crate::source::Source;

/// Blocks that may be begun and not ended, for their pruned layers are held until then. Files of blocks one after the
/// other, in whatever order, have three such: two that lie across an end of a file, and what is of no block.
const BEGUN: usize = 4;

impl Job {
    /// Whether layers can be pruned in the order in which they lie in the files.
    pub(super) fn comes_by_block(&self) -> bool {
        self.samples.is_empty() && self.most_begun() <= BEGUN
    }

    /// Weights of the layers in shards that are not there yet.
    pub(super) fn wanted(&self, shards: &Shards) -> BTreeSet<String> {
        let missing = self.parts().filter(|&part| !shards.has(part));
        missing.flat_map(|part| self.layers_of(part)).map(|layer| layer.spec.weight()).collect()
    }

    /// Prunes the layers that come by, and writes a shard when it has all of its own.
    pub(super) fn prune_in_passing(
        &self,
        passing: &mut Passing,
        shards: &mut Shards,
        progress: &ProgressBar,
    ) -> Result<()> {
        let chosen: BTreeMap<String, (usize, &Chosen)> =
            self.chosen.iter().enumerate().map(|(i, layer)| (layer.spec.weight(), (i, layer))).collect();
        for part in self.parts().filter(|&part| self.layers_of(part).is_empty()) {
            if !shards.has(part) {
                shards.write(part, vec![])?;
            }
        }
        let mut begun: BTreeMap<usize, BTreeMap<usize, PrunedLayer>> = BTreeMap::new();
        for (name, tensor) in passing {
            let (place, layer) = chosen[name];
            let weight = Source::passing(&self.checkpoint, &layer.spec, tensor)?;
            let pruned = self.prune_layer(layer, &weight, None, progress)?;
            let part = self.part_of(name);
            let layers = begun.entry(part).or_default();
            layers.insert(place, pruned);
            if layers.len() == self.layers_of(part).len() {
                let layers = begun.remove(&part).unwrap_or_default();
                shards.write(part, layers.into_values().collect())?;
            }
        }
        Ok(())
    }

    /// Blocks begun and not ended at any one place of the files.
    pub(super) fn most_begun(&self) -> usize {
        let mut left: BTreeMap<usize, usize> = BTreeMap::new();
        for part in self.parts() {
            left.insert(part, self.layers_of(part).len());
        }
        let weights: BTreeSet<String> = self.chosen.iter().map(|layer| layer.spec.weight()).collect();
        let (mut begun, mut most) = (BTreeSet::new(), 0);
        for (name, _) in self.checkpoint.in_order().into_iter().filter(|(name, _)| weights.contains(*name)) {
            let part = self.part_of(name);
            begun.insert(part);
            most = most.max(begun.len());
            if let Some(left) = left.get_mut(&part) {
                *left -= 1;
                if *left == 0 {
                    begun.remove(&part);
                }
            }
        }
        most
    }
}
