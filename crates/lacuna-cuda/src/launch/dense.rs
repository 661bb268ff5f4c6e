//! Dense products, by cuBLASLt. What it needs to know of a product is kept for each shape: asking anew takes longer than
//! some products.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::device::failed;
use super::found::has_cublaslt;
use crate::error::{Error, Result};
use crate::machine::{Buffer, DenseProduct, OuterProduct};
use crate::tiles::HalfType;

/// What NVIDIA recommends for Hopper; more than others need.
const WORKSPACE: usize = 32 << 20;

/// cuBLASLt on one stream.
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    stream: Arc<CudaStream>,
    plans: Mutex<HashMap<Shape, Plan>>,
}

// SAFETY: the handle may be used by any thread (cuBLASLt's are thread-safe), and the plans are behind a lock.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// A product as cuBLASLt sees it, its matrices column-major: `C[m, n] = A[m, k] B[k, n]`, sums in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    /// type of A and B; none: f32
    half: Option<HalfType>,
    /// whether C is f32
    wide: bool,
    m: usize,
    n: usize,
    k: usize,
    /// values from one column to the next, of A, B and C
    strides: [usize; 3],
    /// whether A lies there as `[k, m]`
    transposed: bool,
}

impl Library {
    /// Refuses where cuBLASLt is missing.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        if !has_cublaslt() {
            return Err(Error::Missing("cuBLASLt"));
        }
        let workspace = stream.alloc_zeros(WORKSPACE).map_err(failed("taking memory"))?;
        let handle = result::create_handle().map_err(failed_blas)?;
        Ok(Self { handle, workspace, stream: stream.clone(), plans: Mutex::default() })
    }

    /// Runs a product. Refuses buffers that are too small for it.
    pub(super) fn multiply(&self, product: &DenseProduct) -> Result<()> {
        let DenseProduct { half, weight, x, y, rows, cols, tokens, stride, wide, add } = *product;
        let width = if wide { size_of::<f32>() } else { size_of::<u16>() };
        large_enough([
            ("a dense weight", 2 * rows * cols, weight),
            ("activations of a dense product", 2 * cols * stride, x),
            ("the result of a dense product", width * rows * stride, y),
        ])?;
        // yᵀ = xᵀ Wᵀ
        let shape = Shape {
            half: Some(half),
            wide,
            m: tokens,
            n: rows,
            k: cols,
            strides: [stride, cols, stride],
            transposed: false,
        };
        self.run(shape, [x, weight, y], add)
    }

    /// Adds an outer product. Refuses buffers that are too small for it.
    pub(super) fn add_outer(&self, product: &OuterProduct) -> Result<()> {
        let OuterProduct { left, x, out, rows, cols, tokens } = *product;
        large_enough([
            ("the left factor of an outer product", 4 * rows * tokens, left),
            ("the right factor of an outer product", 4 * cols * tokens, x),
            ("the sum of outer products", 4 * rows * cols, out),
        ])?;
        // outᵀ += x leftᵀ
        let shape = Shape {
            half: None,
            wide: true,
            m: cols,
            n: rows,
            k: tokens,
            strides: [tokens, tokens, cols],
            transposed: true,
        };
        self.run(shape, [x, left, out], true)
    }

    /// The buffers are as large as the shape says.
    fn run(&self, shape: Shape, [a, b, c]: [&Buffer; 3], add: bool) -> Result<()> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::new(self.handle, shape)?),
        };
        let (one, beta) = (1.0_f32, if add { 1.0_f32 } else { 0.0 });
        let workspace = self.workspace.device_ptr(&self.stream).0;
        // SAFETY: the plan is that of the shape, the callers have held the buffers against it, and both scalars, as the plan
        // has them on the host and in f32, outlive the call. The stream runs everything in order, so the workspace is free.
        unsafe {
            result::matmul(
                self.handle,
                plan.product,
                (&raw const one).cast::<c_void>(),
                (&raw const beta).cast::<c_void>(),
                a.address() as *const c_void,
                plan.a,
                b.address() as *const c_void,
                plan.b,
                c.address() as *const c_void,
                plan.c,
                c.address() as *mut c_void,
                plan.c,
                &raw const plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(failed_blas)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: made by `new`, destroyed once. Nothing is to be done about a failure.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Refuses the first buffer that has fewer bytes than it needs.
fn large_enough(buffers: [(&'static str, usize, &Buffer); 3]) -> Result<()> {
    for (what, want, buffer) in buffers {
        let got = buffer.bytes();
        if want > got {
            return Err(Error::Shape { what, want, got });
        }
    }
    Ok(())
}

/// How cuBLASLt runs products of one shape.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    c: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

// SAFETY: descriptions that nobody else holds; none of them belongs to a thread.
unsafe impl Send for Plan {}

impl Plan {
    fn new(library: sys::cublasLtHandle_t, shape: Shape) -> Result<Self> {
        let Shape { half, wide, m, n, k, strides, transposed } = shape;
        let single = sys::cudaDataType_t::CUDA_R_32F;
        let of = match half {
            Some(HalfType::F16) => sys::cudaDataType_t::CUDA_R_16F,
            Some(HalfType::Bf16) => sys::cudaDataType_t::CUDA_R_16BF,
            None => single,
        };
        let layout = |of, rows: usize, cols: usize, stride: usize| {
            result::create_matrix_layout(of, rows as u64, cols as u64, stride as i64).map_err(failed_blas)
        };
        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let mut plan = Self {
            product: result::create_matmul_desc(sums, single).map_err(failed_blas)?,
            a: std::ptr::null_mut(),
            b: std::ptr::null_mut(),
            c: std::ptr::null_mut(),
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        let a_shape = if transposed { [k, m] } else { [m, k] };
        plan.a = layout(of, a_shape[0], a_shape[1], strides[0])?;
        plan.b = layout(of, k, n, strides[1])?;
        plan.c = layout(if wide { single } else { of }, m, n, strides[2])?;
        if transposed {
            let which = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
            // CUBLAS_OP_T
            let turn = 1_i32;
            let value = (&raw const turn).cast::<c_void>();
            // SAFETY: the description was made above; the attribute is an operation, which outlives the call.
            let set = unsafe { result::set_matmul_desc_attribute(plan.product, which, value, size_of_val(&turn)) };
            set.map_err(failed_blas)?;
        }
        let preference = Preference(result::create_matmul_pref().map_err(failed_blas)?);
        let most = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let workspace = WORKSPACE;
        // SAFETY: everything was made above; the attribute is a size, which outlives the call.
        let found = unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                most,
                (&raw const workspace).cast::<c_void>(),
                size_of::<usize>(),
            )
            .and_then(|()| {
                result::get_matmul_algo_heuristic(library, plan.product, plan.a, plan.b, plan.c, plan.c, preference.0)
            })
        };
        plan.algorithm = found.map_err(failed_blas)?.algo;
        Ok(plan)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; those that were not made are null. Nothing is to be done about a failure.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in [self.a, self.b, self.c].into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// Destroyed when dropped.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made just before, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn failed_blas(error: result::CublasError) -> Error {
    Error::Driver { doing: "asking cuBLASLt for a product", why: format!("{:?}", error.0) }
}
