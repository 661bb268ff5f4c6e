//! What can go wrong, and what to do about it.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a weight cannot be made ready for the GPU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// rows of a block that no row tile fits
    #[error("the CUDA kernels take V = 16, 32 and multiples of 64, not V = {v}: prune with another --pattern")]
    RowBlock {
        /// V
        v: usize,
    },
    /// a finite weight that the type of the activations cannot hold
    #[error("row {row} has the weight {value}, which f16 cannot hold: run it with bf16 activations")]
    Overflow {
        /// packed row
        row: usize,
        /// the weight
        value: f32,
    },
}
