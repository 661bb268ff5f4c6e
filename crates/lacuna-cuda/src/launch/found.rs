//! What of CUDA this machine has.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute as Attribute;

use crate::kernels::Limits;

/// Libraries and GPUs; `None` and empty where there is none.
#[derive(Debug, Clone)]
pub struct Found {
    /// CUDA version that the driver offers, as major and minor
    pub driver: Option<(u32, u32)>,
    /// version of NVRTC
    pub nvrtc: Option<(u32, u32)>,
    /// whether cuBLASLt is there
    pub cublaslt: bool,
    /// GPUs that the driver sees
    pub gpus: Vec<Gpu>,
    /// what the driver said where it is there and sees none
    pub driver_error: Option<String>,
}

/// One GPU.
#[derive(Debug, Clone)]
pub struct Gpu {
    /// its name
    pub name: String,
    /// compute capability, major and minor
    pub capability: (u32, u32),
    /// memory, bytes
    pub memory: usize,
    /// second-level cache, bytes
    pub cache: usize,
    /// what decides on shapes of kernels
    pub limits: Limits,
}

impl Gpu {
    /// Whether it has `mma.sp`: from Ampere on.
    pub fn has_sparse_tensor_cores(&self) -> bool {
        self.capability >= (8, 0)
    }
}

/// Whether libcuda is there.
pub(super) fn has_driver() -> bool {
    // SAFETY: runs the library's initialisers, which NVIDIA's do no harm with.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Whether NVRTC is there.
pub(super) fn has_nvrtc() -> bool {
    // SAFETY: as above.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

/// Whether cuBLASLt is there.
pub(super) fn has_cublaslt() -> bool {
    // SAFETY: as above.
    unsafe { cudarc::cublaslt::sys::is_culib_present() }
}

/// Looks for everything.
pub fn found() -> Found {
    let mut found =
        Found { driver: None, nvrtc: nvrtc_version(), cublaslt: has_cublaslt(), gpus: vec![], driver_error: None };
    if !has_driver() {
        return found;
    }
    found.driver = driver_version();
    let all = || -> Result<Vec<Gpu>, cudarc::driver::DriverError> {
        (0..CudaContext::device_count()?).map(|ordinal| describe(&CudaContext::new(ordinal as usize)?)).collect()
    };
    match all() {
        Ok(gpus) => found.gpus = gpus,
        Err(error) => found.driver_error = Some(error.to_string()),
    }
    found
}

/// Everything that is of interest in one GPU.
pub(super) fn describe(context: &Arc<CudaContext>) -> Result<Gpu, cudarc::driver::DriverError> {
    let attribute = |attribute| context.attribute(attribute).map(|value| value as usize);
    let (major, minor) = context.compute_capability()?;
    Ok(Gpu {
        name: context.name()?,
        capability: (major as u32, minor as u32),
        memory: context.total_mem()?,
        cache: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        limits: Limits {
            shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            bulk: major >= 9,
        },
    })
}

pub(super) fn driver_version() -> Option<(u32, u32)> {
    let mut version = 0;
    // SAFETY: the library is there, and `version` outlives the call.
    let done = unsafe { cudarc::driver::sys::cuDriverGetVersion(&raw mut version) };
    done.result().ok().map(|()| (version as u32 / 1000, version as u32 % 1000 / 10))
}

/// NVRTC's version, if it is there.
pub(super) fn nvrtc_version() -> Option<(u32, u32)> {
    if !has_nvrtc() {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there, and both numbers outlive the call.
    let done = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    done.result().ok().map(|()| (major as u32, minor as u32))
}
