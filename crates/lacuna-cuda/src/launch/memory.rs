//! Activations in the memory of a GPU.

use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};

use super::device::{Device, failed};
use crate::error::{Error, Result};
use crate::tiles::{HalfType, stride};

/// A feature-major matrix `[features, tokens]` of 16-bit values; the rows of many tokens are padded to 16 bytes.
pub struct Activations {
    pub(super) data: CudaSlice<u16>,
    half: HalfType,
    features: usize,
    tokens: usize,
}

impl Activations {
    /// Copies `features · tokens` values to the GPU, rounded; the padding is filled with some bits.
    pub fn upload(device: &Device, half: HalfType, [features, tokens]: [usize; 2], values: &[f32]) -> Result<Self> {
        if values.len() != features * tokens {
            return Err(Error::Shape { what: "activations", want: features * tokens, got: values.len() });
        }
        let mut padded = vec![0; features * stride(tokens)];
        for (padded, row) in padded.chunks_mut(stride(tokens).max(1)).zip(values.chunks(tokens.max(1))) {
            padded.iter_mut().zip(row).for_each(|(bits, &value)| *bits = half.round(value));
        }
        Self::from_bits(device, half, [features, tokens], &padded)
    }

    /// A matrix full of one value: of NaN, to show what is never written.
    pub fn filled(device: &Device, half: HalfType, [features, tokens]: [usize; 2], value: f32) -> Result<Self> {
        Self::from_bits(device, half, [features, tokens], &vec![half.round(value); features * stride(tokens)])
    }

    fn from_bits(device: &Device, half: HalfType, [features, tokens]: [usize; 2], bits: &[u16]) -> Result<Self> {
        let data = device.stream.clone_htod(bits).map_err(failed("copying activations to the GPU"))?;
        Ok(Self { data, half, features, tokens })
    }

    /// Copies them back, `[features, tokens]`, once all work is done.
    pub fn download(&self, device: &Device) -> Result<Vec<f32>> {
        let bits = device.stream.clone_dtoh(&self.data).map_err(failed("copying activations from the GPU"))?;
        device.synchronize()?;
        let rows = bits.chunks(self.stride().max(1)).map(|row| &row[..self.tokens]);
        Ok(rows.flatten().map(|&bits| self.half.widen(bits)).collect())
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

    /// Refuses a matrix of another shape or type.
    pub(super) fn check(&self, what: &'static str, half: HalfType, features: usize, tokens: usize) -> Result<()> {
        if self.half != half {
            return Err(Error::Half { what, want: half.name(), got: self.half.name() });
        }
        let shape = |want, got| if want == got { Ok(()) } else { Err(Error::Shape { what, want, got }) };
        shape(features, self.features)?;
        shape(tokens, self.tokens)
    }
}

/// The address of a buffer that a kernel reads.
pub(super) fn address<T>(device: &Device, slice: &CudaSlice<T>) -> u64 {
    // Everything is on the stream that made the buffer, so there is nothing to wait for or to record.
    slice.device_ptr(&device.stream).0
}

/// The address of a buffer that a kernel writes.
pub(super) fn address_mut<T>(device: &Device, slice: &mut CudaSlice<T>) -> u64 {
    slice.device_ptr_mut(&device.stream).0
}
