//! The shards of the result, one a block and one for the rest: what an earlier run wrote, and what is written now, a shard
//! at a time while the next one is pruned.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::Result;
use lacuna_core::Packed;
use lacuna_format::{OutTensor, Staging, pack_tensors};

use super::{Job, LayerReport};

/// A layer and how it was pruned.
pub(super) type PrunedLayer = (Packed, LayerReport);

/// The shards of a job.
pub(super) struct Shards<'scope, 'env> {
    job: &'env Job,
    staging: &'env Mutex<Staging>,
    scope: &'scope Scope<'scope, 'env>,
    reports: BTreeMap<usize, Vec<LayerReport>>,
    writing: Option<ScopedJoinHandle<'scope, Result<()>>>,
}

impl<'scope, 'env> Shards<'scope, 'env> {
    /// Those that `staging` has already.
    pub(super) fn of(
        job: &'env Job,
        staging: &'env Mutex<Staging>,
        scope: &'scope Scope<'scope, 'env>,
    ) -> Result<Self> {
        let mut reports = BTreeMap::new();
        for part in job.parts() {
            let staging = staging.lock().expect("writing does not panic");
            if let Some(report) = staging.finished(&job.shard_name(part)) {
                reports.insert(part, serde_json::from_value(report.clone())?);
            }
        }
        Ok(Self { job, staging, scope, reports, writing: None })
    }

    /// Whether a shard is there, or being written.
    pub(super) fn has(&self, part: usize) -> bool {
        self.reports.contains_key(&part)
    }

    /// What is known of the layers of each of those.
    pub(super) fn reports(&self) -> impl Iterator<Item = &Vec<LayerReport>> {
        self.reports.values()
    }

    /// Where a shard lies, when it is written.
    pub(super) fn path(&mut self, part: usize) -> Result<PathBuf> {
        self.wait()?;
        Ok(self.staging.lock().expect("writing does not panic").dir().join(self.job.shard_name(part)))
    }

    /// Begins to write the shard of a block when the one before is written.
    pub(super) fn write(&mut self, part: usize, layers: Vec<PrunedLayer>) -> Result<()> {
        self.wait()?;
        let (packed, report): (Vec<Packed>, Vec<LayerReport>) = layers.into_iter().unzip();
        let names: Vec<String> = report.iter().map(|layer| layer.name.clone()).collect();
        let noted = serde_json::to_value(&report)?;
        self.reports.insert(part, report);
        let (job, staging) = (self.job, self.staging);
        self.writing = Some(self.scope.spawn(move || {
            let layers = names.iter().zip(&packed);
            let mut tensors: Vec<_> = layers.flat_map(|(name, packed)| pack_tensors(name, packed)).collect();
            let kept = job.kept_tensors(part);
            let kept = kept.map(|name| Ok((name, job.checkpoint.finite(name)?))).collect::<Result<Vec<_>>>()?;
            for (name, tensor) in &kept {
                let out = OutTensor::new(tensor.info.dtype, tensor.info.shape.clone(), tensor.bytes());
                tensors.push(((*name).clone(), out));
            }
            let mut staging = staging.lock().expect("writing does not panic");
            Ok(staging.write_shard(&job.shard_name(part), &tensors, noted)?)
        }));
        Ok(())
    }

    /// Waits until all are written that were begun.
    fn wait(&mut self) -> Result<()> {
        self.writing.take().map_or(Ok(()), |thread| thread.join().expect("writing does not panic"))
    }

    /// What is known of all layers, in the order of the shards.
    pub(super) fn finish(mut self) -> Result<Vec<LayerReport>> {
        self.wait()?;
        Ok(self.reports.into_values().flatten().collect())
    }
}
