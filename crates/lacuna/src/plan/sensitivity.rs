//! What pruning each layer under each pattern does: to its scores, to its outputs, and to the model's answers while all
//! other layers stay dense.
//!
//! Part of the calibration samples is held back: the others say how to prune, these say what it cost. A layer is replaced
//! in its block, the held-back samples go through that block and the dense ones behind it; the samples' streams in front of
//! each block are computed once.

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use lacuna_core::{Matrix, Pattern};
use lacuna_format::Checkpoint;
use lacuna_model::{Block, Config, Execution, LinearSpec, Sample};
use lacuna_prune::{Criterion, Pruned};

use super::file::PlanFile;
use super::probe::Probe;
use super::space::Space;
use super::stage;
use super::stand_in::StandIns;
use crate::calibrate::Stream;
use crate::device::Device;
use crate::statistics::Statistics;

/// One sample in so many is held back.
const HELD_BACK: usize = 4;

/// The scores among which OWL looks for outliers: |W|·‖X‖.
const OUTLIERS_OF: Criterion = Criterion::Wanda;

/// What pruning one layer does; nothing if it stays dense.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effect {
    /// share of the sum of scores kept
    pub(super) retained_score: f64,
    /// `‖(W − Ŵ)·X‖ / ‖W·X‖`
    pub(super) error: f64,
    /// distance of the model's answers from the dense ones; none if it was not asked for
    pub(super) sensitivity: Option<f64>,
}

impl Effect {
    const NONE: Self = Self { retained_score: 1.0, error: 0.0, sensitivity: Some(0.0) };
}

/// A model with samples in front of its first block.
pub(super) struct Laboratory<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    /// how layers are pruned
    stand_ins: StandIns<'a>,
    calibration: Stream,
    held_back: Stream,
}

impl<'a> Laboratory<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        config: &'a Config,
        stand_ins: StandIns<'a>,
        samples: &[Sample],
    ) -> Result<Self> {
        let split = |held: bool| -> Vec<Sample> {
            let samples = samples.iter().enumerate().filter(|(i, _)| i.is_multiple_of(HELD_BACK) == held);
            samples.map(|(_, sample)| sample.clone()).collect()
        };
        let (held_back, calibration) = (split(true), split(false));
        if calibration.is_empty() {
            bail!("--calibration gives a single sample; give data for two or more, one is held back");
        }
        let stream = |samples: &[Sample]| Stream::new(checkpoint, config, samples, false);
        Ok(Self { checkpoint, config, stand_ins, calibration: stream(&calibration)?, held_back: stream(&held_back)? })
    }

    /// Steps that [`Self::effects`] takes.
    pub(super) fn steps(space: &Space) -> u64 {
        (space.layers.len() * space.patterns.len()) as u64
    }

    /// The effect of each option of each layer; none where a pattern does not fit. The model's answers are looked at only if
    /// asked for.
    pub(super) fn effects(
        &self,
        space: &Space,
        answers: bool,
        progress: &ProgressBar,
    ) -> Result<Vec<Vec<Option<Effect>>>> {
        let mut blocks = (0..self.config.blocks().layers).map(|b| self.block(b)).collect::<Result<Vec<_>>>()?;
        let probe = answers.then(|| self.probe(&blocks)).transpose()?;
        let (mut calibration, mut held_back) = (self.calibration.clone(), self.held_back.clone());
        let mut effects = vec![vec![]; space.layers.len()];
        for b in 0..blocks.len() {
            let own = self.layers_of(b, &space.layers);
            let stats = Statistics::of_block(&calibration, &blocks[b], None, &own, 0.0, &Device::Cpu)?;
            for layer in own {
                progress.set_message(layer.name.clone());
                let i = space.layers.iter().position(|other| other == layer).expect("it is one of them");
                effects[i].push(Some(Effect::NONE));
                for (p, &pattern) in space.patterns.iter().enumerate() {
                    progress.inc(1);
                    if !space.kept[i][p + 1].is_finite() {
                        effects[i].push(None);
                        continue;
                    }
                    let pruned = self.prune(layer, pattern, &stats)?;
                    let sensitivity = match &probe {
                        None => None,
                        Some(probe) => {
                            blocks[b].replace(self.checkpoint, &layer.name, &pruned.packed, Execution::EXACT)?;
                            let mut stream = held_back.clone();
                            for block in &blocks[b..] {
                                stream.advance(block, None);
                            }
                            Some(finite(probe.distance(&stream), layer)?)
                        }
                    };
                    let Pruned { retained_score, relative_error: error, .. } = pruned;
                    effects[i].push(Some(Effect { retained_score, error, sensitivity }));
                }
                if probe.is_some() {
                    blocks[b] = self.block(b)?;
                }
            }
            calibration.advance(&blocks[b], None);
            held_back.advance(&blocks[b], None);
        }
        Ok(effects)
    }

    /// A figure of the scores of each layer.
    pub(super) fn outlier_shares(
        &self,
        space: &Space,
        of: impl Fn(&Matrix) -> f64,
        progress: &ProgressBar,
    ) -> Result<Vec<f64>> {
        stage(progress, space.layers.len() as u64);
        let mut calibration = self.calibration.clone();
        let mut figures = vec![0.0; space.layers.len()];
        for b in 0..self.config.blocks().layers {
            let block = self.block(b)?;
            let own = self.layers_of(b, &space.layers);
            let stats = Statistics::of_block(&calibration, &block, None, &own, 0.0, &Device::Cpu)?;
            for (figure, layer) in figures.iter_mut().zip(&space.layers).filter(|(_, layer)| own.contains(layer)) {
                let weight = self.checkpoint.matrix(&layer.weight(), layer.rows, layer.cols)?;
                let scorer = OUTLIERS_OF.scorer(&weight, stats.of(layer))?;
                *figure = of(scorer.scores(0, &weight)?.matrix());
                progress.inc(1);
            }
            calibration.advance(&block, None);
        }
        Ok(figures)
    }

    /// Prunes layers as a choice says, one block after the other behind pruned ones as `prune` does it: distance of the model's
    /// answers from the dense ones.
    pub(super) fn distance(&self, space: &Space, choice: &[usize], dense: &Probe) -> Result<f64> {
        let (mut calibration, mut held_back) = (self.calibration.clone(), self.held_back.clone());
        for b in 0..self.config.blocks().layers {
            let mut block = self.block(b)?;
            let own = self.layers_of(b, &space.layers);
            let stats = Statistics::of_block(&calibration, &block, None, &own, 0.0, &Device::Cpu)?;
            for (layer, &option) in space.layers.iter().zip(choice).filter(|(layer, _)| own.contains(layer)) {
                if let Some(pattern) = space.pattern(option) {
                    let pruned = self.prune(layer, pattern, &stats)?;
                    block.replace(self.checkpoint, &layer.name, &pruned.packed, Execution::EXACT)?;
                }
            }
            calibration.advance(&block, None);
            held_back.advance(&block, None);
        }
        Ok(dense.distance(&held_back))
    }

    /// The dense model's answers.
    pub(super) fn dense(&self) -> Result<Probe> {
        let blocks = (0..self.config.blocks().layers).map(|b| self.block(b)).collect::<Result<Vec<_>>>()?;
        self.probe(&blocks)
    }

    fn probe(&self, blocks: &[Block]) -> Result<Probe> {
        let mut stream = self.held_back.clone();
        for block in blocks {
            stream.advance(block, None);
        }
        Probe::new(self.checkpoint, self.config, &stream)
    }

    fn block(&self, b: usize) -> Result<Block> {
        Ok(Block::load(self.checkpoint, self.config.blocks(), b, Execution::EXACT)?)
    }

    fn layers_of<'b>(&self, b: usize, layers: &'b [LinearSpec]) -> Vec<&'b LinearSpec> {
        layers.iter().filter(|layer| self.config.blocks().layer_of(&layer.name) == Some(b)).collect()
    }

    fn prune(&self, layer: &LinearSpec, pattern: Pattern, stats: &Statistics) -> Result<Pruned> {
        let weight = self.checkpoint.matrix(&layer.weight(), layer.rows, layer.cols)?;
        let pruned = self.stand_ins.recipe.method(pattern, self.stand_ins.values).prune(&weight, stats.of(layer));
        pruned.with_context(|| format!("layer {}", layer.name))
    }
}

/// Share of the scores that each pattern keeps, the mean over the layers that it fits by their weights.
pub(super) fn retained_scores(space: &Space, effects: &[Vec<Option<Effect>>]) -> Vec<f64> {
    let of = |p: usize| {
        let weighed = effects.iter().zip(&space.kept).filter_map(|(own, kept)| Some((own[p + 1]?, kept[0])));
        let (sum, weights) =
            weighed.fold((0.0, 0.0), |(sum, all), (effect, w)| (sum + w * effect.retained_score, all + w));
        if weights > 0.0 { sum / weights } else { 0.0 }
    };
    (0..space.patterns.len()).map(of).collect()
}

/// The sensitivity of each option of each layer as a plan has it; infinite where a pattern does not fit.
pub(super) fn of_plan(plan: &PlanFile, space: &Space) -> Result<Vec<Vec<f64>>> {
    let of_layer = |(layer, kept): (&LinearSpec, &Vec<f64>)| {
        let shape = [layer.rows, layer.cols];
        let known = plan.layers.iter().find(|known| known.name == layer.name && known.shape == shape);
        let of_pattern = |(pattern, kept): (&Pattern, &f64)| {
            if !kept.is_finite() {
                return Ok(f64::INFINITY);
            }
            let found = known.and_then(|known| known.sensitivities.get(&pattern.to_string()).copied());
            found.filter(|found| *found >= 0.0).with_context(|| {
                let name = &layer.name;
                format!(
                    "the plan of --measured has no sensitivity of {name} {shape:?} under {pattern}; choose among the patterns \
                     that were measured, or measure again"
                )
            })
        };
        let patterns = space.patterns.iter().zip(&kept[1..]).map(of_pattern);
        std::iter::once(Ok(0.0)).chain(patterns).collect()
    };
    space.layers.iter().zip(&space.kept).map(of_layer).collect()
}

/// The sensitivity of each option of each layer; infinite where a pattern does not fit.
pub(super) fn sensitivities(effects: &[Vec<Option<Effect>>]) -> Vec<Vec<f64>> {
    let of = |effect: &Option<Effect>| effect.and_then(|effect| effect.sensitivity).unwrap_or(f64::INFINITY);
    effects.iter().map(|own| own.iter().map(of).collect()).collect()
}

fn finite(distance: f64, layer: &LinearSpec) -> Result<f64> {
    if !distance.is_finite() {
        bail!("layer {}: the model's answers are not finite; the checkpoint is damaged", layer.name);
    }
    // Rounding may leave a little less than nothing.
    Ok(distance.max(0.0))
}
