//! ALPS (Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models", NeurIPS
//! 2024, arXiv 2406.07831, algorithm 1 and section 3): ADMM on the scaled problem, here with the projection onto V:N:M.
//!
//! `B = (H̃ + ρ·I)⁻¹·(H̃·W̃ − V + ρ·D)`, `D = Π(B + V/ρ)`, `V ← V + ρ·(B − D)`; `ρ` grows by how much the support of `D` still moves, until
//! it is settled; then least squares under that mask. The authors take an eigendecomposition once; an inverse for each
//! `ρ` costs less than the second product of every step that it saves.

use lacuna_core::{Mask, Matrix, Result};

use super::{Hessian, Task, lsq, squares};
use crate::select::{improve_blocks, same_columns};

/// The authors' `ρ` at first.
const FIRST_RHO: f64 = 0.1;
/// Steps between two looks at the support, and steps at most.
const STEPS_PER_LOOK: usize = 3;
const STEPS: usize = 300;
/// Steps after which a share of moves below [`SETTLED`] ends it.
const FEWEST_STEPS: usize = 30;
const SETTLED: f64 = 3e-4;
/// By how much `ρ` grows where more than a share of what is kept has moved since the last look.
const GROWTH: [(f64, f64); 3] = [(0.1, 1.3), (0.005, 1.2), (0.0, 1.1)];
/// By how much it shrinks while nothing has moved at all yet.
const SHRINK: f64 = 5.0;

/// The updated scaled weight and its mask.
pub(super) fn run(task: &Task, hessian: &Hessian) -> Result<(Matrix, Mask)> {
    let target = hessian.scale(task.weight);
    let (rows, cols) = (target.rows(), target.cols());
    let products = task.stats()?.products();
    let mut wanted = Matrix::zeros(rows, cols);
    products.multiply_symmetric(&mut wanted, &target, hessian.scaled())?;

    let first = improve_blocks(&squares(&target)?, &task.mask, task.selection)?;
    let kept = first.grid().kept() as f64;
    let mut mask = first.clone();
    let mut seen = mask.to_bools();
    let (mut primal, mut sparse) = (target.clone(), mask.apply(&target)?);
    let mut dual = Matrix::zeros(rows, cols);
    let mut right = Matrix::zeros(rows, cols);
    let (mut rho, mut started) = (FIRST_RHO, false);
    let mut inverse = hessian.inverse(rho);
    for step in 1..=STEPS {
        let parts = wanted.data().iter().zip(dual.data()).zip(sparse.data());
        for (out, ((want, v), d)) in right.data_mut().iter_mut().zip(parts) {
            *out = want - v + rho as f32 * d;
        }
        products.multiply_symmetric(&mut primal, &right, &inverse)?;
        let per_rho = 1.0 / rho as f32;
        for (out, (b, v)) in right.data_mut().iter_mut().zip(primal.data().iter().zip(dual.data())) {
            *out = b + v * per_rho;
        }
        let looks = step % STEPS_PER_LOOK == 0;
        let scores = squares(&right)?;
        mask = if looks { improve_blocks(&scores, &mask, task.selection)? } else { same_columns(&scores, &mask)? };
        sparse = mask.apply(&right)?;
        for (v, (b, d)) in dual.data_mut().iter_mut().zip(primal.data().iter().zip(sparse.data())) {
            *v += rho as f32 * (b - d);
        }
        if looks {
            let now = mask.to_bools();
            let moved = now.as_slice().iter().zip(seen.as_slice()).filter(|(a, b)| a != b).count();
            seen = now;
            let share = moved as f64 / kept;
            if moved == 0 && started || step >= FEWEST_STEPS && share < SETTLED {
                break;
            }
            match GROWTH.iter().find(|&&(least, _)| share > least) {
                Some(&(least, factor)) if started || least > 0.0 => {
                    started = true;
                    rho *= factor;
                }
                moves => {
                    if moves.is_some() {
                        (mask, seen) = (first.clone(), first.to_bools());
                        sparse = mask.apply(&target)?;
                        dual = Matrix::zeros(rows, cols);
                    }
                    rho /= SHRINK;
                }
            }
            inverse = hessian.inverse(rho);
        }
    }
    let mask = same_columns(&squares(&primal)?, &mask)?;
    let refit = lsq::refit(hessian, &target, &mask, &primal);
    Ok((refit, mask))
}
