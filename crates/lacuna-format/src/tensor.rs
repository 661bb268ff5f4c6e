//! Tensors on their way to and from a file: values as little-endian bytes, int4 codes two a byte.

use std::borrow::Cow;

use half::{bf16, f16};
use lacuna_core::{Dtype, IntType, Matrix, Values};
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
    pub fn matrix(matrix: &Matrix, dtype: Dtype) -> Self {
        let values = Values::from_f32(matrix.data().to_vec(), dtype);
        let (dtype, bytes) = encode_values(&values);
        Self::new(dtype, vec![matrix.rows(), matrix.cols()], bytes.into_owned())
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

/// Little-endian bytes of one of the three floating-point types.
pub(crate) fn decode_floats(dtype: TensorDtype, bytes: &[u8]) -> Values {
    match dtype {
        TensorDtype::F16 => Values::F16(decode_f16(bytes)),
        TensorDtype::BF16 => Values::Bf16(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect()),
        _ => Values::F32(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
    }
}

/// Little-endian bytes of f16.
pub(crate) fn decode_f16(bytes: &[u8]) -> Vec<f16> {
    bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect()
}

/// Codes of int8 from bytes, or of int4 from nibbles: the low one first, each in two's complement.
pub(crate) fn decode_codes(int: IntType, bytes: &[u8]) -> Vec<i8> {
    match int {
        IntType::Int8 => bytes.iter().map(|&b| b.cast_signed()).collect(),
        IntType::Int4 => bytes.iter().flat_map(|&b| [(b << 4).cast_signed() >> 4, b.cast_signed() >> 4]).collect(),
    }
}

/// The tensor type and little-endian bytes of values; of integers the codes alone.
pub(crate) fn encode_values(values: &Values) -> (TensorDtype, Cow<'_, [u8]>) {
    match values {
        Values::F32(v) => (TensorDtype::F32, to_bytes(v, f32::to_le_bytes)),
        Values::F16(v) => (TensorDtype::F16, to_bytes(v, f16::to_le_bytes)),
        Values::Bf16(v) => (TensorDtype::BF16, to_bytes(v, bf16::to_le_bytes)),
        Values::Quantized(v) => match v.int() {
            IntType::Int8 => (TensorDtype::I8, to_bytes(v.codes(), i8::to_le_bytes)),
            // Rows hold pairs, so no row ends within a byte.
            IntType::Int4 => {
                let byte = |pair: &[i8]| pair[0].cast_unsigned() & 15 | pair[1].cast_unsigned() << 4;
                (TensorDtype::U8, v.codes().chunks_exact(2).map(byte).collect::<Vec<u8>>().into())
            }
        },
    }
}

/// The bytes of all values: where the machine is little-endian too, those that are there.
fn to_bytes<T: bytemuck::NoUninit, const N: usize>(values: &[T], bytes_of: impl Fn(T) -> [u8; N]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        return Cow::Borrowed(bytemuck::cast_slice(values));
    }
    Cow::Owned(values.iter().flat_map(|&value| bytes_of(value)).collect())
}
