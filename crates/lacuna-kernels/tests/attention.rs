//! Every attention kernel of this CPU against the definition, over head sizes, lengths and places in a batch.

use std::ops::Range;

use half::bf16;
use lacuna_kernels::Activations;
use lacuna_kernels::attention::{Cached, Head, kernels};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The definition in f64, `[dim][len]`; operands are rounded first if the kernel rounds them, queries after scaling.
fn oracle(rounds: bool, [q, k, v]: [&[f32]; 3], stride: usize, dim: usize, len: usize) -> Vec<Vec<f64>> {
    let scale = (dim as f32).sqrt().recip();
    let rounded = |x: f32| f64::from(if rounds { bf16::from_f32(x).to_f32() } else { x });
    let at = |x: &[f32], d: usize, t: usize| rounded(x[d * stride + t]);
    let mut out = vec![vec![0.0; len]; dim];
    for query in 0..len {
        let score = |key| (0..dim).map(|d| rounded(q[d * stride + query] * scale) * at(k, d, key)).sum::<f64>();
        let scores: Vec<f64> = (0..len).map(score).collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for (d, row) in out.iter_mut().enumerate() {
            row[query] = (0..len).map(|key| weights[key] * at(v, d, key)).sum::<f64>() / sum;
        }
    }
    out
}

#[test]
fn every_kernel_computes_the_definition() {
    let mut seen = 0;
    for activations in [Activations::F32, Activations::Bf16] {
        for kernel in kernels(activations) {
            seen += 1;
            for (dim, len, before, after) in [
                (1, 1, 0, 0),
                (2, 1, 3, 0),
                (3, 5, 0, 2),
                (4, 16, 1, 1),
                (6, 17, 0, 0),
                (32, 33, 5, 0),
                (64, 197, 0, 9),
            ] {
                check(&kernel, dim, len, before, after);
            }
            for len in [47, 48, 49, 63, 64, 65, 80, 128] {
                check(&kernel, 5, len, 2, 1);
            }
        }
    }
    if seen == 0 {
        eprintln!("SKIPPED: no attention kernel for this CPU");
    }
}

fn check(kernel: &lacuna_kernels::attention::Kernel, dim: usize, len: usize, before: usize, after: usize) {
    let stride = before + len + after;
    let mut rng = ChaCha8Rng::seed_from_u64((dim * 1000 + len) as u64);
    let mut operand = || (0..dim * stride).map(|_| rng.random_range(-2.0_f32..2.0)).collect::<Vec<f32>>();
    let (q, k, v) = (operand(), operand(), operand());
    let operands = [&q[before..], &k[before..], &v[before..]];
    let want = oracle(kernel.rounds(), operands, stride, dim, len);
    let head = Head { queries: &q[before..], keys: &k[before..], values: &v[before..], stride, dim, len };
    let mut got = vec![vec![f32::NAN; len]; dim];
    kernel.attend(&head, &mut got.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
    // A sum of D products of at most 4/√D each is off by (D + 2) · eps · 4 · √D in a score, which changes a weight by a
    // factor within e^±2 that; the weighted mean is of values of at most 2, and summed over `len` keys. Weights are rounded
    // to bfloat16 (half a unit of 2⁻⁸) where operands are.
    let eps = f64::from(f32::EPSILON);
    let score = (dim as f64 + 2.0) * eps * 4.0 * (dim as f64).sqrt();
    let rounding = if kernel.rounds() { 2.0 / 512.0 } else { 0.0 };
    let allowed = 2.0 * (2.0 * score).exp_m1() + rounding + 2.0 * eps * (len as f64 + 8.0);
    for (d, (got, want)) in got.iter().zip(&want).enumerate() {
        for (t, (got, want)) in got.iter().zip(want).enumerate() {
            let off = (f64::from(*got) - want).abs();
            let name = kernel.name();
            assert!(
                off <= allowed,
                "{name}, rounds {}: D {dim}, {len} tokens: [{d}][{t}] is {got}, not {want} (limit {allowed:.2e})",
                kernel.rounds()
            );
        }
    }
}

/// The definition in f64 for one query, `[dim]`; the cache is `[positions, dim]`.
fn cached_oracle(query: &[f32], keys: &[f32], values: &[f32], seen: Range<usize>) -> Vec<f64> {
    let dim = query.len();
    let scale = f64::from((dim as f32).sqrt().recip());
    let of = |x: &[f32], position: usize, d: usize| f64::from(x[position * dim + d]);
    let score = |p: usize| (0..dim).map(|d| f64::from(query[d]) * scale * of(keys, p, d)).sum::<f64>();
    let scores: Vec<f64> = seen.clone().map(score).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..dim).map(|d| seen.clone().zip(&weights).map(|(p, w)| w * of(values, p, d)).sum::<f64>() / sum).collect()
}

#[test]
fn queries_see_what_they_may_of_a_cache_and_nothing_else() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for kernel in kernels(Activations::F32) {
        for (dim, positions, count) in [(1, 1, 1), (3, 5, 2), (8, 9, 7), (64, 100, 7), (64, 33, 16), (20, 70, 150)] {
            let [queries, mut keys, mut values] = [count, positions, positions]
                .map(|len| (0..len * dim).map(|_| rng.random_range(-2.0_f32..2.0)).collect::<Vec<f32>>());
            let seen: Vec<Range<usize>> = (0..count)
                .map(|_| {
                    let start = rng.random_range(0..positions);
                    start..rng.random_range(start + 1..=positions)
                })
                .collect();
            // What nobody sees leaves no trace, however large.
            for p in (0..positions).filter(|p| !seen.iter().any(|seen| seen.contains(p))) {
                keys[p * dim..(p + 1) * dim].fill(1e30);
                values[p * dim..(p + 1) * dim].fill(1e30);
            }
            let mut out = vec![f32::NAN; count * dim];
            let cached = Cached { queries: &queries, keys: &keys, values: &values, dim, seen: &seen };
            kernel.attend_cached(&cached, &mut out);
            // As in `check`.
            let eps = f64::from(f32::EPSILON);
            let score = (dim as f64 + 2.0) * eps * 4.0 * (dim as f64).sqrt();
            let allowed = 2.0 * (2.0 * score).exp_m1() + 2.0 * eps * (positions as f64 + 8.0);
            for (i, seen) in seen.into_iter().enumerate() {
                let query: Vec<f32> = (0..dim).map(|d| queries[d * count + i]).collect();
                for (d, want) in cached_oracle(&query, &keys, &values, seen).into_iter().enumerate() {
                    let got = f64::from(out[d * count + i]);
                    let name = kernel.name();
                    assert!((got - want).abs() <= allowed, "{name}: D {dim}, query {i} of {count}: {got}, not {want}");
                }
            }
        }
    }
}
