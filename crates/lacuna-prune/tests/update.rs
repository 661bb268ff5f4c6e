//! Weight updates against what they are defined by, worked out the long way in f64.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lacuna_core::{Dtype, Matrix, Pattern};
use lacuna_prune::score::Ria;
use lacuna_prune::{Criterion, Method, Permute, Products, Pruned, Selection, Stats, Update};

const UPDATES: [Update; 5] = [Update::None, Update::Lsq, Update::SparseGpt, Update::Alps, Update::DsNoT];

fn noise(i: usize, seed: usize) -> f32 {
    let mut x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed as u64 * 0x1234_5678_9abc_def1);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ x >> 31) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn matrix(rows: usize, cols: usize, seed: usize) -> Matrix {
    Matrix::new(rows, cols, (0..rows * cols).map(|i| noise(i, seed)).collect()).unwrap()
}

/// Activations `[K, T]` whose features go together, some of them much larger than others.
fn activations(features: usize, tokens: usize) -> Matrix {
    let (mixing, source) = (matrix(features, 6, 7), matrix(6, tokens, 8));
    let mut x = lacuna_kernels::dense::linear(&mixing, &source);
    for k in 0..features {
        let scale = if k % 5 == 0 { 4.0 } else { 1.0 };
        x.row_mut(k).iter_mut().enumerate().for_each(|(t, v)| *v = scale * (*v + 0.5 * noise(k * tokens + t, 9)));
    }
    x
}

fn stats(x: &Matrix) -> Stats {
    let mut stats = Stats::new(x.rows());
    stats.observe(x, None).unwrap();
    stats
}

fn method(update: Update, pattern: &str) -> Method {
    let pattern: Pattern = pattern.parse().unwrap();
    Method {
        criterion: Criterion::Ria(Ria::default()),
        permute: Permute::None,
        selection: if pattern.is_grouped() { Selection::Exact } else { Selection::Assignment },
        update,
        pattern,
        values: Dtype::F32.into(),
    }
}

fn prune(update: Update, pattern: &str, weight: &Matrix, stats: &Stats) -> Pruned {
    method(update, pattern).prune(weight, Some(stats)).unwrap()
}

/// `X·Xᵀ + 0.01 · mean(diag) · I`.
fn hessian(x: &Matrix) -> Vec<Vec<f64>> {
    let dot =
        |i: usize, j: usize| x.row(i).iter().zip(x.row(j)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let k = x.rows();
    let damping = 0.01 * (0..k).map(|i| dot(i, i)).sum::<f64>() / k as f64;
    (0..k).map(|i| (0..k).map(|j| dot(i, j) + if i == j { damping } else { 0.0 }).collect()).collect()
}

/// `x` with `a · x = b`, by elimination.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for r in i + 1..n {
            let f = a[r][i] / a[i][i];
            let above = a[i].clone();
            a[r].iter_mut().zip(&above).skip(i).for_each(|(x, y)| *x -= f * y);
            b[r] -= f * b[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| a[i][j] * b[j]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    b
}

fn part(a: &[Vec<f64>], rows: &[usize], cols: &[usize]) -> Vec<Vec<f64>> {
    rows.iter().map(|&r| cols.iter().map(|&c| a[r][c]).collect()).collect()
}

fn assert_close(got: &Matrix, want: &[Vec<f64>], tolerance: f64) {
    let largest = want.iter().flatten().fold(0.0_f64, |m, w| m.max(w.abs()));
    for (row, want) in want.iter().enumerate() {
        for (col, (&g, w)) in got.row(row).iter().zip(want).enumerate() {
            assert!((f64::from(g) - w).abs() <= tolerance * largest, "row {row}, column {col}: {g} where {w} is right");
        }
    }
}

#[test]
fn least_squares_solve_the_normal_equations_of_each_row() {
    let (weight, x) = (matrix(20, 45, 1), activations(45, 300));
    let pruned = prune(Update::Lsq, "8:2:6", &weight, &stats(&x));
    let (h, mask) = (hessian(&x), pruned.packed.mask().to_bools());
    let want: Vec<Vec<f64>> = (0..20)
        .map(|r| {
            let kept: Vec<usize> = (0..45).filter(|&c| mask.as_slice()[r * 45 + c]).collect();
            let target: Vec<f64> =
                kept.iter().map(|&c| (0..45).map(|j| f64::from(weight.row(r)[j]) * h[j][c]).sum()).collect();
            let mut row = vec![0.0; 45];
            kept.iter().zip(solve(part(&h, &kept, &kept), target)).for_each(|(&c, w)| row[c] = w);
            row
        })
        .collect();
    assert_close(&pruned.packed.unpack(), &want, 2e-3);
}

/// Column by column, with the inverse of the Hessian of all columns that are left: what the Cholesky factor stands for.
#[test]
fn the_sweep_is_optimal_brain_surgery_column_by_column() {
    let (rows, k) = (6, 24);
    let (weight, x) = (matrix(rows, k, 2), activations(k, 200));
    let h = hessian(&x);
    let mut want: Vec<Vec<f64>> = (0..rows).map(|r| weight.row(r).iter().map(|&w| f64::from(w)).collect()).collect();
    for j in 0..k {
        let left: Vec<usize> = (j..k).collect();
        let column_of_inverse = |c: usize| {
            let left: Vec<usize> = (c..k).collect();
            let unit = (c..k).map(|i| if i == c { 1.0 } else { 0.0 }).collect();
            solve(part(&h, &left, &left), unit)
        };
        let inverse = column_of_inverse(j);
        for row in &mut want {
            let group = j / 4 * 4;
            // The group's mask was chosen when its first column was reached: here its weights are as they were then.
            if j == group {
                let mut order: Vec<usize> = (group..group + 4).collect();
                let score = |c: usize| row[c] * row[c] / column_of_inverse(c)[0];
                order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
                order[2..].iter().for_each(|&c| row.push(c as f64));
            }
            if row[k..].contains(&(j as f64)) {
                let error = row[j] / inverse[0];
                left.iter().zip(&inverse).for_each(|(&c, i)| row[c] -= error * i);
                row[j] = 0.0;
            }
        }
    }
    for row in &mut want {
        row.truncate(k);
    }
    assert_close(&prune(Update::SparseGpt, "2:4", &weight, &stats(&x)).packed.unpack(), &want, 2e-3);
}

#[test]
fn each_update_lowers_the_error_and_obeys_every_pattern() {
    for (k, pattern) in
        [(64, "2:4"), (61, "8:2:5"), (61, "8:2:5@20"), (70, "16:2:16@all"), (43, "4:2:6@all"), (37, "2:4")]
    {
        let (weight, stats) = (matrix(37, k, 3), stats(&activations(k, 400)));
        let [none, lsq, sweep, alps, _] = UPDATES.map(|update| {
            let pruned = prune(update, pattern, &weight, &stats);
            let unpacked = pruned.packed.unpack();
            assert!(unpacked.data().iter().all(|w| w.is_finite()), "{update:?} at {pattern}");
            assert_eq!(pruned.packed.mask().grid().pattern().to_string(), pattern);
            pruned.relative_error
        });
        assert!(alps < lsq && lsq < none && sweep < none, "{pattern}: {none} {lsq} {sweep} {alps}");
    }
}

#[test]
fn rows_and_columns_in_another_order_are_the_same_layer() {
    let (weight, stats) = (matrix(50, 64, 4), stats(&activations(64, 300)));
    for (permute, pattern, updates) in [
        (Permute::Rows, "8:2:8@all", &UPDATES[..]),
        (Permute::Paper, "8:2:8@all", &[Update::None, Update::Lsq, Update::DsNoT]),
        // The last block has 4 columns of 5, then 1, then 2 of 4.
        (Permute::Paper, "8:2:5@all", &[Update::None]),
        (Permute::Paper, "8:2:7@all", &[Update::None]),
        (Permute::Paper, "2:4@all", &[Update::None]),
    ] {
        for &update in updates {
            let selection = if permute == Permute::Paper { Selection::Paper } else { Selection::Assignment };
            let method = Method { permute, selection, ..method(update, pattern) };
            let pruned = method.prune(&weight, Some(&stats)).unwrap();
            let unpacked = pruned.packed.unpack();
            assert!(pruned.packed.row_order().is_some());
            // Weights that do not change are where they were.
            if matches!(update, Update::None | Update::DsNoT) {
                let moved = unpacked
                    .data()
                    .iter()
                    .zip(weight.data())
                    .any(|(got, was)| got.abs() > 0.0 && got.to_bits() != was.to_bits());
                assert!(!moved, "{update:?} with {permute:?}");
            }
            let mut lost = weight.clone();
            lost.data_mut().iter_mut().zip(unpacked.data()).for_each(|(w, u)| *w -= u);
            let error = (stats.energy(&lost) / stats.energy(&weight)).sqrt();
            assert!((error - pruned.relative_error).abs() < 1e-4, "{error} where {} is said", pruned.relative_error);
        }
    }
}

#[test]
fn a_singular_hessian_is_no_obstacle() {
    // Fewer tokens than features, dead features, and twins.
    let mut x = activations(48, 20);
    x.row_mut(3).fill(0.0);
    let twin = x.row(5).to_vec();
    x.row_mut(6).copy_from_slice(&twin);
    let (weight, stats) = (matrix(16, 48, 5), stats(&x));
    for update in UPDATES {
        let pruned = prune(update, "8:2:8", &weight, &stats);
        assert!(pruned.packed.unpack().data().iter().all(|w| w.is_finite()), "{update:?}");
    }
}

#[test]
fn an_input_of_zeros_is_refused() {
    let (weight, stats) = (matrix(8, 16, 6), stats(&Matrix::zeros(16, 10)));
    let refused = method(Update::Lsq, "8:2:8").prune(&weight, Some(&stats)).err().unwrap().to_string();
    assert!(refused.contains("calibrat"), "{refused}");
    assert!(method(Update::Alps, "8:2:8").prune(&weight, None).is_err());
}

#[test]
fn an_update_makes_up_for_what_the_layers_before_have_lost() {
    let (weight, dense) = (matrix(24, 64, 10), activations(64, 500));
    // What pruned layers make of the input: off by a share that depends on other features.
    let mut x = dense.clone();
    for k in 0..64 {
        let other = dense.row((k + 11) % 64).to_vec();
        x.row_mut(k).iter_mut().zip(other).for_each(|(v, o)| *v = 0.8 * *v + 0.2 * o);
    }
    let error = |stats: &Stats| {
        let pruned = prune(Update::Alps, "8:2:5", &weight, stats).packed.unpack();
        let (want, got) = (lacuna_kernels::dense::linear(&weight, &dense), lacuna_kernels::dense::linear(&pruned, &x));
        want.data().iter().zip(got.data()).map(|(w, g)| f64::from(w - g).powi(2)).sum::<f64>()
    };
    let [own, half, whole] = [0.0, 0.5, 1.0].map(|aim| {
        let mut stats = Stats::beside_dense(64, aim);
        stats.observe(&x, Some(&dense)).unwrap();
        error(&stats)
    });
    assert!(whole < half && half < own, "{own} {half} {whole}");
    // Where nothing was lost there is nothing to make up for.
    let mut same = Stats::beside_dense(64, 1.0);
    same.observe(&x, Some(&x)).unwrap();
    let aimed = prune(Update::Lsq, "8:2:5", &weight, &same).packed.unpack();
    let plain = prune(Update::Lsq, "8:2:5", &weight, &stats(&x)).packed.unpack();
    assert!(aimed.data().iter().zip(plain.data()).all(|(a, b)| (a - b).abs() < 2e-3));
}

#[test]
fn moving_a_mask_keeps_the_means_of_outputs() {
    let (weight, mut x) = (matrix(32, 96, 11), activations(96, 400));
    x.data_mut().iter_mut().for_each(|v| *v += 0.7);
    let stats = stats(&x);
    let mean_error = |update| {
        let mut lost = weight.clone();
        prune(update, "8:2:6", &weight, &stats).packed.subtract_from(&mut lost).unwrap();
        let means = stats.means();
        let of_row = |r: usize| lost.row(r).iter().zip(&means).map(|(&w, m)| f64::from(w) * m).sum::<f64>().abs();
        (0..32).map(of_row).sum::<f64>()
    };
    let (before, after) = (mean_error(Update::None), mean_error(Update::DsNoT));
    assert!(after < 0.9 * before, "{before} {after}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let x = activations(48, 200);
    let (weight, stats) = (matrix(70, 48, 3), stats(&x));
    for pattern in ["16:2:8", "16:2:8@24"] {
        for update in UPDATES {
            let with = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| prune(update, pattern, &weight, &stats)).packed
            };
            assert_eq!(with(1), with(3), "{pattern} {}", update.name());
        }
    }
}

/// Products in f64, and how many.
#[derive(Default)]
struct Counted(AtomicUsize);

impl Products for Counted {
    fn add_outer(&self, out: &mut Matrix, left: &Matrix, x: &Matrix) -> lacuna_core::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        for i in 0..left.rows() {
            for (j, out) in out.row_mut(i).iter_mut().enumerate() {
                let terms = left.row(i).iter().zip(x.row(j)).map(|(a, b)| f64::from(*a) * f64::from(*b));
                *out = (f64::from(*out) + terms.sum::<f64>()) as f32;
            }
        }
        Ok(())
    }

    fn multiply_symmetric(&self, out: &mut Matrix, a: &Matrix, b: &Matrix) -> lacuna_core::Result<()> {
        out.data_mut().fill(0.0);
        self.add_outer(out, a, b)
    }
}

/// Never.
struct Broken;

impl Products for Broken {
    fn add_outer(&self, _: &mut Matrix, _: &Matrix, _: &Matrix) -> lacuna_core::Result<()> {
        Err(lacuna_core::Error::Product("out of memory".to_owned()))
    }

    fn multiply_symmetric(&self, _: &mut Matrix, _: &Matrix, _: &Matrix) -> lacuna_core::Result<()> {
        Err(lacuna_core::Error::Product("out of memory".to_owned()))
    }
}

#[test]
fn something_else_may_multiply() {
    let (weight, x) = (matrix(16, 40, 1), activations(40, 200));
    let counted = Arc::new(Counted::default());
    let mut elsewhere = Stats::new(40).multiplied_by(counted.clone());
    elsewhere.observe(&x, None).unwrap();
    assert_eq!(counted.0.load(Ordering::Relaxed), 1);
    let here = stats(&x);
    let errors = [&here, &elsewhere].map(|stats| prune(Update::Alps, "8:2:8", &weight, stats).relative_error);
    assert!(counted.0.load(Ordering::Relaxed) > 10, "ALPS multiplies on the CPU");
    // Last bits decide on a mask here and there.
    assert!((errors[0] / errors[1] - 1.0).abs() < 0.02, "{errors:?}");
    let broken = stats(&x).multiplied_by(Arc::new(Broken));
    let refused = method(Update::Alps, "8:2:8").prune(&weight, Some(&broken)).err().unwrap().to_string();
    assert_eq!(refused, "multiplying matrices: out of memory");
}
