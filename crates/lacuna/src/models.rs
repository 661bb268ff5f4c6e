//! Models in memory, on the CPU or on a GPU behind the same calls.

use std::sync::Arc;

use anyhow::Result;
use lacuna_core::Matrix;
use lacuna_cuda::model::{self as cuda, Session, half_of};
use lacuna_cuda::{HalfType, Machine};
use lacuna_format::Checkpoint;
use lacuna_model::{
    Activations, Cache, Config, Decoder, DecoderConfig, Ending, Execution, Generation, Sample, Sampling, TextConfig,
    TextEncoder, VisionConfig, VisionEncoder, generate, generate_on, runs,
};

use crate::device::Device;

/// Tokens that a GPU encodes at once.
const CUDA_TOKENS: usize = 16_384;

/// The type of weights and activations on a GPU: bfloat16 where activations shall be, else what the checkpoint suggests.
fn half(checkpoint: &Checkpoint, config: &Config, execution: Execution) -> HalfType {
    match execution.activations {
        Activations::Bf16 => HalfType::Bf16,
        Activations::F32 => half_of(checkpoint, config),
    }
}

/// A model that continues texts.
pub enum DecoderModel {
    /// on the CPU
    Cpu(Box<Decoder>),
    /// on a GPU
    Cuda(Box<cuda::Decoder>),
}

/// What a decoder made of whole texts, behind the last norm.
pub(crate) enum Hidden {
    Cpu(Matrix),
    Cuda(lacuna_cuda::Activations),
}

impl DecoderModel {
    /// Reads all weights.
    pub fn load(
        device: &Device,
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        execution: Execution,
    ) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Cpu(Box::new(Decoder::load(checkpoint, config, execution)?)),
            Device::Cuda(machine) => {
                let half = half(checkpoint, &Config::Decoder(config.clone()), execution);
                let model = cuda::Decoder::load(machine.clone(), checkpoint, config, half, execution.packed)?;
                Self::Cuda(Box::new(model))
            }
        })
    }

    /// Sizes and switches.
    pub fn config(&self) -> &DecoderConfig {
        match self {
            Self::Cpu(model) => model.config(),
            Self::Cuda(model) => model.config(),
        }
    }

    /// Continues every prompt, as [`lacuna_model::generate`] does.
    pub fn generate(
        &self,
        prompts: &[Vec<u32>],
        max_new: usize,
        sampling: Sampling,
        on_token: impl FnMut(usize, u32),
    ) -> Result<Generation> {
        Ok(match self {
            Self::Cpu(model) => generate(model, prompts, max_new, sampling, on_token),
            Self::Cuda(model) => {
                let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
                let capacity = (longest + max_new).min(model.config().max_positions);
                let mut session = Session::new(model, prompts.len(), capacity)?;
                generate_on(&mut session, prompts, max_new, sampling, on_token)?
            }
        })
    }

    /// Runs whole texts, side by side.
    pub(crate) fn forward(&self, texts: &[&[u32]]) -> Result<Hidden> {
        Ok(match self {
            Self::Cpu(model) => {
                let mut caches: Vec<Cache> = texts.iter().map(|_| Cache::new(model.config())).collect();
                let mut batch: Vec<(&[u32], &mut Cache)> = texts.iter().copied().zip(&mut caches).collect();
                Hidden::Cpu(model.forward(&mut batch))
            }
            Self::Cuda(model) => {
                let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
                let batch: Vec<(usize, &[u32])> = texts.iter().copied().enumerate().collect();
                Hidden::Cuda(model.forward(&batch, &mut model.cache(texts.len(), longest)?)?)
            }
        })
    }

    /// Logits `[vocab, n]` of the given columns.
    ///
    /// # Panics
    /// If another model made them.
    pub(crate) fn logits(&self, hidden: &Hidden, columns: &[usize]) -> Result<Matrix> {
        match (self, hidden) {
            (Self::Cpu(model), Hidden::Cpu(hidden)) => Ok(model.logits(hidden, columns)),
            (Self::Cuda(model), Hidden::Cuda(hidden)) => Ok(model.logits(hidden, columns)?),
            _ => panic!("columns of another model"),
        }
    }
}

/// An encoder whose blocks are on a GPU; its two ends are the CPU's.
pub struct CudaEncoder<'a> {
    checkpoint: &'a Checkpoint,
    config: Config,
    blocks: cuda::Encoder,
    ending: Ending,
}

impl<'a> CudaEncoder<'a> {
    fn load(
        machine: &Arc<dyn Machine>,
        checkpoint: &'a Checkpoint,
        config: Config,
        execution: Execution,
    ) -> Result<Box<Self>> {
        let half = half(checkpoint, &config, execution);
        let blocks = cuda::Encoder::load(machine.clone(), checkpoint, config.blocks(), half, execution.packed)?;
        let ending = Ending::load(checkpoint, &config, Execution { packed: execution.packed, ..Execution::EXACT })?;
        Ok(Box::new(Self { checkpoint, config, blocks, ending }))
    }

    /// Of each input a column.
    fn encode(&self, samples: &[Sample]) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = samples.iter().map(|sample| self.config.tokens_of(sample)).collect();
        let mut columns = vec![];
        for run in runs(&lengths, CUDA_TOKENS) {
            let (stem, lengths) = self.config.embed(self.checkpoint, &samples[run])?;
            let made = self.ending.apply(&self.blocks.forward(&stem, &lengths)?, &lengths).transposed();
            columns.extend((0..made.rows()).map(|i| made.row(i).to_vec()));
        }
        Ok(columns)
    }
}

/// A model that turns texts into vectors.
pub enum TextModel<'a> {
    /// on the CPU
    Cpu(Box<TextEncoder>),
    /// on a GPU
    Cuda(Box<CudaEncoder<'a>>),
}

impl<'a> TextModel<'a> {
    /// Reads all weights.
    pub fn load(
        device: &Device,
        checkpoint: &'a Checkpoint,
        config: &TextConfig,
        execution: Execution,
    ) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Cpu(Box::new(TextEncoder::load(checkpoint, config, execution)?)),
            Device::Cuda(machine) => {
                Self::Cuda(CudaEncoder::load(machine, checkpoint, Config::Text(config.clone()), execution)?)
            }
        })
    }

    /// One vector `[H]` a text, none of which may be empty.
    pub fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu(model) => Ok(model.embed(texts)),
            Self::Cuda(model) => {
                model.encode(&texts.iter().map(|text| Sample::Tokens(text.to_vec())).collect::<Vec<_>>())
            }
        }
    }
}

/// A model that tells what images show.
pub enum VisionModel<'a> {
    /// on the CPU
    Cpu(Box<VisionEncoder>),
    /// on a GPU
    Cuda(Box<CudaEncoder<'a>>),
}

impl<'a> VisionModel<'a> {
    /// Reads all weights.
    pub fn load(
        device: &Device,
        checkpoint: &'a Checkpoint,
        config: &VisionConfig,
        execution: Execution,
    ) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Cpu(Box::new(VisionEncoder::load(checkpoint, config, execution)?)),
            Device::Cuda(machine) => {
                Self::Cuda(CudaEncoder::load(machine, checkpoint, Config::Vision(config.clone()), execution)?)
            }
        })
    }

    /// Logits `[classes, images]` of images of `[channels, height, width]` each.
    ///
    /// # Panics
    /// If an image has another number of pixels.
    pub fn logits(&self, images: &[&[f32]]) -> Result<Matrix> {
        match self {
            Self::Cpu(model) => Ok(model.logits(images)),
            Self::Cuda(model) => {
                let samples: Vec<Sample> = images.iter().map(|image| Sample::Pixels(image.to_vec())).collect();
                let columns = model.encode(&samples)?;
                let classes = columns.first().map_or(0, Vec::len);
                let by_image = Matrix::new(columns.len(), classes, columns.concat()).expect("logits of each image");
                Ok(by_image.transposed())
            }
        }
    }
}
