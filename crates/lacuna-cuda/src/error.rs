//! What can go wrong, and what to do about it.

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a weight cannot be made ready for the GPU, or the GPU not be used.
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
    /// a library that is not there
    #[error("{0} was not found; lacuna doctor says what is there and where to get the rest")]
    Missing(&'static str),
    /// an NVRTC without the instruction
    #[error("NVRTC {major}.{minor} does not know mma.sp::ordered_metadata: 12.5 or newer is needed")]
    OldNvrtc {
        /// version
        major: u32,
        /// version
        minor: u32,
    },
    /// a GPU without sparse tensor cores, or one that NVRTC compiles nothing for
    #[error("a GPU of capability {major}.{minor} runs none of the kernels: 8.0 (Ampere) or newer is needed")]
    Capability {
        /// capability
        major: u32,
        /// capability
        minor: u32,
    },
    /// NVRTC refused
    #[error("NVRTC cannot compile a kernel {0}")]
    Compile(String),
    /// the driver, or a library upon it, refused
    #[error("{doing} failed: {why}")]
    Driver {
        /// what was being done
        doing: &'static str,
        /// its own words
        why: String,
    },
    /// operands that do not fit
    #[error("{what}: {want} expected, {got} found")]
    Shape {
        /// which operand
        what: &'static str,
        /// a length
        want: usize,
        /// a length
        got: usize,
    },
    /// a layer that cannot be brought to the GPU
    #[error("{layer}: {why}")]
    Layer {
        /// its module name
        layer: String,
        /// why not
        why: Box<Error>,
    },
    /// a checkpoint that cannot be read
    #[error(transparent)]
    Checkpoint(#[from] lacuna_format::Error),
    /// operands of two types
    #[error("{what}: {want} expected, {got} found")]
    Half {
        /// which operand
        what: &'static str,
        /// a type
        want: &'static str,
        /// a type
        got: &'static str,
    },
}
