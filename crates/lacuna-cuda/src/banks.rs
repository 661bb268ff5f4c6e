//! Where in a slab each column goes, so that the rows of one `ldmatrix` matrix come from different banks.
//!
//! Shared memory serves 8 rows of 16 bytes at once if no two lie in the same eighth of its banks; a place's eighth (its
//! *colour*) is `place % 8`. The 8 k-rows of a matrix (two chunks of a row block) are a *set*: it takes as many turns as
//! its most frequent colour has rows. Sets of several row blocks overlap in columns, so this is colouring a hypergraph:
//! greedily, the column with the fewest colours left first (as DSATUR colours graphs), then by exchanging columns. In the
//! order of the columns a matrix of 64:2:8 under a row tile of 256 takes 2 turns, by this 1.3.

use crate::tiles::{NO_COLUMN, SLAB_K};

/// Colours: eighths of the banks.
pub(crate) const COLOURS: usize = 8;
/// k-rows of a matrix.
const SET: usize = 8;
/// Rounds of exchanges; more gain nothing.
const ROUNDS: usize = 16;

/// The columns of one slab and row tile: those of each row block, [`NO_COLUMN`] where a k-row has none.
pub(crate) struct Slab {
    /// the column at each place; [`NO_COLUMN`] where none is
    pub(crate) columns: Vec<u32>,
    /// the place of each k-row of each row block
    pub(crate) places: Vec<[u8; SLAB_K]>,
}

/// Places that the columns of some row blocks take: as many as there are distinct ones, up to a multiple of 8.
pub(crate) fn places_needed(blocks: &[[u32; SLAB_K]]) -> usize {
    distinct(blocks).len().next_multiple_of(COLOURS)
}

/// The distinct columns, ascending. "None" counts as one: its place holds zeros.
fn distinct(blocks: &[[u32; SLAB_K]]) -> Vec<u32> {
    let mut columns = blocks.as_flattened().to_vec();
    columns.sort_unstable();
    columns.dedup();
    columns
}

/// Gives every column a place. There may be at most 256 distinct ones.
pub(crate) fn assign(blocks: &[[u32; SLAB_K]]) -> Slab {
    let distinct = distinct(blocks);
    let index = |column: &u32| distinct.binary_search(column).expect("it is one of them");
    let members: Vec<Vec<usize>> = blocks.as_flattened().chunks(SET).map(|set| distinct_of(set, index)).collect();
    let colours = Colouring::new(distinct.len(), &members).colour_of;
    let mut columns = vec![NO_COLUMN; distinct.len().next_multiple_of(COLOURS)];
    let mut next: [usize; COLOURS] = std::array::from_fn(|colour| colour);
    let mut place_of = vec![0_u8; distinct.len()];
    for (i, &column) in distinct.iter().enumerate() {
        let place = &mut next[colours[i]];
        columns[*place] = column;
        place_of[i] = u8::try_from(*place).expect("at most 256 places");
        *place += COLOURS;
    }
    let places = blocks.iter().map(|block| block.map(|column| place_of[index(&column)])).collect();
    Slab { columns, places }
}

/// A set's members once each: k-rows without a column read the same address, which is no conflict.
fn distinct_of(set: &[u32], index: impl Fn(&u32) -> usize) -> Vec<usize> {
    let mut members: Vec<usize> = set.iter().map(index).collect();
    members.sort_unstable();
    members.dedup();
    members
}

struct Colouring {
    colour_of: Vec<usize>,
    /// sets that each column is in
    sets_of: Vec<Vec<usize>>,
    /// columns of each set and colour
    counts: Vec<[u8; COLOURS]>,
    /// columns of each colour
    used: [usize; COLOURS],
}

impl Colouring {
    fn new(columns: usize, members: &[Vec<usize>]) -> Self {
        let mut sets_of = vec![vec![]; columns];
        for (set, members) in members.iter().enumerate() {
            for &column in members {
                sets_of[column].push(set);
            }
        }
        let counts = vec![[0; COLOURS]; members.len()];
        let mut colouring = Self { colour_of: vec![0; columns], sets_of, counts, used: [0; COLOURS] };
        let room = columns.div_ceil(COLOURS);
        // Colours, a bit each, that some set of a column has already.
        let mut taken = vec![0_u8; columns];
        let mut left: Vec<usize> = (0..columns).collect();
        let urgency = |column: usize, taken: &[u8], colouring: &Self| {
            (taken[column].count_ones(), colouring.sets_of[column].len())
        };
        while let Some(next) = (0..left.len()).max_by_key(|&i| urgency(left[i], &taken, &colouring)) {
            let column = left.swap_remove(next);
            let sets = colouring.sets_of[column].clone();
            let neighbours = || sets.iter().flat_map(|&set| &members[set]);
            let free = (0..COLOURS).filter(|&colour| colouring.used[colour] < room);
            let best = free.min_by_key(|&colour| {
                let costs_others = neighbours().filter(|&&other| taken[other] >> colour & 1 == 0).count();
                (colouring.conflicts(column, colour), colouring.used[colour], costs_others)
            });
            let colour = best.expect("there is room for all columns");
            colouring.put(column, colour);
            neighbours().for_each(|&other| taken[other] |= 1 << colour);
        }
        for round in 0..ROUNDS {
            let mut conflict = false;
            for column in 0..columns {
                conflict |= colouring.improve(column, room, round * columns + column);
            }
            if !conflict {
                break;
            }
        }
        colouring
    }

    /// Sets in which a column that has no colour yet would meet its like.
    fn conflicts(&self, column: usize, colour: usize) -> usize {
        self.sets_of[column].iter().filter(|&&set| self.counts[set][colour] > 0).count()
    }

    fn put(&mut self, column: usize, colour: usize) {
        self.colour_of[column] = colour;
        self.used[colour] += 1;
        self.sets_of[column].iter().for_each(|&set| self.counts[set][colour] += 1);
    }

    fn take(&mut self, column: usize) -> usize {
        let colour = self.colour_of[column];
        self.used[colour] -= 1;
        self.sets_of[column].iter().for_each(|&set| self.counts[set][colour] -= 1);
        colour
    }

    /// Moves a column that conflicts where it conflicts least, or exchanges it with one of there: also when nothing is
    /// gained, which is how a search leaves a dead end. Says whether anything conflicted.
    fn improve(&mut self, column: usize, room: usize, turn: usize) -> bool {
        let old = self.take(column);
        let before = self.conflicts(column, old);
        if before == 0 {
            self.put(column, old);
            return false;
        }
        // (gain, partner, colour)
        let mut best: Option<(isize, Option<usize>, usize)> = None;
        let mut consider = |gain: isize, partner, colour| {
            if best.is_none_or(|(most, ..)| gain > most) {
                best = Some((gain, partner, colour));
            }
        };
        let columns = self.colour_of.len();
        for colour in (0..COLOURS).map(|c| (c + turn) % COLOURS).filter(|&colour| colour != old) {
            if self.used[colour] < room {
                consider(before as isize - self.conflicts(column, colour) as isize, None, colour);
            }
        }
        for other in (0..columns).map(|i| (i + turn * 37) % columns).filter(|&other| other != column) {
            let colour = self.colour_of[other];
            if colour == old {
                continue;
            }
            self.take(other);
            let stay = before + self.conflicts(other, colour);
            let swap = self.conflicts(column, colour) + self.conflicts(other, old);
            self.put(other, colour);
            consider(stay as isize - swap as isize, Some(other), colour);
        }
        match best {
            Some((gain, partner, colour)) if gain >= 0 => {
                if let Some(other) = partner {
                    self.take(other);
                    self.put(other, old);
                }
                self.put(column, colour);
            }
            _ => self.put(column, old),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const SETS_PER_BLOCK: usize = SLAB_K / SET;

    /// Turns of all matrices of a slab, by the definition.
    fn turns(slab: &Slab) -> usize {
        let sets = slab.places.as_flattened().chunks(SET);
        sets.map(|set| {
            let mut places = set.to_vec();
            places.sort_unstable();
            places.dedup();
            let like = |colour| places.iter().filter(|&&place| usize::from(place) % COLOURS == colour).count();
            (0..COLOURS).map(like).max().unwrap()
        })
        .sum()
    }

    fn random_blocks(rng: &mut ChaCha8Rng, blocks: usize, m: u32) -> Vec<[u32; SLAB_K]> {
        let group = |rng: &mut ChaCha8Rng, group: u32| {
            let mut columns: Vec<u32> = (group * m..(group + 1) * m).collect();
            columns.shuffle(rng);
            columns.truncate(4);
            columns.sort_unstable();
            columns
        };
        let block = |rng: &mut ChaCha8Rng| {
            let columns: Vec<u32> = (0..16).flat_map(|g| group(rng, g)).collect();
            columns.try_into().unwrap()
        };
        (0..blocks).map(|_| block(rng)).collect()
    }

    #[test]
    fn every_k_row_finds_its_column() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for (blocks, m) in [(1, 4), (4, 8), (16, 8), (4, 32), (2, 100)] {
            let mut blocks = random_blocks(&mut rng, blocks, m);
            let missing = rng.random_range(0..SLAB_K);
            blocks[0][missing] = NO_COLUMN;
            let slab = assign(&blocks);
            assert_eq!(slab.columns.len(), places_needed(&blocks));
            for (block, places) in blocks.iter().zip(&slab.places) {
                assert_eq!(*block, places.map(|place| slab.columns[usize::from(place)]));
            }
        }
    }

    #[test]
    fn rows_of_a_matrix_seldom_share_a_bank() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        // One row block, as for V = 256, has no conflicts at all; four are 64:2:8 under a row tile of 256.
        for (blocks, m, most) in [(1, 8, 1.0), (1, 32, 1.0), (2, 8, 1.1), (4, 8, 1.3), (4, 16, 1.1)] {
            let (mut all, mut plain, mut sets) = (0, 0, 0);
            for _ in 0..50 {
                let blocks = random_blocks(&mut rng, blocks, m);
                all += turns(&assign(&blocks));
                let distinct = distinct(&blocks);
                let place = |column: u32| distinct.binary_search(&column).unwrap() as u8;
                let places = blocks.iter().map(|block| block.map(place)).collect();
                plain += turns(&Slab { columns: distinct.clone(), places });
                sets += blocks.len() * SETS_PER_BLOCK;
            }
            let (each, plain) = (all as f64 / sets as f64, plain as f64 / sets as f64);
            assert!((1.0..=most).contains(&each), "{blocks} blocks, M = {m}: {each} turns a matrix");
            eprintln!("{blocks} blocks, M = {m}: {each:.2} turns a matrix, {plain:.2} in the order of the columns");
        }
    }
}
