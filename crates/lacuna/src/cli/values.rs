//! The flags that say what the kept values are rounded to.

use anyhow::Result;
use clap::ValueEnum;
use lacuna::UsageError;
use lacuna_core::{Dtype, IntType, ScaleGroup, ValueType};

#[derive(clap::Args)]
pub(super) struct ValueArgs {
    /// Type of the kept values [default: that of the weights, or of the plan]
    #[arg(long, value_enum)]
    values: Option<ValuesName>,
    /// Kept values of a row under one scale, for --values int8 or int4 [default: 32]
    #[arg(long, value_enum, value_name = "N")]
    scale_group: Option<ScaleGroupName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum ValuesName {
    F32,
    F16,
    Bf16,
    /// -127 to 127, times a scale
    Int8,
    /// -8 to 7, times a scale
    Int4,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScaleGroupName {
    #[value(name = "32")]
    Of32,
    #[value(name = "64")]
    Of64,
    #[value(name = "128")]
    Of128,
}

impl ValueArgs {
    /// None: that of the weights.
    pub(super) fn value_type(&self) -> Result<Option<ValueType>> {
        let group = self.scale_group.map(|group| match group {
            ScaleGroupName::Of32 => ScaleGroup::Of32,
            ScaleGroupName::Of64 => ScaleGroup::Of64,
            ScaleGroupName::Of128 => ScaleGroup::Of128,
        });
        let int = |int| ValueType::Int(int, group.unwrap_or_default());
        let values = self.values.map(|values| match values {
            ValuesName::F32 => Dtype::F32.into(),
            ValuesName::F16 => Dtype::F16.into(),
            ValuesName::Bf16 => Dtype::Bf16.into(),
            ValuesName::Int8 => int(IntType::Int8),
            ValuesName::Int4 => int(IntType::Int4),
        });
        if group.is_some() && values.and_then(ValueType::integers).is_none() {
            let problem = "--scale-group is for integers: pass --values int8 or int4 too, or leave it out";
            return Err(UsageError(problem.to_owned()).into());
        }
        Ok(values)
    }
}
