//! Recipes of training: what is trained, what becomes of the masks and when, by which losses.
//!
//! The methods of the literature are sequences of phases:
//! *masked* one with fixed masks; *STE* (Bengio et al., arXiv 1308.3432) masks that follow the weights, gradients that reach dropped
//! weights; *SR-STE* (Zhou et al., arXiv 2102.04010) and *AST* the same with a pull of dropped weights to 0; *MdGF* (Kao et al., arXiv
//! 2209.07617) dropped weights that fade; *STEP* (Lu et al., arXiv 2302.01172) dense, then masks under steady second moments; *DSD* (Han et
//! al., arXiv 1607.04381) masked, dense, masked; *LoRA in three stages* (arXiv 2410.16135) dense, masks that follow, fixed masks;
//! *MaskLLM* (Fang et al., arXiv 2409.17481) masks that are drawn by learned odds, *joint* the same while the weights learn too.

use lacuna_prune::{Criterion, Selection};
use serde::{Deserialize, Serialize};

use crate::loss::Loss;
use crate::optimizer::Optimizer;

/// Everything that shapes a training beside its data and length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// what is trained at once
    #[serde(default)]
    pub by: By,
    /// what is trained of the pruned layers
    pub trains: Trains,
    /// which of them, by the last parts of their names, as `q_proj` (PEFT's `target_modules`); all where none is named
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// whether norms and biases of the blocks are trained too
    #[serde(default)]
    pub norms: bool,
    /// whether what stands outside the blocks is trained too: the last norm, heads that are not pruned, a decoder's token embeddings
    #[serde(default)]
    pub ends: bool,
    /// what dropped and kept weights are at the beginning
    #[serde(default)]
    pub start: Start,
    /// one after the other
    pub phases: Vec<Phase>,
    /// what scores weights when masks are selected again
    #[serde(default = "magnitude")]
    pub criterion: Criterion,
    /// what selects them; the default serves all patterns, and is exact in groups that have their own columns
    #[serde(default = "assignment")]
    pub selection: Selection,
    /// what is made small
    pub loss: Loss,
    /// how
    pub optimizer: Optimizer,
}

fn magnitude() -> Criterion {
    Criterion::Magnitude
}

fn assignment() -> Selection {
    Selection::Assignment
}

/// What is trained at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// the whole model, by its losses
    #[default]
    Model,
    /// one block after the other, by what the dense model has behind it
    Block,
}

/// What is trained of a pruned layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Trains {
    /// its weights
    Weights,
    /// `W + alpha / rank · B·A` with `W` frozen (Hu et al., arXiv 2106.09685)
    Adapters {
        /// rows of `A`
        rank: usize,
        /// weight of the product
        alpha: f64,
        /// whether the adapter stays beside the sparse weight, dense; otherwise masks hold for the sum, and it is merged
        #[serde(default)]
        beside: bool,
    },
    /// the odds of which two of a group's four are kept, with weights frozen
    Masks,
    /// those odds and the weights together
    MasksAndWeights,
}

impl Trains {
    /// Whether masks are drawn by odds that are learned.
    pub(crate) fn odds(self) -> bool {
        matches!(self, Self::Masks | Self::MasksAndWeights)
    }
}

/// Weights at the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// kept ones are the pruned checkpoint's, dropped ones the dense one's
    #[default]
    Pruned,
    /// all are the dense checkpoint's
    Dense,
}

/// A part of a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// of all steps; the last phase has what is left
    #[serde(default)]
    pub share: f64,
    /// what becomes of the masks. A phase with masks after a dense one begins by selecting them.
    pub masks: Masks,
    /// whether dropped weights get the gradient that they would have without a mask
    #[serde(default)]
    pub straight_through: bool,
    /// pull of dropped weights to 0, `λ`, at the phase's beginning and end
    #[serde(default)]
    pub decay: [f64; 2],
    /// how much of dropped weights still counts, `β`, at the phase's beginning and end
    #[serde(default)]
    pub leak: [f64; 2],
    /// whether the second moments of the gradients stay as they are
    #[serde(default)]
    pub steady: bool,
}

/// What becomes of masks in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Masks {
    /// there are none
    Dense,
    /// they stay
    Fixed,
    /// they are selected again
    Refreshed {
        /// after so many steps each
        every: usize,
    },
    /// they are drawn
    Drawn {
        /// temperature of the draw at the beginning and end
        temperature: [f64; 2],
        /// what odds are multiplied by, at the beginning and end
        scale: [f64; 2],
    },
}

impl Recipe {
    /// Refuses what cannot mean anything.
    pub fn checked(self) -> Result<Self, String> {
        let Some(last) = self.phases.last() else { return Err("has no phases".to_owned()) };
        if last.masks == Masks::Dense {
            return Err("ends dense: give the last phase masks".to_owned());
        }
        let shares: f64 = self.phases[..self.phases.len() - 1].iter().map(|phase| phase.share).sum();
        if !(0.0..1.0).contains(&shares) || self.phases.iter().any(|phase| phase.share < 0.0) {
            return Err(format!("the phases before the last have shares of {shares} together: less than 1 is needed"));
        }
        let Loss { ce, kl, temperature, squarehead, cosine } = self.loss;
        if ![ce, kl, squarehead, cosine].iter().all(|&w| w >= 0.0) || ce + kl + squarehead + cosine <= 0.0 {
            return Err("loss: weights are not negative and not all 0".to_owned());
        }
        if self.by == By::Block && (ce + kl + cosine > 0.0) {
            return Err("blocks are trained by the loss squarehead alone".to_owned());
        }
        if self.by == By::Block && self.ends {
            return Err("ends are trained with the whole model, not by blocks".to_owned());
        }
        if temperature.is_nan() || temperature <= 0.0 {
            return Err(format!("temperature is {temperature}: it must be positive"));
        }
        if let Trains::Adapters { rank: 0, .. } = self.trains {
            return Err("rank is 0: adapters need at least 1".to_owned());
        }
        for phase in &self.phases {
            let drawn = matches!(phase.masks, Masks::Drawn { .. });
            if drawn != self.trains.odds() {
                return Err("masks are drawn where trains is masks or masks-and-weights, and only there".to_owned());
            }
            if matches!(phase.masks, Masks::Refreshed { every: 0 }) {
                return Err("masks refreshed after 0 steps: at least 1 is needed".to_owned());
            }
        }
        if self.optimizer.lr.is_nan() || self.optimizer.lr <= 0.0 {
            return Err(format!("lr is {}: it must be positive", self.optimizer.lr));
        }
        Ok(self)
    }

    /// Whether a pruned layer is trained; the others stay as they are.
    pub fn targets(&self, layer: &str) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|target| is_called(layer, target))
    }

    /// Refuses targets that none of the pruned layers is.
    pub fn check_targets(&self, layers: &[&str]) -> Result<(), String> {
        match self.targets.iter().find(|target| !layers.iter().any(|layer| is_called(layer, target))) {
            Some(target) => Err(format!("targets: no pruned layer's name ends with {target}")),
            None => Ok(()),
        }
    }

    /// Whether masks are ever selected again.
    pub(crate) fn selects(&self) -> bool {
        let selects = |phase: &Phase| matches!(phase.masks, Masks::Dense | Masks::Refreshed { .. });
        self.phases.iter().any(selects)
    }

    /// Whether kept weights stay as they are under their adapters, and dropped ones never count.
    pub(crate) fn keeps_weights(&self) -> bool {
        let leaks = |phase: &Phase| phase.leak.iter().any(|&leak| leak != 0.0);
        let keeps = |phase: &Phase| phase.masks == Masks::Fixed && !phase.straight_through && !leaks(phase);
        matches!(self.trains, Trains::Adapters { .. }) && self.start == Start::Pruned && self.phases.iter().all(keeps)
    }

    /// The phase of a step, where it begins, and how much of it is done, 0 to 1.
    pub fn phase(&self, step: usize, steps: usize) -> (usize, usize, f64) {
        let (mut start, last) = (0, self.phases.len() - 1);
        for (i, phase) in self.phases.iter().enumerate() {
            let len = if i == last { steps - start } else { (phase.share * steps as f64).round() as usize };
            if i == last || step < start + len {
                return (i, start, (step - start) as f64 / (len.max(2) - 1) as f64);
            }
            start += len;
        }
        unreachable!("the last phase has all that is left")
    }

    /// Whether dropped weights ever count, so that the dense checkpoint's are needed.
    pub fn needs_dense(&self) -> bool {
        self.by == By::Block
            || self.start == Start::Dense
            || self.loss.needs_teacher()
            || self.trains.odds()
            || self.phases.iter().any(|phase| phase.masks != Masks::Fixed || phase.leak.iter().any(|&leak| leak != 0.0))
    }
}

/// Whether a layer's name ends with these parts.
fn is_called(layer: &str, target: &str) -> bool {
    layer.strip_suffix(target).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
