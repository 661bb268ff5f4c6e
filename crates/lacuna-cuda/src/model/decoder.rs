//! A decoder-only transformer: an embedding, blocks with a cache each, a head.

use std::sync::Arc;

use lacuna_core::Matrix;
use lacuna_format::Checkpoint;
use lacuna_model::{Config, DecoderConfig, LinearSpec, PackedAs, View};

use super::Linear;
use super::block::{Batch, Block, Scratch, load_norm};
use crate::activations::{Activations, upload_u32};
use crate::error::{Error, Result};
use crate::machine::{Buffer, Machine};
use crate::ops::{self, Angles, CacheShape, LayerCache, Norm, Places};
use crate::tiles::{HalfType, stride};
use crate::weights::Dense;

/// A whole decoder in the memory of a machine.
pub struct Decoder {
    machine: Arc<dyn Machine>,
    config: DecoderConfig,
    half: HalfType,
    /// `[vocab, H]`
    embedding: Dense,
    blocks: Vec<Block>,
    norm: Norm,
    /// none: the embedding
    head: Option<Dense>,
}

/// Keys and values of some sequences in all layers.
pub struct Cache {
    layers: Vec<LayerCache>,
    angles: Option<Angles>,
    /// tokens seen of each sequence
    lengths: Vec<usize>,
    capacity: usize,
}

impl Cache {
    /// Tokens seen of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Refuses more tokens than there is room for.
    pub(super) fn check(&self, slot: usize, more: usize) -> Result<()> {
        let seen = self.lengths.get(slot).ok_or(Error::Shape {
            what: "sequences of a cache",
            want: slot + 1,
            got: self.lengths.len(),
        })?;
        match seen + more {
            want if want > self.capacity => {
                Err(Error::Shape { what: "positions of a cache", want, got: self.capacity })
            }
            _ => Ok(()),
        }
    }

    /// More tokens of a sequence were seen.
    pub(super) fn saw(&mut self, slot: usize, more: usize) {
        self.lengths[slot] += more;
    }
}

impl Decoder {
    /// Reads all weights, in a type that [`half_of`](super::half_of) suggests. A head that is packed runs dense: its logits are f32.
    pub fn load(
        machine: Arc<dyn Machine>,
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        half: HalfType,
        packed_as: PackedAs,
    ) -> Result<Self> {
        let whole = Config::Decoder(config.clone());
        let on: &dyn Machine = &*machine;
        let (final_norm, heads) = whole.ending(checkpoint)?;
        let own_head = !whole.heads(checkpoint).is_empty();
        // Without a head of its own the embedding is read by the name that it has.
        let embedding = if own_head { whole.embedding() } else { heads[0].weight.clone() };
        let table = |name: &str| {
            let (rows, cols) = (config.vocab_size, config.blocks.hidden_size);
            let name = name.strip_suffix(".weight").unwrap_or(name).to_owned();
            let spec = LinearSpec { name, rows, cols, bias: false, head: true };
            match Linear::load(on, checkpoint, &spec, half, PackedAs::Dense)? {
                Linear::Dense(weight, _) => Ok::<_, Error>(weight),
                Linear::Sparse(_) => unreachable!("asked for dense"),
            }
        };
        let block = |layer| Block::load(on, checkpoint, &config.blocks, layer, half, packed_as);
        Ok(Self {
            config: config.clone(),
            half,
            embedding: table(&embedding)?,
            head: own_head.then(|| table(&heads[0].weight)).transpose()?,
            blocks: (0..config.blocks.layers).map(block).collect::<Result<_>>()?,
            norm: load_norm(on, checkpoint, &config.blocks, &final_norm.unwrap_or_default())?,
            machine,
        })
    }

    /// Sizes and switches.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// What it runs on.
    pub fn machine(&self) -> &dyn Machine {
        &*self.machine
    }

    /// Type of weights and activations.
    pub fn half(&self) -> HalfType {
        self.half
    }

    /// Bytes of weights that one token reads.
    pub fn bytes(&self) -> usize {
        let head = self.head.as_ref().unwrap_or(&self.embedding).bytes();
        head + self.blocks.iter().map(Block::bytes).sum::<usize>()
    }

    /// Room for so many sequences of so many tokens each.
    pub fn cache(&self, sequences: usize, capacity: usize) -> Result<Cache> {
        let blocks = &self.config.blocks;
        let shape = CacheShape::of(blocks, self.half, sequences, capacity);
        let angles = match &blocks.view {
            View::All => None,
            View::Past { rope, .. } => {
                let [cosines, sines] = rope.cosines_and_sines(blocks.head_dim, &(0..capacity).collect::<Vec<_>>());
                Some(Angles::upload(self.machine(), capacity, [&cosines, &sines])?)
            }
        };
        let layer = |_| LayerCache::empty(self.machine(), shape);
        let layers = (0..blocks.layers).map(layer).collect::<Result<_>>()?;
        Ok(Cache { layers, angles, lengths: vec![0; sequences], capacity })
    }

    /// Runs new tokens of some sequences, each with its number in the cache, after what that has seen. The result is
    /// `[H, T]` after the last norm, the tokens of the sequences side by side.
    pub fn forward(&self, batch: &[(usize, &[u32])], cache: &mut Cache) -> Result<Activations> {
        let tokens: Vec<u32> = batch.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        self.check_tokens(&tokens)?;
        batch.iter().try_for_each(|(slot, tokens)| cache.check(*slot, tokens.len()))?;
        let sequences: Vec<(usize, usize, usize)> =
            batch.iter().map(|&(slot, tokens)| (slot, cache.lengths[slot], tokens.len())).collect();
        let machine = self.machine();
        let places = Places::upload(machine, &self.config.blocks, &sequences, true)?;
        let mut hidden = Activations::empty(machine, self.half, [self.config.blocks.hidden_size, tokens.len()])?;
        let mut scratch = Scratch::empty(machine, &self.config.blocks, self.half, tokens.len())?;
        self.through(&upload_u32(machine, &tokens)?, &places, cache, &mut hidden, &mut scratch)?;
        for (slot, tokens) in batch {
            cache.saw(*slot, tokens.len());
        }
        Ok(hidden)
    }

    /// Logits `[vocab, n]` of the given columns of [`Self::forward`]'s result.
    pub fn logits(&self, hidden: &Activations, columns: &[usize]) -> Result<Matrix> {
        if let Some(&column) = columns.iter().find(|&&column| column >= hidden.tokens()) {
            return Err(Error::Shape { what: "columns", want: column + 1, got: hidden.tokens() });
        }
        let machine = self.machine();
        let indices = upload_u32(machine, &columns.iter().map(|&column| column as u32).collect::<Vec<_>>())?;
        let mut chosen = Activations::empty(machine, self.half, [hidden.features(), columns.len()])?;
        ops::select(machine, hidden, &indices, &mut chosen)?;
        let logits = self.room_for_logits(columns.len())?;
        self.project(&chosen, &logits)?;
        self.read_logits(&logits, columns.len())
    }

    /// Refuses tokens outside the vocabulary.
    pub(super) fn check_tokens(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|&&token| token as usize >= self.config.vocab_size) {
            None => Ok(()),
            Some(&token) => {
                let (want, got) = (token as usize + 1, self.config.vocab_size);
                Err(Error::Shape { what: "tokens of the vocabulary", want, got })
            }
        }
    }

    /// All launches from tokens to the last norm.
    pub(super) fn through(
        &self,
        tokens: &Buffer,
        places: &Places,
        cache: &mut Cache,
        hidden: &mut Activations,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let machine = self.machine();
        ops::embed(machine, &self.embedding, tokens, hidden)?;
        let batch = Batch { places, angles: cache.angles.as_ref() };
        for (block, cache) in self.blocks.iter().zip(&mut cache.layers) {
            block.forward(machine, hidden, batch, cache, scratch)?;
        }
        self.norm.apply_in_place(machine, hidden)
    }

    /// Memory for the logits of so many tokens.
    pub(super) fn room_for_logits(&self, tokens: usize) -> Result<Buffer> {
        self.machine().allocate(size_of::<f32>() * self.config.vocab_size * stride(tokens))
    }

    /// Logits of all tokens, f32 `[vocab, stride]`.
    pub(super) fn project(&self, hidden: &Activations, logits: &Buffer) -> Result<()> {
        self.head.as_ref().unwrap_or(&self.embedding).multiply_wide(self.machine(), hidden, logits)
    }

    pub(super) fn read_logits(&self, logits: &Buffer, tokens: usize) -> Result<Matrix> {
        let (vocab, stride) = (self.config.vocab_size, stride(tokens));
        let bytes = self.machine().read(logits, size_of::<f32>() * vocab * stride)?;
        let values = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        let data = values.enumerate().filter(|(i, _)| i % stride.max(1) < tokens).map(|(_, logit)| logit).collect();
        Ok(Matrix::new(vocab, tokens, data).expect("as many values as the shape has"))
    }
}
