//! Transformer families, run from Hugging Face checkpoints, dense or sparse through the same code.
//!
//! Activations are feature-major, `[features, T]`: the tokens of a whole batch side by side, one column each. That is
//! what the sparse kernels gather from, so nothing is ever transposed. Each operation here is checked against the
//! outputs of Hugging Face transformers (`tests/golden`).

#![forbid(unsafe_code)]

mod attention;
mod batch;
mod block;
mod buffers;
mod channels;
mod config;
mod decoder;
pub mod family;
mod generate;
mod linear;
mod logits;
mod norm;
mod ops;
mod pooling;
mod rope;
mod sampler;
mod stem;
mod text;
mod vision;

pub use attention::LayerCache;
pub use batch::{RUN_TOKENS, runs};
pub use block::{Block, Observer, Positions};
pub use buffers::give;
pub use channels::{Axis, BlockOrders, ChannelOrders};
pub use config::{
    Activation, BlockConfig, BlockLinears, BlockNames, Config, DecoderConfig, LinearSpec, NormKind, NormPlace, Qkv,
    TextConfig, View, VisionConfig, VisionNames,
};
pub use decoder::{Cache, Decoder};
pub use generate::{Generation, Sequences, generate, generate_on};
pub use lacuna_kernels::Activations;
pub use linear::{Execution, Linear, PackedAs};
pub use logits::{divergences, log_sum_exp};
pub use ops::{normal_cdf, softmax};
pub use pooling::{Pooling, PoolingKind};
pub use rope::RopeConfig;
pub use sampler::{Sampler, Sampling};
pub use stem::{Ending, HeadSource, Sample};
pub use text::TextEncoder;
pub use vision::VisionEncoder;
