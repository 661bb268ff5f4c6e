//! Assignment against every assignment there is.

use lacuna_prune::assign;
use proptest::prelude::*;

/// The largest sum by trying all columns for each row in turn.
fn brute_force(benefit: &[f32], cols: usize, taken: u32) -> f64 {
    let Some((row, rest)) = benefit.split_at_checked(cols).filter(|(row, _)| !row.is_empty()) else { return 0.0 };
    let free = (0..cols).filter(|c| taken >> c & 1 == 0);
    free.map(|c| f64::from(row[c]) + brute_force(rest, cols, taken | 1 << c)).fold(f64::NEG_INFINITY, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_assignment_is_better(
        (rows, cols) in (0_usize..7).prop_flat_map(|rows| (Just(rows), rows.max(1)..8)),
        values in prop::collection::vec(prop_oneof![-1.0_f32..1.0, Just(0.0), Just(0.5)], 49),
    ) {
        let benefit = &values[..rows * cols];
        let got = assign(benefit, rows, cols);
        prop_assert_eq!(got.len(), rows);
        let mut columns = got.clone();
        columns.sort_unstable();
        columns.dedup();
        prop_assert!(columns.len() == rows && columns.iter().all(|&c| c < cols), "{:?}", got);
        let sum: f64 = got.iter().enumerate().map(|(r, &c)| f64::from(benefit[r * cols + c])).sum();
        let best = brute_force(benefit, cols, 0);
        prop_assert!((sum - best).abs() < 1e-9, "{} where {} is possible", sum, best);
    }
}

#[test]
fn many_equal_benefits_still_finish() {
    assert_eq!(assign(&vec![0.0; 300 * 400], 300, 400).len(), 300);
}
