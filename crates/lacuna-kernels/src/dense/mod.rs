//! Dense weights: those of layers that stay dense, and the rivals that the sparse kernels have to beat.

mod gemm;

use lacuna_core::{Matrix, Values};

pub use self::gemm::{Float, View, linear, matmul, matmul_bf16};
use crate::lanes::{self, InstructionSet};
use crate::weight::{Activations, Bias, Weight, check_shapes};

/// Instruction sets with dense kernels, the preferred one first.
pub(crate) static SETS: &[&InstructionSet] = &[
    #[cfg(target_arch = "x86_64")]
    &lanes::amx::SET,
    #[cfg(target_arch = "x86_64")]
    &lanes::avx512::WITH_DOT,
    #[cfg(target_arch = "x86_64")]
    &lanes::avx512::PLAIN,
    #[cfg(target_arch = "x86_64")]
    &lanes::avx2::SET,
    #[cfg(target_arch = "aarch64")]
    &lanes::neon::SET,
];

/// A dense kernel, for lists.
pub struct Kernel {
    /// name
    pub name: &'static str,
    /// what the CPU must have
    pub needs: &'static str,
    /// whether this machine can run it
    pub available: bool,
}

/// All dense kernels, the preferred one first; the last runs anywhere, on f32.
pub fn all() -> impl Iterator<Item = Kernel> {
    let sets = SETS.iter().map(|set| Kernel { name: set.name, needs: set.needs, available: (set.available)() });
    sets.chain([Kernel { name: "gemm", needs: "nothing", available: true }])
}

/// Names of the dense kernels that this machine can run, the preferred one first.
pub fn kernels() -> impl Iterator<Item = &'static str> {
    all().filter(|kernel| kernel.available).map(|kernel| kernel.name)
}

/// A dense weight `[rows, cols]` with its bias `[rows]`, if it has one, made ready for the kernel that this machine prefers.
///
/// # Panics
/// If there is another number of values or biases than the shape has.
pub fn prepare(values: &Values, shape: [usize; 2], bias: Option<&[f32]>, activations: Activations) -> Box<dyn Weight> {
    prepare_for(kernels().next().unwrap_or("gemm"), values, shape, bias, activations)
}

/// The same for a kernel by name, one of [`kernels`].
///
/// # Panics
/// As [`prepare`], or if there is no such kernel here.
pub fn prepare_for(
    kernel: &str,
    values: &Values,
    shape: [usize; 2],
    bias: Option<&[f32]>,
    activations: Activations,
) -> Box<dyn Weight> {
    match SETS.iter().find(|set| set.name == kernel) {
        Some(set) => lanes::prepare_dense(set, values, shape, bias, activations),
        None => {
            assert_eq!(kernel, "gemm", "no such kernel");
            let data = (0..values.len()).map(|i| values.get(i)).collect();
            let weight = Matrix::new(shape[0], shape[1], data).expect("as many values as the shape has");
            Box::new(Gemm { weight, bias: Bias::new(bias, shape[0]) })
        }
    }
}

/// f32 and the `gemm` crate.
struct Gemm {
    weight: Matrix,
    bias: Bias,
}

impl Weight for Gemm {
    fn multiply(&self, x: &Matrix, y: &mut Matrix) {
        check_shapes(self.weight.rows(), self.weight.cols(), x, y);
        let strides = [x.cols(), 1];
        matmul(y.data_mut(), strides, 0.0, 1.0, View::of(&self.weight), View::of(x), true);
        self.bias.add_to(0, y.data_mut(), x.cols());
    }

    fn rows(&self) -> usize {
        self.weight.rows()
    }
}
