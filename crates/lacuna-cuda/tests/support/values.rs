//! All types of values that a product takes, of both types of activations.

use lacuna_core::{IntType, ScaleGroup};
use lacuna_cuda::HalfType;

/// Type of activations, and the integers that values are; without, they are floats of that type.
pub type Values = (HalfType, Option<(IntType, ScaleGroup)>);

/// All of them.
pub const VALUES: [Values; 6] = [
    (HalfType::Bf16, None),
    (HalfType::F16, None),
    (HalfType::Bf16, Some((IntType::Int8, ScaleGroup::Of32))),
    (HalfType::F16, Some((IntType::Int8, ScaleGroup::Of64))),
    (HalfType::Bf16, Some((IntType::Int4, ScaleGroup::Of128))),
    (HalfType::F16, Some((IntType::Int4, ScaleGroup::Of32))),
];
