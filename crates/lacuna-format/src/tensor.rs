//! Tensors on their way to and from a file: values as little-endian bytes.

use std::borrow::Cow;

use half::{bf16, f16};
use lacuna_core::{Dtype, Values};
use safetensors::Dtype as TensorDtype;

/// One tensor to write.
pub struct OutTensor<'a> {
    dtype: TensorDtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl<'a> OutTensor<'a> {
    /// `data` is little-endian and row-major, and as long as type and shape say.
    pub fn new(dtype: TensorDtype, shape: Vec<usize>, data: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { dtype, shape, data: data.into() }
    }

    /// Number of bytes.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The bytes.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// A dense matrix rounded to `dtype`.
    pub fn matrix(matrix: &lacuna_core::Matrix, dtype: lacuna_core::Dtype) -> Self {
        let (_, bytes) = encode_values(&lacuna_core::Values::from_f32(matrix.data().to_vec(), dtype));
        Self::new(tensor_dtype(dtype), vec![matrix.rows(), matrix.cols()], bytes)
    }
}

impl safetensors::View for &OutTensor<'_> {
    fn dtype(&self) -> TensorDtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Little-endian bytes of one of the three value types.
pub(crate) fn decode_values(dtype: TensorDtype, bytes: &[u8]) -> Values {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        TensorDtype::F16 => Values::F16(halves().map(f16::from_bits).collect()),
        TensorDtype::BF16 => Values::Bf16(halves().map(bf16::from_bits).collect()),
        _ => Values::F32(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
    }
}

/// The tensor type and little-endian bytes of values.
pub(crate) fn encode_values(values: &Values) -> (TensorDtype, Vec<u8>) {
    match values {
        Values::F32(v) => (TensorDtype::F32, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Values::F16(v) => (TensorDtype::F16, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
        Values::Bf16(v) => (TensorDtype::BF16, v.iter().flat_map(|x| x.to_le_bytes()).collect()),
    }
}

/// The tensor type of a storage type.
pub(crate) fn tensor_dtype(dtype: Dtype) -> TensorDtype {
    match dtype {
        Dtype::F32 => TensorDtype::F32,
        Dtype::F16 => TensorDtype::F16,
        Dtype::Bf16 => TensorDtype::BF16,
    }
}
