//! Matrix products on the CPU: dense ones through the `gemm` crate, sparse ones behind one table of kernels.
//!
//! Shapes: a weight is `[R, K]`; activations are feature-major, `x[K, T]` with one column a token, and so is the
//! result `y[R, T]`. A kept input column is then a contiguous row of tokens, which is what every sparse kernel gathers.
//! Unsafe code is allowed in [`dense`] (the call into `gemm`) and in [`sparse`]`::avx2` (a call of code compiled for
//! detected features).

pub mod dense;
pub mod sparse;
