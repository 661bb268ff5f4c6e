//! Matrix products on the CPU, sparse and dense, each behind a table of kernels, and attention.
//!
//! Shapes: a weight is `[R, K]`; activations are feature-major, `x[K, T]` with one column a token, and so is the
//! result `y[R, T]`. A kept input column is then a contiguous row of tokens, which is what every sparse kernel gathers.
//! Unsafe code is allowed in `lanes` (vector instructions) and in [`dense`]`::gemm` (the call into the `gemm` crate).

pub mod attention;
pub mod dense;
mod exp;
mod lanes;
pub mod sparse;
mod weight;

pub use exp::{exp, exp_of_negative};
pub use weight::{Activations, Weight};
