//! Dense weights, by cuBLASLt.

use std::sync::Arc;

use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::CudaSlice;
use half::{bf16, f16};

use super::device::{Device, failed};
use super::found::has_cublaslt;
use super::memory::Activations;
use crate::error::{Error, Result};
use crate::tiles::HalfType;

/// A weight `[R, K]`.
pub struct Dense {
    library: Arc<CudaBlasLT>,
    weight: CudaSlice<u16>,
    half: HalfType,
    rows: usize,
    cols: usize,
}

impl Dense {
    /// Rounds a weight and copies it to a GPU.
    pub fn new(device: &Device, half: HalfType, [rows, cols]: [usize; 2], weight: &[f32]) -> Result<Self> {
        if !has_cublaslt() {
            return Err(Error::Missing("cuBLASLt"));
        }
        if weight.len() != rows * cols {
            return Err(Error::Shape { what: "weight", want: rows * cols, got: weight.len() });
        }
        let bits: Vec<u16> = weight.iter().map(|&w| half.round(w)).collect();
        let weight = device.stream.clone_htod(&bits).map_err(failed("copying a weight to the GPU"))?;
        let library = CudaBlasLT::new(device.stream.clone()).map_err(failed_blas)?;
        Ok(Self { library: Arc::new(library), weight, half, rows, cols })
    }

    /// The same in other memory, for measurements that must not find it in a cache.
    pub fn duplicate(&self, device: &Device) -> Result<Self> {
        let weight = device.stream.clone_dtod(&self.weight).map_err(failed("copying a weight"))?;
        Ok(Self { library: self.library.clone(), weight, half: self.half, rows: self.rows, cols: self.cols })
    }

    /// Bytes that it takes on the GPU.
    pub fn bytes(&self) -> usize {
        2 * self.weight.len()
    }

    /// `y = W x`.
    pub fn multiply(&self, x: &Activations, y: &mut Activations) -> Result<()> {
        x.check("activations", self.half, self.cols, x.tokens())?;
        y.check("result", self.half, self.rows, x.tokens())?;
        // cuBLASLt's matrices are column-major, so it sees yᵀ = xᵀ Wᵀ.
        let shapes = MatmulConfig {
            transa: false,
            transb: false,
            transc: false,
            m: x.tokens() as u64,
            n: self.rows as u64,
            k: self.cols as u64,
            alpha: 1.0,
            lda: x.stride() as i64,
            ldb: self.cols as i64,
            beta: 0.0,
            ldc: y.stride() as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        match self.half {
            HalfType::F16 => self.multiply_as::<f16>(shapes, x, y),
            HalfType::Bf16 => self.multiply_as::<bf16>(shapes, x, y),
        }
    }

    fn multiply_as<T>(&self, shapes: MatmulConfig, x: &Activations, y: &mut Activations) -> Result<()>
    where
        CudaBlasLT: Matmul<T>,
    {
        let empty = || Error::Shape { what: "operands of a dense product", want: 1, got: 0 };
        let length = y.data.len();
        // SAFETY: the 16-bit types have the size of u16 and take all its bits.
        let views = unsafe {
            (
                x.data.transmute::<T>(x.data.len()),
                self.weight.transmute::<T>(self.weight.len()),
                y.data.transmute_mut::<T>(length),
            )
        };
        let (Some(x), Some(w), Some(mut y)) = views else { return Err(empty()) };
        // SAFETY: the shapes are those of the buffers, checked above.
        unsafe { self.library.matmul(shapes, &x, &w, &mut y, None, None) }.map_err(failed_blas)
    }
}

fn failed_blas(error: cudarc::cublaslt::result::CublasError) -> Error {
    Error::Driver { doing: "asking cuBLASLt for a product", why: format!("{:?}", error.0) }
}
