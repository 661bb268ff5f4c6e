//! Every kernel between products, on the emulated machine, against its definition in f64: over sizes, remainders, switches,
//! both 16-bit types and both orders in which threads take turns.

#[path = "support/emulator.rs"]
mod emulator;
#[path = "support/golden.rs"]
mod golden;
#[path = "../../lacuna-kernels/tests/support/random.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use emulator::Emulator;
use lacuna_cuda::model::{Decoder, Session};
use lacuna_cuda::ops::{Angles, CacheShape, LayerCache, Norm, Places, Rows, activate, attend, place};
use lacuna_cuda::{Activations, HalfType, Kernel, Limits, add_outer, all};
use lacuna_format::Checkpoint;
use lacuna_model::{Activation, BlockConfig, PackedAs, RopeConfig, Sequences, family};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LIMITS: Limits = Limits { shared_bytes: 99 << 10, multiprocessors: 20, bulk: false };
const HALVES: [HalfType; 2] = [HalfType::F16, HalfType::Bf16];
/// Relative error of one operation in f32; `expf`, `erfcf` and the like are off by up to 8 of them.
const EPSILON: f64 = f32::EPSILON as f64;

fn machine() -> Option<Emulator> {
    Emulator::start(LIMITS)
}

/// Unit roundoff of a type, and half of its smallest number.
fn roundoff(half: HalfType) -> (f64, f64) {
    match half {
        HalfType::F16 => (2_f64.powi(-11), 2_f64.powi(-25)),
        HalfType::Bf16 => (2_f64.powi(-8), 2_f64.powi(-134)),
    }
}

/// Holds a value against what is right but for an error in f32, rounded once.
fn close(half: HalfType, got: f32, want: f64, error: f64, what: &dyn Fn() -> String) {
    let (unit, tiny) = roundoff(half);
    let bound = unit * (want.abs() + error) + error + tiny;
    let off = (f64::from(got) - want).abs();
    assert!(off <= bound, "{}: {got}, not {want} ({:.2} tolerances off)", what(), off / bound);
}

/// Values of a type, with the matrix that holds them.
fn random(
    machine: &Emulator,
    rng: &mut ChaCha8Rng,
    half: HalfType,
    shape: [usize; 2],
    size: f32,
) -> (Vec<f64>, Activations) {
    let values: Vec<f32> =
        (0..shape[0] * shape[1]).map(|_| half.widen(half.round(rng.random_range(-size..size)))).collect();
    let matrix = Activations::upload(machine, half, shape, &values).unwrap();
    (values.into_iter().map(f64::from).collect(), matrix)
}

#[test]
fn norms_are_their_definitions() {
    let Some(machine) = machine() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let shapes = [[24, 1], [1000, 1], [7, 3], [96, 16], [33, 17], [257, 32], [40, 70], [50, 300], [9, 2100]];
    for (i, [features, tokens]) in shapes.into_iter().enumerate() {
        for (half, centred, in_place) in
            HALVES.into_iter().flat_map(|half| [(half, true, i % 2 == 0), (half, false, i % 2 == 1)])
        {
            machine.take_turns(i % 3 == 0);
            let (x, mut on) = random(&machine, &mut rng, half, [features, tokens], 3.0);
            let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-2.0..2.0)).collect() };
            let (weight, bias) = (draw(features), centred.then(|| draw(features)));
            // So large that a norm without it is far off.
            let epsilon = 0.3;
            let norm = Norm::upload(&machine, &weight, bias.as_deref(), epsilon).unwrap();
            let got = if in_place {
                norm.apply_in_place(&machine, &mut on).unwrap();
                on.download(&machine).unwrap()
            } else {
                let mut y = Activations::empty(&machine, half, [features, tokens]).unwrap();
                norm.apply(&machine, &on, &mut y).unwrap();
                y.download(&machine).unwrap()
            };
            for token in 0..tokens {
                let column: Vec<f64> = (0..features).map(|k| x[k * tokens + token]).collect();
                let mean = if centred { column.iter().sum::<f64>() / features as f64 } else { 0.0 };
                let square = column.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / features as f64;
                let scale = (square + f64::from(epsilon)).sqrt().recip();
                for k in 0..features {
                    let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[k]));
                    let normed = (column[k] - mean) * scale * f64::from(weight[k]);
                    // A sum of n terms is off by n epsilon of their size, which is at most 3 here; the root halves it.
                    let error = (features as f64 + 8.0)
                        * EPSILON
                        * (normed.abs() + 3.0 * scale * f64::from(weight[k]).abs() + bias.abs());
                    let what =
                        || format!("{} centred={centred} {features}x{tokens}, feature {k}, token {token}", half.name());
                    close(half, got[k * tokens + token], normed + bias, error, &what);
                }
            }
        }
    }
}

/// `Φ(x)` by its power series (Abramowitz & Stegun 26.2.11), good where little cancels.
fn normal_cdf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for k in 1..200 {
        term *= x * x / f64::from(2 * k + 1);
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

#[test]
fn activations_are_their_definitions() {
    let Some(machine) = machine() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let functions: [(Activation, &dyn Fn(f64) -> f64); 5] = [
        (Activation::Silu, &|x| x * sigmoid(x)),
        (Activation::GeluErf, &|x| x * normal_cdf(x)),
        (Activation::GeluTanh, &|x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }),
        (Activation::GeluSigmoid, &|x| x * sigmoid(1.702 * x)),
        (Activation::Relu, &|x| x.max(0.0)),
    ];
    for (activation, function) in functions {
        for (half, [features, tokens], gated) in
            HALVES.into_iter().flat_map(|half| [(half, [300, 1], true), (half, [45, 20], false)])
        {
            // Beyond 5 the series for Φ of large negative numbers cancels.
            let (x, mut on) = random(&machine, &mut rng, half, [features, tokens], 5.0);
            let (factor, factor_on) = random(&machine, &mut rng, half, [features, tokens], 2.0);
            activate(&machine, activation, &mut on, gated.then_some(&factor_on)).unwrap();
            let got = on.download(&machine).unwrap();
            for i in 0..features * tokens {
                let want = function(x[i]) * if gated { factor[i] } else { 1.0 };
                // Argument, function, product: exp(x) is off by x epsilon of itself where its argument is by epsilon.
                let error = (16.0 + 2.0 * x[i].powi(2)) * EPSILON * (want.abs() + 1e-6);
                close(half, got[i], want, error, &|| format!("{activation:?} of {} in {}", x[i], half.name()));
            }
        }
    }
}

/// Blocks with some heads; the rest of it does not matter here.
fn config(heads: usize, kv_heads: usize, head_dim: usize) -> BlockConfig {
    let folder = golden::folders("golden").swap_remove(0);
    let any = family::decoder(&Checkpoint::open(&folder).unwrap()).unwrap().blocks;
    BlockConfig { heads, kv_heads, head_dim, ..any }
}

/// A batch of sequences of one layer.
struct Case {
    config: BlockConfig,
    half: HalfType,
    /// tokens that each sequence has, and that come
    sequences: Vec<(usize, usize)>,
    window: Option<usize>,
    causal: bool,
}

impl Case {
    /// First all that the sequences have, then what comes; queries, keys and values of all of it in between.
    fn check(&self, machine: &Emulator, rng: &mut ChaCha8Rng) {
        let Self { config, half, sequences, .. } = self;
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        let capacity = sequences.iter().map(|(past, new)| past + new).max().unwrap() + 3;
        let mut cache = LayerCache::empty(machine, CacheShape::of(config, *half, sequences.len(), capacity)).unwrap();
        let rope = RopeConfig::plain(100.0);
        let positions: Vec<usize> = (0..capacity).collect();
        let tables = rope.cosines_and_sines(dim, &positions);
        let angles = Angles::upload(machine, capacity, [&tables[0], &tables[1]]).unwrap();
        let angles = self.causal.then_some(&angles);
        // [sequence][position][head, feature], turned, as the cache has them
        let (mut keys, mut values) = (vec![vec![]; sequences.len()], vec![vec![]; sequences.len()]);
        let turn = |vector: &[f64], position: usize| -> Vec<f64> {
            let mut turned = vector.to_vec();
            for (d, v) in turned.iter_mut().enumerate().filter(|_| self.causal) {
                let (head, feature) = (d / dim * dim, d % dim);
                let i = feature % (dim / 2);
                let [cos, sin] = tables.each_ref().map(|table| f64::from(table[position * (dim / 2) + i]));
                let (low, high) = (vector[head + i], vector[head + i + dim / 2]);
                *v = if feature < dim / 2 { low * cos - high * sin } else { high * cos + low * sin };
            }
            turned.iter().map(|&v| f64::from(half.widen(half.round(v as f32)))).collect()
        };
        for batch in [false, true] {
            let now: Vec<(usize, usize, usize)> = sequences
                .iter()
                .enumerate()
                .map(|(slot, &(past, new))| if batch { (slot, past, new) } else { (slot, 0, past) })
                .filter(|&(.., len)| len > 0)
                .collect();
            let tokens: usize = now.iter().map(|&(.., len)| len).sum();
            if tokens == 0 {
                continue;
            }
            // All three in one matrix, as where they have one weight.
            let (all, on) = random(machine, rng, *half, [(heads + 2 * kv_heads) * dim, tokens], 2.0);
            let rows = |first: usize, count: usize| Rows { of: &on, first, count };
            let parts = [
                rows(0, heads * dim),
                rows(heads * dim, kv_heads * dim),
                rows((heads + kv_heads) * dim, kv_heads * dim),
            ];
            let places = Places::upload(machine, config, &now, self.causal).unwrap();
            place(machine, config, parts, &places, angles, &mut cache).unwrap();
            let mut out = Activations::empty(machine, *half, [heads * dim, tokens]).unwrap();
            attend(machine, config, parts[0], &places, self.window, &cache, &mut out).unwrap();
            let got = out.download(machine).unwrap();
            let column = |first: usize, count: usize, t: usize| -> Vec<f64> {
                (first..first + count).map(|row| all[row * tokens + t]).collect()
            };
            let mut t = 0;
            for &(slot, past, len) in &now {
                for i in 0..len {
                    keys[slot].push(turn(&column(heads * dim, kv_heads * dim, t + i), past + i));
                    values[slot].push(column((heads + kv_heads) * dim, kv_heads * dim, t + i));
                }
                for i in 0..len {
                    let query = turn(&column(0, heads * dim, t), past + i);
                    let end = if self.causal { past + i + 1 } else { past + len };
                    let seen = self.window.map_or(0, |window| end.saturating_sub(window))..end;
                    for head in 0..heads {
                        let of = head / (heads / kv_heads) * dim;
                        let query = &query[head * dim..][..dim];
                        let dot = |key: &Vec<f64>| -> f64 { query.iter().zip(&key[of..]).map(|(q, k)| q * k).sum() };
                        let scores: Vec<f64> =
                            keys[slot][seen.clone()].iter().map(|key| dot(key) / (dim as f64).sqrt()).collect();
                        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                        let total: f64 = weights.iter().sum();
                        for d in 0..dim {
                            let terms = weights
                                .iter()
                                .zip(&values[slot][seen.clone()])
                                .map(|(w, value)| w / total * value[of + d]);
                            // Scores of terms up to 4 / sqrt(D) each are off by D epsilon of their sum, and weights by that
                            // and what exp adds; sums of weights and of values by a term's epsilon each.
                            let score_error = dim as f64 * EPSILON * 4.0 * (dim as f64).sqrt();
                            // Turned queries and keys may be rounded the other way now and then: a unit of one feature.
                            let turned =
                                if self.causal { 2.0 * roundoff(*half).0 * 8.0 / (dim as f64).sqrt() } else { 0.0 };
                            let error = (2.0 * score_error + (weights.len() as f64 + 16.0) * EPSILON + turned) * 2.0;
                            let what = || {
                                let name = half.name();
                                format!(
                                    "{name} {heads}/{kv_heads} heads of {dim}, window {:?}, sequence {slot}, token {i}, head {head}, feature {d}",
                                    self.window
                                )
                            };
                            close(*half, got[(head * dim + d) * tokens + t], terms.sum(), error, &what);
                        }
                    }
                    t += 1;
                }
            }
        }
    }
}

#[test]
fn attention_is_its_definition() {
    let Some(machine) = machine() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (i, half) in HALVES.into_iter().cycle().take(4).enumerate() {
        machine.take_turns(i % 2 == 0);
        let causal = |config, sequences: &[(usize, usize)], window| Case {
            config,
            half,
            sequences: sequences.to_vec(),
            window,
            causal: true,
        };
        let all = |config, sequences: &[(usize, usize)]| Case {
            config,
            half,
            sequences: sequences.to_vec(),
            window: None,
            causal: false,
        };
        let cases = [
            // Every size of heads, with what fills them up; a token each, and more positions than the warps have at once.
            causal(config(4, 2, 6), &[(3, 2), (0, 9), (5, 1)], None),
            causal(config(2, 1, 40), &[(150, 1), (31, 1), (32, 1)], None),
            causal(config(8, 1, 16), &[(0, 37)], Some(5)),
            causal(config(2, 2, 32), &[(140, 3)], Some(33)),
            causal(config(2, 1, 128), &[(33, 1)], None),
            causal(config(1, 1, 200), &[(1, 2)], Some(1)),
            // So many positions that blocks share them.
            causal(config(2, 2, 8), &[(1100, 1)], None),
            causal(config(8, 1, 8), &[(600, 1), (40, 1)], Some(590)),
            all(config(3, 3, 7), &[(0, 70), (0, 1), (0, 13)]),
            all(config(2, 2, 64), &[(0, 40)]),
        ];
        // The larger ones once for each type. The larger the GPU, the more blocks share the positions of a few queries.
        for case in cases.into_iter().filter(|case| i < 2 || case.config.head_dim < 100) {
            for multiprocessors in [1, LIMITS.multiprocessors, 200] {
                case.check(&machine.with_limits(Limits { multiprocessors, ..LIMITS }), &mut rng);
            }
        }
    }
}

#[test]
fn outer_products_are_added() {
    let Some(machine) = machine() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (left, x) = (support::random_matrix(&mut rng, 5, 9), support::random_matrix(&mut rng, 7, 9));
    let before = support::random_matrix(&mut rng, 5, 7);
    let mut sum = before.clone();
    add_outer(&machine, &mut sum, &left, &x).unwrap();
    for i in 0..5 {
        for j in 0..7 {
            let terms = left.row(i).iter().zip(x.row(j)).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let want = f64::from(before.row(i)[j]) + terms.sum::<f64>();
            // 10 terms of at most 1.
            assert!((f64::from(sum.row(i)[j]) - want).abs() <= 10.0 * 10.0 * EPSILON, "row {i}, column {j}");
        }
    }
    assert!(add_outer(&machine, &mut sum, &x, &left).is_err());
}

#[test]
fn every_kernel_between_products_runs() {
    let Some(machine) = machine() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let machine = Arc::new(machine);
    for half in HALVES {
        for centred in [false, true] {
            let bias = [0.0; 8];
            let norm = Norm::upload(&*machine, &[1.0; 8], centred.then_some(&bias[..]), 1e-6).unwrap();
            norm.apply_in_place(&*machine, &mut random(&machine, &mut rng, half, [8, 2], 1.0).1).unwrap();
        }
        for function in
            [Activation::Silu, Activation::GeluErf, Activation::GeluTanh, Activation::GeluSigmoid, Activation::Relu]
        {
            for gated in [false, true] {
                let (mut x, factor) =
                    (random(&machine, &mut rng, half, [8, 2], 1.0).1, random(&machine, &mut rng, half, [8, 2], 1.0).1);
                activate(&*machine, function, &mut x, gated.then_some(&factor)).unwrap();
            }
        }
        for heads in [1, 4, 8] {
            for causal in [false, true] {
                Case { config: config(heads, 1, 32), half, sequences: vec![(0, 1)], window: None, causal }
                    .check(&machine, &mut rng);
            }
        }
        // Biases of dense layers, and both ends of a decoder.
        let folder = golden::folders("golden").into_iter().find(|path| path.ends_with("qwen2-bias")).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let config = family::decoder(&checkpoint).unwrap();
        let model = Decoder::load(machine.clone(), &checkpoint, &config, half, PackedAs::Sparse).unwrap();
        let mut session = Session::new(&model, 1, 4).unwrap();
        session.extend(&[(0, &[1, 2])]).unwrap();
        session.take_likeliest(&[3], 1).unwrap();
    }
    let seen: BTreeSet<String> = machine.launches().into_iter().map(Kernel::name).collect();
    let between = all().into_iter().filter(|kernel| !kernel.is_product()).map(Kernel::name);
    let missing: Vec<String> = between.filter(|name| !seen.contains(name)).collect();
    assert!(missing.is_empty(), "no test ran {missing:?}");
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let Some(machine) = machine() else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let half = HalfType::F16;
    let norm = Norm::upload(&machine, &[1.0; 8], None, 1e-6).unwrap();
    let (_, mut x) = random(&machine, &mut rng, half, [7, 2], 1.0);
    assert!(norm.apply_in_place(&machine, &mut x).is_err());
    assert!(Norm::upload(&machine, &[1.0; 8], Some(&[0.0; 7]), 1e-6).is_err());
    let (_, factor) = random(&machine, &mut rng, HalfType::Bf16, [7, 2], 1.0);
    assert!(activate(&machine, Activation::Relu, &mut x, Some(&factor)).is_err());

    let small = config(1, 1, 8);
    let mut cache = LayerCache::empty(&machine, CacheShape::of(&small, half, 1, 2)).unwrap();
    let (_, all) = random(&machine, &mut rng, half, [24, 3], 1.0);
    let rows = |first| Rows { of: &all, first, count: 8 };
    let places = Places::upload(&machine, &small, &[(0, 0, 3)], true).unwrap();
    assert!(
        place(&machine, &small, [rows(0), rows(8), rows(16)], &places, None, &mut cache).is_err(),
        "a third position"
    );
    let places = Places::upload(&machine, &small, &[(1, 0, 1)], true).unwrap();
    assert!(place(&machine, &small, [rows(0), rows(8), rows(16)], &places, None, &mut cache).is_err(), "a second slot");
    let large = config(1, 1, 264);
    let cache = LayerCache::empty(&machine, CacheShape::of(&large, half, 1, 3)).unwrap();
    let (_, queries) = random(&machine, &mut rng, half, [264, 1], 1.0);
    let mut out = Activations::empty(&machine, half, [264, 1]).unwrap();
    let places = Places::upload(&machine, &large, &[(0, 0, 1)], true).unwrap();
    let rows = Rows { of: &queries, first: 0, count: 264 };
    let error = attend(&machine, &large, rows, &places, None, &cache, &mut out).unwrap_err();
    assert!(error.to_string().contains("features of a head: 256 expected, 264 found"), "{error}");
}
