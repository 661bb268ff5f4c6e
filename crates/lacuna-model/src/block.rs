//! One transformer block, of any family, so that pruning can hold one block at a time.

use lacuna_core::{Matrix, Packed};
use lacuna_format::{Checkpoint, Error, Result};
use lacuna_kernels::attention::{Kernel, kernels};

use crate::attention::{LayerCache, attend};
use crate::buffers::give;
use crate::config::{BlockConfig, BlockLinears, LinearSpec, NormPlace, Qkv, View};
use crate::linear::{Execution, Linear};
use crate::norm::Norm;
use crate::ops::{activate, add, gate_by};
use crate::rope::Angles;

/// Is shown the input `[K, T]` of linear layers before they run, with the layers that share it.
pub type Observer<'a> = dyn FnMut(&[&LinearSpec], &Matrix) + 'a;

/// Where the tokens of a batch stand in their sequences.
pub struct Positions {
    lengths: Vec<usize>,
    angles: Option<Angles>,
}

impl Positions {
    /// For each sequence, how many tokens it already has and how many come now.
    pub fn new(config: &BlockConfig, sequences: &[(usize, usize)]) -> Self {
        let angles = match &config.view {
            View::All => None,
            View::Past { rope, .. } => {
                let positions: Vec<usize> = sequences.iter().flat_map(|&(past, len)| past..past + len).collect();
                Some(rope.angles(config.head_dim, &positions))
            }
        };
        Self { lengths: sequences.iter().map(|&(_, len)| len).collect(), angles }
    }

    /// Sequences that are whole in this batch, with so many tokens each.
    pub fn whole(config: &BlockConfig, lengths: &[usize]) -> Self {
        Self::new(config, &lengths.iter().map(|&len| (0, len)).collect::<Vec<_>>())
    }
}

/// One transformer block.
pub struct Block {
    config: BlockConfig,
    window: Option<usize>,
    attention: Option<Kernel>,
    attention_norm: Norm,
    mlp_norm: Norm,
    linears: BlockLinears<Linear>,
}

impl Block {
    /// Reads block `layer`.
    pub fn load(checkpoint: &Checkpoint, config: &BlockConfig, layer: usize, execution: Execution) -> Result<Self> {
        let name = config.block_name(layer);
        let [attention_norm, mlp_norm] = config.names.norms;
        let norm = |module: &str| Norm::load(checkpoint, config, &format!("{name}.{module}"));
        Ok(Self {
            config: config.clone(),
            window: match &config.view {
                View::All => None,
                View::Past { windows, .. } => windows[layer],
            },
            attention: kernels(execution.activations).next(),
            attention_norm: norm(attention_norm)?,
            mlp_norm: norm(mlp_norm)?,
            linears: config.block_linears(layer).try_map(|spec| Linear::load(checkpoint, spec, execution))?,
        })
    }

    /// Gives the linear layer of that name other weights, packed ones, with the bias it has in the checkpoint. Refuses another
    /// shape, and a layer of another block.
    pub fn replace(
        &mut self,
        checkpoint: &Checkpoint,
        name: &str,
        packed: &Packed,
        execution: Execution,
    ) -> Result<()> {
        self.linear_mut(name)?.replace(checkpoint, packed, execution)
    }

    /// Reads the linear layer of that name again, dense, as an execution rounds it. Refuses a layer of another block.
    pub fn round(&mut self, checkpoint: &Checkpoint, name: &str, execution: Execution) -> Result<()> {
        let linear = self.linear_mut(name)?;
        *linear = Linear::load(checkpoint, linear.spec().clone(), execution)?;
        Ok(())
    }

    fn linear_mut(&mut self, name: &str) -> Result<&mut Linear> {
        let linear = self.linears.iter_mut().find(|linear| linear.spec().name == name);
        linear.ok_or_else(|| Error::tensor(name, "is no linear layer of this block"))
    }

    /// Runs the tokens `hidden[H, T]` of a batch through the block, in place. With `caches`, one a sequence, tokens also
    /// see what is in them, and are added to it.
    pub fn forward(
        &self,
        hidden: &mut Matrix,
        positions: &Positions,
        caches: Option<&mut [&mut LayerCache]>,
        observe: &mut Observer,
    ) {
        let attention = |x: &Matrix, observe: &mut Observer| self.attention(x, positions, caches, observe);
        self.sublayer(hidden, &self.attention_norm, observe, attention);
        self.sublayer(hidden, &self.mlp_norm, observe, |x, observe| self.mlp(x, observe));
    }

    /// A sublayer with its norm and the residual stream around it.
    fn sublayer(
        &self,
        hidden: &mut Matrix,
        norm: &Norm,
        observe: &mut Observer,
        run: impl FnOnce(&Matrix, &mut Observer) -> Matrix,
    ) {
        match self.config.norm_place {
            NormPlace::BeforeSublayer => {
                let x = norm.apply(hidden);
                let out = run(&x, observe);
                add(hidden, &out);
                [x, out].into_iter().for_each(give);
            }
            NormPlace::AfterResidual => {
                let out = run(hidden, observe);
                add(hidden, &out);
                let normed = norm.apply(hidden);
                [std::mem::replace(hidden, normed), out].into_iter().for_each(give);
            }
        }
    }

    fn attention(
        &self,
        x: &Matrix,
        positions: &Positions,
        caches: Option<&mut [&mut LayerCache]>,
        observe: &mut Observer,
    ) -> Matrix {
        let BlockLinears { qkv, o, .. } = &self.linears;
        observe(&specs(qkv.as_slice()), x);
        let (queries, keys) = (self.config.heads * self.config.head_dim, self.config.kv_heads * self.config.head_dim);
        let mut projected = qkv.as_ref().map(|linear| linear.forward(x));
        let [q, k, v] = match &mut projected {
            Qkv::Apart(apart) => apart.each_mut().map(Matrix::data_mut),
            Qkv::Together(all) => {
                let (q, rest) = all.data_mut().split_at_mut(queries * x.cols());
                let (k, v) = rest.split_at_mut(keys * x.cols());
                [q, k, v]
            }
        };
        if let Some(angles) = &positions.angles {
            angles.rotate(q);
            angles.rotate(k);
        }
        let mixed = attend(&self.config, self.attention, self.window, [q, k, v], &positions.lengths, caches);
        projected.map(give);
        observe(&[o.spec()], &mixed);
        let out = o.forward(&mixed);
        give(mixed);
        out
    }

    fn mlp(&self, x: &Matrix, observe: &mut Observer) -> Matrix {
        let BlockLinears { gate, up, down, .. } = &self.linears;
        let activation = self.config.activation;
        let inner = match gate {
            Some(gate) => {
                observe(&[gate.spec(), up.spec()], x);
                let (mut inner, factor) = (gate.forward(x), up.forward(x));
                gate_by(&mut inner, &factor, activation);
                give(factor);
                inner
            }
            None => {
                observe(&[up.spec()], x);
                let mut inner = up.forward(x);
                activate(&mut inner, activation);
                inner
            }
        };
        observe(&[down.spec()], &inner);
        let out = down.forward(&inner);
        give(inner);
        out
    }
}

fn specs(linears: &[Linear]) -> Vec<&LinearSpec> {
    linears.iter().map(Linear::spec).collect()
}
