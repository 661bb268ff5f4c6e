//! Where models run.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use lacuna_core::Matrix;
use lacuna_cuda::Machine;
use lacuna_prune::Products;

/// Where a model runs.
#[derive(Clone, Default)]
pub enum Device {
    /// here
    #[default]
    Cpu,
    /// on an NVIDIA GPU, or what stands for one
    Cuda(Arc<dyn Machine>),
}

impl Device {
    /// The first GPU, with all that models need of CUDA. It is taken once; kernels stay compiled.
    pub fn cuda() -> Result<Self> {
        static TAKEN: Mutex<Option<Arc<dyn Machine>>> = Mutex::new(None);
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(machine) = &*taken {
            return Ok(Self::Cuda(machine.clone()));
        }
        let open = || {
            let device = lacuna_cuda::launch::Device::open(0)?;
            device.check_dense().map(|()| device)
        };
        let machine: Arc<dyn Machine> = Arc::new(open().context("--device cuda")?);
        *taken = Some(machine.clone());
        Ok(Self::Cuda(machine))
    }

    /// Who multiplies matrices of the CPU's memory there.
    pub(crate) fn products(&self) -> Option<Arc<dyn Products>> {
        match self {
            Self::Cpu => None,
            Self::Cuda(machine) => Some(Arc::new(OnMachine(machine.clone()))),
        }
    }

    /// Whether it is a GPU.
    pub fn is_cuda(&self) -> bool {
        matches!(self, Self::Cuda(_))
    }
}

/// Products of pruning on a GPU.
struct OnMachine(Arc<dyn Machine>);

impl Products for OnMachine {
    fn add_outer(&self, out: &mut Matrix, left: &Matrix, x: &Matrix) -> lacuna_core::Result<()> {
        lacuna_cuda::add_outer(&*self.0, out, left, x).map_err(|e| lacuna_core::Error::Product(e.to_string()))
    }

    fn multiply_symmetric(&self, out: &mut Matrix, a: &Matrix, b: &Matrix) -> lacuna_core::Result<()> {
        out.data_mut().fill(0.0);
        self.add_outer(out, a, b)
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_cuda() { "Cuda" } else { "Cpu" })
    }
}
