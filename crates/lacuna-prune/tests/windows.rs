//! Selection among the columns of a window, and of the rows that share columns: what no choice may break, and what better
//! choices have to reach.

use lacuna_core::{Error, Mask, Matrix, Pattern, Scores, Window};
use lacuna_prune::Selection;
use lacuna_prune::select::cluster_rows;
use proptest::prelude::*;

const WINDOWED: [Selection; 2] = [Selection::Top, Selection::Assignment];

/// Uneven scores with ties, under a pattern whose sides need not divide theirs.
fn scores(rows: usize, cols: usize) -> impl Strategy<Value = Scores> {
    let score = prop_oneof![4 => (0.0_f32..1.0).prop_map(|s| s * s), 1 => Just(0.25), 1 => Just(0.0)];
    prop::collection::vec(score, rows * cols)
        .prop_map(move |data| Scores::new(Matrix::new(rows, cols, data).unwrap()).unwrap())
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let window = prop_oneof![3 => (1_usize..5).prop_map(Some), 1 => Just(None)];
    (1_usize..9, 4_usize..10, window).prop_map(|(v, m, groups)| {
        let window = groups.map_or(Window::All, |groups| Window::Columns(groups * m));
        Pattern::new(v, m).unwrap().with_window(window).unwrap()
    })
}

/// Two sets of scores of one shape.
fn changed_scores() -> impl Strategy<Value = (Pattern, Scores, Scores)> {
    (pattern(), 1_usize..20, 0_usize..40).prop_flat_map(|(pattern, rows, more)| {
        let cols = pattern.m() + more;
        (Just(pattern), scores(rows, cols), scores(rows, cols))
    })
}

fn kept(mask: &Mask, scores: &Scores) -> f64 {
    mask.kept_sum(scores.matrix()).unwrap()
}

/// The largest sum that the columns of a mask can keep.
fn of_columns(mask: &Mask, scores: &Scores) -> f64 {
    let at = |row: usize, c: u32| scores.matrix().row(row).get(c as usize).map_or(0.0, |&s| f64::from(s));
    let mut sum = 0.0;
    for row in 0..mask.grid().rows() {
        for group in 0..mask.grid().groups() {
            let mut four = mask.columns(row / mask.grid().pattern().v(), group).map(|c| at(row, c));
            four.sort_by(f64::total_cmp);
            sum += four[2] + four[3];
        }
    }
    sum
}

/// Scores as those of weights are: heavy tails, columns and rows of different size.
fn layer(rows: usize, cols: usize, seed: u32) -> Scores {
    let random = |i: usize| {
        let mixed = (i as u32 ^ seed.wrapping_mul(0x85eb_ca6b)).wrapping_mul(2_654_435_761);
        ((mixed ^ mixed >> 15).wrapping_mul(0x2c1b_3c6d) >> 8) as f32 / (1 << 24) as f32
    };
    let of_column: Vec<f32> = (0..cols).map(|c| 0.5 + random(c + 1_000_003)).collect();
    let score = |i: usize| of_column[i % cols] * (random(i) + random(i + 77_777_777) - 1.0).abs().powi(2);
    Scores::new(Matrix::new(rows, cols, (0..rows * cols).map(score).collect()).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn rows_keep_the_best_two_and_bands_are_what_they_are_in_the_whole((pattern, scores, _) in changed_scores()) {
        for selection in WINDOWED {
            let mask = selection.select(&scores, pattern).unwrap();
            prop_assert_eq!(mask.grid().pattern(), pattern);
            prop_assert!((kept(&mask, &scores) - of_columns(&mask, &scores)).abs() < 1e-9);
            let blocks = 0..mask.grid().row_blocks();
            let bands = blocks.map(|block| {
                let band = scores.matrix().band(mask.grid().block_rows(block));
                selection.select(&Scores::new(band).unwrap(), pattern).unwrap()
            });
            prop_assert_eq!(Mask::stack(bands.collect()).unwrap(), mask);
        }
    }

    #[test]
    fn improving_is_never_worse((pattern, before, after) in changed_scores()) {
        for selection in Selection::ALL {
            let grouped = !WINDOWED.contains(&selection);
            let pattern = if grouped { pattern.with_window_up_to(pattern.m()) } else { pattern };
            let mask = selection.select(&before, pattern).unwrap();
            let improved = selection.improve(&after, &mask).unwrap();
            prop_assert!(kept(&improved, &after) >= of_columns(&mask, &after) - 1e-9);
        }
    }

    #[test]
    fn clustered_rows_keep_no_less((pattern, scores, _) in changed_scores()) {
        let order = cluster_rows(&scores, pattern, Selection::Assignment).unwrap();
        let ordered = Scores::new(order.permute_rows(scores.matrix()).unwrap()).unwrap();
        let select = |scores: &Scores| Selection::Assignment.select(scores, pattern).unwrap();
        prop_assert!(kept(&select(&ordered), &ordered) >= kept(&select(&scores), &scores) - 1e-9);
    }
}

#[test]
fn each_freedom_keeps_more() {
    for (cols, m) in [(384, 8), (301, 5), (400, 16)] {
        let scores = layer(256, cols, m as u32);
        let grouped = Pattern::new(64, m).unwrap();
        let all = grouped.with_window(Window::All).unwrap();
        let sum = |selection: Selection, pattern| kept(&selection.select(&scores, pattern).unwrap(), &scores);
        let sums = [
            sum(Selection::Paper, grouped),
            sum(Selection::Exact, grouped),
            sum(Selection::Assignment, grouped.with_window_up_to(64)),
            sum(Selection::Assignment, all),
        ];
        assert!(sums.is_sorted_by(|a, b| a < b), "{sums:?}");
        let top = sum(Selection::Top, all);
        assert!(sums[1] < top && top <= sums[3], "{sums:?}, top {top}");
        // Without a window, assignment is the exact selection, and top the paper's.
        let mask = |selection: Selection| selection.select(&scores, grouped).unwrap();
        assert_eq!(mask(Selection::Assignment), mask(Selection::Exact));
        assert_eq!(mask(Selection::Top), mask(Selection::Paper));
        let order = cluster_rows(&scores, all, Selection::Assignment).unwrap();
        let ordered = Scores::new(order.permute_rows(scores.matrix()).unwrap()).unwrap();
        assert!(kept(&Selection::Assignment.select(&ordered, all).unwrap(), &ordered) > sums[3]);
    }
}

#[test]
fn selections_of_single_groups_refuse_windows() {
    let scores = layer(8, 32, 0);
    for selection in [Selection::Paper, Selection::Exact] {
        let refused = selection.select(&scores, "4:2:8@16".parse().unwrap());
        assert!(matches!(refused, Err(Error::NoWindow { .. })), "{refused:?}");
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(selection.name()) && text.contains("4:2:8@16") && text.contains("assignment"), "{text}");
    }
}
