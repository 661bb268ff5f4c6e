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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn diversity_counts_masks() {
        // C(8, 4) = 70 choices of columns, 6 of each of 16 rows.
        let want = (70.0_f64.ln() + 16.0 * 6.0_f64.ln()) / 128.0;
        assert!((diversity("16:2:8".parse().unwrap()) - want).abs() < 1e-15);
        assert!((diversity(Pattern::PLAIN) - 6.0_f64.ln() / 4.0).abs() < 1e-15);
    }
}
