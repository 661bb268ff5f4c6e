//! What comes behind the last block, frozen: answers and the gradient of what they lost.

use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var};
use lacuna_format::Checkpoint;
use lacuna_model::{Config, PoolingKind};

use crate::block::{Weights, apply_norm};
use crate::layer::tensor;
use crate::loss::{Loss, Losses, of_logits};
use crate::ops::{linear, linear_back, with_floats};
use crate::{Error, MicroBatch, Result};

/// Logits that are held at once at most.
const HELD_LOGITS: usize = 1 << 19;

/// A target that asks for nothing.
pub const NO_TARGET: u32 = u32::MAX;

/// The last norm and the heads, or the pooling.
pub(crate) struct Ending {
    config: Config,
    weights: Weights,
    norm: Option<String>,
    heads: Vec<Head>,
}

/// `[R, H]`, and `[R]`
struct Head {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Ending {
    pub(crate) fn load(checkpoint: &Checkpoint, config: &Config, device: &Device) -> Result<Self> {
        let hidden = config.blocks().hidden_size;
        let (norm, sources) = config.ending(checkpoint)?;
        let mut weights = Weights { tensors: std::collections::BTreeMap::new(), adapter_scale: 0.0 };
        let parts = ["weight", "bias"].map(|part| norm.as_ref().map(|norm| format!("{norm}.{part}")));
        for name in parts.into_iter().flatten().filter(|name| checkpoint.has(name)) {
            weights
                .tensors
                .insert(name.clone(), Tensor::from_vec(checkpoint.floats(&name, &[hidden])?, hidden, device)?);
        }
        let load = |source: &lacuna_model::HeadSource| -> Result<Head> {
            let [rows, cols] = source.shape;
            let layer = source.weight.trim_end_matches(".weight");
            let matrix = match checkpoint.packed(layer)? {
                Some(packed) => packed.unpack(),
                None => checkpoint.matrix(&source.weight, rows, cols)?,
            };
            let bias = source.bias.as_ref().map(|bias| checkpoint.floats(bias, &[rows])).transpose()?;
            let bias = bias.map(|bias| Tensor::from_vec(bias, rows, device)).transpose()?;
            Ok(Head { weight: tensor(&matrix, device)?, bias })
        };
        let heads = sources.iter().map(load).collect::<Result<_>>()?;
        if let Config::Text(text) = config
            && text.pooling.kind == PoolingKind::Max
        {
            return Err(Error::Settings("pooling by the maximum is not supported in training".to_owned()));
        }
        Ok(Self { config: config.clone(), weights, norm, heads })
    }

    /// What the answers to a batch lost, as its share of a step with so many, and the gradient of the stream `hidden[T, H]`.
    pub(crate) fn lose(
        &self,
        loss: &Loss,
        batch: &MicroBatch,
        hidden: &Tensor,
        answers: usize,
    ) -> Result<(Losses, Tensor)> {
        let mut asked = Asked { loss, batch, share: (answers as f64).recip(), losses: Losses::default() };
        let stream = Var::from_tensor(&hidden.to_dtype(DType::F32)?)?;
        let gradient = match &self.config {
            Config::Decoder(_) => self.next_tokens(&mut asked, &stream)?,
            Config::Vision(_) => self.classes(&mut asked, &stream)?,
            Config::Text(_) => self.vectors(&mut asked, &stream)?,
        };
        Ok((asked.losses, gradient.to_dtype(hidden.dtype())?))
    }

    fn normed(&self, x: &Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => apply_norm(self.config.blocks(), &self.weights, norm, x),
            None => Ok(x.clone()),
        }
    }

    fn next_tokens(&self, asked: &mut Asked, stream: &Var) -> Result<Tensor> {
        let batch = asked.batch;
        let normed = self.normed(stream)?;
        let head = &self.heads[0];
        let (tokens, vocab) = (normed.dim(0)?, head.weight.dim(0)?);
        let held = (HELD_LOGITS / vocab).max(1);
        let mut gradients = vec![];
        for first in (0..tokens).step_by(held) {
            let count = held.min(tokens - first);
            let logits = linear(&normed.narrow(0, first, count)?.detach(), &head.weight)?;
            let teacher = asked.teacher(first..first + count);
            let targets = batch.targets.get(first..first + count);
            let gradient = asked.of_rows(&logits, teacher.as_deref(), targets)?;
            gradients.push(linear_back(&gradient, &head.weight)?);
        }
        pull_back(&normed, &Tensor::cat(&gradients, 0)?, stream)
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
        Ok(linear(&shares, &stream.t()?)?)
    }

    fn classes(&self, asked: &mut Asked, stream: &Var) -> Result<Tensor> {
        let batch = asked.batch;
        let mut sum: Option<Tensor> = None;
        for (token, head) in self.heads.iter().enumerate() {
            let picked = Self::picked(stream, batch, |i, _| if i == token { 1.0 } else { 0.0 })?;
            let mut logits = linear(&self.normed(&picked)?, &head.weight)?;
            if let Some(bias) = &head.bias {
                logits = logits.broadcast_add(bias)?;
            }
            sum = Some(sum.map_or(Ok(logits.clone()), |sum| sum + &logits)?);
        }
        let Some(sum) = sum else {
            return Err(Error::Settings("this model has no classifier to train by".to_owned()));
        };
        let logits = (sum * (self.heads.len() as f64).recip())?;
        let teacher = asked.teacher(0..batch.lengths.len());
        let gradient = asked.of_rows(&logits.detach(), teacher.as_deref(), Some(&batch.targets))?;
        pull_back(&logits, &gradient, stream)
    }

    fn vectors(&self, asked: &mut Asked, stream: &Var) -> Result<Tensor> {
        let batch = asked.batch;
        let Config::Text(config) = &self.config else { unreachable!("vectors are a text encoder's") };
        let Some(teacher) = asked.teacher(0..batch.lengths.len()) else {
            return Ok(stream.zeros_like()?);
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
        pull_back(&lost, &weight, stream)
    }
}

/// What a batch is asked, and what its answers lost so far.
struct Asked<'a> {
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

/// The gradient of `x` where `y`, made of it, has the gradient `dy`.
fn pull_back(y: &Tensor, dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    let mut gradients = (y * dy)?.sum_all()?.backward()?;
    Ok(gradients.remove(x).map_or_else(|| x.zeros_like(), Ok)?)
}
