//! V:N:M sparsity as types that cannot be wrong: what a pattern is, which weights a mask keeps, how the kept ones are
//! stored. No IO, no threads, no framework, no unsafe.
//!
//! Letters used throughout: `W` is a weight matrix `[R, K]` = `[out_features, in_features]`, row-major. A pattern
//! `V:N:M` cuts `W` into blocks of `V` rows × `M` columns; a block keeps 4 columns (its *group*) and of those 4 each
//! row keeps `N = 2` values. `N` counts what is kept. `G` is the number of groups in a row. The pattern is that of
//! arXiv 2410.16135, section 3, after VENOM (SC'23); with a window `W > M` a group's columns are any of `W`.

#![forbid(unsafe_code)]

mod error;
mod mask;
mod matrix;
mod packed;
mod pattern;
mod permutation;
mod quantized;
mod scores;
mod values;

pub use error::{Error, Result};
pub use mask::{BoolMask, Mask, Pair};
pub use matrix::{Matrix, sum_of};
pub use packed::Packed;
pub use pattern::{GROUP_COLUMNS, Grid, KEPT_PER_GROUP, Pattern, Window};
pub use permutation::Permutation;
pub use quantized::{IntType, Quantized, ScaleGroup};
pub use scores::Scores;
pub use values::{Dtype, ValueType, Values};
