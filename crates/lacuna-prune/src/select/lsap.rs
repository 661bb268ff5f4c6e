//! Linear assignment: of `n` rows each takes a column of its own among `m ≥ n`, so that the benefits have the largest sum.
//!
//! Shortest augmenting paths after R. Jonker and A. Volgenant, "A shortest augmenting path algorithm for dense and sparse
//! linear assignment problems", Computing 38 (1987), without the reduction of columns, which needs `n = m`: here columns
//! that nobody takes have to keep the price 0. A row wants the column with the largest benefit less price. First rows bid
//! for columns in turn; those that are left without one get it by the cheapest chain of moves.

/// Lengths of rows are whole numbers of this many benefits, so that loops over them become vector instructions.
pub(crate) const VECTOR: usize = 16;
/// No row, no column.
const NONE: u32 = u32::MAX;
/// Bids for each row: what they leave is small, and what they would go on about are cents.
const BIDS: usize = 4;

/// A solver with its buffers.
#[derive(Default)]
pub(crate) struct Solver {
    /// of each column
    price: Vec<f32>,
    /// row that has it
    owner: Vec<u32>,
    /// loss of a row, or of a chain of moves that ends at a column
    loss: Vec<f32>,
    /// from which row a chain comes to a column
    from: Vec<u32>,
    /// infinite where the shortest chain to a column is known
    closed: Vec<f32>,
    order: Vec<u32>,
    waiting: Vec<u32>,
}

impl Solver {
    /// Column of each row. Row `i` of the benefits is `benefit[i * stride..]`; `stride` is a whole number of vectors,
    /// and the benefits behind the last column are -∞. Of equal ones the first.
    #[inline(always)]
    pub(crate) fn solve(&mut self, benefit: &[f32], stride: usize, columns: &mut [u32]) {
        self.price.clear();
        self.price.resize(stride, 0.0);
        self.owner.clear();
        self.owner.resize(stride, NONE);
        self.loss.resize(stride, 0.0);
        self.from.resize(stride, NONE);
        self.closed.resize(stride, 0.0);
        columns.fill(NONE);
        self.bid(benefit, stride, columns);
        for row in 0..columns.len() {
            if columns[row] == NONE {
                self.augment(benefit, stride, columns, row);
            }
        }
    }

    /// Each row takes the column that it wants most, for as much more as it is worth to it than the next best; who had it
    /// has to look again.
    #[inline(always)]
    fn bid(&mut self, benefit: &[f32], stride: usize, columns: &mut [u32]) {
        self.waiting.clear();
        self.waiting.extend((0..columns.len() as u32).rev());
        for _ in 0..BIDS * columns.len() {
            let Some(row) = self.waiting.pop() else { return };
            let benefits = &benefit[row as usize * stride..][..stride];
            for ((loss, price), benefit) in self.loss.iter_mut().zip(&self.price).zip(benefits) {
                *loss = price - benefit;
            }
            let (best, column) = least(&self.loss);
            self.loss[column] = f32::INFINITY;
            let next = least_value(&self.loss);
            if next.is_finite() {
                self.price[column] += next - best;
            }
            let before = std::mem::replace(&mut self.owner[column], row);
            columns[row as usize] = column as u32;
            if before != NONE {
                columns[before as usize] = NONE;
                self.waiting.push(before);
            }
        }
    }

    /// Gives a row a column by the chain of moves that loses least (Dijkstra).
    #[inline(always)]
    fn augment(&mut self, benefit: &[f32], stride: usize, columns: &mut [u32], row: usize) {
        let Self { price, owner, loss, from, closed, order, .. } = self;
        let benefits = &benefit[row * stride..][..stride];
        for ((loss, price), benefit) in loss.iter_mut().zip(&*price).zip(benefits) {
            *loss = price - benefit;
        }
        from.fill(row as u32);
        closed.fill(0.0);
        order.clear();
        let (shortest, mut column) = loop {
            let (shortest, column) = least_open(loss, closed);
            if owner[column] == NONE {
                break (shortest, column);
            }
            closed[column] = f32::INFINITY;
            order.push(column as u32);
            let row = owner[column];
            let benefits = &benefit[row as usize * stride..][..stride];
            let base = price[column] - benefits[column] - shortest;
            let places = loss.iter_mut().zip(&mut *from).zip(&*closed).zip(&*price).zip(benefits);
            for ((((loss, from), closed), price), benefit) in places {
                let other = price - benefit - base + closed;
                let shorter = other < *loss;
                *loss = if shorter { other } else { *loss };
                *from = if shorter { row } else { *from };
            }
        };
        for &c in &*order {
            price[c as usize] += shortest - loss[c as usize];
        }
        loop {
            let mover = from[column];
            owner[column] = mover;
            let left = std::mem::replace(&mut columns[mover as usize], column as u32);
            if mover as usize == row {
                return;
            }
            column = left as usize;
        }
    }
}

/// The least value and its first place.
#[inline(always)]
fn least(values: &[f32]) -> (f32, usize) {
    let least = least_value(values);
    (least, values.iter().position(|&v| v <= least).unwrap_or(0))
}

#[inline(always)]
fn least_value(values: &[f32]) -> f32 {
    let mut lanes = [f32::INFINITY; VECTOR];
    for values in values.as_chunks::<VECTOR>().0 {
        for (lane, &v) in lanes.iter_mut().zip(values) {
            *lane = if v < *lane { v } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::INFINITY, |a, b| if b < a { b } else { a })
}

/// The least value that is not closed and its first place.
#[inline(always)]
pub(super) fn least_open(values: &[f32], closed: &[f32]) -> (f32, usize) {
    let mut lanes = [f32::INFINITY; VECTOR];
    for (values, closed) in values.as_chunks::<VECTOR>().0.iter().zip(closed.as_chunks::<VECTOR>().0) {
        for ((lane, v), c) in lanes.iter_mut().zip(values).zip(closed) {
            let v = v + c;
            *lane = if v < *lane { v } else { *lane };
        }
    }
    let least = lanes.into_iter().fold(f32::INFINITY, |a, b| if b < a { b } else { a });
    (least, values.iter().zip(closed).position(|(v, c)| v + c <= least).unwrap_or(0))
}

// Whole numbers add up exactly.
#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The largest sum there is, by trying every assignment.
    fn brute_force(benefit: &[Vec<f32>], taken: u32) -> f32 {
        let Some((row, rest)) = benefit.split_first() else { return 0.0 };
        let free = (0..row.len()).filter(|c| taken >> c & 1 == 0);
        free.map(|c| row[c] + brute_force(rest, taken | 1 << c)).fold(f32::NEG_INFINITY, f32::max)
    }

    fn solve(benefit: &[Vec<f32>]) -> Vec<u32> {
        let stride = benefit[0].len().next_multiple_of(VECTOR);
        let mut flat = vec![f32::NEG_INFINITY; benefit.len() * stride];
        for (row, out) in benefit.iter().zip(flat.chunks_mut(stride)) {
            out[..row.len()].copy_from_slice(row);
        }
        let mut columns = vec![0; benefit.len()];
        Solver::default().solve(&flat, stride, &mut columns);
        columns
    }

    fn benefits(rows: std::ops::Range<usize>, more: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Vec<f32>>> {
        // Whole numbers add up exactly; few of them make ties.
        (rows, more, 1_u16..200).prop_flat_map(|(rows, more, most)| {
            prop::collection::vec(prop::collection::vec((0..most).prop_map(f32::from), rows + more), rows)
        })
    }

    proptest! {
        #[test]
        fn no_assignment_is_better(benefit in benefits(1..7, 0..4)) {
            let columns = solve(&benefit);
            let sum: f32 = benefit.iter().zip(&columns).map(|(row, &c)| row[c as usize]).sum();
            prop_assert_eq!(sum, brute_force(&benefit, 0));
            let mut distinct = columns.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), columns.len());
        }

        /// Larger ones by the dual: prices that bound every row's benefit less price from above and add up to the sum
        /// prove that it is the largest.
        #[test]
        fn prices_prove_larger_ones(benefit in benefits(10..60, 0..60)) {
            let (rows, width) = (benefit.len(), benefit[0].len());
            let stride = width.next_multiple_of(VECTOR);
            let mut flat = vec![f32::NEG_INFINITY; rows * stride];
            for (row, out) in benefit.iter().zip(flat.chunks_mut(stride)) {
                out[..width].copy_from_slice(row);
            }
            let mut solver = Solver::default();
            let mut columns = vec![0; rows];
            solver.solve(&flat, stride, &mut columns);
            let mut dual: f32 = solver.price.iter().sum();
            for row in &benefit {
                dual += row.iter().zip(&solver.price).map(|(b, p)| b - p).fold(f32::NEG_INFINITY, f32::max);
            }
            let sum: f32 = benefit.iter().zip(&columns).map(|(row, &c)| row[c as usize]).sum();
            prop_assert_eq!(sum, dual);
            prop_assert!(solver.price.iter().all(|&p| p >= 0.0));
        }
    }
}
