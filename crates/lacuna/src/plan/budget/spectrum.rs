//! Eigenvalues of a symmetric matrix: Householder's reduction to three diagonals, then implicit QL (Golub & Van Loan, 8.3).

use lacuna_core::Matrix;

/// Sweeps of QL for one eigenvalue; a handful is usual.
const MAX_SWEEPS: usize = 60;

/// All eigenvalues of a symmetric matrix, in no order.
pub(super) fn eigenvalues(matrix: Matrix) -> Vec<f64> {
    let n = matrix.rows();
    let a: Vec<f64> = matrix.into_data().into_iter().map(f64::from).collect();
    let (diagonal, beside) = three_diagonals(a, n);
    implicit_ql(diagonal, beside)
}

/// The diagonal and the one beside it, `beside[i]` between `i` and `i + 1`.
fn three_diagonals(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; n.saturating_sub(1)];
    for k in 0..n.saturating_sub(2) {
        // The column below the diagonal is reflected onto its first place.
        let mut v: Vec<f64> = (k + 1..n).map(|i| a[i * n + k]).collect();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        beside[k] = if v[0] > 0.0 { -norm } else { norm };
        v[0] -= beside[k];
        let square = v.iter().map(|x| x * x).sum::<f64>();
        if square == 0.0 {
            continue;
        }
        // A ← H·A·H = A − v·wᵀ − w·vᵀ on what is left, with p = 2 A·v / vᵀv, w = p − (pᵀv / vᵀv)·v.
        let m = v.len();
        let row = |i: usize| (k + 1 + i) * n + k + 1;
        let p: Vec<f64> = (0..m)
            .map(|i| 2.0 / square * a[row(i)..row(i) + m].iter().zip(&v).map(|(a, v)| a * v).sum::<f64>())
            .collect();
        let share = p.iter().zip(&v).map(|(p, v)| p * v).sum::<f64>() / square;
        let w: Vec<f64> = p.iter().zip(&v).map(|(p, v)| p - share * v).collect();
        for i in 0..m {
            let (vi, wi) = (v[i], w[i]);
            for (a, (v, w)) in a[row(i)..row(i) + m].iter_mut().zip(v.iter().zip(&w)) {
                *a -= vi * w + wi * v;
            }
        }
    }
    if n >= 2 {
        beside[n - 2] = a[(n - 1) * n + n - 2];
    }
    ((0..n).map(|i| a[i * n + i]).collect(), beside)
}

fn implicit_ql(mut d: Vec<f64>, mut e: Vec<f64>) -> Vec<f64> {
    let n = d.len();
    e.push(0.0);
    for l in 0..n {
        for _ in 0..MAX_SWEEPS {
            let negligible = |m: usize| e[m].abs() <= f64::EPSILON * (d[m].abs() + d[m + 1].abs());
            let m = (l..n - 1).find(|&m| negligible(m)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            // Wilkinson's shift, chased from the bottom up.
            let mut g = (d[l + 1] - d[l]) / (2.0 * e[l]);
            let r = g.hypot(1.0);
            g = d[m] - d[l] + e[l] / (g + r.copysign(g));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut whole = true;
            for i in (l..m).rev() {
                let (f, b) = (s * e[i], c * e[i]);
                let r = f.hypot(g);
                e[i + 1] = r;
                if r == 0.0 {
                    d[i + 1] -= p;
                    e[m] = 0.0;
                    whole = false;
                    break;
                }
                (s, c) = (f / r, g / r);
                g = d[i + 1] - p;
                let r = (d[i] - g) * s + 2.0 * c * b;
                p = s * r;
                d[i + 1] = g + p;
                g = c * r - b;
            }
            if whole {
                d[l] -= p;
                e[l] = g;
                e[m] = 0.0;
            }
        }
    }
    d
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(mut values: Vec<f64>) -> Vec<f64> {
        values.sort_by(f64::total_cmp);
        values
    }

    #[test]
    fn the_second_difference_has_known_eigenvalues() {
        // 2 on the diagonal, −1 beside it: 2 − 2 cos(π k / (n + 1)).
        let n = 40;
        let mut matrix = Matrix::zeros(n, n);
        for i in 0..n {
            matrix.row_mut(i)[i] = 2.0;
            if i > 0 {
                matrix.row_mut(i)[i - 1] = -1.0;
                matrix.row_mut(i - 1)[i] = -1.0;
            }
        }
        let want = (1..=n).map(|k| 2.0 - 2.0 * (std::f64::consts::PI * k as f64 / (n as f64 + 1.0)).cos());
        for (got, want) in sorted(eigenvalues(matrix)).iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{got}, not {want}");
        }
    }

    #[test]
    fn reflections_keep_eigenvalues() {
        // H·diag(1 … n)·H with H = 1 − 2·u·uᵀ / uᵀu: full, and its eigenvalues are known.
        let n = 25;
        let u: Vec<f64> = (0..n).map(|i| (i as f64 * 0.7).sin() + 0.2).collect();
        let square: f64 = u.iter().map(|x| x * x).sum();
        let h = |i: usize, j: usize| f64::from(u8::from(i == j)) - 2.0 * u[i] * u[j] / square;
        let entry = |i: usize, j: usize| (0..n).map(|k| h(i, k) * (k + 1) as f64 * h(k, j)).sum::<f64>() as f32;
        let data = (0..n * n).map(|at| entry(at / n, at % n)).collect();
        let found = sorted(eigenvalues(Matrix::new(n, n, data).unwrap()));
        for (k, got) in found.iter().enumerate() {
            // Entries of up to 25 are rounded to single precision.
            assert!((got - (k + 1) as f64).abs() < 1e-4, "{got}, not {}", k + 1);
        }
        assert_eq!(eigenvalues(Matrix::zeros(1, 1)), [0.0]);
        assert_eq!(eigenvalues(Matrix::zeros(3, 3)), [0.0; 3]);
    }
}
