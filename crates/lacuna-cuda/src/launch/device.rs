//! One GPU: its stream, and the kernels compiled for it so far.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{CUfunction_attribute_enum, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaStream, DriverError};
use cudarc::nvrtc::Ptx;

use super::compile::{Architecture, compile};
use super::found::{Gpu, describe, has_driver};
use crate::error::{Error, Result};

/// A GPU that is in use. All work goes through one stream, in order.
pub struct Device {
    pub(super) stream: Arc<CudaStream>,
    gpu: Gpu,
    architecture: Architecture,
    functions: Mutex<HashMap<String, CudaFunction>>,
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
        Ok(Self { stream, gpu, architecture, functions: Mutex::default() })
    }

    /// What it is.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What its kernels are compiled for.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// Waits until all work is done; an error of any of it comes to light here.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("waiting for the GPU"))
    }

    /// Records work, to be done again and again without the host's part of it. The work must wait for nothing, and all
    /// kernels in it must have run before.
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed("recording a graph"))?;
        let done = work();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = self.stream.end_capture(flags).map_err(failed("recording a graph"));
        done?;
        graph?.map(Graph).ok_or_else(|| Error::Driver { doing: "recording a graph", why: "it is empty".to_owned() })
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
}

/// Recorded work.
pub struct Graph(CudaGraph);

impl Graph {
    /// Does it once more.
    pub fn launch(&self) -> Result<()> {
        self.0.launch().map_err(failed("launching a graph"))
    }
}

/// An error of the driver, while doing something.
pub(super) fn failed(doing: &'static str) -> impl Fn(DriverError) -> Error {
    move |error| Error::Driver { doing, why: error.to_string() }
}
