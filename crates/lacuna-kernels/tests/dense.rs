//! Every dense kernel against the definition, over value types, shapes and token counts.

use lacuna_core::{Dtype, IntType, Matrix, ScaleGroup, ValueType, Values};
use lacuna_kernels::{Activations, dense};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const TYPES: [(ValueType, Activations); 9] = [
    (ValueType::Float(Dtype::F32), Activations::F32),
    (ValueType::Float(Dtype::F16), Activations::F32),
    (ValueType::Float(Dtype::Bf16), Activations::F32),
    (ValueType::Float(Dtype::Bf16), Activations::Bf16),
    (ValueType::Int(IntType::Int8, ScaleGroup::Of32), Activations::F32),
    (ValueType::Int(IntType::Int8, ScaleGroup::Of128), Activations::F32),
    (ValueType::Int(IntType::Int4, ScaleGroup::Of64), Activations::F32),
    (ValueType::Int(IntType::Int8, ScaleGroup::Of32), Activations::Bf16),
    (ValueType::Int(IntType::Int4, ScaleGroup::Of128), Activations::Bf16),
];

/// Tolerances as for the sparse kernels (`oracle.rs`): rounding of `K` products and sums, of activations to bfloat16 or
/// to 16 bits with a scale.
fn check(rows: usize, cols: usize, tokens: usize) {
    let mut rng = ChaCha8Rng::seed_from_u64((rows * 31 + cols * 7 + tokens) as u64);
    let mut random = |n: usize| (0..n).map(|_| rng.random_range(-1.0_f32..1.0)).collect::<Vec<f32>>();
    let weight = random(rows * cols);
    let x = Matrix::new(cols, tokens, random(cols * tokens)).unwrap();
    let bias = random(rows);
    for (values, activations) in TYPES {
        let stored = Values::round(weight.clone(), cols, values).unwrap();
        for kernel in dense::kernels() {
            let mut y = Matrix::new(rows, tokens, vec![f32::NAN; rows * tokens]).unwrap();
            dense::prepare_for(kernel, &stored, [rows, cols], Some(&bias), activations).multiply(&x, &mut y);
            for (row, &bias) in bias.iter().enumerate() {
                for token in 0..tokens {
                    let (mut want, mut size, mut largest) = (0.0_f64, 0.0_f64, 0.0_f64);
                    let mut weights = 0.0_f64;
                    want += f64::from(bias);
                    size += f64::from(bias.abs());
                    for k in 0..cols {
                        let (w, x) = (f64::from(stored.get(row * cols + k)), f64::from(x.row(k)[token]));
                        want += w * x;
                        size += (w * x).abs();
                        weights += w.abs();
                        largest = largest.max(x.abs());
                    }
                    let mut bound = (cols + 2) as f64 * f64::from(f32::EPSILON) * size + 1e-30;
                    if activations == Activations::Bf16 {
                        // Integers times their scales may be rounded too.
                        let roundings = if values.integers().is_some() { 2.0 + 2_f64.powi(-8) } else { 1.0 };
                        bound += size * roundings * 2_f64.powi(-8);
                    }
                    if values.integers().is_some() {
                        bound += weights * largest / 65534.0;
                    }
                    let off = (f64::from(y.row(row)[token]) - want).abs();
                    // NaN is worse than anything.
                    assert!(
                        off <= bound,
                        "{kernel} {values:?} {activations:?} {rows}x{cols}x{tokens}: row {row}, token {token} off by \
                         {off:e}, allowed {bound:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn dense_kernels_agree_with_the_definition_for_every_remainder() {
    for tokens in [1, 2, 3, 4, 5, 8, 9, 17, 40] {
        check(70, 205, tokens);
    }
    for rows in [1, 15, 16, 17, 64, 65, 130] {
        for cols in [1, 2, 15, 16, 17, 31, 33, 191, 256] {
            check(rows, cols, 1);
            check(rows, cols, 11);
            check(rows, cols, 13);
        }
    }
    // In parts: rows, columns and tokens beyond what fits a cache at once.
    check(540, 300, 20);
    check(33, 40, 300);
}
