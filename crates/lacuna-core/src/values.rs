//! Buffers of kept values in the types they are stored in.

use half::{bf16, f16};

use crate::{Error, IntType, Quantized, Result, ScaleGroup};

/// A floating-point type: of a dense tensor, or of kept values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision
    F32,
    /// IEEE half precision
    F16,
    /// bfloat16
    Bf16,
}

impl Dtype {
    /// Name as users write it: `f32`, `f16`, `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Whether rounding leaves a finite value finite.
    pub fn holds(self, value: f32) -> bool {
        value.abs()
            <= match self {
                Self::F32 => f32::MAX,
                // The last f32 before the tie between the largest value and infinity, which goes to infinity.
                Self::F16 => f32::from_bits(0x477f_efff),
                Self::Bf16 => f32::from_bits(0x7f7f_7fff),
            }
    }
}

/// How kept values are stored. Dense tensors are never integers; they have a [`Dtype`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ValueType {
    /// each by itself
    Float(Dtype),
    /// as integers, so many of a row under one f16 scale
    Int(IntType, ScaleGroup),
}

impl ValueType {
    /// Name as users write it: `f32`, `f16`, `bf16`, `int8`, `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(dtype) => dtype.name(),
            Self::Int(int, _) => int.name(),
        }
    }

    /// Which integers under which scales, if they are integers.
    pub fn integers(self) -> Option<(IntType, ScaleGroup)> {
        match self {
            Self::Float(_) => None,
            Self::Int(int, group) => Some((int, group)),
        }
    }
}

impl From<Dtype> for ValueType {
    fn from(dtype: Dtype) -> Self {
        Self::Float(dtype)
    }
}

/// A buffer of values in one of the storage types.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// single precision
    F32(Vec<f32>),
    /// half precision
    F16(Vec<f16>),
    /// bfloat16
    Bf16(Vec<bf16>),
    /// integers under shared scales
    Quantized(Quantized),
}

impl Values {
    /// Rounds to nearest even. The result may hold an infinity where `f16` cannot hold the value.
    pub fn from_f32(values: Vec<f32>, dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32(values),
            Dtype::F16 => Self::F16(values.into_iter().map(f16::from_f32).collect()),
            Dtype::Bf16 => Self::Bf16(values.into_iter().map(bf16_from_f32).collect()),
        }
    }

    /// Rounds rows of `kept_per_row` values. Refuses, by row, a finite value that would become infinite, and for
    /// integers every value that no finite scale reaches.
    pub fn round(values: Vec<f32>, kept_per_row: usize, value_type: ValueType) -> Result<Self> {
        let dtype = match value_type {
            ValueType::Float(dtype) => dtype,
            ValueType::Int(int, group) => {
                return Quantized::quantize(&values, kept_per_row, int, group).map(Self::Quantized);
            }
        };
        // A weight that was infinite or NaN before is the caller's to refuse.
        let lost = |w: f32| w.is_finite() & !dtype.holds(w);
        // All at once first, without a way out that would keep the compiler from using vectors.
        if values.iter().fold(false, |any, &w| any | lost(w))
            && let Some(i) = values.iter().position(|&w| lost(w))
        {
            return Err(Error::Overflow { row: i / kept_per_row, value: values[i], dtype: dtype.name() });
        }
        Ok(Self::from_f32(values, dtype))
    }

    /// The storage type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::F32(_) => Dtype::F32.into(),
            Self::F16(_) => Dtype::F16.into(),
            Self::Bf16(_) => Dtype::Bf16.into(),
            Self::Quantized(v) => ValueType::Int(v.int(), v.group()),
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::Quantized(v) => v.codes().len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One row of as many values as `out` takes, widened (exact).
    pub(crate) fn widen_row(&self, row: usize, out: &mut [f32]) {
        let range = row * out.len()..(row + 1) * out.len();
        match self {
            Self::F32(v) => out.copy_from_slice(&v[range]),
            Self::F16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, x)| *o = x.to_f32()),
            Self::Bf16(v) => {
                for (o, x) in out.iter_mut().zip(&v[range]) {
                    *o = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
            }
            Self::Quantized(v) => v.widen_row(row, out),
        }
    }

    /// One value, widened (exact).
    pub fn get(&self, i: usize) -> f32 {
        match self {
            Self::F32(v) => v[i],
            Self::F16(v) => v[i].to_f32(),
            Self::Bf16(v) => v[i].to_f32(),
            Self::Quantized(v) => v.get(i),
        }
    }

    /// Makes room for so many more.
    pub(crate) fn reserve(&mut self, more: usize) {
        match self {
            Self::F32(v) => v.reserve_exact(more),
            Self::F16(v) => v.reserve_exact(more),
            Self::Bf16(v) => v.reserve_exact(more),
            Self::Quantized(v) => v.reserve(more),
        }
    }

    /// Appends the rows of another buffer of the same type.
    pub(crate) fn append(&mut self, rows: Self) -> Result<()> {
        let (all, more) = (self.len(), rows.len());
        let other = || Error::Length { what: "values of one type", want: all + more, got: all };
        match (self, rows) {
            (Self::F32(all), Self::F32(rows)) => all.extend(rows),
            (Self::F16(all), Self::F16(rows)) => all.extend(rows),
            (Self::Bf16(all), Self::Bf16(rows)) => all.extend(rows),
            (Self::Quantized(all), Self::Quantized(rows)) => all.append(rows).map_err(|_| other())?,
            _ => return Err(other()),
        }
        Ok(())
    }
}

/// What [`bf16::from_f32`] does, without the branches that hide it from the vectoriser: to nearest, of two to the even one.
fn bf16_from_f32(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    bf16::from_bits(if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { nearest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bfloat16_is_rounded_as_half_does_it() {
        let edges = [0, 0x7f7f_7fff, 0x7f7f_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff];
        let others = (0..100_000_u32).map(|i| i.wrapping_mul(2_654_435_761));
        for bits in edges.into_iter().chain(others).flat_map(|bits| [bits, bits | 0x8000_0000, bits & !0x7fff]) {
            let value = f32::from_bits(bits);
            assert_eq!(bf16_from_f32(value).to_bits(), bf16::from_f32(value).to_bits(), "{bits:x}");
        }
    }
}
