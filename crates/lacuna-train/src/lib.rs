//! Training of transformers whose weights are pruned to V:N:M sparsity: with fixed masks, with masks that are selected again as
//! weights change, and with low-rank adapters.
//!
//! Activations are token-major here, `[T, features]`, as candle has them; everything outside this crate is feature-major.

#![forbid(unsafe_code)]

mod block;
mod blockwise;
mod drawn;
mod ending;
mod error;
mod layer;
mod loss;
mod ops;
mod optimizer;
mod recipe;
mod state;
mod student;
mod teacher;
mod trainer;

pub use blockwise::Fit;
pub use ending::NO_TARGET;
pub use error::{Error, Result};
pub use loss::{Loss, Losses};
pub use optimizer::Optimizer;
pub use recipe::{By, Masks, Phase, Recipe, Start, Trains};
pub use teacher::{MicroBatch, Teacher};
pub use trainer::{Parameters, Setup, StepReport, Trainer};
