//! Activations in the memory of a machine.

use crate::error::{Error, Result};
use crate::machine::{Buffer, Machine};
use crate::tiles::{HalfType, stride};

/// A feature-major matrix `[features, tokens]` of 16-bit values; the rows of many tokens are padded to 16 bytes.
pub struct Activations {
    pub(crate) data: Buffer,
    half: HalfType,
    features: usize,
    tokens: usize,
}

impl Activations {
    /// Room for a matrix; what is in it is any.
    pub fn empty(machine: &dyn Machine, half: HalfType, [features, tokens]: [usize; 2]) -> Result<Self> {
        let data = machine.allocate(2 * features * stride(tokens))?;
        Ok(Self { data, half, features, tokens })
    }

    /// Copies `features · tokens` values to a machine, rounded; the padding is zero.
    pub fn upload(
        machine: &dyn Machine,
        half: HalfType,
        [features, tokens]: [usize; 2],
        values: &[f32],
    ) -> Result<Self> {
        if values.len() != features * tokens {
            return Err(Error::Shape { what: "activations", want: features * tokens, got: values.len() });
        }
        let mut padded = vec![0; features * stride(tokens)];
        for (padded, row) in padded.chunks_mut(stride(tokens).max(1)).zip(values.chunks(tokens.max(1))) {
            padded.iter_mut().zip(row).for_each(|(bits, &value)| *bits = half.round(value));
        }
        Self::from_bits(machine, half, [features, tokens], &padded)
    }

    /// A matrix full of one value: of NaN, to show what is never written.
    pub fn filled(machine: &dyn Machine, half: HalfType, [features, tokens]: [usize; 2], value: f32) -> Result<Self> {
        Self::from_bits(machine, half, [features, tokens], &vec![half.round(value); features * stride(tokens)])
    }

    /// A matrix from its bits, `[features, stride]`.
    pub fn from_bits(
        machine: &dyn Machine,
        half: HalfType,
        [features, tokens]: [usize; 2],
        bits: &[u16],
    ) -> Result<Self> {
        if bits.len() != features * stride(tokens) {
            return Err(Error::Shape { what: "activations", want: features * stride(tokens), got: bits.len() });
        }
        let matrix = Self::empty(machine, half, [features, tokens])?;
        machine.write(&matrix.data, &bits.iter().flat_map(|bits| bits.to_le_bytes()).collect::<Vec<u8>>())?;
        Ok(matrix)
    }

    /// Copies them back, `[features, tokens]`, once all work is done.
    pub fn download(&self, machine: &dyn Machine) -> Result<Vec<f32>> {
        let bytes = machine.read(&self.data, 2 * self.features * self.stride())?;
        let bits = bytes.as_chunks().0.iter().map(|&bits| self.half.widen(u16::from_le_bytes(bits)));
        let (stride, tokens) = (self.stride().max(1), self.tokens);
        Ok(bits.enumerate().filter(|(i, _)| i % stride < tokens).map(|(_, value)| value).collect())
    }

    /// Type of the values.
    pub fn half(&self) -> HalfType {
        self.half
    }

    /// Rows.
    pub fn features(&self) -> usize {
        self.features
    }

    /// Columns.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Values from one row to the next.
    pub fn stride(&self) -> usize {
        stride(self.tokens)
    }

    /// Where a row begins.
    pub(crate) fn row(&self, row: usize) -> u64 {
        debug_assert!(row < self.features.max(1), "a row of the matrix");
        self.data.address() + (2 * row * self.stride()) as u64
    }

    /// Refuses a matrix of another shape or type.
    pub(crate) fn check(&self, what: &'static str, half: HalfType, features: usize, tokens: usize) -> Result<()> {
        if self.half != half {
            return Err(Error::Half { what, want: half.name(), got: self.half.name() });
        }
        let shape = |want, got| if want == got { Ok(()) } else { Err(Error::Shape { what, want, got }) };
        shape(features, self.features)?;
        shape(tokens, self.tokens)
    }
}

/// Copies a vector to new memory of a machine.
pub(crate) fn upload_bytes<const N: usize>(
    machine: &dyn Machine,
    values: impl ExactSizeIterator<Item = [u8; N]>,
) -> Result<Buffer> {
    let mut bytes = Vec::with_capacity(N * values.len());
    values.for_each(|value| bytes.extend_from_slice(&value));
    let buffer = machine.allocate(bytes.len())?;
    machine.write(&buffer, &bytes)?;
    Ok(buffer)
}

/// The same for numbers of 32 bits.
pub(crate) fn upload_u32(machine: &dyn Machine, values: &[u32]) -> Result<Buffer> {
    upload_bytes(machine, values.iter().map(|value| value.to_le_bytes()))
}

/// The same for f32.
pub(crate) fn upload_f32(machine: &dyn Machine, values: &[f32]) -> Result<Buffer> {
    upload_bytes(machine, values.iter().map(|value| value.to_le_bytes()))
}
