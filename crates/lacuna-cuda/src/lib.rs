//! Models on NVIDIA GPUs: V:N:M products on sparse tensor cores (`mma.sp`, sm_80 and newer), and what stands between them.
//!
//! Builds, and tests all but the launch, with no GPU and no CUDA toolkit: `kernels/*.cu` is text that NVRTC compiles where
//! it runs, and that a C++ compiler compiles for the tests. [`Tiles`] brings a packed weight into the order of the
//! fragments, [`Kernel`] is the table of kernels, [`Sparse`], [`Dense`] and [`ops`] say what a [`Machine`] shall run on
//! [`Activations`], and [`model`] puts that together to blocks and models. The machine that is a GPU is
//! [`launch::Device`].
//!
//! Letters: a weight is `[R, K]`; activations are feature-major, `x[K, T]`, and so is the result `y[R, T]`. Steps, slabs,
//! m-tiles and row tiles are those of `kernels/product.cuh`.

mod activations;
mod banks;
mod error;
mod kernels;
pub mod launch;
mod machine;
pub mod model;
pub mod ops;
mod tiles;
mod weights;

pub use activations::Activations;
pub use error::{Error, Result};
pub use kernels::{Kernel, Launch, Limits, all, choose, probe_source, source};
pub use machine::{Buffer, Call, DenseProduct, Machine, OuterProduct, Recording};
pub use tiles::{Codes, HalfType, NO_COLUMN, Tiles, stride};
pub use weights::{Dense, Sparse, add_outer};
