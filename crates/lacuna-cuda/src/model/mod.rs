//! Whole models on a machine, from the same tables as on the CPU: a [`Block`] reads the switches of
//! [`BlockConfig`](lacuna_model::BlockConfig) and knows no family.
//!
//! Weights and activations are of one 16-bit type, bfloat16 for a bf16 checkpoint and else f16; sums, norms' statistics,
//! softmax and a decoder's logits are f32. The residual stream is rounded once a sublayer.

mod block;
mod decoder;
mod encoder;
mod linear;
mod session;

use lacuna_core::Dtype;
use lacuna_format::Checkpoint;
use lacuna_model::Config;

pub use block::{Batch, Block, Scratch};
pub use decoder::{Cache, Decoder};
pub use encoder::Encoder;
pub use linear::Linear;
pub use session::Session;

use crate::tiles::HalfType;

/// The type that a checkpoint runs in: its embedding, which is never pruned, has it.
pub fn half_of(checkpoint: &Checkpoint, config: &Config) -> HalfType {
    match checkpoint.dtype(&config.embedding()) {
        Ok(Dtype::Bf16) => HalfType::Bf16,
        _ => HalfType::F16,
    }
}
