//! Every kernel of the table against the scalar oracle, over patterns, remainders and token counts.

#[path = "support/random.rs"]
mod support;

use lacuna_core::{Dtype, IntType, Matrix, Packed, Pattern, ScaleGroup, ValueType};
use lacuna_kernels::Activations;
use lacuna_kernels::sparse::{KERNELS, REFERENCE};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use support::{random_mask, random_matrix, random_order};

/// Every value type, with the activations that make a difference to it.
const VALUES: [(ValueType, Activations); 10] = [
    (ValueType::Float(Dtype::F32), Activations::F32),
    (ValueType::Float(Dtype::F16), Activations::F32),
    (ValueType::Float(Dtype::Bf16), Activations::F32),
    (ValueType::Float(Dtype::Bf16), Activations::Bf16),
    (ValueType::Int(IntType::Int8, ScaleGroup::Of32), Activations::F32),
    (ValueType::Int(IntType::Int8, ScaleGroup::Of128), Activations::F32),
    (ValueType::Int(IntType::Int4, ScaleGroup::Of32), Activations::F32),
    (ValueType::Int(IntType::Int4, ScaleGroup::Of64), Activations::F32),
    (ValueType::Int(IntType::Int8, ScaleGroup::Of64), Activations::Bf16),
    (ValueType::Int(IntType::Int4, ScaleGroup::Of32), Activations::Bf16),
];

/// Largest `|got - want|` in units of the tolerance. A sum of `n` products, rounded in any order, is off by at most
/// `n · eps · Σ|w·x| <= n · eps · ‖w‖·‖x‖` (Higham, Accuracy and Stability, (3.5)); one more rounding stores it.
/// Activations rounded to bfloat16 are off by 2⁻⁸ of themselves each, so the sum by `2⁻⁸ · ‖w‖·‖x‖`; where integers times their
/// scales may be rounded so too, it is `(2 · 2⁻⁸ + 2⁻¹⁶) · ‖w‖·‖x‖`; rounded to 16 bits
/// with a scale, by half of max|x| / 32767 each, so the sum by `‖w‖₁ · max|x| / 65534`.
fn worst(packed: &Packed, x: &Matrix, activations: Activations, got: &Matrix, want: &Matrix) -> (f64, usize, usize) {
    let dense = packed.unpack();
    let n = packed.mask().grid().kept_per_row() as f64 + 1.0;
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let integers = packed.values().value_type().integers().is_some();
    let unit = 2_f64.powi(-8);
    let rounding = match (activations, integers) {
        (Activations::F32, _) => 0.0,
        (Activations::Bf16, false) => unit,
        (Activations::Bf16, true) => 2.0 * unit + unit * unit,
    };
    let per_product = n * f64::from(f32::EPSILON) + rounding;
    let mut worst = (0.0, 0, 0);
    for token in 0..x.cols() {
        let x_norm = norm(&mut (0..x.rows()).map(|k| x.row(k)[token]));
        let x_max = (0..x.rows()).map(|k| f64::from(x.row(k)[token].abs())).fold(0.0, f64::max);
        for row in 0..got.rows() {
            let mut bound = per_product * norm(&mut dense.row(row).iter().copied()) * x_norm + 1e-30;
            // A bias up to 1 is added with one more rounding, here and in the oracle.
            bound += 2.0 * f64::from(f32::EPSILON) * (f64::from(want.row(row)[token].abs()) + 1.0);
            if integers {
                bound += dense.row(row).iter().map(|w| f64::from(w.abs())).sum::<f64>() * x_max / 65534.0;
            }
            let off = f64::from((got.row(row)[token] - want.row(row)[token]).abs()) / bound;
            // NaN is worse than anything.
            if off > worst.0 || off.is_nan() {
                worst = (off, row, token);
            }
        }
    }
    worst
}

fn check(pattern: &str, rows: usize, cols: usize, tokens: usize, reorder: bool) {
    let pattern: Pattern = pattern.parse().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64((rows * 31 + cols * 7 + tokens) as u64);
    let order = reorder.then(|| random_order(&mut rng, rows));
    let mask = random_mask(&mut rng, pattern, rows, cols);
    let weight = random_matrix(&mut rng, rows, cols);
    let x = random_matrix(&mut rng, cols, tokens);
    let bias: Vec<f32> = (0..rows).map(|_| rng.random_range(-1.0..1.0)).collect();
    // Some with, some without; the bias goes through one more rounding, which the tolerance has.
    let bias = rows.is_multiple_of(2).then_some(&bias[..]);
    for (values, activations) in VALUES {
        let packed = Packed::pack(&weight, mask.clone(), values, order.clone()).unwrap();
        let mut want = Matrix::zeros(rows, tokens);
        (REFERENCE.prepare)(&packed, bias, activations).multiply(&x, &mut want);
        for kernel in KERNELS.iter().filter(|kernel| (kernel.available)() && (kernel.takes)(&packed)) {
            // A poisoned result shows an element that was never written.
            let mut got = Matrix::new(rows, tokens, vec![f32::NAN; rows * tokens]).unwrap();
            (kernel.prepare)(&packed, bias, activations).multiply(&x, &mut got);
            let (off, row, token) = worst(&packed, &x, activations, &got, &want);
            assert!(
                off <= 1.0,
                "{} {values:?} {activations:?} {pattern} {rows}x{cols}x{tokens}: row {row}, token {token} is {off:.2} \
                 tolerances off",
                kernel.name
            );
        }
    }
}

#[test]
fn the_reference_is_the_dense_product_of_the_unpacked_weight() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mask = random_mask(&mut rng, "16:2:7".parse().unwrap(), 33, 45);
    let packed = Packed::pack(&random_matrix(&mut rng, 33, 45), mask, Dtype::F32, None).unwrap();
    let x = random_matrix(&mut rng, 45, 5);
    let mut got = Matrix::zeros(33, 5);
    (REFERENCE.prepare)(&packed, None, Activations::F32).multiply(&x, &mut got);
    let want = lacuna_kernels::dense::linear(&packed.unpack(), &x);
    assert!(worst(&packed, &x, Activations::F32, &got, &want).0 <= 1.0);
}

#[test]
fn kernels_agree_with_the_oracle_for_every_pattern() {
    for v in [1, 3, 16, 32, 64, 100, 128, 256] {
        for m in [4, 5, 6, 7, 8, 16, 32] {
            check(&format!("{v}:2:{m}"), 130, 131, 9, false);
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_for_every_window() {
    for window in ["4@8", "4@all", "5@10", "5@85", "7@all", "8@16", "8@48", "8@256", "8@272", "16@all"] {
        // Columns within a byte's reach and further; the last window whole, short, and filled up.
        for cols in [128, 145, 277, 320] {
            for (v, tokens) in [(64, 1), (200, 2), (3, 4), (16, 9), (64, 70)] {
                check(&format!("{v}:2:{window}"), 130, cols, tokens, cols == 145);
            }
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_for_every_remainder() {
    for tokens in [1, 2, 3, 4, 5, 7, 8, 9, 15, 63, 64, 65, 72, 200] {
        check("64:2:8", 70, 205, tokens, false);
    }
    for rows in [1, 2, 15, 16, 17, 63, 64, 65, 129] {
        for cols in [8, 9, 10, 11, 12, 15, 16, 191, 193, 200] {
            check("64:2:8", rows, cols, 11, false);
            check("64:2:8", rows, cols, 1, false);
        }
    }
}

#[test]
fn kernels_agree_with_the_oracle_where_work_is_done_in_parts() {
    // Rows, columns and tokens beyond what fits a cache at once, with remainders; row blocks of one strip, of an odd number, of many.
    for (pattern, rows, cols, tokens) in [
        ("64:2:8", 1090, 1100, 40),
        ("48:2:5", 1040, 700, 13),
        ("16:2:16", 100, 2100, 290),
        ("200:2:7@all", 650, 520, 33),
        ("2:4", 600, 600, 520),
    ] {
        check(pattern, rows, cols, tokens, cols == 700);
    }
}

#[test]
fn kernels_put_permuted_rows_back() {
    for tokens in [1, 2, 3, 4, 8, 9, 16, 17, 70] {
        // Rows that share a vector's strips and rows that do not; one tile and several; work for one thread and for all.
        for (pattern, rows, cols) in
            [("16:2:5", 50, 64), ("4:2:6", 50, 64), ("64:2:8@all", 300, 256), ("2:4", 300, 512)]
        {
            check(pattern, rows, cols, tokens, true);
        }
    }
}

#[test]
fn infinite_activations_reach_only_the_rows_that_keep_them() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (pattern, tokens) in [("4:2:8", 1), ("4:2:8", 6), ("16:2:8@16", 1), ("16:2:8@all", 1), ("16:2:8@all", 20)] {
        let mask = random_mask(&mut rng, pattern.parse().unwrap(), 8, 17);
        let packed = Packed::pack(&random_matrix(&mut rng, 8, 17), mask, Dtype::F32, None).unwrap();
        let mut x = random_matrix(&mut rng, 17, tokens);
        x.row_mut(0).fill(f32::INFINITY);
        for kernel in KERNELS.iter().filter(|kernel| (kernel.available)() && (kernel.takes)(&packed)) {
            let mut y = Matrix::zeros(8, tokens);
            (kernel.prepare)(&packed, None, Activations::F32).multiply(&x, &mut y);
            for row in 0..8 {
                let keeps = packed.mask().kept(row).any(|kept| kept.contains(&0));
                assert_eq!(y.row(row)[0].is_finite(), !keeps, "{} row {row}", kernel.name);
            }
        }
    }
}
