//! Differentiable operations on token-major activations, `[T, features]`. Each is written with candle's own operations, for
//! any device, and most once more for a CPU, where candle's take several passes over memory; the tests
//! hold one against the other and both against finite differences. Beside them, in place, what AdamW does to parameters.

mod activation;
mod adam;
mod attention;
mod linear;
mod norm;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor};

pub(crate) use activation::{activate, gate_by};
pub(crate) use adam::{Advance, Follow};
pub(crate) use attention::{Sequences, attend};
pub(crate) use linear::{affine, linear, linear_back, linear_weight_back};
pub(crate) use norm::{layer_norm, rms_norm};

/// Whether tensors are what the CPU's own code takes.
fn on_cpu(tensors: &[&Tensor]) -> bool {
    tensors.iter().all(|tensor| tensor.device().is_cpu())
}

/// The values of a contiguous tensor inside a forward pass.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let (start, end) = layout.contiguous_offsets().expect("operations are given contiguous tensors");
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The same of one that changes in place.
fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let (start, end) = layout.contiguous_offsets().expect("operations are given contiguous tensors");
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => candle_core::bail!("values of another type"),
    }
}

/// Shows the values of a tensor of f32 on a CPU.
pub(crate) fn with_floats<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(floats(storage, layout)?)),
        Storage::Cuda(_) | Storage::Metal(_) => candle_core::bail!("values of another device"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    //! What the tests of all operations share.

    use candle_core::{Device, Result, Tensor, Var};

    /// Numbers between −1 and 1 that repeat for nobody.
    pub(crate) fn noise(shape: &[usize], seed: u32) -> Tensor {
        let value = |i: usize| ((i as u32 + 1).wrapping_mul(2_654_435_761).wrapping_add(seed * 77_777) >> 8) as f32;
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| value(i) / 8_388_608.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// `Σ y ⊙ c` for fixed numbers `c`: a scalar whose gradient tests all of `y`.
    fn probe(y: &Tensor) -> Result<Tensor> {
        (y * noise(y.dims(), 99))?.sum_all()
    }

    /// Holds a function's gradients of all its arguments against finite differences, and value and gradients against those
    /// of `other`, the same written in another way.
    pub(crate) fn check(
        arguments: &[Tensor],
        f: impl Fn(&[&Tensor]) -> Result<Tensor>,
        other: impl Fn(&[&Tensor]) -> Result<Tensor>,
    ) {
        let vars: Vec<Var> = arguments.iter().map(|tensor| Var::from_tensor(tensor).unwrap()).collect();
        let tensors: Vec<&Tensor> = vars.iter().map(Var::as_tensor).collect();
        let (ours, theirs) = (f(&tensors).unwrap(), other(&tensors).unwrap());
        close(&values(&ours), &values(&theirs), 2e-5, "values");
        let [ours, theirs] = [ours, theirs].map(|y| probe(&y).unwrap().backward().unwrap());
        for (i, tensor) in tensors.iter().enumerate() {
            let gradient = values(ours.get(tensor).unwrap_or_else(|| panic!("argument {i} has no gradient")));
            close(&gradient, &values(theirs.get(tensor).unwrap()), 1e-4, &format!("gradients of argument {i}"));
            let start = values(tensor);
            for place in (0..start.len()).step_by(start.len().div_ceil(12)) {
                let step = 1e-2_f32;
                let moved = |by: f32| {
                    let mut moved = start.clone();
                    moved[place] += by;
                    let moved = Tensor::from_vec(moved, tensor.dims(), &Device::Cpu).unwrap();
                    let mut all = tensors.clone();
                    all[i] = &moved;
                    let y = f(&all).unwrap();
                    // In f64: of many values a sum in f32 is no better than the differences sought.
                    values(&y)
                        .iter()
                        .zip(values(&noise(y.dims(), 99)))
                        .map(|(a, b)| f64::from(*a) * f64::from(b))
                        .sum::<f64>()
                };
                let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                let got = f64::from(gradient[place]);
                assert!((slope - got).abs() < 4e-3 * (1.0 + slope.abs()), "argument {i}, {place}: {got}, not {slope}");
            }
        }
    }

    pub(crate) fn close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (a, b)) in got.iter().zip(want).enumerate() {
            assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: at {i} {a}, not {b}");
        }
    }
}
