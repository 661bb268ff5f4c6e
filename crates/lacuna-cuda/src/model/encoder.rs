//! The blocks of an encoder of texts or images. What its first block sees, and what is made of the last one, is the CPU's work,
//! as for whoever walks through a model block by block (`lacuna_model::stem`).

use std::sync::Arc;

use lacuna_core::Matrix;
use lacuna_format::Checkpoint;
use lacuna_model::{BlockConfig, PackedAs};

use super::block::{Batch, Block, Scratch};
use crate::activations::Activations;
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::ops::{CacheShape, LayerCache, Places};
use crate::tiles::HalfType;

/// The blocks of an encoder in the memory of a machine.
pub struct Encoder {
    machine: Arc<dyn Machine>,
    config: BlockConfig,
    half: HalfType,
    blocks: Vec<Block>,
}

impl Encoder {
    /// Reads the weights of all blocks, in a type that [`half_of`](super::half_of) suggests.
    pub fn load(
        machine: Arc<dyn Machine>,
        checkpoint: &Checkpoint,
        config: &BlockConfig,
        half: HalfType,
        packed_as: PackedAs,
    ) -> Result<Self> {
        let block = |layer| Block::load(&*machine, checkpoint, config, layer, half, packed_as);
        let loaded = (0..config.layers).map(block).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), half, blocks: loaded, machine })
    }

    /// Runs the tokens `hidden[H, T]` of sequences of some lengths, side by side, through all blocks.
    pub fn forward(&self, hidden: &Matrix, lengths: &[usize]) -> Result<Matrix> {
        let (features, tokens) = (hidden.rows(), hidden.cols());
        if lengths.iter().sum::<usize>() != tokens {
            return Err(Error::Shape { what: "tokens", want: lengths.iter().sum(), got: tokens });
        }
        let machine: &dyn Machine = &*self.machine;
        let sequences: Vec<(usize, usize, usize)> =
            lengths.iter().enumerate().map(|(slot, &len)| (slot, 0, len)).collect();
        let places = Places::upload(machine, &self.config, &sequences, false)?;
        // A layer's keys and values are of no use to the next one, which writes over them.
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let shape = CacheShape::of(&self.config, self.half, lengths.len(), longest);
        let mut cache = LayerCache::empty(machine, shape)?;
        let mut stream = Activations::upload(machine, self.half, [features, tokens], hidden.data())?;
        let mut scratch = Scratch::empty(machine, &self.config, self.half, tokens)?;
        let batch = Batch { places: &places, angles: None };
        for block in &self.blocks {
            block.forward(machine, &mut stream, batch, &mut cache, &mut scratch)?;
        }
        let data = stream.download(machine)?;
        Ok(Matrix::new(features, tokens, data).expect("as many values as the shape has"))
    }
}
