//! What comes behind the last block: answers and the gradients of what they lost.

use std::collections::BTreeSet;
use std::ops::Range;

use candle_core::{Device, Tensor, Var};
use lacuna_format::Checkpoint;
use lacuna_model::{Config, HeadSource, PoolingKind};

use crate::block::{Ready, apply_norm};
use crate::layer::tensor;
use crate::loss::{Loss, Losses, of_logits};
use crate::ops::{linear, linear_back, linear_weight_back, with_floats};
use crate::optimizer::Tensors;
use crate::{Error, MicroBatch, Result};

/// Logits that are held at once at most.
const HELD_LOGITS: usize = 1 << 19;

/// A target that asks for nothing.
pub const NO_TARGET: u32 = u32::MAX;

/// The last norm and the heads, or the pooling; their tensors are the student's.
pub(crate) struct Ending {
    config: Config,
    norm: Option<String>,
    heads: Vec<Head>,
    /// names of all tensors
    pub(crate) names: BTreeSet<String>,
    /// names of those that may be trained: all but what is packed
    pub(crate) trainable: BTreeSet<String>,
}

/// Names of `[R, H]`, and `[R]`.
struct Head {
    weight: String,
    bias: Option<String>,
}

impl Ending {
    /// Reads it, and its tensors to where those are that stay as they are.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        device: &Device,
        frozen: &mut Tensors,
    ) -> Result<Self> {
        let hidden = config.blocks().hidden_size;
        let (norm, sources) = config.ending(checkpoint)?;
        let (mut trainable, mut packed) = (BTreeSet::new(), BTreeSet::new());
        let parts = ["weight", "bias"].map(|part| norm.as_ref().map(|norm| format!("{norm}.{part}")));
        for name in parts.into_iter().flatten().filter(|name| checkpoint.has(name)) {
            frozen.insert(name.clone(), Tensor::from_vec(checkpoint.floats(&name, &[hidden])?, hidden, device)?);
            trainable.insert(name);
        }
        let mut heads = vec![];
        for HeadSource { weight, shape: [rows, cols], bias } in sources {
            let matrix = match checkpoint.packed(weight.trim_end_matches(".weight"))? {
                Some(head) => {
                    packed.insert(weight.clone());
                    head.unpack()
                }
                None => {
                    trainable.insert(weight.clone());
                    checkpoint.matrix(&weight, rows, cols)?
                }
            };
            frozen.insert(weight.clone(), tensor(&matrix, device)?);
            if let Some(bias) = &bias {
                frozen.insert(bias.clone(), Tensor::from_vec(checkpoint.floats(bias, &[rows])?, rows, device)?);
                trainable.insert(bias.clone());
            }
            heads.push(Head { weight, bias });
        }
        if let Config::Text(text) = config
            && text.pooling.kind == PoolingKind::Max
        {
            return Err(Error::Settings("pooling by the maximum is not supported in training".to_owned()));
        }
        let names = trainable.union(&packed).cloned().collect();
        Ok(Self { config: config.clone(), norm, heads, names, trainable })
    }

    /// What the answers to a batch lost, as its share of a step with so many, and the gradients of the stream `hidden[T, H]` and
    /// of the tensors of `ends` that want one.
    pub(crate) fn lose(
        &self,
        ends: &Ready,
        loss: &Loss,
        batch: &MicroBatch,
        hidden: &Tensor,
        answers: usize,
    ) -> Result<(Losses, Tensor, Tensors)> {
        let mut asked = Asked { ends, loss, batch, share: (answers as f64).recip(), losses: Losses::default() };
        let stream = Var::from_tensor(hidden)?;
        let (gradient, of_ends) = match &self.config {
            Config::Decoder(_) => self.next_tokens(&mut asked, &stream)?,
            Config::Vision(_) => self.classes(&mut asked, &stream)?,
            Config::Text(_) => self.vectors(&mut asked, &stream)?,
        };
        Ok((asked.losses, gradient, of_ends))
    }

    fn normed(&self, ends: &Ready, x: &Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => apply_norm(self.config.blocks(), &ends.weights, norm, x),
            None => Ok(x.clone()),
        }
    }

    fn next_tokens(&self, asked: &mut Asked, stream: &Var) -> Result<(Tensor, Tensors)> {
        let Asked { ends, batch, .. } = *asked;
        let bf16 = ends.weights.bf16;
        let (normed, name) = (self.normed(ends, stream)?, &self.heads[0].weight);
        let head = ends.weights.get(name)?.detach();
        let (tokens, (vocab, hidden), trained) = (normed.dim(0)?, head.dims2()?, ends.wanted.contains(name));
        // The gradient of a head is as large as so many logits: in smaller pieces, adding it up would take longer than they do.
        let held = (HELD_LOGITS / vocab).max(if trained { hidden } else { 1 });
        let (mut gradients, mut of_head) = (vec![], None);
        for first in (0..tokens).step_by(held) {
            let count = held.min(tokens - first);
            let part = normed.narrow(0, first, count)?.detach();
            let logits = linear(&part, &head, bf16)?;
            let teacher = asked.teacher(first..first + count);
            let targets = batch.targets.get(first..first + count);
            let gradient = asked.of_rows(&logits, teacher.as_deref(), targets)?;
            gradients.push(linear_back(&gradient, &head, bf16)?);
            if trained {
                let of_part = linear_weight_back(&gradient, &part, bf16)?;
                of_head = Some(of_head.map_or(Ok(of_part.clone()), |sum: Tensor| sum + of_part)?);
            }
        }
        let (of_stream, mut of_ends) = pull_back(&normed, &Tensor::cat(&gradients, 0)?, stream, ends)?;
        of_ends.extend(of_head.map(|of_head| (name.clone(), of_head)));
        Ok((of_stream, of_ends))
    }

    /// The rows of tokens that are picked, by a matrix of shares `[answers, T]`.
    fn picked(stream: &Tensor, batch: &MicroBatch, share: impl Fn(usize, usize) -> f32) -> Result<Tensor> {
        let tokens = stream.dim(0)?;
        let mut shares = vec![0.0_f32; batch.lengths.len() * tokens];
        let mut first = 0;
        for (row, &len) in shares.chunks_exact_mut(tokens.max(1)).zip(&batch.lengths) {
            for (i, value) in row[first..first + len].iter_mut().enumerate() {
                *value = share(i, len);
            }
            first += len;
        }
        let shares = Tensor::from_vec(shares, (batch.lengths.len(), tokens), stream.device())?;
        // shares·stream, so that the stream is what gets a gradient
        Ok(linear(&shares, &stream.t()?, false)?)
    }

    fn classes(&self, asked: &mut Asked, stream: &Var) -> Result<(Tensor, Tensors)> {
        let Asked { ends, batch, .. } = *asked;
        let mut sum: Option<Tensor> = None;
        for (token, head) in self.heads.iter().enumerate() {
            let picked = Self::picked(stream, batch, |i, _| if i == token { 1.0 } else { 0.0 })?;
            let mut logits = linear(&self.normed(ends, &picked)?, ends.weights.get(&head.weight)?, ends.weights.bf16)?;
            if let Some(bias) = &head.bias {
                logits = logits.broadcast_add(ends.weights.get(bias)?)?;
            }
            sum = Some(sum.map_or(Ok(logits.clone()), |sum| sum + &logits)?);
        }
        let Some(sum) = sum else {
            return Err(Error::Settings("this model has no classifier to train by".to_owned()));
        };
        let logits = (sum * (self.heads.len() as f64).recip())?;
        let teacher = asked.teacher(0..batch.lengths.len());
        let gradient = asked.of_rows(&logits.detach(), teacher.as_deref(), Some(&batch.targets))?;
        pull_back(&logits, &gradient, stream, ends)
    }

    fn vectors(&self, asked: &mut Asked, stream: &Var) -> Result<(Tensor, Tensors)> {
        let batch = asked.batch;
        let Config::Text(config) = &self.config else { unreachable!("vectors are a text encoder's") };
        let Some(teacher) = asked.teacher(0..batch.lengths.len()) else {
            return Ok((stream.zeros_like()?, Tensors::new()));
        };
        let pooled = Self::picked(stream, batch, |i, len| match config.pooling.kind {
            PoolingKind::Mean | PoolingKind::MeanSqrtLen | PoolingKind::Max => (len as f32).recip(),
            PoolingKind::Cls => f32::from(u8::from(i == 0)),
        })?;
        let teacher = Tensor::from_vec(teacher, pooled.shape(), pooled.device())?;
        let length = |x: &Tensor| x.sqr()?.sum_keepdim(1)?.sqrt();
        let products = (&pooled * &teacher)?.sum_keepdim(1)?;
        let cosines = products.div(&(length(&pooled)? * length(&teacher)?)?)?;
        let lost = (cosines.ones_like()? - cosines)?.sum_all()?;
        let (weight, value) = (asked.loss.cosine, asked.share * f64::from(lost.to_scalar::<f32>()?));
        asked.losses += Losses { cosine: value, total: weight * value, ..Losses::default() };
        let weight = Tensor::full((asked.share * weight) as f32, (), stream.device())?;
        pull_back(&lost, &weight, stream, asked.ends)
    }
}

/// What a batch is asked, and what its answers lost so far.
struct Asked<'a> {
    ends: &'a Ready,
    loss: &'a Loss,
    batch: &'a MicroBatch,
    /// of an answer in its step
    share: f64,
    losses: Losses,
}

impl Asked<'_> {
    /// The dense model's logits or vectors of some answers, if they are looked at.
    fn teacher(&self, answers: Range<usize>) -> Option<Vec<f32>> {
        if self.loss.needs_answers() { self.batch.teacher_logits(answers) } else { None }
    }

    /// Adds what rows of logits lost, and gives their gradients.
    fn of_rows(&mut self, logits: &Tensor, teacher: Option<&[f32]>, targets: Option<&[u32]>) -> Result<Tensor> {
        let classes = logits.dim(1)?;
        let mut rows = with_floats(&logits.to_device(&Device::Cpu)?, <[f32]>::to_vec)?;
        for (i, row) in rows.chunks_exact_mut(classes).enumerate() {
            let teacher = teacher.map(|teacher| &teacher[i * classes..(i + 1) * classes]);
            let target = targets.and_then(|targets| targets.get(i)).copied().filter(|&target| target != NO_TARGET);
            of_logits(self.loss, row, teacher, target, self.share, &mut self.losses);
        }
        Ok(Tensor::from_vec(rows, logits.shape(), logits.device())?)
    }
}

/// The gradients of `x` and of what is wanted of `ends` where `y`, made of them, has the gradient `dy`.
fn pull_back(y: &Tensor, dy: &Tensor, x: &Tensor, ends: &Ready) -> Result<(Tensor, Tensors)> {
    let mut gradients = (y * dy)?.sum_all()?.backward()?;
    let of_ends = ends.gradients(&mut gradients)?;
    Ok((gradients.remove(x).map_or_else(|| x.zeros_like(), Ok)?, of_ends))
}
