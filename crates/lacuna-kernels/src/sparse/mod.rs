//! The table of sparse kernels: what each is called, whether this CPU can run it, how a packed layer is made ready.
//!
//! A kernel is one file and one line of [`KERNELS`]; the tests and benches walk the table. The tiling that a kernel
//! wants is built from the canonical [`Packed`] when a layer is loaded and never written to disk.

#[cfg(target_arch = "x86_64")]
mod avx2;
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
    /// Makes a layer ready for it.
    pub prepare: fn(&Packed) -> Box<dyn SparseWeight>,
}

/// All kernels, the preferred one first. The last is the oracle and is never chosen.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", available: avx2::available, prepare: avx2::prepare },
    Kernel { name: "portable", available: || true, prepare: portable::prepare },
    REFERENCE,
];

/// The scalar oracle.
pub const REFERENCE: Kernel = Kernel { name: "reference", available: || true, prepare: reference::prepare };

/// The kernel that runs on this machine. Every kernel takes every pattern and shape.
pub fn choose() -> &'static Kernel {
    KERNELS.iter().find(|kernel| (kernel.available)()).unwrap_or(&REFERENCE)
}

/// Refuses operands whose shapes do not fit a `[rows, cols]` weight.
fn check_shapes(rows: usize, cols: usize, x: &Matrix, y: &Matrix) {
    assert_eq!(x.rows(), cols, "activations have another number of features than the weight");
    assert_eq!((y.rows(), y.cols()), (rows, x.cols()), "result has another shape than the product");
}
