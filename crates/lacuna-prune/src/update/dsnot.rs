//! DSnoT (Zhang et al., "Dynamic Sparse No Training", ICLR 2024, arXiv 2310.08915, equations 4 to 8): weights stay, the mask moves.
//!
//! `D_ij = W_ij · mean(x_j)` is what a weight adds to the mean of output `i`; `ε_i` is what the removed ones of a row would add. While that is
//! not small, the removed weight that makes up for most of it, per variance of its input, comes back, and the worst kept
//! one of its group goes. A row ends with the first exchange that would turn the sign of `ε_i`, as in the authors' code for
//! N:M. Which 4 columns a group has does not change.

use lacuna_core::{GROUP_COLUMNS, Mask, Pair, Result};
use rayon::prelude::*;

use super::Task;
use crate::Stats;

/// Exchanges in a row at most, and what of `ε`, summed over a sample, is small enough (the authors' defaults, for samples of
/// as many tokens as theirs).
const CYCLES: usize = 50;
const THRESHOLD: f64 = 0.1;
const SAMPLE_TOKENS: f64 = 2048.0;

/// The moved mask.
pub(super) fn run(task: &Task, stats: &Stats) -> Result<Mask> {
    let (mask, grid) = (&task.mask, *task.mask.grid());
    let (means, variances) = (stats.means(), stats.variances());
    let rows = (0..grid.rows()).into_par_iter().map(|row| {
        let block = row / grid.pattern().v();
        let columns: Vec<[u32; GROUP_COLUMNS]> = (0..grid.groups()).map(|g| mask.columns(block, g)).collect();
        let weights = task.weight.row(row);
        let gain = |c: usize| f64::from(weights[c]) * means[c] * SAMPLE_TOKENS;
        let mut pairs = mask.row_pairs(row).to_vec();
        let mut candidates = vec![];
        for (group, (four, pair)) in columns.iter().zip(&pairs).enumerate() {
            for (p, c) in four.iter().map(|&c| c as usize).enumerate() {
                if c < weights.len() && !pair.positions().contains(&p) {
                    candidates.push((gain(c) / variances[c].max(f64::MIN_POSITIVE), group, p));
                }
            }
        }
        let all: f64 = (0..weights.len()).map(gain).sum();
        let mut error = all - mask.kept(row).flatten().filter(|&c| c < weights.len()).map(gain).sum::<f64>();
        candidates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let positive = error > 0.0;
        let mut candidates = candidates.into_iter();
        let mut gone = vec![];
        for _ in 0..CYCLES {
            let next = if positive { candidates.next_back() } else { candidates.next() };
            let Some((_, group, comes)) = next else { break };
            let column = |p: usize| columns[group][p] as usize;
            let worth = |p: usize| task.scores.matrix().row(row).get(column(p)).copied();
            let kept = pairs[group].positions();
            let leaving = kept.into_iter().filter(|&p| worth(p).is_some() && !gone.contains(&(group, p)));
            let Some(goes) = leaving.min_by(|&a, &b| worth(a).partial_cmp(&worth(b)).expect("scores are finite"))
            else {
                break;
            };
            let after = error + gain(column(goes)) - gain(column(comes));
            if error.abs() <= THRESHOLD || (after > 0.0) != positive {
                break;
            }
            let stays = if kept[0] == goes { kept[1] } else { kept[0] };
            pairs[group] = Pair::new(stays.min(comes), stays.max(comes)).expect("two of four");
            gone.push((group, comes));
            error = after;
        }
        pairs
    });
    let pairs: Vec<Vec<Pair>> = rows.collect();
    Mask::new(grid, mask.all_columns().to_vec(), pairs.concat())
}
