//! The linear product `y = x·Wᵀ`, `x[T, K]`, `W[R, K]`. Unlike candle's own product it makes no gradient for an argument
//! that wants none: a frozen weight costs nothing on the way back.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Tensor};
use lacuna_kernels::dense::{View, matmul};

use super::floats;

/// `x·Wᵀ`. Types that the CPU has no product of are multiplied as f32 and rounded.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    if x.device().is_cpu() && dtype != DType::F32 {
        return linear(&x.to_dtype(DType::F32)?, &weight.to_dtype(DType::F32)?)?.to_dtype(dtype);
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, Product { transposed: [false, true] })
}

/// `dy·W`, what `x` of `x·Wᵀ` gets back, outside a graph.
pub(crate) fn linear_back(dy: &Tensor, weight: &Tensor) -> Result<Tensor> {
    dy.contiguous()?.detach().apply_op2_no_bwd(&weight.contiguous()?.detach(), &Product { transposed: [false, false] })
}

/// `dyᵀ·x`, what `W` of `x·Wᵀ` gets back, outside a graph.
pub(crate) fn linear_weight_back(dy: &Tensor, x: &Tensor) -> Result<Tensor> {
    dy.contiguous()?.detach().apply_op2_no_bwd(&x.contiguous()?.detach(), &Product { transposed: [true, false] })
}

/// `op(A)·op(B)`, each as it is or transposed.
struct Product {
    transposed: [bool; 2],
}

impl Product {
    /// `[m, k, n]`
    fn sizes(&self, a: &Layout, b: &Layout) -> Result<[usize; 3]> {
        let ((a_rows, a_cols), (b_rows, b_cols)) = (a.shape().dims2()?, b.shape().dims2()?);
        let (m, k) = if self.transposed[0] { (a_cols, a_rows) } else { (a_rows, a_cols) };
        let (inner, n) = if self.transposed[1] { (b_cols, b_rows) } else { (b_rows, b_cols) };
        if k != inner {
            candle_core::bail!("a product of {m} × {k} and {inner} × {n}");
        }
        Ok([m, k, n])
    }

    fn on_device<S: BackendStorage>(&self, a: &S, la: &Layout, b: &S, lb: &Layout) -> Result<(S, Shape)> {
        let [m, k, n] = self.sizes(la, lb)?;
        let turned = |layout: &Layout, turn: bool| if turn { layout.transpose(0, 1) } else { Ok(layout.clone()) };
        let (la, lb) = (turned(la, self.transposed[0])?, turned(lb, self.transposed[1])?);
        Ok((a.matmul(b, (1, m, n, k), &la, &lb)?, Shape::from((m, n))))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let [m, k, n] = self.sizes(la, lb)?;
        let mut out = vec![0.0_f32; m * n];
        let view = |data, [rows, cols]: [usize; 2], turn: bool| {
            if turn {
                View::new(data, [cols, rows], [rows, 1]).transposed()
            } else {
                View::new(data, [rows, cols], [cols, 1])
            }
        };
        let a = view(floats(a, la)?, [m, k], self.transposed[0]);
        let b = view(floats(b, lb)?, [k, n], self.transposed[1]);
        // One thread: batches run side by side.
        matmul(&mut out, [n, 1], 0.0, 1.0, a, b, false);
        Ok((CpuStorage::F32(out), Shape::from((m, n))))
    }

    fn cuda_fwd(&self, a: &CudaStorage, la: &Layout, b: &CudaStorage, lb: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_device(a, la, b, lb)
    }

    fn metal_fwd(&self, a: &MetalStorage, la: &Layout, b: &MetalStorage, lb: &Layout) -> Result<(MetalStorage, Shape)> {
        self.on_device(a, la, b, lb)
    }

    /// Of `y = x·Wᵀ` only: `dx = dy·W`, `dW = dyᵀ·x`.
    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| linear_back(dy, weight)).transpose()?;
        let dw = weight.track_op().then(|| linear_weight_back(dy, x)).transpose()?;
        Ok((dx, dw))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Var};

    use super::linear;
    use crate::ops::tests::{check, noise};

    #[test]
    fn the_linear_product_has_the_gradients_of_its_definition() {
        let arguments = [noise(&[5, 7], 1), noise(&[3, 7], 2)];
        check(&arguments, |a| linear(a[0], a[1]), |a| a[0].matmul(&a[1].t()?));
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let (x, weight) = (Var::from_tensor(&noise(&[5, 7], 1)).unwrap(), noise(&[3, 7], 2));
        let gradients = linear(&x, &weight).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&x).is_some() && gradients.get(&weight).is_none());
    }

    #[test]
    fn bfloat16_is_multiplied_as_f32_and_rounded() {
        let [x, weight] = [noise(&[5, 7], 1), noise(&[3, 7], 2)].map(|t| t.to_dtype(DType::BF16).unwrap());
        let [wide_x, wide_weight] = [&x, &weight].map(|t| t.to_dtype(DType::F32).unwrap());
        let want = linear(&wide_x, &wide_weight).unwrap().to_dtype(DType::BF16).unwrap();
        let got = linear(&x, &weight).unwrap();
        assert_eq!(got.dtype(), DType::BF16);
        let values = |t: candle_core::Tensor| t.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values(got), values(want));
    }
}
