//! Where in a slab each column goes, so that the rows of one `ldmatrix` matrix come from different banks.
//!
//! Shared memory serves 8 rows of 16 bytes at once if no two lie in the same eighth of its banks; a place's eighth (its
//! *colour*) is `place % 8`. The 8 k-rows of a matrix (two chunks of a row block) are a *set*: it takes as many turns as
//! its most frequent colour has rows. Sets of several row blocks overlap in columns, so this is colouring a hypergraph:
//! greedily, the column with the fewest colours left first (as DSATUR colours graphs), then by exchanging columns, in each
//! part of it that hangs together. In the order of the columns a matrix takes 2 turns. By this it takes 1 under most
//! patterns; 1.3 for 64:2:8 under a row tile of 256, whose sets leave hardly a colour free.

use crate::tiles::{MOST_PLACES, NO_COLUMN, SLAB_K};

/// Colours: eighths of the banks.
pub(crate) const COLOURS: usize = 8;
/// k-rows of a matrix.
const SET: usize = 8;
/// Rounds of exchanges: more gain nothing.
const ROUNDS: usize = 6;

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

/// Gives every column a place; they may be a few more than are needed.
pub(crate) fn assign(blocks: &[[u32; SLAB_K]]) -> Slab {
    let distinct = distinct(blocks);
    let index = |column: &u32| distinct.binary_search(column).expect("it is one of them");
    let members: Vec<Vec<usize>> = blocks.as_flattened().chunks(SET).map(|set| distinct_of(set, index)).collect();
    let mut colours = Colouring::new(distinct.len(), members).colour_of;
    let most_of = |colours: &[usize]| {
        let of_colour = |colour| colours.iter().filter(|&&c| c == colour).count();
        (0..COLOURS).map(of_colour).max().unwrap_or(0)
    };
    if most_of(&colours) * COLOURS > MOST_PLACES {
        // Better in turn than without a place.
        colours = (0..distinct.len()).map(|i| i % COLOURS).collect();
    }
    let most = most_of(&colours);
    let mut columns = vec![NO_COLUMN; most * COLOURS];
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
    /// the colour of each column that has one
    colour_of: Vec<usize>,
    /// columns of each set
    members: Vec<Vec<usize>>,
    /// sets that each column is in
    sets_of: Vec<Vec<usize>>,
    /// columns of each set and colour
    counts: Vec<[u8; COLOURS]>,
    /// columns of each colour, and how many of the part in hand there may be
    used: [usize; COLOURS],
    room: usize,
}

impl Colouring {
    fn new(columns: usize, members: Vec<Vec<usize>>) -> Self {
        let mut sets_of = vec![vec![]; columns];
        for (set, members) in members.iter().enumerate() {
            for &column in members {
                sets_of[column].push(set);
            }
        }
        let counts = vec![[0; COLOURS]; members.len()];
        let mut colouring = Self { colour_of: vec![0; columns], members, sets_of, counts, used: [0; COLOURS], room: 0 };
        for part in colouring.parts() {
            colouring.colour(&part);
        }
        colouring
    }

    /// Columns that some chain of sets joins: what one part's have is nothing to another's.
    fn parts(&self) -> Vec<Vec<usize>> {
        let mut seen = vec![false; self.colour_of.len()];
        let mut parts = vec![];
        for column in 0..seen.len() {
            if std::mem::replace(&mut seen[column], true) {
                continue;
            }
            let mut part = vec![column];
            let mut next = 0;
            while let Some(&column) = part.get(next) {
                next += 1;
                for &set in &self.sets_of[column] {
                    part.extend(self.members[set].iter().filter(|&&other| !std::mem::replace(&mut seen[other], true)));
                }
            }
            parts.push(part);
        }
        parts
    }

    /// Colours a part, in balance by itself but for a column a colour; its colours then change names so that all parts
    /// together are in balance.
    fn colour(&mut self, part: &[usize]) {
        let others = std::mem::take(&mut self.used);
        self.room = part.len().div_ceil(COLOURS) + 1;
        self.spread(part);
        for round in 0..ROUNDS {
            let mut conflict = false;
            for &column in part {
                conflict |= self.improve(column, part, round * part.len() + column);
            }
            if !conflict {
                break;
            }
        }
        let (mut of_part, mut of_all): ([_; COLOURS], [_; COLOURS]) =
            ([0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]);
        of_part.sort_by_key(|&colour| std::cmp::Reverse(self.used[colour]));
        of_all.sort_by_key(|&colour| others[colour]);
        let old: Vec<usize> = part.iter().map(|&column| self.take(column)).collect();
        self.used = others;
        for (&column, old) in part.iter().zip(old) {
            let name = of_part.iter().position(|&colour| colour == old).map_or(old, |i| of_all[i]);
            self.put(column, name);
        }
    }

    /// Gives every column of a part a colour, the one with the fewest left first.
    fn spread(&mut self, part: &[usize]) {
        // Colours, a bit each, that some set of a column has already.
        let mut taken = vec![0_u8; self.colour_of.len()];
        let mut left = part.to_vec();
        let urgency = |column: usize, taken: &[u8], colouring: &Self| {
            (taken[column].count_ones(), colouring.sets_of[column].len())
        };
        while let Some(next) = (0..left.len()).max_by_key(|&i| urgency(left[i], &taken, self)) {
            let column = left.swap_remove(next);
            let sets = &self.sets_of[column];
            let neighbours: Vec<usize> = sets.iter().flat_map(|&set| self.members[set].iter().copied()).collect();
            let free = (0..COLOURS).filter(|&colour| self.used[colour] < self.room);
            let best = free.min_by_key(|&colour| {
                let costs_others = neighbours.iter().filter(|&&other| taken[other] >> colour & 1 == 0).count();
                (self.conflicts(column, colour), costs_others, self.used[colour])
            });
            let colour = best.expect("there is room for all columns");
            self.put(column, colour);
            for other in neighbours {
                taken[other] |= 1 << colour;
            }
        }
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
    fn improve(&mut self, column: usize, part: &[usize], turn: usize) -> bool {
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
        for colour in (0..COLOURS).map(|c| (c + turn) % COLOURS).filter(|&colour| colour != old) {
            if self.used[colour] < self.room {
                consider(before as isize - self.conflicts(column, colour) as isize, None, colour);
            }
        }
        for other in (0..part.len()).map(|i| part[(i + turn * 37) % part.len()]).filter(|&other| other != column) {
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
        for (blocks, m) in [(1, 4), (4, 8), (16, 8), (4, 32), (2, 100), (4, 200)] {
            let mut blocks = random_blocks(&mut rng, blocks, m);
            let missing = rng.random_range(0..SLAB_K);
            blocks[0][missing] = NO_COLUMN;
            let slab = assign(&blocks);
            assert!(slab.columns.len() <= places_needed(&blocks) + COLOURS);
            for (block, places) in blocks.iter().zip(&slab.places) {
                assert_eq!(*block, places.map(|place| slab.columns[usize::from(place)]));
            }
        }
    }

    #[test]
    fn rows_of_a_matrix_seldom_share_a_bank() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        // One row block, as for V = 256, has no conflicts at all; four are 64:2:8 under a row tile of 256.
        for (blocks, m, most) in [(1, 8, 1.0), (1, 32, 1.0), (2, 8, 1.01), (4, 8, 1.3), (4, 16, 1.01)] {
            let (mut all, mut plain, mut sets, mut places, mut needed) = (0, 0, 0, 0, 0);
            for _ in 0..50 {
                let blocks = random_blocks(&mut rng, blocks, m);
                let slab = assign(&blocks);
                all += turns(&slab);
                places += slab.columns.len();
                needed += places_needed(&blocks);
                let distinct = distinct(&blocks);
                let place = |column: u32| distinct.binary_search(&column).unwrap() as u8;
                let places = blocks.iter().map(|block| block.map(place)).collect();
                plain += turns(&Slab { columns: distinct.clone(), places });
                sets += blocks.len() * SETS_PER_BLOCK;
            }
            assert!(places <= needed + needed / 20, "{places} places for {needed} columns");
            let (each, plain) = (all as f64 / sets as f64, plain as f64 / sets as f64);
            assert!((1.0..=most).contains(&each), "{blocks} blocks, M = {m}: {each} turns a matrix");
            eprintln!("{blocks} blocks, M = {m}: {each:.2} turns a matrix, {plain:.2} in the order of the columns");
        }
    }
}
