//! The table of sparse kernels: what each is called, whether this CPU can run it, how a packed layer is made ready.
//!
//! A kernel is one file and one line of [`KERNELS`]; the tests and benches walk the table. The tiling that a kernel
//! wants is built from the canonical [`Packed`] when a layer is loaded and never written to disk.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod lanes;
mod portable;
mod reference;
mod strips;

use lacuna_core::{Matrix, Packed};

/// A sparse weight made ready for one kernel.
pub trait SparseWeight: Send + Sync {
    /// `y = W · x` for activations `x[K, T]`; `y` is `[R, T]`.
    ///
    /// # Panics
    /// If the shapes do not fit.
    fn multiply(&self, x: &Matrix, y: &mut Matrix);

    /// `out_features`, R.
    fn rows(&self) -> usize;
}

/// One line of the table.
pub struct Kernel {
    /// Name, as `verify` prints it.
    pub name: &'static str,
    /// Whether this machine can run it.
    pub available: fn() -> bool,
    /// Whether it suits a layer.
    pub takes: fn(&Packed) -> bool,
    /// Makes a layer ready for it.
    pub prepare: fn(&Packed, Activations) -> Box<dyn SparseWeight>,
}

/// What activations may be rounded to on their way into a product. Sums are f32 either way, and integer values always
/// meet activations of 16 bits with a scale of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// not at all
    F32,
    /// to bfloat16, where the weights are bfloat16 and the CPU multiplies it
    Bf16,
}

/// All kernels, the preferred one first. The last is the oracle and is never chosen.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "avx512-vnni-bf16",
        available: lanes::avx512::dot_available,
        takes: |packed| lanes::takes(packed, 16),
        prepare: lanes::avx512::prepare_dot,
    },
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "avx512",
        available: lanes::avx512::available,
        takes: |packed| lanes::takes(packed, 16),
        prepare: lanes::avx512::prepare,
    },
    #[cfg(target_arch = "x86_64")]
    Kernel {
        name: "avx2",
        available: lanes::avx2::available,
        takes: |packed| lanes::takes(packed, 8),
        prepare: lanes::avx2::prepare,
    },
    #[cfg(target_arch = "aarch64")]
    Kernel {
        name: "neon",
        available: lanes::neon::available,
        takes: |packed| lanes::takes(packed, 4),
        prepare: lanes::neon::prepare,
    },
    Kernel { name: "portable", available: || true, takes: |_| true, prepare: portable::prepare },
    REFERENCE,
];

/// The scalar oracle.
pub const REFERENCE: Kernel =
    Kernel { name: "reference", available: || true, takes: |_| true, prepare: reference::prepare };

/// The kernel that runs a layer on this machine. Every layer has one.
pub fn choose(packed: &Packed) -> &'static Kernel {
    KERNELS.iter().find(|kernel| (kernel.available)() && (kernel.takes)(packed)).unwrap_or(&REFERENCE)
}

/// Refuses operands whose shapes do not fit a `[rows, cols]` weight.
fn check_shapes(rows: usize, cols: usize, x: &Matrix, y: &Matrix) {
    assert_eq!(x.rows(), cols, "activations have another number of features than the weight");
    assert_eq!((y.rows(), y.cols()), (rows, x.cols()), "result has another shape than the product");
}
