//! One transformer block, of any family, and what it works with.

use lacuna_format::Checkpoint;
use lacuna_model::{BlockConfig, BlockLinears, NormKind, NormPlace, PackedAs, Qkv, View};

use super::linear::Linear;
use crate::activations::Activations;
use crate::error::Result;
use crate::machine::Machine;
use crate::ops::{self, Angles, LayerCache, Norm, Places, Rows};
use crate::tiles::HalfType;

/// One transformer block.
pub struct Block {
    config: BlockConfig,
    window: Option<usize>,
    attention_norm: Norm,
    mlp_norm: Norm,
    linears: BlockLinears<Linear>,
}

/// Reads the norm with a module name.
pub(super) fn load_norm(
    machine: &dyn Machine,
    checkpoint: &Checkpoint,
    config: &BlockConfig,
    name: &str,
) -> Result<Norm> {
    let floats = |part: &str| checkpoint.floats(&format!("{name}.{part}"), &[config.hidden_size]);
    let bias = match config.norm {
        NormKind::Rms => None,
        NormKind::Layer => Some(floats("bias")?),
    };
    Norm::upload(machine, &floats("weight")?, bias.as_deref(), config.norm_eps)
}

/// What a batch of tokens brings along.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// where its tokens stand
    pub places: &'a Places,
    /// tables of rotary embedding; none where positions are part of the embedding
    pub angles: Option<&'a Angles>,
}

/// Activations inside a block, for a number of tokens; every block of a model uses the same.
pub struct Scratch {
    normed: Activations,
    qkv: Qkv<Activations>,
    mixed: Activations,
    inner: Activations,
    factor: Option<Activations>,
}

impl Scratch {
    /// Room for so many tokens.
    pub fn empty(machine: &dyn Machine, config: &BlockConfig, half: HalfType, tokens: usize) -> Result<Self> {
        let empty = |features: usize| Activations::empty(machine, half, [features, tokens]);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Ok(Self {
            normed: empty(config.hidden_size)?,
            qkv: match config.names.qkv {
                Qkv::Apart(_) => Qkv::Apart([empty(queries)?, empty(keys)?, empty(keys)?]),
                Qkv::Together(_) => Qkv::Together(empty(queries + 2 * keys)?),
            },
            mixed: empty(queries)?,
            inner: empty(config.intermediate_size)?,
            factor: config.names.gate.map(|_| empty(config.intermediate_size)).transpose()?,
        })
    }
}

impl Block {
    /// Reads block `layer`.
    pub fn load(
        machine: &dyn Machine,
        checkpoint: &Checkpoint,
        config: &BlockConfig,
        layer: usize,
        half: HalfType,
        packed_as: PackedAs,
    ) -> Result<Self> {
        let name = config.block_name(layer);
        let [attention_norm, mlp_norm] = config.names.norms;
        let norm = |module: &str| load_norm(machine, checkpoint, config, &format!("{name}.{module}"));
        let linear = |spec| Linear::load(machine, checkpoint, &spec, half, packed_as);
        Ok(Self {
            config: config.clone(),
            window: match &config.view {
                View::All => None,
                View::Past { windows, .. } => windows[layer],
            },
            attention_norm: norm(attention_norm)?,
            mlp_norm: norm(mlp_norm)?,
            linears: config.block_linears(layer).try_map(linear)?,
        })
    }

    /// Runs the tokens `hidden[H, T]` of a batch through the block, in place; they see what is in `cache`, to which they are
    /// added first.
    pub fn forward(
        &self,
        machine: &dyn Machine,
        hidden: &mut Activations,
        batch: Batch,
        cache: &mut LayerCache,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Self { attention_norm, mlp_norm, linears, .. } = self;
        match self.config.norm_place {
            NormPlace::BeforeSublayer => {
                attention_norm.apply(machine, hidden, &mut scratch.normed)?;
                self.attend(machine, Input::Normed, hidden, batch, cache, scratch)?;
                linears.o.add(machine, &scratch.mixed, hidden)?;
                mlp_norm.apply(machine, hidden, &mut scratch.normed)?;
                self.mlp(machine, Input::Normed, hidden, scratch)?;
                linears.down.add(machine, &scratch.inner, hidden)
            }
            NormPlace::AfterResidual => {
                self.attend(machine, Input::Stream, hidden, batch, cache, scratch)?;
                linears.o.add(machine, &scratch.mixed, hidden)?;
                attention_norm.apply_in_place(machine, hidden)?;
                self.mlp(machine, Input::Stream, hidden, scratch)?;
                linears.down.add(machine, &scratch.inner, hidden)?;
                mlp_norm.apply_in_place(machine, hidden)
            }
        }
    }

    /// From a sublayer's input to `mixed`, all but the output's projection.
    fn attend(
        &self,
        machine: &dyn Machine,
        input: Input,
        hidden: &Activations,
        batch: Batch,
        cache: &mut LayerCache,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let x = input.of(hidden, &scratch.normed);
        let (queries, keys) = (self.config.heads * self.config.head_dim, self.config.kv_heads * self.config.head_dim);
        match (&self.linears.qkv, &mut scratch.qkv) {
            (Qkv::Apart(linears), Qkv::Apart(outs)) => {
                Linear::forward_all(machine, x, linears.iter().zip(outs).collect())?;
            }
            (Qkv::Together(linear), Qkv::Together(out)) => linear.forward(machine, x, out)?,
            _ => unreachable!("weights and scratch are made from one config"),
        }
        let rows = |of, first, count| Rows { of, first, count };
        let [q, k, v] = match &scratch.qkv {
            Qkv::Apart([q, k, v]) => [rows(q, 0, queries), rows(k, 0, keys), rows(v, 0, keys)],
            Qkv::Together(all) => [rows(all, 0, queries), rows(all, queries, keys), rows(all, queries + keys, keys)],
        };
        ops::place(machine, &self.config, [q, k, v], batch.places, batch.angles, cache)?;
        ops::attend(machine, &self.config, q, batch.places, self.window, cache, &mut scratch.mixed)
    }

    /// From a sublayer's input to `inner`, all but the projection back.
    fn mlp(&self, machine: &dyn Machine, input: Input, hidden: &Activations, scratch: &mut Scratch) -> Result<()> {
        let Scratch { normed, inner, factor, .. } = scratch;
        let x = input.of(hidden, normed);
        match (&self.linears.gate, factor) {
            (Some(gate), Some(factor)) => {
                Linear::forward_all(machine, x, vec![(gate, &mut *inner), (&self.linears.up, factor)])?;
                ops::activate(machine, self.config.activation, inner, Some(factor))
            }
            _ => {
                self.linears.up.forward(machine, x, inner)?;
                ops::activate(machine, self.config.activation, inner, None)
            }
        }
    }

    /// Bytes of the linear layers' weights.
    pub fn bytes(&self) -> usize {
        let BlockLinears { qkv, o, gate, up, down } = &self.linears;
        qkv.as_slice().iter().chain([o, up, down]).chain(gate).map(Linear::bytes).sum()
    }
}

/// What a sublayer reads.
#[derive(Clone, Copy)]
enum Input {
    Normed,
    Stream,
}

impl Input {
    fn of<'a>(self, hidden: &'a Activations, normed: &'a Activations) -> &'a Activations {
        match self {
            Self::Normed => normed,
            Self::Stream => hidden,
        }
    }
}
