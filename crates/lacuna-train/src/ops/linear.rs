//! The linear product `y = x·Wᵀ (+ b)`, `x[T, K]`, `W[R, K]`, `b[R]`. Unlike candle's own product it makes no gradient for an
//! argument that wants none: a frozen weight costs nothing on the way back.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, MetalStorage, Result, Shape, Tensor};
use lacuna_kernels::dense::{View, matmul, matmul_bf16};

use super::{floats, on_cpu, with_floats};

/// `x·Wᵀ`; with `bf16` of both rounded to bfloat16, here and on the way back, sums in f32.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, bf16: bool) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight.contiguous()?, Product::of_layer(bf16))
}

/// `x·Wᵀ + b`, the same.
pub(crate) fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor, bf16: bool) -> Result<Tensor> {
    if on_cpu(&[x, weight, bias]) {
        return x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Affine(Product::of_layer(bf16)));
    }
    linear(x, weight, bf16)?.broadcast_add(bias)
}

/// `dy·W`, what `x` of `x·Wᵀ` gets back, outside a graph.
pub(crate) fn linear_back(dy: &Tensor, weight: &Tensor, bf16: bool) -> Result<Tensor> {
    outside(dy, weight, &Product { transposed: [false, false], bf16 })
}

/// `dyᵀ·x`, what `W` of `x·Wᵀ` gets back, outside a graph.
pub(crate) fn linear_weight_back(dy: &Tensor, x: &Tensor, bf16: bool) -> Result<Tensor> {
    outside(dy, x, &Product { transposed: [true, false], bf16 })
}

fn outside(a: &Tensor, b: &Tensor, product: &Product) -> Result<Tensor> {
    a.contiguous()?.detach().apply_op2_no_bwd(&b.contiguous()?.detach(), product)
}

/// `op(A)·op(B)`, each as it is or transposed.
struct Product {
    transposed: [bool; 2],
    bf16: bool,
}

impl Product {
    /// `x·Wᵀ`
    fn of_layer(bf16: bool) -> Self {
        Self { transposed: [false, true], bf16 }
    }

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

    fn on_cpu(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(Vec<f32>, Shape)> {
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
        if self.bf16 {
            matmul_bf16(&mut out, a, b);
        } else {
            matmul(&mut out, [n, 1], 0.0, 1.0, a, b, false);
        }
        Ok((out, Shape::from((m, n))))
    }

    fn on_device<S: BackendStorage>(&self, a: &S, la: &Layout, b: &S, lb: &Layout) -> Result<(S, Shape)> {
        let [m, k, n] = self.sizes(la, lb)?;
        let turned = |layout: &Layout, operand: usize| {
            if self.transposed[operand] { layout.transpose(0, 1) } else { Ok(layout.clone()) }
        };
        let (sizes, shape) = ((1, m, n, k), Shape::from((m, n)));
        if !self.bf16 {
            return Ok((a.matmul(b, sizes, &turned(la, 0)?, &turned(lb, 1)?)?, shape));
        }
        // Types are changed of what layouts show: the results are contiguous, and begin where they do.
        let (a, b) = (a.to_dtype(la, DType::BF16)?, b.to_dtype(lb, DType::BF16)?);
        let [la, lb] = [la, lb].map(|layout| Layout::contiguous(layout.shape()));
        let y = a.matmul(&b, sizes, &turned(&la, 0)?, &turned(&lb, 1)?)?;
        Ok((y.to_dtype(&Layout::contiguous(&shape), DType::F32)?, shape))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (y, shape) = self.on_cpu(a, la, b, lb)?;
        Ok((CpuStorage::F32(y), shape))
    }
    fn cuda_fwd(&self, a: &CudaStorage, la: &Layout, b: &CudaStorage, lb: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_device(a, la, b, lb)
    }

    fn metal_fwd(&self, a: &MetalStorage, la: &Layout, b: &MetalStorage, lb: &Layout) -> Result<(MetalStorage, Shape)> {
        self.on_device(a, la, b, lb)
    }

    /// Of `y = x·Wᵀ` only: `dx = dy·W`, `dW = dyᵀ·x`.
    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| linear_back(dy, weight, self.bf16)).transpose()?;
        let dw = weight.track_op().then(|| linear_weight_back(dy, x, self.bf16)).transpose()?;
        Ok((dx, dw))
    }
}

/// That of a layer, with a bias for each row of the weight.
struct Affine(Product);

impl CustomOp3 for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        weight: &CpuStorage,
        lw: &Layout,
        bias: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (mut y, shape) = self.0.on_cpu(x, lx, weight, lw)?;
        let bias = floats(bias, lb)?;
        y.chunks_exact_mut(bias.len()).for_each(|token| token.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.0.bwd(x, weight, y, dy)?;
        let of_bias = || {
            let mut sum = vec![0.0_f32; bias.elem_count()];
            with_floats(dy, |dy| {
                let tokens = dy.chunks_exact(sum.len());
                tokens.for_each(|token| sum.iter_mut().zip(token).for_each(|(sum, dy)| *sum += dy));
            })?;
            Tensor::from_vec(sum, bias.shape(), dy.device())
        };
        Ok((dx, dw, bias.track_op().then(of_bias).transpose()?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Tensor, Var};

    use super::{affine, linear};
    use crate::ops::tests::{check, close, noise, values};

    #[test]
    fn the_linear_product_has_the_gradients_of_its_definition() {
        let arguments = [noise(&[5, 7], 1), noise(&[3, 7], 2)];
        check(&arguments, |a| linear(a[0], a[1], false), |a| a[0].matmul(&a[1].t()?));
    }

    #[test]
    fn biases_have_the_gradients_of_their_definition() {
        let arguments = [noise(&[5, 7], 1), noise(&[3, 7], 2), noise(&[3], 3)];
        check(&arguments, |a| affine(a[0], a[1], a[2], false), |a| a[0].matmul(&a[1].t()?)?.broadcast_add(a[2]));
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let (x, weight) = (Var::from_tensor(&noise(&[5, 7], 1)).unwrap(), noise(&[3, 7], 2));
        let gradients = linear(&x, &weight, false).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(gradients.get(&x).is_some() && gradients.get(&weight).is_none());
    }

    #[test]
    fn products_in_bfloat16_are_those_of_rounded_operands() {
        let rounded = |tensor: &Tensor| tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        let [x, weight, dy] = [noise(&[5, 7], 1), noise(&[3, 7], 2), noise(&[5, 3], 3)];
        let [wide_x, wide_weight, wide_dy] = [&x, &weight, &dy].map(rounded);
        let (got_x, got_weight) = (Var::from_tensor(&x).unwrap(), Var::from_tensor(&weight).unwrap());
        let got = linear(&got_x, &got_weight, true).unwrap();
        let want = wide_x.matmul(&wide_weight.t().unwrap()).unwrap();
        close(&values(&got), &values(&want), 1e-6, "values");
        // A sum whose gradient is `dy`.
        let gradients = (got * &dy).unwrap().sum_all().unwrap().backward().unwrap();
        for (got, want) in [
            (&got_x, wide_dy.matmul(&wide_weight).unwrap()),
            (&got_weight, wide_dy.t().unwrap().matmul(&wide_x).unwrap()),
        ] {
            close(&values(gradients.get(got).unwrap()), &values(&want), 1e-6, "gradients");
        }
    }
}
