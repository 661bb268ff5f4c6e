//! Block by block, in the order of the model: observe, prune, write, go on behind the pruned block.

use std::collections::BTreeMap;

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_core::Packed;
use lacuna_format::Checkpoint;
use lacuna_model::{Block, Execution, LinearSpec};

use super::shards::{PrunedLayer, Shards};
use super::{Chosen, Job};
use crate::calibrate::{Batch, Stream};
use crate::recipe::Order;
use crate::source::Source;
use crate::statistics::Statistics;

impl Job {
    /// Prunes the blocks whose shards are not there yet, on what calibration there is.
    pub(super) fn prune_by_block(&self, shards: &mut Shards, progress: &ProgressBar) -> Result<()> {
        let sparsity = self.sparsity(BTreeMap::new())?;
        let calibrating = !self.samples.is_empty();
        let blocks = self.config.blocks();
        let mut stream = Stream::new(&self.checkpoint, &self.config, &self.samples, self.options.recipe.aim > 0.0)?;
        for part in self.parts() {
            if !shards.has(part) {
                let layers = self.layers_of(part);
                let pruned = if !calibrating {
                    self.prune_layers(&layers, &self.statistics(), progress, |_, _| Ok(()))?
                } else if part < blocks.layers {
                    self.prune_block(part, &layers, &stream, progress)?
                } else {
                    let stats = self.observe_heads(&layers, &stream)?;
                    self.prune_layers(&layers, &stats, progress, |_, _| Ok(()))?
                };
                shards.write(part, pruned)?;
            }
            if calibrating && part < blocks.layers {
                let shard = Checkpoint::of_shard(&shards.path(part)?, Some(&sparsity))?;
                let block = Block::load(&shard, blocks, part, Execution::EXACT)?;
                let dense = stream.beside_dense().then(|| self.dense_block(part)).transpose()?;
                stream.advance(&block, dense.as_ref());
            }
        }
        Ok(())
    }

    /// Statistics as the recipe wants them.
    fn statistics(&self) -> Statistics {
        Statistics::new(self.options.recipe.aim, &self.options.device)
    }

    /// A block of the original.
    fn dense_block(&self, part: usize) -> Result<Block> {
        Ok(Block::load(&self.checkpoint, self.config.blocks(), part, Execution::EXACT)?)
    }

    /// Prunes the layers of a block, observing it as often as the order asks for.
    fn prune_block(
        &self,
        part: usize,
        layers: &[&Chosen],
        stream: &Stream,
        progress: &ProgressBar,
    ) -> Result<Vec<PrunedLayer>> {
        let dense = stream.beside_dense().then(|| self.dense_block(part)).transpose()?;
        let mut block = self.dense_block(part)?;
        let stages: Vec<Vec<&Chosen>> = match self.options.recipe.order {
            Order::Block => vec![layers.to_vec()],
            Order::Layer => {
                let stages = self.config.blocks().stages(part);
                let of = |stage: &Vec<LinearSpec>| layers.iter().copied().filter(|l| stage.contains(&l.spec)).collect();
                stages.iter().map(of).collect()
            }
        };
        let mut all = vec![];
        for stage in stages.iter().filter(|stage| !stage.is_empty()) {
            let specs: Vec<&LinearSpec> = stage.iter().map(|layer| &layer.spec).collect();
            let aim = self.options.recipe.aim;
            let stats = Statistics::of_block(stream, &block, dense.as_ref(), &specs, aim, &self.options.device)?;
            let replace =
                |name: &str, packed: &Packed| Ok(block.replace(&self.checkpoint, name, packed, Execution::EXACT)?);
            all.extend(self.prune_layers(stage, &stats, progress, replace)?);
        }
        Ok(all)
    }

    /// Statistics of the inputs of some layers behind the last block.
    fn observe_heads(&self, layers: &[&Chosen], stream: &Stream) -> Result<Statistics> {
        let mut stats = self.statistics();
        if layers.is_empty() {
            return Ok(stats);
        }
        for Batch { hidden, dense, .. } in stream.batches() {
            let beside = dense.as_ref().map(|dense| self.config.head_inputs(&self.checkpoint, dense)).transpose()?;
            for (i, (head, x)) in self.config.head_inputs(&self.checkpoint, hidden)?.iter().enumerate() {
                if layers.iter().any(|layer| layer.spec == *head) {
                    stats.observe(&[head], x, beside.as_ref().map(|beside| &beside[i].1))?;
                }
            }
        }
        Ok(stats)
    }

    fn prune_layers(
        &self,
        layers: &[&Chosen],
        stats: &Statistics,
        progress: &ProgressBar,
        mut replace: impl FnMut(&str, &Packed) -> Result<()>,
    ) -> Result<Vec<PrunedLayer>> {
        let mut all = vec![];
        for layer in layers {
            let weight = Source::open(&self.checkpoint, &layer.spec)?;
            let (packed, report) = self.prune_layer(layer, &weight, stats.of(&layer.spec), progress)?;
            replace(&layer.spec.name, &packed)?;
            all.push((packed, report));
        }
        Ok(all)
    }
}
