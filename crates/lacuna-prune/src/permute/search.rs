//! The search for one order: places are emptied in turns, as many at once as do not disturb each other, and their channels
//! assigned anew.
//!
//! Places that are at least `M` apart never share a group of columns, so what a channel is worth at each is exact and an
//! assignment can only gain. For rows the worth is an estimate (`rows.rs`), and several of a block change at once:
//! so every arrangement is measured, and one that keeps less than the best is taken back.

use lacuna_core::{Error, Pattern, Permutation};

use super::columns::column_benefits;
use super::rows::row_benefits;
use super::{Moved, kept};
use crate::select::lsap;

/// Channels that are assigned at once, at most: time grows with the third power, benefits with the second.
const AT_ONCE: usize = 512;
/// Benefits are kept for so many places side by side.
pub(super) const LANES: usize = 16;

/// The places that an order fills.
#[derive(Debug, Clone, Copy)]
pub struct Places {
    len: usize,
    /// channels stay in runs of so many places
    run: usize,
}

impl Places {
    /// Places that every channel may have.
    pub fn free(len: usize) -> Self {
        Self { len, run: len.max(1) }
    }

    /// `runs` times `run` places; channels stay in their run.
    pub fn runs(runs: usize, run: usize) -> Self {
        Self { len: runs * run, run: run.max(1) }
    }

    /// Every `stride`th place from `first` on, in sets that are assigned by themselves.
    fn sets(self, first: usize, stride: usize) -> Vec<Vec<usize>> {
        let places: Vec<usize> = (first..self.len).step_by(stride).collect();
        let of_run = |set: &[usize]| {
            let parts = set.len().div_ceil(AT_ONCE);
            (0..parts).map(|part| set.iter().copied().skip(part).step_by(parts).collect()).collect::<Vec<Vec<usize>>>()
        };
        places.chunk_by(|a, b| a / self.run == b / self.run).flat_map(of_run).filter(|set| set.len() > 1).collect()
    }
}

/// What a search found.
#[derive(Debug, Clone)]
pub struct Found {
    /// place `i` gets the channel of place `order[i]`
    pub order: Permutation,
    /// the score kept before, all weights together
    pub before: f64,
    /// and under the order
    pub after: f64,
}

/// What the channels of some places are worth at each of them.
pub(super) struct Benefits {
    pub(super) places: Vec<usize>,
    /// places, rounded up to whole vectors
    pub(super) stride: usize,
    /// `[channels, stride]`; channel `i` is now at place `i`
    pub(super) values: Vec<f32>,
}

impl Benefits {
    fn new(places: Vec<usize>) -> Self {
        let stride = places.len().next_multiple_of(LANES);
        Self { stride, values: vec![0.0; places.len() * stride], places }
    }

    /// Moves each channel to where all are worth most.
    fn assign(&self, order: &mut [u32]) {
        let n = self.places.len();
        let stride = n.next_multiple_of(lsap::VECTOR);
        let mut benefits = vec![f32::NEG_INFINITY; n * stride];
        for (row, values) in benefits.chunks_mut(stride).zip(self.values.chunks_exact(self.stride)) {
            row[..n].copy_from_slice(&values[..n]);
        }
        let channels: Vec<u32> = self.places.iter().map(|&place| order[place]).collect();
        let mut assigned = vec![0; n];
        lsap::Solver::default().solve(&benefits, stride, &mut assigned);
        for (channel, place) in channels.into_iter().zip(assigned) {
            order[self.places[place as usize]] = channel;
        }
    }
}

/// Searches for the order under which grouped masks keep the most of all weights it moves.
///
/// `show` shows each of them to its argument, whose errors it passes on; it may hold one at a time. The result keeps at
/// least what the present order keeps.
pub fn search<E: From<Error>>(
    places: Places,
    pattern: Pattern,
    rounds: usize,
    mut show: impl FnMut(&mut dyn FnMut(&Moved) -> Result<(), Error>) -> Result<(), E>,
) -> Result<Found, E> {
    let mut look_at = |order: &Permutation, sets: Vec<Vec<usize>>| {
        let mut benefits: Vec<Benefits> = sets.into_iter().map(Benefits::new).collect();
        let (mut sum, mut by_columns) = (0.0, false);
        show(&mut |moved| {
            let scores = moved.arranged(order)?;
            sum += f64::from(moved.weight) * kept(&scores, pattern)?;
            column_benefits(moved, &scores, pattern, &mut benefits)?;
            row_benefits(moved, &scores, pattern, &mut benefits)?;
            by_columns |= !moved.columns.is_empty();
            Ok(())
        })?;
        Ok::<_, E>((benefits, sum, by_columns))
    };
    let mut best = Permutation::identity(places.len);
    let (_, before, by_columns) = look_at(&best, vec![])?;
    let (mut after, mut candidate) = (before, None);
    for round in 0..rounds {
        // Other neighbours in each round, so that channels meet others. Rows are moved all at once first.
        let stride = if by_columns { pattern.m() + round } else { places.len.div_ceil(AT_ONCE) << round };
        for first in 0..stride.min(places.len) {
            let sets = places.sets(first, stride);
            let (mut benefits, sum, _) = look_at(candidate.as_ref().unwrap_or(&best), sets.clone())?;
            if let Some(order) = candidate.take() {
                if sum > after {
                    (best, after) = (order, sum);
                } else {
                    benefits = look_at(&best, sets)?.0;
                }
            }
            let mut order = best.as_slice().to_vec();
            for benefits in &benefits {
                benefits.assign(&mut order);
            }
            candidate = Some(Permutation::new(order)?).filter(|order| *order != best);
        }
    }
    if let Some(order) = candidate {
        let (_, sum, _) = look_at(&order, vec![])?;
        if sum > after {
            (best, after) = (order, sum);
        }
    }
    Ok(Found { order: best, before, after })
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use lacuna_core::{Matrix, Scores};

    use super::*;

    /// Uneven scores from a counter.
    fn scores(rows: usize, cols: usize) -> Scores {
        let score = |i: usize| ((i as u32 + 1).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32).powi(2);
        Scores::new(Matrix::new(rows, cols, (0..rows * cols).map(score).collect()).unwrap()).unwrap()
    }

    #[test]
    fn benefits_of_columns_say_just_what_an_assignment_keeps() {
        for (pattern, cols) in [("4:2:5", 25), ("8:2:4", 16), ("16:2:9", 63), ("3:2:7", 16), ("2:2:8", 18)] {
            let pattern: Pattern = pattern.parse().unwrap();
            let moved = Moved {
                scores: Cow::Owned(scores(13, cols)),
                weight: 1.0,
                columns: vec![(0..cols).collect()],
                rows: vec![],
            };
            let places: Vec<usize> = (1..cols).step_by(pattern.m()).collect();
            let mut benefits = [Benefits::new(places.clone())];
            column_benefits(&moved, &moved.scores, pattern, &mut benefits).unwrap();
            let [benefits] = benefits;
            // All rotations of the channels of these places: what is kept differs by the sums of benefits.
            let n = places.len();
            let outcome = |shift: usize| {
                let mut order: Vec<u32> = (0..cols as u32).collect();
                let channel_at = |i: usize| (i + shift) % n;
                (0..n).for_each(|i| order[places[i]] = places[channel_at(i)] as u32);
                let benefit: f32 = (0..n).map(|i| benefits.values[channel_at(i) * benefits.stride + i]).sum();
                let arranged = moved.arranged(&Permutation::new(order).unwrap()).unwrap();
                (kept(&arranged, pattern).unwrap(), f64::from(benefit))
            };
            let (kept_before, benefit_before) = outcome(0);
            for shift in 1..n {
                let (kept, benefit) = outcome(shift);
                // Sums of some hundred f32 of at most 1.
                let off = (kept - kept_before) - (benefit - benefit_before);
                assert!(off.abs() < 1e-3, "{pattern} over {cols}, shift {shift}: {off} off");
            }
        }
    }

    #[test]
    fn channels_stay_in_their_run() {
        let (runs, run) = (3, 10);
        let moved = Moved {
            scores: Cow::Owned(scores(16, runs * run)),
            weight: 1.0,
            columns: vec![(0..runs * run).collect()],
            rows: vec![],
        };
        let found = search::<Error>(Places::runs(runs, run), "8:2:5".parse().unwrap(), 3, |look| look(&moved)).unwrap();
        assert!(found.after > found.before, "{found:?}");
        for (place, &channel) in found.order.as_slice().iter().enumerate() {
            assert_eq!(place / run, channel as usize / run);
        }
    }

    #[test]
    fn heads_are_paired_with_heads_that_need_the_same_columns() {
        // Heads of 4 rows, two of them in a block. A head needs the first or the last 4 columns of each group; as they
        // stand, every block has one of each kind.
        let (heads, rows_of_head, cols) = (6, 4, 32);
        let last = [false, true, true, false, false, true];
        let needs = |row: usize, col: usize| last[row / rows_of_head] == (col % 8 >= 4);
        let score = |i: usize| if needs(i / cols, i % cols) { 1.0 } else { 0.01 };
        let rows = heads * rows_of_head;
        let matrix = Matrix::new(rows, cols, (0..rows * cols).map(score).collect()).unwrap();
        let moved = Moved {
            scores: Cow::Owned(Scores::new(matrix).unwrap()),
            weight: 1.0,
            columns: vec![],
            rows: (0..rows_of_head).map(|line| (0..heads).map(|head| head * rows_of_head + line).collect()).collect(),
        };
        let found = search::<Error>(Places::free(heads), "8:2:8".parse().unwrap(), 2, |look| look(&moved)).unwrap();
        // Two of three blocks can be of one kind; every row keeps two of each of four groups.
        assert!(found.before < 0.6 * (rows * 8) as f64, "{found:?}");
        assert!(found.after > 0.8 * (rows * 8) as f64, "{found:?}");
    }
}
