//! Transformer families, run from Hugging Face checkpoints, dense or sparse through the same code.
//!
//! Activations are feature-major, `[features, T]`: the tokens of a whole batch side by side, one column each. That is
//! what the sparse kernels gather from, so nothing is ever transposed. Each operation here is checked against the
//! logits of Hugging Face transformers (`tests/golden`).

#![forbid(unsafe_code)]

mod attention;
mod buffers;
mod config;
mod decoder;
pub mod family;
mod generate;
mod linear;
mod ops;
mod rope;
mod sampler;

pub use attention::LayerCache;
pub use config::{DecoderConfig, LinearSpec};
pub use decoder::{Block, Cache, Model, Observer, Positions, embed, final_norm};
pub use generate::{Generation, generate};
pub use lacuna_kernels::Activations;
pub use linear::{Execution, Linear, PackedAs};
pub use sampler::{Sampler, Sampling};
