//! The loop: what a recipe does at each step.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use lacuna_core::{Mask, Matrix, Packed};
use lacuna_format::Checkpoint;
use lacuna_model::{Config, LinearSpec};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::block::{Watch, adapter_names};
use crate::drawn::{likeliest, logits_name, prior};
use crate::layer::{Layer, Moved, Rule, matrix};
use crate::loss::Losses;
use crate::ops::with_floats;
use crate::optimizer::{Moments, Tensors, size};
use crate::recipe::{Masks, Recipe, Start, Trains};
use crate::student::{Part, Student};
use crate::{Error, MicroBatch, Result};

/// What a training is made of.
pub struct Setup<'a> {
    /// the pruned checkpoint
    pub pruned: &'a Checkpoint,
    /// the dense one it came from, where the recipe [needs it](Recipe::needs_dense)
    pub dense: Option<&'a Checkpoint>,
    /// what both look like
    pub config: &'a Config,
    /// how
    pub recipe: &'a Recipe,
    /// how long
    pub steps: usize,
    /// of adapters and draws
    pub seed: u64,
    /// whether products round what they multiply to bfloat16; their sums, and all else, are f32
    pub bf16: bool,
    /// whether activations are computed again on the way back, instead of held
    pub recompute: bool,
}

/// A training at some step.
pub struct Trainer {
    pub(crate) student: Student,
    pub(crate) moments: Moments,
    pub(crate) step: usize,
    recipe: Recipe,
    pub(crate) steps: usize,
    seed: u64,
}

/// What a step did.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StepReport {
    /// its number, from 1
    pub step: usize,
    /// number of the phase, from 0
    pub phase: usize,
    /// what was lost before the step
    #[serde(flatten)]
    pub losses: Losses,
    /// learning rate
    pub lr: f64,
    /// norm of all gradients, before they were clipped
    pub gradient_norm: f64,
    /// share of the kept weights that others took the place of, where masks were selected or drawn
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flipped: Option<f64>,
}

impl Trainer {
    /// Reads the blocks and makes parameters of what the recipe trains.
    pub fn new(setup: &Setup) -> Result<Self> {
        let Setup { pruned, dense, config, recipe, steps, seed, bf16, recompute } = *setup;
        let sparsity = pruned.sparsity().ok_or_else(|| Error::Settings("the checkpoint is not pruned".to_owned()))?;
        let blocks = config.blocks();
        let (mut layers, mut latent, mut still) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for spec in (0..blocks.layers).flat_map(|layer| blocks.linears(layer)) {
            if !sparsity.layers.contains_key(&spec.name) {
                continue;
            }
            let Some(packed) = pruned.packed(&spec.name)? else { continue };
            if !recipe.targets(&spec.name) {
                still.insert(spec.name, packed);
                continue;
            }
            // Now, not when masks are first selected again.
            if recipe.selects() {
                recipe.selection.check(packed.mask().grid().pattern())?;
            }
            let name = spec.name.clone();
            if recipe.keeps_weights() {
                layers.insert(name, Layer::frozen(spec, packed));
            } else {
                latent.insert(name.clone(), weight_at_start(&spec, &packed, dense, recipe.start)?);
                layers.insert(name, Layer::new(spec, &packed));
            }
        }
        if layers.is_empty() {
            return Err(Error::Settings("the checkpoint has no pruned layer to train inside its blocks".to_owned()));
        }
        let mut student = Student::new(pruned, config, layers, latent, recipe.trains, bf16, recompute)?;
        student.still = still;
        make_parameters(&mut student, recipe, seed)?;
        if recipe.ends {
            student.train_ends(pruned)?;
        }
        let sizes = sizes(&student)?;
        Ok(Self {
            student,
            moments: Moments { sizes, ..Moments::default() },
            step: 0,
            recipe: recipe.clone(),
            steps,
            seed,
        })
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// What masks do at one of some steps: the phase, where it begins, the rule.
    pub(crate) fn rule(&self, step: usize, steps: usize) -> (usize, usize, Rule) {
        let (number, start, done) = self.recipe.phase(step, steps);
        let phase = &self.recipe.phases[number];
        let between = |[from, to]: [f64; 2]| from + (to - from) * done;
        let drawn = match phase.masks {
            Masks::Drawn { temperature, scale } => Some([between(temperature), between(scale)]),
            Masks::Dense | Masks::Fixed | Masks::Refreshed { .. } => None,
        };
        let rule = Rule {
            sparse: phase.masks != Masks::Dense,
            straight_through: phase.straight_through,
            leak: between(phase.leak),
            decay: between(phase.decay),
            drawn,
            seed: self.seed.wrapping_mul(1_000_003).wrapping_add(self.step as u64),
        };
        (number, start, rule)
    }

    /// Whether masks are selected before a step of a phase that began at `start`.
    pub(crate) fn selects(&self, phase: usize, start: usize, step: usize) -> bool {
        let since = step - start;
        let phases = &self.recipe.phases;
        let after_dense = phase > 0 && since == 0 && phases[phase - 1].masks == Masks::Dense;
        match phases[phase].masks {
            Masks::Dense | Masks::Drawn { .. } => false,
            Masks::Fixed => after_dense,
            Masks::Refreshed { every } => after_dense || (since > 0 && since.is_multiple_of(every)),
        }
    }

    /// One step on some batches, which were taught if the recipe's losses ask for it.
    pub fn step(&mut self, batches: &[MicroBatch]) -> Result<StepReport> {
        let (phase, start, rule) = self.rule(self.step, self.steps);
        let flipped = if self.selects(phase, start, self.step) { Some(self.select_all(batches, &rule)?) } else { None };
        let before = if rule.drawn.is_some() { Some(self.likeliest()?) } else { None };
        let (losses, gradients) = self.student.step(batches, &rule, &self.recipe.loss)?;
        let report = self.update(phase, (self.step, self.steps), losses, &gradients, flipped)?;
        let Some(before) = before else { return Ok(report) };
        let after = self.likeliest()?;
        let moved = before.iter().map(|(name, before)| Moved::between(before, &after[name]));
        Ok(StepReport { flipped: Some(Moved::share(moved)), ..report })
    }

    /// The masks that drawing ends with, as the odds are now.
    fn likeliest(&self) -> Result<BTreeMap<String, Mask>> {
        let layers = self.student.layers.par_iter();
        let mask = |(name, layer): (&String, &Layer)| {
            Ok((name.clone(), likeliest(layer, self.student.tensor(&logits_name(name)))?))
        };
        layers.map(mask).collect()
    }

    /// Moves the parameters, at one of some steps of the learning rate's curve.
    pub(crate) fn update(
        &mut self,
        phase: usize,
        (at, steps): (usize, usize),
        losses: Losses,
        gradients: &Tensors,
        flipped: Option<f64>,
    ) -> Result<StepReport> {
        if !losses.total.is_finite() {
            return Err(Error::Diverged { step: self.step + 1, loss: losses.total });
        }
        let optimizer = &self.recipe.optimizer;
        let (lr, steady) = (optimizer.rate(at, steps), self.recipe.phases[phase].steady);
        let gradient_norm = self.moments.update(&mut self.student.parameters, gradients, optimizer, lr, steady)?;
        self.step += 1;
        Ok(StepReport { step: self.step, phase, losses, lr, gradient_norm, flipped })
    }

    /// Selects all masks for the weights as they are, and says which share of the kept ones changed.
    fn select_all(&mut self, batches: &[MicroBatch], rule: &Rule) -> Result<f64> {
        let norms = self
            .norms(|watch| batches.iter().try_for_each(|batch| self.student.forward(batch, rule, watch).map(|_| ())))?;
        self.select("", &norms)
    }

    /// Selects those of one block.
    pub(crate) fn select_in(&mut self, layer: usize, parts: &[&Part], rule: &Rule) -> Result<f64> {
        let norms = self.norms(|watch| {
            parts.iter().try_for_each(|part| self.student.through_block(layer, part, rule, watch).map(|_| ()))
        })?;
        let prefix = format!("{}.", self.student.config.blocks().block_name(layer));
        self.select(&prefix, &norms)
    }

    /// Selects the masks of the layers whose names begin so.
    fn select(&mut self, prefix: &str, norms: &BTreeMap<String, Vec<f32>>) -> Result<f64> {
        let mut latent = BTreeMap::new();
        for name in self.student.layers.keys().filter(|name| name.starts_with(prefix)) {
            latent.insert(name.clone(), matrix(&self.student.latent(name)?)?);
        }
        let Recipe { criterion, selection, .. } = self.recipe;
        let select = |(name, layer): (&String, &mut Layer)| {
            Some(layer.select(latent.get(name)?, norms.get(name).cloned(), criterion, selection))
        };
        let moved = self.student.layers.par_iter_mut().filter_map(select).collect::<Result<Vec<_>>>()?;
        Ok(Moved::share(moved.into_iter()))
    }

    /// `‖X_j‖₂` of the inputs of all pruned layers that a run shows, if the criterion wants to know them.
    fn norms(&self, run: impl FnOnce(&Watch) -> Result<()>) -> Result<BTreeMap<String, Vec<f32>>> {
        if !self.recipe.criterion.needs_stats() {
            return Ok(BTreeMap::new());
        }
        let sums = std::sync::Mutex::new(BTreeMap::<String, Vec<f64>>::new());
        run(&|spec: &LinearSpec, x: &Tensor| {
            if self.student.layers.contains_key(&spec.name) {
                let squares = square_sums(x)?;
                let mut sums = sums.lock().expect("nobody panics");
                let sum = sums.entry(spec.name.clone()).or_insert_with(|| vec![0.0; squares.len()]);
                sum.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
            }
            Ok(())
        })?;
        let root = |sums: Vec<f64>| sums.into_iter().map(|sum| sum.sqrt() as f32).collect();
        Ok(sums.into_inner().expect("nobody panics").into_iter().map(|(name, sums)| (name, root(sums))).collect())
    }

    /// Whether a layer is one that is trained.
    pub fn has(&self, layer: &str) -> bool {
        self.student.layers.contains_key(layer)
    }

    /// A pruned layer as it is now.
    pub fn packed(&self, layer: &str) -> Result<Option<Packed>> {
        let Some(layer) = self.student.layers.get(layer) else { return Ok(None) };
        let name = &layer.spec.name;
        let weight = matrix(&self.student.latent(name)?)?;
        Ok(Some(match self.student.trains {
            Trains::Masks | Trains::MasksAndWeights => {
                layer.pack_by(&weight, likeliest(layer, self.student.tensor(&logits_name(name)))?)?
            }
            Trains::Weights | Trains::Adapters { .. } => layer.pack(&weight)?,
        }))
    }

    /// The values of a tensor that is stored as it is, by its name, if it was trained.
    pub fn values(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1();
        Ok(self.student.parameters.get(name).map(values).transpose()?)
    }

    /// Adapters that stand beside their layers: module name, `A[rank, K]` and `B[R, rank]`.
    pub fn adapters(&self) -> Result<BTreeMap<String, [Matrix; 2]>> {
        let Trains::Adapters { beside: true, .. } = self.student.trains else { return Ok(BTreeMap::new()) };
        let adapter = |name: &String| {
            let [a, b] = adapter_names(name);
            Ok((name.clone(), [matrix(self.student.tensor(&a))?, matrix(self.student.tensor(&b))?]))
        };
        self.student.layers.keys().map(adapter).collect()
    }

    /// What a batch is behind the last block, `[H, T]`, with masks as they are.
    pub fn stream(&self, batch: &MicroBatch) -> Result<Matrix> {
        Ok(matrix(&self.student.forward(batch, &Rule::FINAL, &|_, _| Ok(()))?)?.transposed())
    }

    /// What is trained, to average with that of another training of the same recipe from the same start.
    pub fn parameters(&self) -> Result<Parameters> {
        // Steps change them in place.
        let copied = self.student.parameters.iter().map(|(name, tensor)| Ok((name.clone(), tensor.copy()?)));
        Ok(Parameters(copied.collect::<Result<_>>()?))
    }

    /// Takes the mean of several trainings (Zimmer et al., arXiv 2306.16788): masks must not have moved in any.
    pub fn average(&mut self, trainings: &[Parameters]) -> Result<()> {
        for (name, parameter) in &mut self.student.parameters {
            let mut sum = parameter.zeros_like()?;
            for training in trainings {
                sum = (sum + &training.0[name])?;
            }
            *parameter = (sum * (trainings.len() as f64).recip())?;
        }
        Ok(())
    }
}

/// Parameters of a training.
pub struct Parameters(Tensors);

/// Kept weights as the recipe begins with them, and the dropped ones.
fn weight_at_start(spec: &LinearSpec, packed: &Packed, dense: Option<&Checkpoint>, start: Start) -> Result<Matrix> {
    let Some(dense) = dense else { return Ok(packed.unpack()) };
    let mut weight = dense.matrix(&spec.weight(), spec.rows, spec.cols)?;
    if start == Start::Pruned {
        let kept = packed.unpack();
        for row in 0..spec.rows {
            let out = packed.output_row(row);
            for col in packed.mask().kept(row).flatten().filter(|&col| col < spec.cols) {
                weight.row_mut(out)[col] = kept.row(out)[col];
            }
        }
    }
    Ok(weight)
}

/// Moves what is trained from the frozen tensors to the parameters, and adds what is new.
pub(crate) fn make_parameters(student: &mut Student, recipe: &Recipe, seed: u64) -> Result<()> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let Student { config, frozen, parameters, layers, device, .. } = student;
    for (name, layer) in &*layers {
        let weight = layer.spec.weight();
        if matches!(recipe.trains, Trains::Weights | Trains::MasksAndWeights) {
            let tensor = frozen.remove(&weight).expect("every pruned layer has a weight");
            parameters.insert(weight, tensor);
        }
        match recipe.trains {
            Trains::Weights => {}
            Trains::Adapters { rank, .. } => {
                let [a, b] = adapter_names(name);
                // As PEFT: A uniform with variance 1 / (3 K), B zero.
                let bound = (layer.spec.cols as f32).sqrt().recip();
                let values: Vec<f32> =
                    (0..rank * layer.spec.cols).map(|_| random.random_range(-bound..bound)).collect();
                parameters.insert(a, Tensor::from_vec(values, (rank, layer.spec.cols), device)?);
                parameters.insert(b, Tensor::zeros((layer.spec.rows, rank), DType::F32, device)?);
            }
            Trains::Masks | Trains::MasksAndWeights => {
                parameters.insert(logits_name(name), prior(layer, device)?);
            }
        }
    }
    if recipe.norms {
        let of_blocks = |name: &str| config.blocks().layer_of(name).is_some();
        let small = frozen.iter().filter(|(name, tensor)| tensor.rank() == 1 && of_blocks(name));
        for name in small.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            let tensor = frozen.remove(&name).expect("it is there");
            parameters.insert(name, tensor);
        }
    }
    Ok(())
}

/// What steps of each parameter are relative to: the size of its values, and of what training adds, one that is comparable.
fn sizes(student: &Student) -> Result<BTreeMap<String, f64>> {
    let parameters = student.parameters.iter();
    let mut sizes: BTreeMap<_, _> =
        parameters.map(|(name, tensor)| Ok((name.clone(), size(tensor)?))).collect::<Result<_>>()?;
    for name in student.layers.keys() {
        match student.trains {
            Trains::Weights => {}
            // With entries of this size in B, which begins as zeros, `alpha / rank · B·A` is as large as the weight.
            Trains::Adapters { rank, alpha, .. } => {
                let [a, b] = adapter_names(name);
                let one = sizes[&a] * alpha / (rank as f64).sqrt();
                sizes.insert(b, size(&student.weight(name)?)? / one);
            }
            Trains::Masks | Trains::MasksAndWeights => {
                sizes.insert(logits_name(name), 1.0);
            }
        }
    }
    Ok(sizes)
}

/// `Σ_t x²` of each feature of `x[T, K]`.
fn square_sums(x: &Tensor) -> Result<Vec<f64>> {
    let features = x.dim(1)?;
    let mut sums = vec![0.0; features];
    with_floats(x, |x| {
        for token in x.chunks_exact(features) {
            sums.iter_mut().zip(token).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
        }
    })?;
    Ok(sums)
}
