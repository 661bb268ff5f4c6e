//! What AdamW does to its moments and parameters: on a CPU in place, one pass each.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor};

use super::{floats, floats_mut, on_cpu};

/// How a moment follows a gradient.
#[derive(Clone, Copy)]
pub(crate) struct Follow {
    /// share of the moment that stays
    pub(crate) keep: f64,
    /// what the gradient, or its square, counts
    pub(crate) rate: f64,
    /// whether the square is what is followed
    pub(crate) squared: bool,
}

impl Follow {
    /// `keep·m + rate·g`, or `keep·m + rate·g²`.
    pub(crate) fn apply(self, moment: &mut Tensor, gradient: &Tensor) -> Result<()> {
        if on_cpu(&[moment, gradient]) {
            return moment.inplace_op2(&gradient.contiguous()?, &self);
        }
        *moment = self.anywhere(moment, gradient)?;
        Ok(())
    }

    fn anywhere(self, moment: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let followed = if self.squared { gradient.sqr()? } else { gradient.clone() };
        (moment * self.keep)? + (followed * self.rate)?
    }
}

impl InplaceOp2 for Follow {
    fn name(&self) -> &'static str {
        "follow"
    }

    fn cpu_fwd(&self, moment: &mut CpuStorage, lm: &Layout, gradient: &CpuStorage, lg: &Layout) -> Result<()> {
        let (keep, rate) = (self.keep as f32, self.rate as f32);
        let both = floats_mut(moment, lm)?.iter_mut().zip(floats(gradient, lg)?);
        if self.squared {
            both.for_each(|(m, g)| *m = keep * *m + rate * (g * g));
        } else {
            both.for_each(|(m, g)| *m = keep * *m + rate * g);
        }
        Ok(())
    }
}

/// How a parameter moves.
#[derive(Clone, Copy)]
pub(crate) struct Advance {
    /// share of it that stays
    pub(crate) keep: f64,
    pub(crate) rate: f64,
    pub(crate) eps: f64,
}

impl Advance {
    /// `keep·w − rate·m / (√v + eps)`.
    pub(crate) fn apply(self, parameter: &mut Tensor, first: &Tensor, second: &Tensor) -> Result<()> {
        if on_cpu(&[parameter, first, second]) {
            return parameter.inplace_op3(first, second, &self);
        }
        *parameter = self.anywhere(parameter, first, second)?.detach();
        Ok(())
    }

    fn anywhere(self, parameter: &Tensor, first: &Tensor, second: &Tensor) -> Result<Tensor> {
        (parameter * self.keep)? - (first.div(&(second.sqrt()? + self.eps)?)? * self.rate)?
    }
}

impl InplaceOp3 for Advance {
    fn name(&self) -> &'static str {
        "advance"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        lp: &Layout,
        first: &CpuStorage,
        lf: &Layout,
        second: &CpuStorage,
        ls: &Layout,
    ) -> Result<()> {
        let (keep, rate, eps) = (self.keep as f32, self.rate as f32, self.eps as f32);
        let moments = floats(first, lf)?.iter().zip(floats(second, ls)?);
        for (w, (m, v)) in floats_mut(parameter, lp)?.iter_mut().zip(moments) {
            *w = keep * *w - rate * m / (v.sqrt() + eps);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Advance, Follow};
    use crate::ops::tests::{close, noise, values};

    #[test]
    fn in_place_is_what_tensors_come_to() {
        let (mut moment, gradient) = (noise(&[5, 7], 1), noise(&[5, 7], 2));
        for squared in [false, true] {
            let follow = Follow { keep: 0.9, rate: 0.3, squared };
            let want = values(&follow.anywhere(&moment, &gradient).unwrap());
            follow.apply(&mut moment, &gradient).unwrap();
            close(&values(&moment), &want, 1e-6, "moment");
        }
        let (mut parameter, second) = (noise(&[5, 7], 3), noise(&[5, 7], 4).sqr().unwrap());
        let advance = Advance { keep: 0.99, rate: 0.1, eps: 1e-3 };
        let want = values(&advance.anywhere(&parameter, &moment, &second).unwrap());
        advance.apply(&mut parameter, &moment, &second).unwrap();
        close(&values(&parameter), &want, 1e-5, "parameter");
    }
}
