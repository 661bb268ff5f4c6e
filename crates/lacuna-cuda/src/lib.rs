//! V:N:M products on NVIDIA's sparse tensor cores (`mma.sp`, sm_80 and newer).
//!
//! Builds, and tests all but the launch, with no GPU and no CUDA toolkit: `kernels/*.cu` is text that NVRTC compiles where
//! the product runs, and that a C++ compiler compiles for the tests. [`Tiles`] brings a packed weight into the order of the
//! fragments, [`Kernel`] is the table of kernels and says which one a product takes, [`launch`] runs it.
//!
//! Letters: a weight is `[R, K]`; activations are feature-major, `x[K, T]`, and so is the result `y[R, T]`. Steps, slabs,
//! m-tiles and row tiles are those of `kernels/product.cuh`.

mod banks;
mod error;
mod kernels;
pub mod launch;
mod tiles;

pub use error::{Error, Result};
pub use kernels::{Kernel, Launch, Limits, all, choose, probe_source, source};
pub use tiles::{Codes, HalfType, NO_COLUMN, Tiles, stride};
