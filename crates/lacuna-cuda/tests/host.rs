//! Every kernel of a product, compiled for the host from the text that a GPU runs (tests/host/emulate.hpp says how), against the scalar
//! oracle of lacuna-kernels: over patterns, value types, remainders and both orders in which threads take turns.

#[path = "support/emulator.rs"]
mod emulator;
#[path = "../../lacuna-kernels/tests/support/random.rs"]
mod support;
#[path = "support/values.rs"]
mod values;

use std::collections::BTreeSet;

use lacuna_core::{Dtype, IntType, Matrix, Packed, Pattern, ScaleGroup, ValueType};
use lacuna_cuda::{Activations, HalfType, Kernel, Limits, Sparse, all, stride};
use lacuna_kernels::sparse::REFERENCE;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use emulator::Emulator;
use values::VALUES;

/// A large GPU that is soon full, so that the largest blocks run; a small one that is never full.
const FULL: Limits = Limits { shared_bytes: 227 << 10, multiprocessors: 1, bulk: false };
const EMPTY: Limits = Limits { shared_bytes: 99 << 10, multiprocessors: 10_000, bulk: false };
/// In between: blocks of 128 rows.
const NARROW: Limits = Limits { shared_bytes: 56 << 10, multiprocessors: 1, bulk: false };

/// With bulk copies: one block that takes all tiles, and clusters of which each takes few.
const BULK: Limits = Limits { shared_bytes: 227 << 10, multiprocessors: 1, bulk: true };
const BULK_WIDE: Limits = Limits { shared_bytes: 227 << 10, multiprocessors: 4, bulk: true };

thread_local! {
    static EMULATOR: Option<Emulator> = Emulator::start(FULL);
}

/// What a test does on the machine of its thread, if there can be one.
fn with_emulator<T>(limits: Limits, run: impl FnOnce(&Emulator) -> T) -> Option<T> {
    EMULATOR.with(|emulator| emulator.as_ref().map(|emulator| run(&emulator.with_limits(limits))))
}

struct Case {
    half: HalfType,
    packed: Packed,
    tokens: usize,
    /// `[K, stride]`
    x: Vec<u16>,
    bias: Option<Vec<f32>>,
    /// `[R, stride]`
    residual: Option<Vec<u16>>,
}

impl Case {
    /// `[R, tokens]`, poisoned before, and the kernel.
    fn run(&self, machine: &Emulator) -> (Matrix, Kernel) {
        let grid = self.packed.mask().grid();
        let ([rows, cols], tokens) = ([grid.rows(), grid.cols()], self.tokens);
        let weight = Sparse::upload(machine, &self.packed, self.bias.as_deref(), self.half).unwrap();
        let x = Activations::from_bits(machine, self.half, [cols, tokens], &self.x).unwrap();
        let y = match &self.residual {
            Some(residual) => {
                let mut y = Activations::from_bits(machine, self.half, [rows, tokens], residual).unwrap();
                weight.multiply_add(machine, &x, &mut y).unwrap();
                y
            }
            None => {
                let mut y = Activations::empty(machine, self.half, [rows, tokens]).unwrap();
                weight.multiply(machine, &x, &mut y).unwrap();
                y
            }
        };
        (Matrix::new(rows, tokens, y.download(machine).unwrap()).unwrap(), weight.kernel(machine, tokens))
    }

    /// The first tokens of a padded matrix.
    fn matrix(&self, rows: usize, padded: &[u16]) -> Matrix {
        let half = self.half;
        let rows_of = padded.chunks(stride(self.tokens)).map(|row| &row[..self.tokens]);
        Matrix::new(rows, self.tokens, rows_of.flatten().map(|&bits| half.widen(bits)).collect()).unwrap()
    }

    /// Largest `|got - want|` in units of the tolerance, with its place.
    ///
    /// A sum of n products in f32, in any order, is off by at most `n · 2^-23 · Σ|w·x|` (Higham, (3.5); the unit is twice
    /// that of rounding to nearest because tensor cores cut off), bias and residual among the terms; then one rounding to
    /// the type of y, off by its unit roundoff times the result, or by half its smallest subnormal number.
    fn worst(&self, got: &Matrix) -> (f64, usize, usize) {
        let grid = self.packed.mask().grid();
        let x = self.matrix(grid.cols(), &self.x);
        let residual = self.residual.as_ref().map(|residual| self.matrix(grid.rows(), residual));
        let mut want = Matrix::zeros(grid.rows(), self.tokens);
        (REFERENCE.prepare)(&self.packed, None, lacuna_kernels::Activations::F32).multiply(&x, &mut want);
        let dense = self.packed.unpack();
        let n = self.packed.mask().grid().kept_per_row() as f64 + 2.0;
        let (unit, tiny) = match self.half {
            HalfType::F16 => (2_f64.powi(-11), 2_f64.powi(-25)),
            HalfType::Bf16 => (2_f64.powi(-8), 0.0),
        };
        let mut worst = (0.0, 0, 0);
        for row in 0..got.rows() {
            let kept: Vec<usize> = (0..x.rows()).filter(|&k| dense.row(row)[k] != 0.0).collect();
            for token in 0..self.tokens {
                let (mut want, mut terms) = (f64::from(want.row(row)[token]), 0.0);
                for addend in [self.bias.as_ref().map(|b| b[row]), residual.as_ref().map(|r| r.row(row)[token])] {
                    want += f64::from(addend.unwrap_or(0.0));
                    terms += f64::from(addend.unwrap_or(0.0).abs());
                }
                terms += kept.iter().map(|&k| f64::from((dense.row(row)[k] * x.row(k)[token]).abs())).sum::<f64>();
                // The oracle's own result is rounded to f32 once.
                let bound = n * f64::from(f32::EPSILON) * terms;
                let bound = bound + unit * (want.abs() + bound) + tiny + 1e-30;
                let off = (f64::from(got.row(row)[token]) - want).abs() / bound;
                // NaN is worse than anything.
                if off > worst.0 || off.is_nan() {
                    worst = (off, row, token);
                }
            }
        }
        worst
    }
}

/// One product, in both orders of turns. Some have a bias, a residual, rows in another order.
fn check(
    pattern: &str,
    [rows, cols, tokens]: [usize; 3],
    (half, integers): (HalfType, Option<(IntType, ScaleGroup)>),
    limits: Limits,
) -> Option<Kernel> {
    let pattern: Pattern = pattern.parse().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64((rows * 31 + cols * 7 + tokens) as u64);
    let mask = support::random_mask(&mut rng, pattern, rows, cols);
    let weight = support::random_matrix(&mut rng, rows, cols);
    let order = (cols % 4 == 1).then(|| support::random_order(&mut rng, rows));
    let values = integers.map_or(half.dtype().into(), |(int, group)| ValueType::Int(int, group));
    let packed = Packed::pack(&weight, mask, values, order).unwrap();
    // Tokens of the padding are NaN: they may reach nothing else.
    let mut padded = |rows: usize| -> Vec<u16> {
        let place = |i: usize| i % stride(tokens) < tokens;
        let draw = |i| if place(i) { half.round(rng.random_range(-1.0..1.0)) } else { 0xffff };
        (0..rows * stride(tokens)).map(draw).collect()
    };
    let (x, residual) = (padded(cols), (rows % 3 != 0).then(|| padded(rows)));
    let bias = (rows % 2 == 0).then(|| (0..rows).map(|_| rng.random_range(-1.0..1.0)).collect());
    let case = Case { half, packed, tokens, x, bias, residual };
    with_emulator(limits, |machine| {
        let mut ran = None;
        for eager in [false, true] {
            machine.take_turns(eager);
            let (got, kernel) = case.run(machine);
            let (off, row, token) = case.worst(&got);
            assert!(
                off <= 1.0,
                "{} {pattern} {rows}x{cols}x{tokens} eager={eager}: row {row}, token {token} is {off:.2} tolerances off",
                kernel.name()
            );
            ran = Some(kernel);
        }
        ran
    })?
}

#[test]
fn kernels_agree_with_the_oracle_for_every_pattern() {
    for v in [16, 32, 64, 128, 256] {
        for (i, m) in [4, 5, 6, 7, 8, 12, 16, 32, 33].into_iter().enumerate() {
            let half = VALUES[i % 2];
            check(&format!("{v}:2:{m}"), [130, 131, 40], half, FULL);
            check(&format!("{v}:2:{m}"), [130, 131, 19], half, EMPTY);
            check(&format!("{v}:2:{m}"), [130, 131, 5], VALUES[i % 6], FULL);
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_for_every_window() {
    for window in ["4@8", "5@all", "7@14", "8@16", "8@48", "8@272", "16@all"] {
        for (v, cols, tokens) in [(64, 277, 20), (16, 145, 33), (256, 320, 17), (32, 145, 3)] {
            check(&format!("{v}:2:{window}"), [260, cols, tokens], VALUES[cols % 2], EMPTY);
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_for_every_remainder() {
    for tokens in [1, 2, 7, 8, 9, 15, 16, 17, 24, 63, 64, 65, 127, 128, 129, 200] {
        // What decodes takes more shared memory than the smallest GPU for prefill has.
        let narrow = if tokens <= 64 { EMPTY } else { NARROW };
        for (i, limits) in [FULL, narrow, EMPTY].into_iter().enumerate() {
            check("64:2:8", [70 + i, 205, tokens], VALUES[i % 2], limits);
        }
    }
    for rows in [1, 2, 15, 16, 17, 31, 33, 64, 65, 129, 257] {
        for cols in [8, 9, 10, 11, 12, 15, 127, 128, 129, 400] {
            check("64:2:8", [rows, cols, 1], VALUES[cols % 2], FULL);
            check("64:2:8", [rows, cols, 18], VALUES[rows % 2], EMPTY);
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_for_every_type_of_values() {
    for values in VALUES {
        for tokens in [1, 3, 8, 9, 16, 21] {
            check("64:2:8", [100, 1037, tokens], values, FULL);
            check("16:2:5", [49, 333, tokens], values, FULL);
        }
    }
}

#[test]
fn fetching_warps_agree_with_the_oracle() {
    for v in [16, 32, 64, 128, 256] {
        for (i, m) in [4, 7, 8, 16, 33].into_iter().enumerate() {
            check(&format!("{v}:2:{m}"), [300, 131 + 200 * (i % 2), [70, 129, 264][i % 3]], VALUES[i % 2], BULK);
            check(&format!("{v}:2:{m}"), [520 + i, 277, [130, 200, 80][i % 3]], VALUES[(i + 1) % 2], BULK_WIDE);
        }
    }
    for (pattern, cols) in [("64:2:8@all", 300), ("64:2:8", 8), ("64:2:8", 1300)] {
        check(pattern, [200, cols, 100], VALUES[0], BULK);
    }
}

#[test]
fn every_kernel_is_chosen_for_something() {
    if emulator::program().is_none() {
        return;
    }
    let mut seen = BTreeSet::new();
    for values in VALUES {
        for v in [16, 32, 64] {
            for (rows, tokens, limits) in [
                (70, 1, FULL),
                (70, 16, FULL),
                (70, 30, FULL),
                (300, 70, FULL),
                (300, 70, NARROW),
                (128, 70, FULL),
                (60, 70, EMPTY),
                (300, 70, BULK),
                (300, 130, BULK),
            ] {
                // Integers decode, which takes more shared memory than a narrow GPU has.
                let limits = if values.1.is_some() { FULL } else { limits };
                let kernel = check(&format!("{v}:2:8"), [rows, 130, tokens], values, limits);
                seen.extend(kernel.map(Kernel::name));
            }
        }
    }
    let missing: Vec<String> = all()
        .into_iter()
        .filter(|kernel| kernel.is_product())
        .map(Kernel::name)
        .filter(|name| !seen.contains(name))
        .collect();
    assert!(missing.is_empty(), "no test ran {missing:?}");
}

#[test]
fn infinite_activations_reach_only_the_rows_that_keep_them() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (pattern, tokens) in [("16:2:8", 1), ("16:2:8", 70), ("16:2:8@all", 70)] {
        let mask = support::random_mask(&mut rng, pattern.parse().unwrap(), 48, 17);
        let weight = support::random_matrix(&mut rng, 48, 17);
        let packed = Packed::pack(&weight, mask, Dtype::Bf16, None).unwrap();
        let mut x = vec![HalfType::Bf16.round(0.5); 17 * stride(tokens)];
        x[..stride(tokens)].fill(HalfType::Bf16.round(f32::INFINITY));
        let case = Case { half: HalfType::Bf16, packed, tokens, x, bias: None, residual: None };
        let Some((y, _)) = with_emulator(FULL, |machine| case.run(machine)) else { return };
        for row in 0..48 {
            // A column that the group keeps meets the row's zeros nowhere: metadata picks two of four.
            let keeps = case.packed.mask().kept(row).any(|kept| kept.contains(&0));
            assert_eq!(y.row(row)[0].is_finite(), !keeps, "{pattern}, {tokens} tokens, row {row}");
        }
    }
}
