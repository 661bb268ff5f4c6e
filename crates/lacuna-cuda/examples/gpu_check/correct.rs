//! Every kernel on fresh random inputs and poisoned outputs, against the definition in f64. The tolerance is that of
//! tests/host.rs, which says where it comes from.

use std::collections::BTreeSet;

use lacuna_core::{Packed, Pattern, ValueType};
use lacuna_cuda::launch::Device;
use lacuna_cuda::{Activations, Dense, HalfType, Kernel, Sparse, all};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::values::{VALUES, Values};
use crate::{Outcome, Settings, support};

/// Entries of a result that are compared; of larger ones as many are drawn.
const COMPARED: usize = 20_000;

/// How many of the shapes are small.
const SMALL: usize = 9;
const SHAPES: [[usize; 3]; 15] = [
    [1, 128, 1],
    [70, 205, 1],
    [130, 131, 5],
    [257, 400, 8],
    [257, 400, 16],
    [64, 128, 17],
    [257, 400, 64],
    [70, 205, 80],
    [300, 277, 129],
    [128, 640, 1000],
    [1024, 1024, 300],
    // On an H200 these fill the multiprocessors with blocks of 128 rows, and of 256.
    [4096, 512, 200],
    [4096, 1024, 1024],
    [4096, 4096, 1],
    [2752, 1024, 16],
];

/// All shapes.
pub fn run(device: &Device, settings: &Settings) -> Outcome {
    shapes(device, settings, &SHAPES)
}

/// Those that a sanitizer gets done.
pub fn small(device: &Device, settings: &Settings) -> Outcome {
    shapes(device, settings, &SHAPES[..SMALL])
}

#[expect(clippy::unnecessary_wraps, reason = "an outcome as that of every part")]
fn shapes(device: &Device, settings: &Settings, shapes: &[[usize; 3]]) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let (mut wrong, mut seen) = (0, BTreeSet::new());
    for &shape in shapes {
        for v in [16, 32, 64, 128, 256] {
            let m = [4, 5, 7, 8, 12, 16, 32, 33][rng.random_range(0..8)];
            let window = if rng.random_bool(0.25) { "@all" } else { "" };
            let values = VALUES[rng.random_range(0..VALUES.len())];
            // The types without integers run whatever else is drawn: they have the most kernels.
            for values in [VALUES[0], VALUES[1], values] {
                let name = format!("{v}:2:{m}{window} {shape:?} {values:?}");
                match product(device, &mut rng, &format!("{v}:2:{m}{window}"), shape, values) {
                    Ok((kernel, worst)) => {
                        seen.insert(kernel.name());
                        if worst > 1.0 || worst.is_nan() {
                            println!("{name} {}: {worst:.2} tolerances off", kernel.name());
                            wrong += 1;
                        }
                    }
                    Err(error) => {
                        println!("{name}: {error}");
                        wrong += 1;
                    }
                }
            }
        }
    }
    wrong += dense(device, &mut rng);
    let missing: Vec<String> = products().map(Kernel::name).filter(|name| !seen.contains(name)).collect();
    println!("{} of {} kernels ran; on this GPU and these shapes never: {missing:?}", seen.len(), products().count());
    Ok(wrong)
}

fn products() -> impl Iterator<Item = Kernel> {
    all().into_iter().filter(|kernel| kernel.is_product())
}

fn uniform(rng: &mut ChaCha8Rng, half: HalfType, length: usize) -> Vec<f32> {
    (0..length).map(|_| half.widen(half.round(rng.random_range(-1.0..1.0)))).collect()
}

/// One product, added to what is there or in place of NaN; the worst entry in units of the tolerance.
fn product(
    device: &Device,
    rng: &mut ChaCha8Rng,
    pattern: &str,
    [rows, cols, tokens]: [usize; 3],
    (half, integers): Values,
) -> Result<(Kernel, f64), Box<dyn std::error::Error>> {
    let pattern: Pattern = pattern.parse()?;
    let mask = support::random_mask(rng, pattern, rows, cols);
    let order = rng.random_bool(0.5).then(|| support::random_order(rng, rows));
    let values = integers.map_or(half.dtype().into(), |(int, group)| ValueType::Int(int, group));
    let packed = Packed::pack(&support::random_matrix(rng, rows, cols), mask, values, order)?;
    let bias = rng.random_bool(0.5).then(|| uniform(rng, half, rows));
    let residual = rng.random_bool(0.5).then(|| uniform(rng, half, rows * tokens));
    let x = uniform(rng, half, cols * tokens);
    let weight = Sparse::upload(device, &packed, bias.as_deref(), half)?;
    let on_gpu = Activations::upload(device, half, [cols, tokens], &x)?;
    let y = match &residual {
        Some(residual) => {
            let mut y = Activations::upload(device, half, [rows, tokens], residual)?;
            weight.multiply_add(device, &on_gpu, &mut y)?;
            y
        }
        None => {
            let mut y = Activations::filled(device, half, [rows, tokens], f32::NAN)?;
            weight.multiply(device, &on_gpu, &mut y)?;
            y
        }
    };
    let got = y.download(device)?;
    let grid = packed.mask().grid();
    let entries: Vec<usize> = if rows * tokens <= COMPARED {
        (0..rows * tokens).collect()
    } else {
        (0..COMPARED).map(|_| rng.random_range(0..rows * tokens)).collect()
    };
    let mut worst = if got.iter().any(|y| y.is_nan()) { f64::NAN } else { 0.0 };
    for entry in entries {
        let (packed_row, token) = (entry / tokens, entry % tokens);
        let row = packed.output_row(packed_row);
        let addends = [bias.as_ref().map(|b| b[row]), residual.as_ref().map(|r| r[row * tokens + token])];
        let (mut want, mut terms) = (0.0, 0.0);
        let mut add = |term: f64| {
            want += term;
            terms += term.abs();
        };
        addends.into_iter().flatten().for_each(|addend| add(addend.into()));
        for (i, column) in packed.mask().kept(packed_row).flatten().enumerate() {
            if column < cols {
                let value = packed.values().get(packed_row * grid.kept_per_row() + i);
                add(f64::from(value) * f64::from(x[column * tokens + token]));
            }
        }
        let off =
            (f64::from(got[row * tokens + token]) - want).abs() / tolerance(half, grid.kept_per_row(), want, terms);
        worst = if off > worst { off } else { worst };
    }
    Ok((weight.kernel(device, tokens), worst))
}

fn tolerance(half: HalfType, products: usize, want: f64, terms: f64) -> f64 {
    let (unit, tiny) = match half {
        HalfType::F16 => (2_f64.powi(-11), 2_f64.powi(-25)),
        HalfType::Bf16 => (2_f64.powi(-8), 0.0),
    };
    let sum = (products as f64 + 2.0) * f64::from(f32::EPSILON) * terms;
    sum + unit * (want.abs() + sum) + tiny + 1e-30
}

/// That the dense rival multiplies what we think it does.
fn dense(device: &Device, rng: &mut ChaCha8Rng) -> usize {
    let mut wrong = 0;
    for [rows, cols, tokens] in [[64, 128, 1], [96, 256, 16], [256, 512, 40]] {
        for half in [HalfType::F16, HalfType::Bf16] {
            let (w, x) = (uniform(rng, half, rows * cols), uniform(rng, half, cols * tokens));
            let result = || -> lacuna_cuda::Result<Vec<f32>> {
                let weight = Dense::upload(device, half, [rows, cols], w.iter().copied())?;
                let x = Activations::upload(device, half, [cols, tokens], &x)?;
                let mut y = Activations::filled(device, half, [rows, tokens], f32::NAN)?;
                weight.multiply(device, &x, &mut y)?;
                y.download(device)
            };
            let got = match result() {
                Ok(got) => got,
                Err(error) => {
                    println!("dense {rows}x{cols}x{tokens}: {error}");
                    wrong += 1;
                    continue;
                }
            };
            let off = (0..rows * tokens).map(|entry| {
                let (row, token) = (entry / tokens, entry % tokens);
                let term = |k: usize| f64::from(w[row * cols + k]) * f64::from(x[k * tokens + token]);
                let (want, terms) = (0..cols).map(term).fold((0.0, 0.0), |(s, t), p: f64| (s + p, t + p.abs()));
                let off = (f64::from(got[entry]) - want).abs() / tolerance(half, cols, want, terms);
                if off.is_nan() { f64::INFINITY } else { off }
            });
            let off = off.fold(0.0, f64::max);
            if off > 1.0 {
                println!("dense {rows}x{cols}x{tokens} {}: {off:.2} tolerances off", half.name());
                wrong += 1;
            }
        }
    }
    wrong
}
