//! One GPU: its stream, its memory, and the kernels compiled for it so far.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{
    CUfunction_attribute_enum, CUgraphInstantiate_flags, CUlaunchAttribute_st, CUlaunchAttributeID,
    CUlaunchAttributeValue_union, CUlaunchConfig, CUstreamCaptureMode, cuLaunchKernelEx,
};
use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaSlice, CudaStream, DevicePtr, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::compile::{Architecture, compile};
use super::dense::Library;
use super::found::{Gpu, describe, driver_version, has_driver};
use crate::error::{Error, Result};
use crate::kernels::{Limits, source};
use crate::machine::{Buffer, Call, DenseProduct, Machine, OuterProduct, Recording};

/// What a kernel takes to begin early, compiled for a Hopper or newer: a driver that records that in graphs.
const EARLY_DRIVER: (u32, u32) = (12, 3);

/// A GPU that is in use. All work goes through one stream, in order.
pub struct Device {
    pub(super) stream: Arc<CudaStream>,
    gpu: Gpu,
    architecture: Architecture,
    /// whether kernels may begin while the one before still runs
    begins_early: bool,
    functions: Mutex<HashMap<String, CudaFunction>>,
    library: OnceLock<Library>,
}

impl Device {
    /// Takes a GPU by its number.
    pub fn open(ordinal: usize) -> Result<Self> {
        if !has_driver() {
            return Err(Error::Missing("the NVIDIA driver (libcuda)"));
        }
        let context = CudaContext::new(ordinal).map_err(failed("taking the GPU"))?;
        let gpu = describe(&context).map_err(failed("asking the GPU what it has"))?;
        if !gpu.has_sparse_tensor_cores() {
            return Err(Error::Capability { major: gpu.capability.0, minor: gpu.capability.1 });
        }
        let architecture = Architecture::of(gpu.capability)?;
        // SAFETY: with one stream there is nothing for events to order; buffers are freed on that stream too.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let (Architecture::Machine(major, _) | Architecture::Portable(major, _)) = architecture;
        let begins_early = major >= 9 && driver_version() >= Some(EARLY_DRIVER);
        let (functions, library) = (Mutex::default(), OnceLock::new());
        Ok(Self { stream, gpu, architecture, begins_early, functions, library })
    }

    /// Refuses where cuBLASLt is missing, which dense layers run on.
    pub fn check_dense(&self) -> Result<()> {
        self.library().map(drop)
    }

    /// What it is.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What its kernels are compiled for.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// A function of some text, compiled when first asked for.
    pub(super) fn function(&self, name: &str, source: impl FnOnce() -> String) -> Result<CudaFunction> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let binary = compile(&source(), self.architecture)?;
        let module = self.stream.context().load_module(Ptx::from_binary(binary)).map_err(failed("loading a kernel"))?;
        let function = module.load_function(name).map_err(failed("loading a kernel"))?;
        let shared = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function
            .set_attribute(shared, self.gpu.limits.shared_bytes as i32)
            .map_err(failed("giving a kernel its shared memory"))?;
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    /// Makes the GPU that of this thread, for calls that cudarc does not wrap.
    fn bind(&self, doing: &'static str) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(failed(doing))
    }

    fn library(&self) -> Result<&Library> {
        if let Some(library) = self.library.get() {
            return Ok(library);
        }
        self.bind("asking cuBLASLt")?;
        let library = Library::new(&self.stream)?;
        Ok(self.library.get_or_init(|| library))
    }
}

/// The struct that a kernel takes, and behind it what no kernel reads: the driver knows how long each one's is.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Parameter([u8; Parameter::BYTES]);

impl Parameter {
    const BYTES: usize = 512;
}

impl Machine for Device {
    fn limits(&self) -> Limits {
        self.gpu.limits
    }

    fn allocate(&self, bytes: usize) -> Result<Buffer> {
        // SAFETY: bytes that nobody gave a meaning to may have any.
        let memory = unsafe { self.stream.alloc::<u8>(bytes.max(1)) }.map_err(failed("taking memory of the GPU"))?;
        // Everything is on the stream that made the buffer, so there is nothing to wait for or to record.
        let address = memory.device_ptr(&self.stream).0;
        Ok(Buffer::new(address, bytes, Box::new(memory)))
    }

    fn write(&self, to: &Buffer, bytes: &[u8]) -> Result<()> {
        check(to, bytes.len())?;
        self.bind("copying to the GPU")?;
        // SAFETY: the buffer is ours and large enough. Memory of the host that is not pinned is copied before this returns.
        let copied = unsafe { result::memcpy_htod_async(to.address(), bytes, self.stream.cu_stream()) };
        copied.map_err(failed("copying to the GPU"))
    }

    fn read(&self, from: &Buffer, bytes: usize) -> Result<Vec<u8>> {
        check(from, bytes)?;
        let mut read = vec![0; bytes];
        self.bind("copying from the GPU")?;
        // SAFETY: the buffer is ours and large enough, and `read` lives until the copy is done.
        let copied = unsafe { result::memcpy_dtoh_async(&mut read, from.address(), self.stream.cu_stream()) };
        copied.map_err(failed("copying from the GPU"))?;
        self.synchronize()?;
        Ok(read)
    }

    fn launch(&self, call: &Call) -> Result<()> {
        let function = self.function(&call.kernel().name(), || source(&[call.kernel()]))?;
        let mut parameter = Parameter([0; Parameter::BYTES]);
        parameter.0[..call.operands().len()].copy_from_slice(call.operands());
        let [across, down] = call.blocks();
        let mut early = CUlaunchAttribute_st {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue_union { programmaticStreamSerializationAllowed: 1 },
        };
        let config = CUlaunchConfig {
            gridDimX: across,
            gridDimY: down,
            gridDimZ: 1,
            blockDimX: call.kernel().threads(),
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: call.shared_bytes(),
            hStream: self.stream.cu_stream(),
            attrs: &raw mut early,
            numAttrs: u32::from(self.begins_early && call.kernel().begins_early()),
        };
        self.bind("launching a kernel")?;
        let mut arguments = [(&raw mut parameter).cast::<c_void>()];
        // SAFETY: a `Call` is made by this crate alone, for the struct of its kernel, from buffers whose lengths it has
        // checked; the tests run the same calls with a forbidden page behind each buffer. Buffers outlive the launch,
        // because freeing them is queued on the same stream; a kernel that begins early waits for those before it, and so
        // is done after them. The driver copies arguments and attributes before it returns.
        unsafe { cuLaunchKernelEx(&raw const config, function.cu_function(), arguments.as_mut_ptr(), null_mut()) }
            .result()
            .map_err(failed("launching a kernel"))
    }

    fn multiply(&self, product: &DenseProduct) -> Result<()> {
        let library = self.library()?;
        self.bind("asking cuBLASLt for a product")?;
        library.multiply(product)
    }

    fn add_outer(&self, product: &OuterProduct) -> Result<()> {
        let library = self.library()?;
        self.bind("asking cuBLASLt for a product")?;
        library.add_outer(product)
    }

    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("waiting for the GPU"))
    }

    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed("recording a graph"))?;
        let done = work();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).map_err(failed("recording a graph"));
        done?;
        let empty = || Error::Driver { doing: "recording a graph", why: "it is empty".to_owned() };
        Ok(Box::new(Graph(graph?.ok_or_else(empty)?)))
    }
}

/// Refuses bytes past the end of a buffer, and buffers of another machine.
fn check(buffer: &Buffer, bytes: usize) -> Result<()> {
    if !buffer.owner().is::<CudaSlice<u8>>() || bytes > buffer.bytes() {
        return Err(Error::Shape { what: "a buffer of the GPU", want: bytes, got: buffer.bytes() });
    }
    Ok(())
}

/// Recorded work of the GPU.
struct Graph(CudaGraph);

// SAFETY: an executable graph belongs to no thread, and launches of it go to one stream, where the driver orders them.
unsafe impl Send for Graph {}
// SAFETY: as above; the driver locks what a launch changes.
unsafe impl Sync for Graph {}

impl Recording for Graph {
    fn replay(&self) -> Result<()> {
        self.0.launch().map_err(failed("launching a graph"))
    }
}

/// An error of the driver, while doing something.
pub(super) fn failed(doing: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Driver { doing, why: error.to_string() }
}
