//! The table of sparse kernels: what each is called, whether this CPU can run it, how a packed layer is made ready.
//!
//! A kernel is one file and one line of [`KERNELS`]; the tests and benches walk the table. The tiling that a kernel
//! wants is built from the canonical [`Packed`] when a layer is loaded and never written to disk.

mod portable;
mod reference;
mod strips;

use lacuna_core::Packed;

use crate::lanes;
use crate::weight::{Activations, Weight};

/// Makes a layer with its bias ready for a kernel.
pub type Prepare = fn(&Packed, Option<&[f32]>, Activations) -> Box<dyn Weight>;

/// One line of the table.
pub struct Kernel {
    /// Name, as `verify` prints it.
    pub name: &'static str,
    /// What the CPU must have.
    pub needs: &'static str,
    /// Whether this machine can run it.
    pub available: fn() -> bool,
    /// Whether it suits a layer.
    pub takes: fn(&Packed) -> bool,
    /// Makes a layer with its bias `[R]`, if it has one, ready for it. Panics if the bias has another length.
    pub prepare: Prepare,
}

/// The kernel that an instruction set makes.
macro_rules! lanes_kernel {
    ($set:path) => {
        Kernel {
            name: $set.name,
            needs: $set.needs,
            available: $set.available,
            takes: |packed| lanes::takes(packed, &$set),
            prepare: |packed, bias, activations| lanes::prepare(&$set, packed, bias, activations),
        }
    };
}

/// All kernels, the preferred one first. The last is the oracle and is never chosen.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    lanes_kernel!(lanes::amx::SET),
    #[cfg(target_arch = "x86_64")]
    lanes_kernel!(lanes::avx512::WITH_DOT),
    #[cfg(target_arch = "x86_64")]
    lanes_kernel!(lanes::avx512::PLAIN),
    #[cfg(target_arch = "x86_64")]
    lanes_kernel!(lanes::avx2::SET),
    #[cfg(target_arch = "aarch64")]
    lanes_kernel!(lanes::neon::SET),
    Kernel { name: "portable", needs: "nothing", available: || true, takes: |_| true, prepare: portable::prepare },
    REFERENCE,
];

/// The scalar oracle.
pub const REFERENCE: Kernel =
    Kernel { name: "reference", needs: "nothing", available: || true, takes: |_| true, prepare: reference::prepare };

/// The kernel that runs a layer on this machine. Every layer has one.
pub fn choose(packed: &Packed) -> &'static Kernel {
    KERNELS.iter().find(|kernel| (kernel.available)() && (kernel.takes)(packed)).unwrap_or(&REFERENCE)
}
