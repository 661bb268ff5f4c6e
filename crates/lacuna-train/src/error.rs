//! What can go wrong in training.

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// of the framework
    #[error(transparent)]
    Framework(#[from] candle_core::Error),
    /// of masks and matrices
    #[error(transparent)]
    Core(#[from] lacuna_core::Error),
    /// of files
    #[error(transparent)]
    Format(#[from] lacuna_format::Error),
    /// of settings that do not go together
    #[error("{0}")]
    Settings(String),
    /// training went astray
    #[error("step {step}: the loss is {loss}; lower the learning rate (--lr)")]
    Diverged {
        /// the step
        step: usize,
        /// its loss
        loss: f64,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
