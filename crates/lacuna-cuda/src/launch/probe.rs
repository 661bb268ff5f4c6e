//! The instruction and cache rates that decide on the design of kernels (kernels/probe.cu).

use cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};

use super::device::{Device, failed};
use crate::error::Result;
use crate::kernels::probe_source;
use crate::machine::Machine;

/// Blocks of a multiprocessor and threads of a block; a group of `wgmma` is 128 threads.
const BLOCKS: usize = 4;
const THREADS: usize = 128;
/// Instructions a round, `PROBE_SUMS` of probe.cu.
const ROUND: usize = 8;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// `mma` m16n8k16, bf16
    Dense,
    /// `mma.sp` m16n8k32, bf16
    Sparse,
    /// `wgmma.sp` m64n128k32, bf16; sm_90a alone
    GroupSparse,
    /// reads from the second-level cache
    Cache,
}

impl Probe {
    /// As records name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "mma",
            Self::Sparse => "mma.sp",
            Self::GroupSparse => "wgmma.sp",
            Self::Cache => "l2-read",
        }
    }

    /// Whether a GPU has it.
    pub fn runs_on(self, device: &Device) -> bool {
        self != Self::GroupSparse || device.gpu().capability == (9, 0)
    }

    /// Runs `rounds` and gives how much that was: floating-point operations, zeros counted, or bytes.
    pub fn run(self, device: &Device, rounds: u32) -> Result<f64> {
        let blocks = device.gpu().limits.multiprocessors * BLOCKS;
        let threads = blocks * THREADS;
        let mut out = device.stream.alloc_zeros::<f32>(threads).map_err(failed("taking memory"))?;
        let rounds_done = f64::from(rounds);
        let warps = (threads / 32) as f64 * rounds_done * ROUND as f64;
        match self {
            Self::Dense => self.launch(device, "probe_mma_dense", &mut out, rounds, None)?,
            Self::Sparse => self.launch(device, "probe_mma_sparse", &mut out, rounds, None)?,
            Self::GroupSparse => self.launch(device, "probe_wgmma_sparse", &mut out, rounds, None)?,
            Self::Cache => {
                // Half of the cache: what neither half of a split one has to share.
                let data = device.stream.alloc_zeros::<u8>(device.gpu().cache / 4 / 16 * 16);
                let data = data.map_err(failed("taking memory"))?;
                self.launch(device, "probe_cache", &mut out, rounds, Some(&data))?;
                device.synchronize()?;
                return Ok(data.len() as f64 * blocks as f64 * rounds_done);
            }
        }
        device.synchronize()?;
        Ok(warps
            * match self {
                Self::Dense => 2.0 * 16.0 * 8.0 * 16.0,
                Self::Sparse => 2.0 * 16.0 * 8.0 * 32.0,
                // A group is 4 warps.
                _ => 2.0 * 64.0 * 128.0 * 32.0 / 4.0,
            })
    }

    fn launch(
        self,
        device: &Device,
        name: &str,
        out: &mut CudaSlice<f32>,
        rounds: u32,
        data: Option<&CudaSlice<u8>>,
    ) -> Result<()> {
        let function = device.function(name, probe_source)?;
        let grid = LaunchConfig {
            grid_dim: ((out.len() / THREADS) as u32, 1, 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: if self == Self::GroupSparse { 32 * 128 * 2 } else { 0 },
        };
        let length = data.map_or(0, |data| data.len() / 16) as u32;
        let mut arguments = device.stream.launch_builder(&function);
        arguments.arg(out).arg(&rounds);
        if let Some(data) = data {
            arguments.arg(data).arg(&length);
        }
        // SAFETY: the probes take these arguments; each thread writes one element of `out`, which has as many, and reads
        // within `length` vectors of 16 bytes of `data`.
        unsafe { arguments.launch(grid) }.map_err(failed("launching a probe"))?;
        Ok(())
    }
}
