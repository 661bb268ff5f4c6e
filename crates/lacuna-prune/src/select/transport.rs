//! Balanced assignment: each of `R` rows goes to one of `B` blocks, of which none takes more rows than it has places, so
//! that the benefits have the largest sum.
//!
//! The transportation problem, by shortest augmenting paths as in [`super::lsap`], but over blocks instead of places: rows
//! come one after the other, and where a block is full a row makes room by the cheapest chain of moves from block to
//! block. All that a chain has to know of a full block is, for each other block, which of its rows loses least by going
//! there: `R·B²` steps in all instead of the `R³` of an assignment to places.

use super::lsap::least_open;

/// No block: the row comes from outside.
const NONE: u32 = u32::MAX;

/// Block of each row; `benefit` is `[R, stride]` with one column a block and -∞ behind the last, `stride` a whole number
/// of vectors. There must be a place for each row.
#[inline(always)]
pub(super) fn assign(benefit: &[f32], stride: usize, places: &[usize]) -> Vec<Vec<u32>> {
    let blocks = places.len();
    let mut rows_of: Vec<Vec<u32>> = places.iter().map(|&n| Vec::with_capacity(n)).collect();
    // Of each block and each other one: the least loss of a move there, and the row that makes it.
    let mut moves = vec![Move { losses: vec![], rows: vec![] }; blocks];
    let mut price = vec![0.0_f32; stride];
    let (mut loss, mut closed) = (vec![0.0_f32; stride], vec![0.0_f32; stride]);
    let mut from = vec![NONE; stride];
    let mut order: Vec<usize> = vec![];
    for (row, benefits) in benefit.chunks_exact(stride).enumerate() {
        for ((loss, price), benefit) in loss.iter_mut().zip(&price).zip(benefits) {
            *loss = price - benefit;
        }
        from.fill(NONE);
        closed.fill(0.0);
        order.clear();
        let (shortest, mut block) = loop {
            let (shortest, block) = least_open(&loss, &closed);
            if rows_of[block].len() < places[block] {
                break (shortest, block);
            }
            closed[block] = f32::INFINITY;
            order.push(block);
            let base = shortest - price[block];
            let places = loss.iter_mut().zip(&mut from).zip(&closed).zip(&price).zip(&moves[block].losses);
            for ((((loss, from), closed), price), step) in places {
                let other = step + price + base + closed;
                let shorter = other < *loss;
                *loss = if shorter { other } else { *loss };
                *from = if shorter { block as u32 } else { *from };
            }
        };
        for &block in &order {
            price[block] += shortest - loss[block];
        }
        loop {
            let before = from[block] as usize;
            let mover = if from[block] == NONE { row as u32 } else { moves[before].rows[block] };
            rows_of[block].push(mover);
            if from[block] != NONE {
                rows_of[before].retain(|&r| r != mover);
            }
            if rows_of[block].len() == places[block] {
                moves[block].find(&rows_of[block], block, benefit, stride);
            }
            if from[block] == NONE {
                break;
            }
            block = before;
        }
    }
    for rows in &mut rows_of {
        rows.sort_unstable();
    }
    rows_of
}

/// The cheapest moves out of a full block.
#[derive(Clone)]
struct Move {
    losses: Vec<f32>,
    rows: Vec<u32>,
}

impl Move {
    #[inline(always)]
    fn find(&mut self, rows: &[u32], block: usize, benefit: &[f32], stride: usize) {
        self.losses.clear();
        self.losses.resize(stride, f32::INFINITY);
        self.rows.resize(stride, NONE);
        for &row in rows {
            let benefits = &benefit[row as usize * stride..][..stride];
            let own = benefits[block];
            for ((least, mover), benefit) in self.losses.iter_mut().zip(&mut self.rows).zip(benefits) {
                let loss = own - benefit;
                let less = loss < *least;
                *least = if less { loss } else { *least };
                *mover = if less { row } else { *mover };
            }
        }
    }
}

// Whole numbers add up exactly.
#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests {
    use proptest::prelude::*;

    use super::super::lsap::{Solver, VECTOR};
    use super::*;

    proptest! {
        /// With a column for each place it is a linear assignment.
        #[test]
        fn no_balanced_assignment_is_better(
            places in prop::collection::vec(1_usize..9, 1..7),
            missing in 0_usize..5,
            values in prop::collection::vec(0_u16..300, 7 * 56),
        ) {
            let sum: usize = places.iter().sum();
            let rows = sum.saturating_sub(missing).max(1);
            let value = |row: usize, block: usize| f32::from(values[row * 7 + block]);
            let stride = places.len().next_multiple_of(VECTOR);
            let mut benefit = vec![f32::NEG_INFINITY; rows * stride];
            let place_stride = sum.next_multiple_of(VECTOR);
            let mut by_place = vec![f32::NEG_INFINITY; rows * place_stride];
            for row in 0..rows {
                let mut place = row * place_stride;
                for (block, &n) in places.iter().enumerate() {
                    benefit[row * stride + block] = value(row, block);
                    by_place[place..place + n].fill(value(row, block));
                    place += n;
                }
            }
            let assigned = assign(&benefit, stride, &places);
            let mut seen: Vec<u32> = assigned.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..rows as u32).collect::<Vec<_>>());
            prop_assert!(assigned.iter().zip(&places).all(|(rows, &n)| rows.len() <= n));
            let blocks = assigned.iter().enumerate();
            let got: f32 = blocks.flat_map(|(b, rows)| rows.iter().map(move |&r| value(r as usize, b))).sum();
            let mut columns = vec![0; rows];
            Solver::default().solve(&by_place, place_stride, &mut columns);
            let want: f32 = columns.iter().enumerate().map(|(r, &c)| by_place[r * place_stride + c as usize]).sum();
            prop_assert_eq!(got, want);
        }
    }
}
