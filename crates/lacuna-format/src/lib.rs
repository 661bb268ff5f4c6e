//! Checkpoints on disk: Hugging Face directories in (safetensors, shards, config, tokenizer), pruned directories out.
//!
//! The packed form is specified in `docs/format.md`. Everything read is checked before it is believed, with checked
//! arithmetic; everything written gets its final name only when it is whole. Unsafe code is allowed in `mmap.rs` alone.

mod checkpoint;
mod direct;
mod error;
mod header;
mod images;
mod mmap;
mod packed;
mod pass;
mod sink;
mod sparsity;
mod staging;
mod tensor;
mod tokenizer;

pub use checkpoint::{Checkpoint, RawMatrix, RawTensor, TensorInfo};
pub use error::{Error, Result};
pub use header::{Header, read_header, read_json};
pub use images::{ImageProcessor, RgbImage};
pub use packed::{PackedTensors, bytes_of, pack_tensors, packed_bytes, read_packed};
pub use pass::{IN_FLIGHT, Pass, Passing};
pub use safetensors::Dtype as TensorDtype;
pub use sparsity::{LayerSparsity, METHOD, SPARSITY_KEY, Sparsity, VERSION};
pub use staging::{Staging, write_whole};
pub use tensor::OutTensor;
pub use tokenizer::{TextStream, Tokenizer};
