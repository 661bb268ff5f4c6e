//! Figures that are said to predict how good a pruned model is, and how well they rank.

use lacuna_core::{GROUP_COLUMNS, Pattern};

/// Ways in which a row may keep 2 of its 4 columns.
const WAYS: f64 = 6.0;

/// Mask diversity a weight, `ln K(V, M) = [ln C(M, 4) + V·ln 6] / (V·M)` (arXiv 2410.16135): of how many masks a block has,
/// the logarithm by its weights.
pub fn diversity(pattern: Pattern) -> f64 {
    let (v, m) = (pattern.v() as f64, pattern.m() as f64);
    let columns: f64 = (0..GROUP_COLUMNS).map(|i| ((m - i as f64) / (i as f64 + 1.0)).ln()).sum();
    (columns + v * WAYS.ln()) / (v * m)
}

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs. 0 where one side does not
/// vary.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let moment = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let spread = moment(&a, &a) * moment(&b, &b);
    if spread > 0.0 { moment(&a, &b) / spread.sqrt() } else { 0.0 }
}

/// Kendall's rank correlation τ-b: pairs in the same order less pairs in opposite order, ties apart. 0 where one side does
/// not vary.
pub fn kendall(a: &[f64], b: &[f64]) -> f64 {
    let (mut sum, mut untied) = (0.0, [0.0; 2]);
    for i in 0..a.len() {
        for j in 0..i {
            let order = |x: &[f64]| f64::from(x[i].total_cmp(&x[j]) as i8);
            let (x, y) = (order(a), order(b));
            sum += x * y;
            untied = [untied[0] + x * x, untied[1] + y * y];
        }
    }
    let spread: f64 = untied[0] * untied[1];
    if spread > 0.0 { sum / spread.sqrt() } else { 0.0 }
}

/// Places in ascending order; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let below = |v: &f64| values.iter().filter(|other| other.total_cmp(v).is_lt()).count() as f64;
    let equal = |v: &f64| values.iter().filter(|other| other.total_cmp(v).is_eq()).count() as f64;
    values.iter().map(|v| below(v) + (equal(v) - 1.0) / 2.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlations_of_ranks() {
        // By hand: deviations of ranks (-2, -½, -½, 1, 2) and (-1, -2, ½, ½, 2); of 10 pairs 7 agree, 1 does not, 2 are ties.
        let a = [1.0, 2.0, 2.0, 4.0, 5.0];
        let b = [2.0, 1.0, 3.0, 3.0, 9.0];
        assert!((spearman(&a, &b) - 7.25 / 9.5).abs() < 1e-12);
        assert!((kendall(&a, &b) - 6.0 / 9.0).abs() < 1e-12);
        let falling: Vec<f64> = a.iter().map(|v| -v.exp()).collect();
        assert!((spearman(&a, &falling) + 1.0).abs() < 1e-12 && (kendall(&a, &falling) + 1.0).abs() < 1e-12);
        assert!(spearman(&a, &[1.0; 5]).abs() < 1e-12 && kendall(&a, &[1.0; 5]).abs() < 1e-12);
    }

    #[test]
    fn diversity_counts_masks() {
        // C(8, 4) = 70 choices of columns, 6 of each of 16 rows.
        let want = (70.0_f64.ln() + 16.0 * 6.0_f64.ln()) / 128.0;
        assert!((diversity("16:2:8".parse().unwrap()) - want).abs() < 1e-15);
        assert!((diversity(Pattern::PLAIN) - 6.0_f64.ln() / 4.0).abs() < 1e-15);
    }
}
