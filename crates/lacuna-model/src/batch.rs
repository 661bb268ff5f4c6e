//! Which sequences of a batch run together.

use std::ops::Range;

/// Tokens of a run of an encoder: enough to share the reading of weights, so few that activations stay in the cache.
pub const RUN_TOKENS: usize = 256;

/// Cuts a batch into runs of sequences with at most `limit` tokens together, or a single longer one.
pub fn runs(lengths: &[usize], limit: usize) -> Vec<Range<usize>> {
    let (mut runs, mut start, mut tokens) = (vec![], 0, 0);
    for (i, len) in lengths.iter().enumerate() {
        if i > start && tokens + len > limit {
            runs.push(start..i);
            (start, tokens) = (i, 0);
        }
        tokens += len;
    }
    if start < lengths.len() {
        runs.push(start..lengths.len());
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn runs_hold_all_sequences_in_order_and_keep_to_the_limit() {
        assert_eq!(runs(&[3, 4, 9, 1, 1, 5], 7), [0..2, 2..3, 3..6]);
        assert_eq!(runs(&[8, 1], 7), [0..1, 1..2]);
        assert!(runs(&[], 7).is_empty());
    }
}
