//! Block by block: observe, prune, write, go on behind the pruned block.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use lacuna_core::Packed;
use lacuna_format::{Checkpoint, OutTensor, Progress, Staging, bytes_of, pack_tensors};
use lacuna_model::{Block, Execution, LinearSpec};
use serde_json::Value;

use super::{Chosen, Job, LayerReport};
use crate::calibrate::{Batch, Stream};
use crate::recipe::Order;
use crate::source::Source;
use crate::statistics::Statistics;

/// Layers under their names.
type PackedLayers = Vec<(String, Packed)>;

/// What came of writing the shards.
pub(super) struct Written {
    /// of all layers
    pub(super) layers: Vec<LayerReport>,
    /// how many shards were there already
    pub(super) resumed_shards: usize,
    pub(super) calibration_tokens: usize,
}

impl Job {
    /// Writes the shards that are not there yet.
    ///
    /// A shard is written while the next block is pruned, one at a time and in order, so that the journal is what it
    /// would be without the thread.
    pub(super) fn write_shards(
        &self,
        staging: &mut Staging,
        pass: &Progress,
        progress: &ProgressBar,
    ) -> Result<Written> {
        let sparsity = self.sparsity(BTreeMap::new())?;
        let calibrating = !self.samples.is_empty();
        let blocks = self.config.blocks().layers;
        let beside_dense = self.options.recipe.aim > 0.0;
        let mut stream = Stream::new(&self.checkpoint, &self.config, &self.samples, beside_dense)?;
        let calibration_tokens = stream.tokens();
        let (mut reports, mut resumed) = (vec![], 0);
        let finished: Vec<_> = (0..=blocks).map(|part| staging.finished(&self.shard_name(part)).cloned()).collect();
        let dir = staging.dir().to_owned();
        let staging = Mutex::new(staging);
        let written = |writing: Option<ScopedJoinHandle<Result<()>>>| {
            writing.map_or(Ok(()), |thread| thread.join().expect("writing does not panic"))
        };
        let read = |part| self.tensors_of(part).for_each(|(_, tensor)| pass.read(tensor));
        std::thread::scope(|scope| {
            let mut writing = None;
            for (part, finished) in finished.into_iter().enumerate() {
                let shard = self.shard_name(part);
                let layers = self.layers_of(part);
                if let Some(report) = finished {
                    let report: Vec<LayerReport> = serde_json::from_value(report)?;
                    progress.inc(report.len() as u64);
                    // Steps that were free must not make the rest look free.
                    progress.reset_eta();
                    reports.extend(report);
                    resumed += 1;
                } else {
                    let (pruned, report) = if !calibrating {
                        self.prune_layers(&layers, &self.statistics(), progress, |_, _| Ok(()))?
                    } else if part < blocks {
                        self.prune_block(part, &layers, &stream, progress)?
                    } else {
                        let stats = self.observe_heads(&layers, &stream)?;
                        self.prune_layers(&layers, &stats, progress, |_, _| Ok(()))?
                    };
                    let noted = serde_json::to_value(&report)?;
                    reports.extend(report);
                    written(writing.take())?;
                    let (staging, shard) = (&staging, shard.clone());
                    writing = Some(scope.spawn(move || self.write_shard(staging, &shard, part, &pruned, noted)));
                }
                if calibrating && part < blocks {
                    written(writing.take())?;
                    let shard = Checkpoint::of_shard(&dir.join(&shard), Some(&sparsity))?;
                    let block = Block::load(&shard, self.config.blocks(), part, Execution::EXACT)?;
                    let dense = stream.beside_dense().then(|| self.dense_block(part)).transpose()?;
                    stream.advance(&block, dense.as_ref());
                }
                // The one before is written by now.
                if part > 0 {
                    read(part - 1);
                }
            }
            written(writing)
        })?;
        read(blocks);
        Ok(Written { layers: reports, resumed_shards: resumed, calibration_tokens })
    }

    /// Writes the pruned layers of a block beside the tensors that stay as they are.
    fn write_shard(
        &self,
        staging: &Mutex<&mut Staging>,
        shard: &str,
        part: usize,
        pruned: &PackedLayers,
        report: Value,
    ) -> Result<()> {
        let mut tensors: Vec<_> = pruned.iter().flat_map(|(name, packed)| pack_tensors(name, packed)).collect();
        let raw = self.kept_tensors(part);
        let raw = raw.map(|name| Ok((name.clone(), self.checkpoint.finite(name)?))).collect::<Result<Vec<_>>>()?;
        for (name, tensor) in &raw {
            let out = OutTensor::new(tensor.info.dtype, tensor.info.shape.clone(), tensor.bytes());
            tensors.push((name.clone(), out));
        }
        Ok(staging.lock().expect("writing does not panic").write_shard(shard, &tensors, report)?)
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
    ) -> Result<(PackedLayers, Vec<LayerReport>)> {
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
        let (mut all, mut reports) = (vec![], vec![]);
        for stage in stages.iter().filter(|stage| !stage.is_empty()) {
            let specs: Vec<&LinearSpec> = stage.iter().map(|layer| &layer.spec).collect();
            let aim = self.options.recipe.aim;
            let stats = Statistics::of_block(stream, &block, dense.as_ref(), &specs, aim, &self.options.device)?;
            let replace =
                |name: &str, packed: &Packed| Ok(block.replace(&self.checkpoint, name, packed, Execution::EXACT)?);
            let (of_stage, report) = self.prune_layers(stage, &stats, progress, replace)?;
            all.extend(of_stage);
            reports.extend(report);
        }
        Ok((all, reports))
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
    ) -> Result<(PackedLayers, Vec<LayerReport>)> {
        let (mut all, mut reports) = (vec![], vec![]);
        for Chosen { spec: layer, pattern } in layers {
            progress.set_message(layer.name.clone());
            let weight = Source::open(&self.checkpoint, layer)?;
            let method = self.options.recipe.method(*pattern, self.value_type(layer)?);
            let pruned = method.prune(&weight, stats.of(layer)).with_context(|| format!("layer {}", layer.name))?;
            reports.push(LayerReport {
                name: layer.name.clone(),
                pattern: pattern.to_string(),
                density: pruned.packed.mask().grid().density(),
                retained_score: pruned.retained_score,
                relative_error: pruned.relative_error,
                quantization_error: pruned.quantization_error,
                bytes_before: self.checkpoint.info(&layer.weight())?.len as u64,
                bytes_after: bytes_of(&pruned.packed) as u64,
            });
            replace(&layer.name, &pruned.packed)?;
            all.push((layer.name.clone(), pruned.packed));
            progress.inc(1);
        }
        Ok((all, reports))
    }
}
