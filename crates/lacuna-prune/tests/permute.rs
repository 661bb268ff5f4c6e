//! The paper's permutation: never a loss, close to the best on matrices small enough to try every order, the same on any
//! number of threads.

use lacuna_core::{Matrix, Pattern, Permutation, Scores};
use lacuna_prune::permute::{kept, paper};
use proptest::prelude::*;

fn scores(max_rows: usize, max_cols: usize) -> impl Strategy<Value = (Scores, Pattern)> {
    (1_usize..9, 4_usize..10, 1..max_rows, 0..max_cols).prop_flat_map(|(v, m, rows, more)| {
        let cols = m + more;
        let score = prop_oneof![4 => (0.0_f32..1.0).prop_map(|s| s * s * s), 1 => Just(0.25), 1 => Just(0.0)];
        prop::collection::vec(score, rows * cols).prop_map(move |data| {
            (Scores::new(Matrix::new(rows, cols, data).unwrap()).unwrap(), Pattern::new(v, m).unwrap())
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn never_less_is_kept_than_before((scores, pattern) in scores(40, 40)) {
        let orders = paper(&scores, pattern).unwrap();
        let whole = scores.sum().max(f64::MIN_POSITIVE);
        let arranged = Scores::new(orders.apply(scores.matrix()).unwrap()).unwrap();
        let [before, after] = orders.retained;
        prop_assert!((before - kept(&scores, pattern).unwrap() / whole).abs() < 1e-9);
        prop_assert!((after - kept(&arranged, pattern).unwrap() / whole).abs() < 1e-9);
        prop_assert!(after >= before - 1e-12, "{} after {}", after, before);
    }
}

/// Every way to share out `items` among parts of `size`; the last part may be smaller.
fn partitions(items: &[u32], size: usize) -> Vec<Vec<u32>> {
    let Some((&first, rest)) = items.split_first() else { return vec![vec![]] };
    if items.len() <= size {
        return vec![items.to_vec()];
    }
    let mut all = vec![];
    for set in 0_u32..1 << rest.len() {
        if set.count_ones() as usize == size - 1 {
            let (with, without): (Vec<_>, Vec<_>) = rest.iter().enumerate().partition(|(i, _)| set >> i & 1 == 1);
            let without: Vec<u32> = without.into_iter().map(|(_, &item)| item).collect();
            for tail in partitions(&without, size) {
                all.push([first].into_iter().chain(with.iter().map(|(_, item)| **item)).chain(tail).collect());
            }
        }
    }
    all
}

#[test]
fn small_matrices_come_close_to_their_best_order() {
    let (rows, cols) = (4, 8);
    let pattern: Pattern = "2:2:4".parse().unwrap();
    let order = |order: Vec<u32>| Permutation::new(order).unwrap();
    let row_orders: Vec<_> = partitions(&[0, 1, 2, 3], 2).into_iter().map(order).collect();
    let column_orders: Vec<_> = partitions(&[0, 1, 2, 3, 4, 5, 6, 7], 4).into_iter().map(order).collect();
    assert_eq!((row_orders.len(), column_orders.len()), (3, 35));
    let (mut reached, mut possible, mut cases) = (0.0, 0.0, 0);
    for seed in 0_u32..60 {
        let score = |i: u32| (i + 1000 * seed + 1).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32;
        let data = (0..rows * cols).map(|i| score(i as u32).powi(4)).collect();
        let scores = Scores::new(Matrix::new(rows, cols, data).unwrap()).unwrap();
        let mut best = 0.0_f64;
        for by_rows in &row_orders {
            let arranged = by_rows.permute_rows(scores.matrix()).unwrap();
            for by_columns in &column_orders {
                let arranged = Scores::new(by_columns.permute_columns(&arranged).unwrap()).unwrap();
                best = best.max(kept(&arranged, pattern).unwrap() / scores.sum());
            }
        }
        let [before, after] = paper(&scores, pattern).unwrap().retained;
        assert!(before - 1e-9 <= after && after <= best + 1e-9, "{before} {after} {best}");
        reached += after - before;
        possible += best - before;
        cases += 1;
    }
    println!("{cases} matrices: {:.3} of what the best order gains", reached / possible);
    assert!(reached > 0.7 * possible, "{reached} of {possible}");
}

#[test]
fn threads_change_nothing() {
    let (rows, cols) = (200, 170);
    let score = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32).powi(3);
    let scores = Scores::new(Matrix::new(rows, cols, (0..rows * cols).map(score).collect()).unwrap()).unwrap();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let orders = pool.install(|| paper(&scores, "16:2:8".parse().unwrap())).unwrap();
        assert!(orders.retained[1] > orders.retained[0] * 1.01, "{:?}", orders.retained);
        (orders.rows, orders.columns, orders.retained.map(f64::to_bits))
    };
    assert_eq!(with(1), with(5));
}

/// Shapes of LLaMA-2-7B; run by hand: `cargo test --release -p lacuna-prune --test permute -- --ignored --nocapture`.
#[test]
#[ignore = "takes a minute or more"]
fn large_layers() {
    for (rows, cols, pattern) in [(4096, 4096, "64:2:8"), (4096, 11_008, "64:2:8"), (4096, 11_008, "2:4")] {
        // Mixed well: the multiples that serve elsewhere repeat themselves along such rows.
        let mix = |i: u64| (i ^ i >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let score = |i: usize| ((mix(mix(i as u64 + 1)) >> 40) as f32 / (1 << 24) as f32).powi(3);
        let scores = Scores::new(Matrix::new(rows, cols, (0..rows * cols).map(score).collect()).unwrap()).unwrap();
        let started = std::time::Instant::now();
        let orders = paper(&scores, pattern.parse().unwrap()).unwrap();
        println!("{rows}x{cols} {pattern}: {:?} in {:.1} s", orders.retained, started.elapsed().as_secs_f64());
    }
}
