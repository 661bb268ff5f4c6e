//! The model in training: its blocks forwards and backwards, one at a time.
//!
//! A block's graph begins at its input and ends at its output; between blocks gradients are handed on by hand. So with
//! `recompute` no more than one block's activations are held beside the inputs of all of them.

mod ends;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use lacuna_core::{Matrix, Packed};
use lacuna_format::Checkpoint;
use lacuna_model::Config;
use rayon::prelude::*;

use crate::block::{Block, Ready, Watch, Weights, adapter_names};
use crate::drawn::{Draw, Drawn, logits_name};
use crate::ending::Ending;
use crate::layer::{Layer, Rule, tensor};
use crate::loss::{Loss, Losses, square_head};
use crate::ops::{Sequences, with_floats};
use crate::optimizer::Tensors;
use crate::recipe::Trains;
use crate::{MicroBatch, Result};

/// A pruned model that is trained.
pub(crate) struct Student {
    pub(crate) config: Config,
    pub(crate) device: Device,
    /// whether products round what they multiply to bfloat16
    pub(crate) bf16: bool,
    pub(crate) recompute: bool,
    pub(crate) trains: Trains,
    /// the pruned layers that are trained, by module name
    pub(crate) layers: BTreeMap<String, Layer>,
    /// those that are not
    pub(crate) still: BTreeMap<String, Packed>,
    /// tensors of the blocks and behind them that stay as they are
    pub(crate) frozen: Tensors,
    /// those that are trained
    pub(crate) parameters: Tensors,
    /// what was drawn for this step, of the layers that it trains
    drawn: BTreeMap<String, Drawn>,
    /// blocks as this step sees them, by number: those that all of its batches share
    ready: BTreeMap<usize, Arc<Ready>>,
    ending: Ending,
    /// name of the token embeddings, where they are trained
    embeddings: Option<String>,
}

/// What batches of a step have in common.
struct Task<'a> {
    rule: &'a Rule,
    loss: &'a Loss,
    /// what comes behind the blocks
    ends: Ready,
    /// of all batches together
    answers: usize,
    tokens: usize,
}

/// A block that ran.
struct Graph {
    input: Tensor,
    block: Arc<Ready>,
    output: Tensor,
}

impl Student {
    /// A model whose tensors are all frozen: the blocks of the checkpoint, pruned weights as `latent` has them or as
    /// their layers hold them.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        config: &Config,
        layers: BTreeMap<String, Layer>,
        latent: BTreeMap<String, Matrix>,
        trains: Trains,
        bf16: bool,
        recompute: bool,
    ) -> Result<Self> {
        let device = Device::Cpu;
        let mut frozen = Tensors::new();
        let blocks = config.blocks();
        // Of a packed layer only the bias is a tensor by itself.
        let packed = |layer: &str| checkpoint.sparsity().is_some_and(|s| s.layers.contains_key(layer));
        for (name, info) in checkpoint.tensors() {
            let whole = match name.rsplit_once('.') {
                Some((layer, part)) => part == "bias" || !packed(layer),
                None => true,
            };
            if whole && blocks.layer_of(name).is_some() {
                let values = checkpoint.floats(name, &info.shape)?;
                frozen.insert(name.clone(), Tensor::from_vec(values, &info.shape[..], &device)?);
            }
        }
        for (name, weight) in latent {
            let shape = (weight.rows(), weight.cols());
            frozen.insert(format!("{name}.weight"), Tensor::from_vec(weight.into_data(), shape, &device)?);
        }
        let ending = Ending::load(checkpoint, config, &device, &mut frozen)?;
        let (config, parameters) = (config.clone(), Tensors::new());
        let (drawn, ready) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            config,
            device,
            bf16,
            recompute,
            trains,
            layers,
            still: BTreeMap::new(),
            frozen,
            parameters,
            drawn,
            ready,
            ending,
            embeddings: None,
        })
    }

    /// A tensor, trained or not.
    pub(crate) fn tensor(&self, name: &str) -> &Tensor {
        self.parameters.get(name).or_else(|| self.frozen.get(name)).expect("all tensors are there")
    }

    /// The weight of a pruned layer without adapters, before its mask.
    pub(crate) fn weight(&self, layer: &str) -> Result<Tensor> {
        let frozen = self.layers[layer].frozen_weight(&self.device);
        frozen.unwrap_or_else(|| Ok(self.tensor(&format!("{layer}.weight")).clone()))
    }

    /// The same with what a merged adapter adds.
    pub(crate) fn latent(&self, layer: &str) -> Result<Tensor> {
        let weight = self.weight(layer)?;
        Ok(match (self.trains, adapter_names(layer).map(|name| self.parameters.get(&name))) {
            (Trains::Adapters { rank, alpha, beside: false }, [Some(a), Some(b)]) => {
                (weight + (b.matmul(a)? * (alpha / rank as f64))?)?
            }
            _ => weight,
        })
    }

    /// Draws masks, where a rule says so, for the layers whose names begin so: once a step, for all of its batches.
    fn draw(&mut self, rule: &Rule, prefix: &str) -> Result<()> {
        let Some([temperature, scale]) = rule.drawn else { return Ok(()) };
        let draw = Draw { temperature, scale, seed: rule.seed };
        let layers: Vec<(usize, &Layer)> = self.layers.values().enumerate().collect();
        let own = layers.into_par_iter().filter(|(_, layer)| layer.spec.name.starts_with(prefix));
        let drawn = own.map(|(i, layer)| {
            let name = &layer.spec.name;
            Ok((name.clone(), draw.of(layer, i, self.tensor(&logits_name(name)))?))
        });
        self.drawn = drawn.collect::<Result<_>>()?;
        Ok(())
    }

    /// How much each weight of a layer counts.
    fn factors(&self, layer: &Layer, rule: &Rule) -> Result<Tensor> {
        match rule.drawn {
            Some(_) => Ok(self.drawn[&layer.spec.name].factors.clone()),
            None => layer.factors(rule.leak, &self.device),
        }
    }

    /// Makes blocks ready for all batches of a step.
    fn make_ready(&mut self, blocks: Range<usize>, rule: &Rule) -> Result<()> {
        let made = blocks.into_par_iter().map(|block| Ok((block, self.block(block, rule)?)));
        self.ready = made.collect::<Result<_>>()?;
        Ok(())
    }

    /// A block that was made ready, or made so for one use.
    fn block(&self, block: usize, rule: &Rule) -> Result<Arc<Ready>> {
        match self.ready.get(&block) {
            Some(ready) => Ok(Arc::clone(ready)),
            None => Ok(Arc::new(self.masked(block, rule)?)),
        }
    }

    /// The tensors of a block for a forward pass. A merged adapter has no tensors of its own among them where masks hold for the
    /// sum.
    fn masked(&self, block: usize, rule: &Rule) -> Result<Ready> {
        let prefix = format!("{}.", self.config.blocks().block_name(block));
        let (mut tensors, mut wanted) = (Tensors::new(), BTreeSet::new());
        for (name, tensor) in self.frozen.iter().chain(&self.parameters).filter(|(name, _)| name.starts_with(&prefix)) {
            tensors.insert(name.clone(), tensor.clone());
            if self.parameters.contains_key(name) {
                wanted.insert(name.clone());
            }
        }
        for (name, packed) in self.still.iter().filter(|(name, _)| name.starts_with(&prefix)) {
            tensors.insert(format!("{name}.weight"), tensor(&packed.unpack(), &self.device)?);
        }
        let mut adapter_scale = 0.0;
        for layer in self.layers.values().filter(|layer| layer.spec.name.starts_with(&prefix)) {
            let weight = layer.spec.weight();
            let adapters = adapter_names(&layer.spec.name);
            let merged = match self.trains {
                Trains::Adapters { rank, alpha, beside } => {
                    adapter_scale = alpha / rank as f64;
                    rule.sparse && !beside
                }
                Trains::Weights | Trains::Masks | Trains::MasksAndWeights => true,
            };
            if merged {
                for name in adapters.iter().chain([&logits_name(&layer.spec.name)]) {
                    tensors.remove(name);
                    if wanted.remove(name) {
                        wanted.insert(weight.clone());
                    }
                }
                tensors.insert(weight.clone(), self.latent(&layer.spec.name)?);
            } else {
                tensors.insert(weight.clone(), self.weight(&layer.spec.name)?);
            }
            if rule.sparse {
                let masked = (&tensors[&weight] * self.factors(layer, rule)?)?;
                tensors.insert(weight, masked.detach());
            }
        }
        for (name, tensor) in &mut tensors {
            if wanted.contains(name) {
                *tensor = Var::from_tensor(tensor)?.into_inner();
            }
        }
        Ok(Ready { weights: Weights { tensors, adapter_scale, bf16: self.bf16 }, wanted })
    }

    /// From gradients of blocks' tensors to those of the parameters.
    fn parameter_gradients(&self, mut of_block: Tensors, rule: &Rule) -> Result<Tensors> {
        let mut gradients = Tensors::new();
        for layer in self.layers.values() {
            let Some(gradient) = of_block.remove(&layer.spec.weight()) else { continue };
            let name = &layer.spec.name;
            if rule.drawn.is_some() {
                let of_factors = (&gradient * self.tensor(&layer.spec.weight()))?;
                gradients.insert(logits_name(name), self.drawn[name].gradient(layer, &of_factors)?);
                if self.trains == Trains::MasksAndWeights {
                    gradients.insert(layer.spec.weight(), (gradient * self.factors(layer, rule)?)?);
                }
                continue;
            }
            let gradient = if !rule.sparse || rule.straight_through {
                gradient
            } else {
                (gradient * self.factors(layer, rule)?)?
            };
            match self.trains {
                Trains::Adapters { rank, alpha, .. } => {
                    // d(s·B·A): dA = s·Bᵀ·dW, dB = s·dW·Aᵀ
                    let gradient = (gradient * (alpha / rank as f64))?;
                    let [name_a, name_b] = adapter_names(name);
                    let (a, b) = (self.tensor(&name_a), self.tensor(&name_b));
                    gradients.insert(name_a, b.t()?.matmul(&gradient)?);
                    gradients.insert(name_b, gradient.matmul(&a.t()?)?);
                }
                Trains::Weights | Trains::Masks | Trains::MasksAndWeights => {
                    gradients.insert(layer.spec.weight(), gradient);
                }
            }
        }
        gradients.extend(of_block);
        Ok(gradients)
    }

    fn forward_block(
        &self,
        layer: usize,
        weights: &Weights,
        lengths: &[usize],
        x: &Tensor,
        watch: &Watch,
    ) -> Result<Tensor> {
        let config = self.config.blocks();
        let sequences = Sequences::new(config, layer, lengths);
        Block { config, layer, weights, sequences: &sequences }.forward(x, watch)
    }

    /// Runs a block without a graph.
    fn run(&self, layer: usize, lengths: &[usize], x: &Tensor, rule: &Rule, watch: &Watch) -> Result<Tensor> {
        let block = self.block(layer, rule)?;
        let Weights { ref tensors, adapter_scale, bf16 } = block.weights;
        let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach())).collect();
        self.forward_block(layer, &Weights { tensors, adapter_scale, bf16 }, lengths, x, watch)
    }

    /// Runs a block so that gradients find back through it.
    fn graph(&self, layer: usize, lengths: &[usize], input: Tensor, rule: &Rule) -> Result<Graph> {
        let block = self.block(layer, rule)?;
        let output = self.forward_block(layer, &block.weights, lengths, &input, &|_, _| Ok(()))?;
        Ok(Graph { input, block, output })
    }

    /// From the gradient of a block's output to those of its tensors, and of the input if it wants one.
    fn back(graph: &Graph, dy: &Tensor) -> Result<(Tensors, Option<Tensor>)> {
        let mut store = (&graph.output * dy)?.sum_all()?.backward()?;
        Ok((graph.block.gradients(&mut store)?, store.remove(&graph.input)))
    }

    /// A stream, `[T, H]`.
    fn stream(&self, hidden: &Matrix) -> Result<Tensor> {
        tensor(&hidden.transposed(), &self.device)
    }

    /// What a batch loses and the gradients of all tensors, as its shares of a step; with `recompute` those of the parameters, of
    /// which adapters have fewer.
    fn gradients(&self, batch: &MicroBatch, task: &Task) -> Result<(Losses, Tensors)> {
        let Task { rule, loss, ref ends, answers, tokens } = *task;
        let layers = self.config.blocks().layers;
        let graph = |layer: usize, x: &Tensor| -> Result<Graph> {
            let input =
                if layer == 0 && self.embeddings.is_none() { x.clone() } else { Var::from_tensor(x)?.into_inner() };
            self.graph(layer, &batch.lengths, input, rule)
        };
        let mut x = self.first_stream(batch)?;
        let (mut inputs, mut graphs) = (vec![], vec![]);
        for layer in 0..layers {
            if self.recompute {
                let y = self.run(layer, &batch.lengths, &x, rule, &|_, _| Ok(()))?;
                inputs.push(std::mem::replace(&mut x, y));
            } else {
                let graph = graph(layer, &x)?;
                x = graph.output.detach();
                graphs.push(graph);
            }
        }
        let (mut losses, mut dx, mut gradients) = self.ending.lose(ends, loss, batch, &x, answers)?;
        let share = batch.lengths.iter().sum::<usize>() as f64 / tokens as f64;
        for layer in (0..layers).rev() {
            let graph = if self.recompute {
                graph(layer, &inputs.pop().expect("an input a block"))?
            } else {
                graphs.pop().expect("a graph a block")
            };
            if loss.squarehead != 0.0
                && let Some(target) = batch.teacher_stream(layer, layers)
            {
                dx = add_square_head(&graph.output, target, loss, share / layers as f64, &dx, &mut losses)?;
            }
            let (of_block, of_input) = Self::back(&graph, &dx)?;
            gradients.extend(if self.recompute { self.parameter_gradients(of_block, rule)? } else { of_block });
            if let Some(of_input) = of_input {
                dx = of_input;
            }
        }
        if let Some(name) = &self.embeddings {
            add(&mut gradients, Tensors::from([(name.clone(), self.of_embeddings(name, batch, &dx)?)]))?;
        }
        Ok((losses, gradients))
    }

    /// The same of all batches of a step, which run side by side.
    pub(crate) fn step(&mut self, batches: &[MicroBatch], rule: &Rule, loss: &Loss) -> Result<(Losses, Tensors)> {
        self.draw(rule, "")?;
        if !self.recompute {
            self.make_ready(0..self.config.blocks().layers, rule)?;
        }
        let tokens: usize = batches.iter().flat_map(|batch| &batch.lengths).sum();
        let answers: usize = match self.config {
            Config::Decoder(_) => {
                batches.iter().flat_map(|batch| &batch.targets).filter(|&&t| t != crate::NO_TARGET).count()
            }
            Config::Text(_) | Config::Vision(_) => batches.iter().map(|batch| batch.lengths.len()).sum(),
        };
        let threads = rayon::current_num_threads();
        let (mut losses, mut sum) = (Losses::default(), Tensors::new());
        let task = Task { rule, loss, ends: self.ends()?, answers: answers.max(1), tokens: tokens.max(1) };
        // As many at a time as there are threads, added in order: the result does not depend on who is first.
        for some in batches.chunks(threads.max(1)) {
            let parts = some.par_iter().map(|batch| self.gradients(batch, &task));
            for part in parts.collect::<Vec<_>>() {
                let (of_batch, gradients) = part?;
                losses += of_batch;
                add(&mut sum, gradients)?;
            }
        }
        if !self.recompute {
            self.ready.clear();
            sum = self.parameter_gradients(sum, rule)?;
        }
        for layer in self.layers.values().filter(|_| rule.sparse && rule.decay != 0.0) {
            let name = layer.spec.weight();
            if let Some(gradient) = sum.get_mut(&name) {
                // λ·(1 − m) ⊙ W (SR-STE, equation 9)
                let dropped = (self.tensor(&name) * (1.0 - layer.factors(0.0, &self.device)?)?)?;
                *gradient = (&*gradient + (dropped * rule.decay)?)?;
            }
        }
        Ok((losses, sum))
    }

    /// What the stream is behind the last block, `[T, H]`, with each layer's input shown on the way.
    pub(crate) fn forward(&self, batch: &MicroBatch, rule: &Rule, watch: &Watch) -> Result<Tensor> {
        let mut x = self.first_stream(batch)?;
        for layer in 0..self.config.blocks().layers {
            x = self.run(layer, &batch.lengths, &x, rule, watch)?;
        }
        Ok(x)
    }

    /// What a block makes of its input, `[T, H]`, with each layer's input shown on the way.
    pub(crate) fn through_block(&self, layer: usize, part: &Part, rule: &Rule, watch: &Watch) -> Result<Tensor> {
        self.run(layer, &part.lengths, &self.stream(&part.input)?, rule, watch)
    }

    /// How far a block's outputs are from their targets, as SquareHead has it, the mean over some parts; and the gradients.
    pub(crate) fn block_step(&mut self, layer: usize, parts: &[&Part], rule: &Rule) -> Result<(f64, Tensors)> {
        self.draw(rule, &format!("{}.", self.config.blocks().block_name(layer)))?;
        self.make_ready(layer..layer + 1, rule)?;
        let (loss, share) = (Loss { squarehead: 1.0, ..Loss::default() }, (parts.len() as f64).recip());
        let of_part = |part: &&Part| -> Result<(f64, Tensors)> {
            let graph = self.graph(layer, &part.lengths, self.stream(&part.input)?, rule)?;
            let (nothing, mut losses) = (graph.output.zeros_like()?.detach(), Losses::default());
            let dy = add_square_head(&graph.output, &part.target, &loss, share, &nothing, &mut losses)?;
            Ok((losses.total, Self::back(&graph, &dy)?.0))
        };
        let (mut lost, mut sum) = (0.0, Tensors::new());
        for part in parts.par_iter().map(of_part).collect::<Vec<_>>() {
            let (of_part, gradients) = part?;
            lost += of_part;
            add(&mut sum, gradients)?;
        }
        self.ready.clear();
        Ok((lost, self.parameter_gradients(sum, rule)?))
    }
}

/// Sequences before one block: what it sees, and what shall come of it.
pub(crate) struct Part {
    pub(crate) lengths: Vec<usize>,
    /// `[H, T]`
    pub(crate) input: Matrix,
    /// `[H, T]`
    pub(crate) target: Matrix,
}

/// Adds tensors to others by name.
fn add(sum: &mut Tensors, more: Tensors) -> Result<()> {
    for (name, tensor) in more {
        let total = match sum.get(&name) {
            Some(sum) => (sum + tensor)?,
            None => tensor,
        };
        sum.insert(name, total);
    }
    Ok(())
}

/// `dx` with the gradient of what a block's output is off its target, `[H, T]`.
fn add_square_head(
    h: &Tensor,
    target: &Matrix,
    loss: &Loss,
    share: f64,
    dx: &Tensor,
    losses: &mut Losses,
) -> Result<Tensor> {
    let target = target.transposed();
    let mut gradient = with_floats(&dx.to_device(&Device::Cpu)?, <[f32]>::to_vec)?;
    let weight = loss.squarehead * share;
    let h = h.detach().to_device(&Device::Cpu)?;
    let lost = with_floats(&h, |h| square_head(h, target.data(), weight, &mut gradient))?;
    losses.squarehead += lost / loss.squarehead;
    losses.total += lost;
    Ok(Tensor::from_vec(gradient, dx.shape(), dx.device())?)
}

#[cfg(test)]
mod tests;
