//! Dense weights: those of layers that stay dense, and the rivals that the sparse kernels have to beat.

mod gemm;

use lacuna_core::{Matrix, Values};

pub use self::gemm::{View, linear, matmul};
use crate::lanes::{self, InstructionSet};
use crate::weight::{Activations, Weight, check_shapes};

/// Instruction sets with dense kernels, the preferred one first.
static SETS: &[&InstructionSet] = &[
    #[cfg(target_arch = "x86_64")]
    &lanes::avx512::WITH_DOT,
    #[cfg(target_arch = "x86_64")]
    &lanes::avx512::PLAIN,
    #[cfg(target_arch = "x86_64")]
    &lanes::avx2::SET,
    #[cfg(target_arch = "aarch64")]
    &lanes::neon::SET,
];

/// Names of the dense kernels that this machine can run, the preferred one first; the last runs anywhere.
pub fn kernels() -> impl Iterator<Item = &'static str> {
    SETS.iter().filter(|set| (set.available)()).map(|set| set.name).chain(["gemm"])
}

/// A dense weight `[rows, cols]` made ready for the kernel that this machine prefers.
///
/// # Panics
/// If there is another number of values than the shape has.
pub fn prepare(values: &Values, shape: [usize; 2], activations: Activations) -> Box<dyn Weight> {
    prepare_for(kernels().next().unwrap_or("gemm"), values, shape, activations)
}

/// The same for a kernel by name, one of [`kernels`].
///
/// # Panics
/// As [`prepare`], or if there is no such kernel here.
pub fn prepare_for(kernel: &str, values: &Values, shape: [usize; 2], activations: Activations) -> Box<dyn Weight> {
    match SETS.iter().find(|set| set.name == kernel) {
        Some(set) => lanes::prepare_dense(set, values, shape, activations),
        None => {
            assert_eq!(kernel, "gemm", "no such kernel");
            let data = (0..values.len()).map(|i| values.get(i)).collect();
            Box::new(Gemm(Matrix::new(shape[0], shape[1], data).expect("as many values as the shape has")))
        }
    }
}

/// f32 and the `gemm` crate.
struct Gemm(Matrix);

impl Weight for Gemm {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        check_shapes(self.0.rows(), self.0.cols(), x, y);
        let strides = [x.cols(), 1];
        matmul(y.data_mut(), strides, 0.0, 1.0, View::of(&self.0), View::of(x), true);
    }

    fn rows(&self) -> usize {
        self.0.rows()
    }
}
