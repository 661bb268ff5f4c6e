//! What distributions come to, from logits `[classes, answers]`: a column is an answer.

use std::ops::Range;

use lacuna_core::Matrix;
use lacuna_kernels::exp_of_negative;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Columns that are looked at together: their sums stay in the first cache.
const COLUMNS: usize = 64;

/// `ln Σ_v exp(logits[v, i])` of each column, in nats.
pub fn log_sum_exp(logits: &Matrix) -> Vec<f64> {
    by_columns(logits.cols(), |columns| LogSums { logits, columns })
}

/// `KL(softmax(p) ‖ softmax(q))` of each column, in nats.
///
/// # Panics
/// If the shapes differ.
pub fn divergences(p: &Matrix, q: &Matrix) -> Vec<f64> {
    assert_eq!([p.rows(), p.cols()], [q.rows(), q.cols()], "logits of different shapes");
    by_columns(p.cols(), |columns| Divergences { p, q, columns })
}

fn by_columns<F: NullaryFnOnce<Output = Vec<f64>>>(cols: usize, f: impl Fn(Range<usize>) -> F + Sync) -> Vec<f64> {
    let parts = (0..cols.div_ceil(COLUMNS)).into_par_iter();
    let part = |i: usize| Arch::new().dispatch(f(i * COLUMNS..cols.min((i + 1) * COLUMNS)));
    parts.flat_map_iter(part).collect()
}

/// Function objects, so that they are compiled for the CPU's vectors.
struct LogSums<'a> {
    logits: &'a Matrix,
    columns: Range<usize>,
}

impl NullaryFnOnce for LogSums<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn call(self) -> Vec<f64> {
        let Self { logits, columns } = self;
        let mut most = vec![f32::NEG_INFINITY; columns.len()];
        let mut sums = vec![0.0_f64; columns.len()];
        for row in 0..logits.rows() {
            for (most, &logit) in most.iter_mut().zip(&logits.row(row)[columns.clone()]) {
                *most = if logit > *most { logit } else { *most };
            }
        }
        for row in 0..logits.rows() {
            for ((sum, most), logit) in sums.iter_mut().zip(&most).zip(&logits.row(row)[columns.clone()]) {
                *sum += f64::from(exp_of_negative(logit - most));
            }
        }
        sums.iter().zip(&most).map(|(sum, &most)| sum.ln() + f64::from(most)).collect()
    }
}

struct Divergences<'a> {
    p: &'a Matrix,
    q: &'a Matrix,
    columns: Range<usize>,
}

impl NullaryFnOnce for Divergences<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn call(self) -> Vec<f64> {
        let Self { p, q, columns } = self;
        // One by one: an array's `map` is compiled apart, without the vectors.
        let log_p = LogSums { logits: p, columns: columns.clone() }.call();
        let log_q = LogSums { logits: q, columns: columns.clone() }.call();
        let mut found = vec![0.0; columns.len()];
        for row in 0..p.rows() {
            let (p, q) = (&p.row(row)[columns.clone()], &q.row(row)[columns.clone()]);
            for ((((found, p), q), log_p), log_q) in found.iter_mut().zip(p).zip(q).zip(&log_p).zip(&log_q) {
                // Logarithms in f64: their difference is small where the distributions are close.
                let (p, q) = (f64::from(*p) - log_p, f64::from(*q) - log_q);
                *found += f64::from(exp_of_negative(p as f32)) * (p - q);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More columns than are looked at together, against the definitions in f64.
    #[test]
    fn sums_and_divergences_are_those_of_their_definitions() {
        let (rows, cols) = (37, 150);
        let value = |seed: usize| move |i: usize| ((i * 7919 + seed * 31) % 1009) as f32 / 60.0 - 8.0;
        let [p, q] = [1, 2].map(|seed| Matrix::new(rows, cols, (0..rows * cols).map(value(seed)).collect()).unwrap());
        let column = |m: &Matrix, i: usize| -> Vec<f64> { (0..rows).map(|row| f64::from(m.row(row)[i])).collect() };
        let log_sum = |column: &[f64]| column.iter().map(|v| v.exp()).sum::<f64>().ln();
        let (sums, found) = (log_sum_exp(&p), divergences(&p, &q));
        assert_eq!([sums.len(), found.len()], [cols; 2]);
        for i in 0..cols {
            let (p, q) = (column(&p, i), column(&q, i));
            let (log_p, log_q) = (log_sum(&p), log_sum(&q));
            assert!((sums[i] - log_p).abs() < 1e-6, "{i}: {} {log_p}", sums[i]);
            let want: f64 = p.iter().zip(&q).map(|(p, q)| (p - log_p).exp() * ((p - log_p) - (q - log_q))).sum();
            assert!((found[i] - want).abs() < 1e-5 * (1.0 + want), "{i}: {} {want}", found[i]);
        }
    }

    #[test]
    fn logits_that_differ_by_a_constant_are_of_one_distribution() {
        // Columns: the same twice, and (1/2, 1/2) against (1/4, 3/4).
        let p = Matrix::new(2, 2, vec![3.0, 0.0, 5.0, 0.0]).unwrap();
        let q = Matrix::new(2, 2, vec![3.0, 1.0, 5.0, 1.0 + 3.0_f32.ln()]).unwrap();
        let want = 0.5 * (2.0_f64).ln() + 0.5 * (2.0_f64 / 3.0).ln();
        let found = divergences(&p, &q);
        assert!(found[0].abs() < 1e-12 && (found[1] - want).abs() < 1e-6, "{found:?}");
        let moved = Matrix::new(2, 2, vec![4.0, 1.0, 6.0, 1.0]).unwrap();
        assert!(divergences(&p, &moved).iter().all(|found| found.abs() < 1e-12));
    }

    #[test]
    fn a_sum_with_nan_is_nan() {
        let broken = Matrix::new(2, 1, vec![0.0, f32::NAN]).unwrap();
        assert!(log_sum_exp(&broken)[0].is_nan());
    }
}
