//! Selection against brute force, and the order that the methods must have.

use lacuna_core::{Dtype, Error, IntType, Matrix, Pattern, ScaleGroup, Scores, ValueType};
use lacuna_prune::{Criterion, Method, Permute, Selection, Update};
use proptest::prelude::*;

/// Largest sum of kept scores by trying every set of 4 columns of every block.
fn brute_force(scores: &Matrix, pattern: Pattern) -> f64 {
    let grid = pattern.grid(scores.rows(), scores.cols()).unwrap();
    let at = |r: usize, c: usize| scores.row(r).get(c).map_or(0.0, |&s| f64::from(s));
    let mut sum = 0.0;
    for block in 0..grid.row_blocks() {
        for group in 0..grid.groups() {
            let cols: Vec<usize> = grid.group_range(group).collect();
            let mut best = 0.0_f64;
            for set in 0_u32..1 << cols.len() {
                if set.count_ones() == 4 {
                    let four: Vec<usize> = (0..cols.len()).filter(|&i| set >> i & 1 == 1).map(|i| cols[i]).collect();
                    let row_sum = |r: usize| {
                        let mut kept: Vec<f64> = four.iter().map(|&c| at(r, c)).collect();
                        kept.sort_by(|a, b| b.total_cmp(a));
                        kept[0] + kept[1]
                    };
                    best = best.max(grid.block_rows(block).map(row_sum).sum());
                }
            }
            sum += best;
        }
    }
    sum
}

fn scores() -> impl Strategy<Value = (Matrix, Pattern)> {
    (1_usize..9, 4_usize..12, 1_usize..20, 0_usize..14).prop_flat_map(|(v, m, rows, more)| {
        let cols = m + more;
        // Squares make the scores uneven; a few equal values make ties.
        let score = prop_oneof![4 => (0.0_f32..1.0).prop_map(|s| s * s), 1 => Just(0.25), 1 => Just(0.0)];
        prop::collection::vec(score, rows * cols)
            .prop_map(move |data| (Matrix::new(rows, cols, data).unwrap(), Pattern::new(v, m).unwrap()))
    })
}

fn kept(selection: Selection, scores: &Matrix, pattern: Pattern) -> f64 {
    let mask = selection.select(&Scores::new(scores.clone()).unwrap(), pattern).unwrap();
    mask.kept_sum(scores).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn exact_is_the_best_there_is((scores, pattern) in scores()) {
        let (got, want) = (kept(Selection::Exact, &scores, pattern), brute_force(&scores, pattern));
        prop_assert!((got - want).abs() <= 1e-5 * (1.0 + want), "{} where {} is possible", got, want);
        prop_assert!(kept(Selection::Paper, &scores, pattern) <= got + 1e-5 * (1.0 + want));
    }

    #[test]
    fn paper_keeps_the_columns_with_the_largest_norm((scores, pattern) in scores()) {
        let mask = Selection::Paper.select(&Scores::new(scores.clone()).unwrap(), pattern).unwrap();
        let grid = *mask.grid();
        for block in 0..grid.row_blocks() {
            for group in 0..grid.groups() {
                let norm = |c: usize| grid.block_rows(block).map(|r| f64::from(scores.row(r)[c])).sum::<f64>();
                let columns = mask.columns(block, group).map(|c| c as usize);
                let real = columns.iter().filter(|&&c| c < grid.cols());
                let least = real.map(|&c| norm(c)).fold(f64::INFINITY, f64::min);
                for c in grid.block_cols(group).filter(|c| !columns.contains(c)) {
                    prop_assert!(norm(c) <= least + 1e-9);
                }
            }
        }
    }
}

#[test]
fn scores_that_are_all_alike_still_finish() {
    let scores = Scores::new(Matrix::new(64, 64, vec![1.0; 64 * 64]).unwrap()).unwrap();
    let mask = Selection::Exact.select(&scores, "64:2:32".parse().unwrap()).unwrap();
    assert_eq!(mask.columns(0, 1), [32, 33, 34, 35]);
}

#[test]
fn an_error_names_the_row_of_the_layer_not_of_a_band() {
    let mut weight = Matrix::zeros(4096, 128);
    weight.row_mut(3000).fill(f32::MAX);
    let method = Method {
        criterion: Criterion::Magnitude,
        update: Update::None,
        permute: Permute::None,
        selection: Selection::Paper,
        pattern: "16:2:8".parse().unwrap(),
        values: Dtype::F16.into(),
    };
    let refused = method.prune(&weight, None).err();
    assert!(matches!(refused, Some(Error::Overflow { row: 3000, .. })), "{refused:?}");
}

#[test]
fn the_error_of_integers_is_that_of_the_kept_weights() {
    // Several bands, so that their sums have to be joined.
    let (rows, cols) = (4096, 128);
    let weight = |i: usize| (i as u32).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32 - 0.5;
    let weight = Matrix::new(rows, cols, (0..rows * cols).map(weight).collect()).unwrap();
    let prune = |values| {
        let method = Method {
            criterion: Criterion::Magnitude,
            update: Update::None,
            permute: Permute::None,
            selection: Selection::Exact,
            pattern: "16:2:8".parse().unwrap(),
            values,
        };
        method.prune(&weight, None).unwrap()
    };
    let float = prune(Dtype::F32.into());
    assert_eq!(float.quantization_error, None);
    let kept = float.packed.unpack();
    let norm = |matrix: &Matrix| matrix.data().iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
    for int in [IntType::Int8, IntType::Int4] {
        let rounded = prune(ValueType::Int(int, ScaleGroup::Of64));
        let mut lost = kept.clone();
        rounded.packed.subtract_from(&mut lost).unwrap();
        let error = rounded.quantization_error.unwrap();
        // Sums of a million squares in f64, in another order.
        assert!((error / (norm(&lost) / norm(&kept)) - 1.0).abs() < 1e-9, "{error}");
        assert!(rounded.relative_error > float.relative_error);
    }
}
