//! What is trained outside the blocks: token embeddings before them, the last norm and heads behind.

use std::collections::BTreeSet;

use candle_core::{Tensor, Var};
use lacuna_format::Checkpoint;
use lacuna_model::Config;

use super::Student;
use crate::block::{Ready, Weights};
use crate::layer::tensor;
use crate::optimizer::Tensors;
use crate::{MicroBatch, Result};

impl Student {
    /// Makes parameters of all that is trained there.
    pub(crate) fn train_ends(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        if let Some(name) = self.config.token_embeddings(checkpoint)? {
            if !self.frozen.contains_key(name) {
                let [rows, cols] = checkpoint.info(name)?.shape[..] else { unreachable!("its shape was checked") };
                self.frozen.insert(name.to_owned(), tensor(&checkpoint.matrix(name, rows, cols)?, &self.device)?);
            }
            self.embeddings = Some(name.to_owned());
        }
        let names: BTreeSet<String> = self.ending.trainable.iter().chain(&self.embeddings).cloned().collect();
        for name in names {
            let tensor = self.frozen.remove(&name).expect("it was read");
            self.parameters.insert(name, tensor);
        }
        Ok(())
    }

    /// The tensors behind the blocks as a step sees them.
    pub(super) fn ends(&self) -> Result<Ready> {
        let (mut tensors, mut wanted) = (Tensors::new(), BTreeSet::new());
        for name in &self.ending.names {
            let tensor = if let Some(parameter) = self.parameters.get(name) {
                // The gradient of a decoder's head, which may be large, is made by hand, without a copy that a graph would need.
                let by_hand = matches!(self.config, Config::Decoder(_)) && parameter.rank() == 2;
                wanted.insert(name.clone());
                if by_hand { parameter.clone() } else { Var::from_tensor(parameter)?.into_inner() }
            } else {
                self.tensor(name).clone()
            };
            tensors.insert(name.clone(), tensor);
        }
        Ok(Ready { weights: Weights { tensors, adapter_scale: 0.0, bf16: self.bf16 }, wanted })
    }

    /// The stream before the first block, `[T, H]`.
    pub(super) fn first_stream(&self, batch: &MicroBatch) -> Result<Tensor> {
        let Some(name) = &self.embeddings else { return self.stream(&batch.hidden) };
        Ok(self.tensor(name).index_select(&self.token_numbers(batch)?, 0)?)
    }

    /// The gradient of the token embeddings where the stream before the first block has the gradient `dx`.
    pub(super) fn of_embeddings(&self, name: &str, batch: &MicroBatch, dx: &Tensor) -> Result<Tensor> {
        Ok(self.tensor(name).zeros_like()?.index_add(&self.token_numbers(batch)?, &dx.contiguous()?, 0)?)
    }

    fn token_numbers(&self, batch: &MicroBatch) -> Result<Tensor> {
        Ok(Tensor::from_slice(&batch.tokens, batch.tokens.len(), &self.device)?)
    }
}
