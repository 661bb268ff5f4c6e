//! Lacuna makes transformers really faster by V:N:M sparsity: it prunes a Hugging Face checkpoint, stores it
//! compressed, runs it with sparse kernels, and measures what that cost and what it gained.
//!
//! This crate wires the stages of the others together; each module is one job of the `lacuna` command.

#![forbid(unsafe_code)]

pub mod bench;
pub mod calibrate;
pub mod demo;
pub mod device;
pub mod doctor;
mod engine;
pub mod eval;
pub mod export;
pub mod images;
pub mod inspect;
pub mod kernel_bench;
pub mod kernels;
pub mod memory;
pub mod models;
pub mod modules;
mod output;
pub mod permute;
pub mod plan;
pub mod prune;
pub mod recipe;
#[cfg(feature = "train")]
pub mod recover;
mod source;
mod statistics;
pub mod text;
pub mod verify;

pub use indicatif::ProgressBar;

/// A mistake in how the command or a function was asked, as opposed to one in the data: exit code 2.
#[derive(Debug)]
pub struct UsageError(pub String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}
