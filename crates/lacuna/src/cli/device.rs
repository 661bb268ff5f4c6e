//! The flag that says where products are computed, shared by `run`, `eval`, `bench` and `prune`.

use anyhow::Result;
use clap::ValueEnum;
use lacuna::UsageError;
use lacuna::device::Device;

use super::ActivationsName;

/// Where a model runs.
#[derive(clap::Args)]
pub(super) struct DeviceArgs {
    /// Where to compute; a GPU needs what `lacuna doctor` lists
    #[arg(long, value_enum, default_value_t = DeviceName::Cpu, value_name = "DEVICE")]
    device: DeviceName,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum DeviceName {
    /// here
    Cpu,
    /// on the first NVIDIA GPU, with 16-bit activations
    Cuda,
}

impl DeviceArgs {
    /// Takes it. Refuses activations of 32 bits on a GPU.
    pub(super) fn open(&self, activations: Option<ActivationsName>) -> Result<Device> {
        match self.device {
            DeviceName::Cpu => Ok(Device::Cpu),
            DeviceName::Cuda if matches!(activations, Some(ActivationsName::F32)) => {
                let problem =
                    "--activations f32 is for the CPU: on a GPU they have 16 bits, so leave it out, or ask for bf16";
                Err(UsageError(problem.to_owned()).into())
            }
            DeviceName::Cuda => Device::cuda(),
        }
    }
}
