//! One transformer block on candle's tensors, of any family: the same tables as inference, [`BlockConfig`].

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use lacuna_model::{BlockConfig, BlockLinears, LinearSpec, NormKind, NormPlace, Qkv};

use crate::ops::{Sequences, activate, affine, attend, gate_by, layer_norm, linear, rms_norm};
use crate::optimizer::Tensors;
use crate::{Error, Result};

/// Tensors of a block by name, and how they are multiplied.
pub(crate) struct Weights {
    pub(crate) tensors: BTreeMap<String, Tensor>,
    /// `alpha / rank` of adapters that stand beside their weight, `{layer}.lora_A.weight` and `…lora_B…`
    pub(crate) adapter_scale: f64,
    /// whether products round what they multiply to bfloat16
    pub(crate) bf16: bool,
}

impl Weights {
    pub(crate) fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::Settings(format!("tensor {name}: is missing")))
    }
}

/// Tensors as a step sees them, of a block or of what comes behind the last one.
pub(crate) struct Ready {
    pub(crate) weights: Weights,
    /// names of those that want a gradient
    pub(crate) wanted: BTreeSet<String>,
}

impl Ready {
    /// Takes the gradients that are wanted and there.
    pub(crate) fn gradients(&self, store: &mut GradStore) -> Result<Tensors> {
        let mut gradients = Tensors::new();
        for name in &self.wanted {
            if let Some(gradient) = store.remove(self.weights.get(name)?) {
                gradients.insert(name.clone(), gradient);
            }
        }
        Ok(gradients)
    }
}

/// Name of an adapter's tensors as PEFT has them: `A[rank, K]`, `B[R, rank]`.
pub(crate) fn adapter_names(layer: &str) -> [String; 2] {
    ["A", "B"].map(|part| format!("{layer}.lora_{part}.weight"))
}

/// Is shown the input `[T, K]` of each linear layer.
pub(crate) type Watch<'a> = dyn Fn(&LinearSpec, &Tensor) -> Result<()> + Sync + 'a;

/// A block that runs.
pub(crate) struct Block<'a> {
    pub(crate) config: &'a BlockConfig,
    pub(crate) layer: usize,
    pub(crate) weights: &'a Weights,
    pub(crate) sequences: &'a Sequences,
}

impl Block<'_> {
    /// `[T, H]` behind the block from `[T, H]` before it.
    pub(crate) fn forward(&self, x: &Tensor, watch: &Watch) -> Result<Tensor> {
        let x = self.sublayer(x, 0, |x| self.attention(x, watch))?;
        self.sublayer(&x, 1, |x| self.mlp(x, watch))
    }

    /// A sublayer with its norm and the residual stream around it.
    fn sublayer(&self, x: &Tensor, norm: usize, run: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let module = format!("{}.{}", self.config.block_name(self.layer), self.config.names.norms[norm]);
        let norm = |x: &Tensor| apply_norm(self.config, self.weights, &module, x);
        Ok(match self.config.norm_place {
            NormPlace::BeforeSublayer => (x + run(&norm(x)?)?)?,
            NormPlace::AfterResidual => norm(&(x + run(x)?)?)?,
        })
    }

    fn attention(&self, x: &Tensor, watch: &Watch) -> Result<Tensor> {
        let BlockLinears { qkv, o, .. } = self.config.block_linears(self.layer);
        let (queries, keys) = (self.config.heads * self.config.head_dim, self.config.kv_heads * self.config.head_dim);
        let project = |spec: &LinearSpec, x: &Tensor| self.project(spec, x, watch);
        let [q, k, v] = match &qkv {
            Qkv::Apart([q, k, v]) => [project(q, x)?, project(k, x)?, project(v, x)?],
            Qkv::Together(all) => {
                let all = project(all, x)?;
                let part = |from, len| all.narrow(1, from, len);
                [part(0, queries)?, part(queries, keys)?, part(queries + keys, keys)?]
            }
        };
        project(&o, &attend(&q, &k, &v, self.sequences)?)
    }

    fn mlp(&self, x: &Tensor, watch: &Watch) -> Result<Tensor> {
        let BlockLinears { gate, up, down, .. } = self.config.block_linears(self.layer);
        let project = |spec: &LinearSpec, x: &Tensor| self.project(spec, x, watch);
        let inner = match &gate {
            Some(gate) => gate_by(&project(gate, x)?, &project(&up, x)?, self.config.activation)?,
            None => activate(&project(&up, x)?, self.config.activation)?,
        };
        project(&down, &inner)
    }

    fn project(&self, spec: &LinearSpec, x: &Tensor, watch: &Watch) -> Result<Tensor> {
        watch(spec, x)?;
        let (weight, bf16) = (self.weights.get(&spec.weight())?, self.weights.bf16);
        let mut y = if spec.bias {
            affine(x, weight, self.weights.get(&spec.bias_name())?, bf16)?
        } else {
            linear(x, weight, bf16)?
        };
        let [a, b] = adapter_names(&spec.name);
        if let (Some(a), Some(b)) = (self.weights.tensors.get(&a), self.weights.tensors.get(&b)) {
            y = (y + (linear(&linear(x, a, bf16)?, b, bf16)? * self.weights.adapter_scale)?)?;
        }
        Ok(y)
    }
}

/// The norm with a module name.
pub(crate) fn apply_norm(config: &BlockConfig, weights: &Weights, module: &str, x: &Tensor) -> Result<Tensor> {
    let weight = weights.get(&format!("{module}.weight"))?;
    Ok(match config.norm {
        NormKind::Rms => rms_norm(x, weight, config.norm_eps)?,
        NormKind::Layer => layer_norm(x, weight, weights.get(&format!("{module}.bias"))?, config.norm_eps)?,
    })
}
