//! `V:N:M` and how it tiles a matrix whose sides it does not divide.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// Columns kept in each block: the width of a group, and of the hardware's 2:4 pattern.
pub const GROUP_COLUMNS: usize = 4;
/// `N`: values each row keeps of its group.
pub const KEPT_PER_GROUP: usize = 2;

/// Largest V or M: keeps every product of the two, and every index, far from overflow.
const MAX_SIDE: usize = 65_536;
/// `2:4` keeps every column of its blocks, so V only decides how many rows share a stored column list; 64 makes that
/// list negligible.
const PLAIN_V: usize = 64;

/// A sparsity pattern `V:2:M`.
///
/// ```
/// let p: lacuna_core::Pattern = "64:2:8".parse()?;
/// assert_eq!((p.v(), p.m(), p.density()), (64, 8, 0.25));
/// assert_eq!("2:4".parse::<lacuna_core::Pattern>()?.to_string(), "2:4");
/// # Ok::<(), lacuna_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pattern {
    v: usize,
    m: usize,
}

impl Pattern {
    /// `2:4`: the pattern that GPUs accelerate natively.
    pub const PLAIN: Self = Self { v: PLAIN_V, m: GROUP_COLUMNS };

    /// `V:2:M` with `1 <= v <= 65536` and `4 <= m <= 65536`.
    pub fn new(v: usize, m: usize) -> Result<Self> {
        if (1..=MAX_SIDE).contains(&v) && (GROUP_COLUMNS..=MAX_SIDE).contains(&m) {
            Ok(Self { v, m })
        } else {
            Err(Error::PatternRange { v, n: KEPT_PER_GROUP, m })
        }
    }

    /// Rows of a block.
    pub fn v(self) -> usize {
        self.v
    }

    /// Columns of a block.
    pub fn m(self) -> usize {
        self.m
    }

    /// Share of weights kept where V and M divide the matrix: `2 / M`.
    pub fn density(self) -> f64 {
        KEPT_PER_GROUP as f64 / self.m as f64
    }

    /// How this pattern tiles a `[rows, cols]` weight. Refuses an empty matrix and one narrower than `M`.
    pub fn grid(self, rows: usize, cols: usize) -> Result<Grid> {
        if rows == 0 || cols < self.m {
            return Err(Error::DoesNotFit { pattern: self.to_string(), rows, cols, m: self.m });
        }
        Ok(Grid { pattern: self, rows, cols })
    }
}

/// `2:4` for the hardware's plain pattern, `V:2:M` for every other.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::PLAIN {
            write!(f, "{KEPT_PER_GROUP}:{GROUP_COLUMNS}")
        } else {
            write!(f, "{}:{KEPT_PER_GROUP}:{}", self.v, self.m)
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    /// `V:2:M`, or `2:4` for `64:2:4`.
    fn from_str(text: &str) -> Result<Self> {
        let syntax = || Error::PatternSyntax(text.to_owned());
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if digits { part.parse::<usize>().map_err(|_| syntax()) } else { Err(syntax()) }
        };
        let parts = text.split(':').map(number).collect::<Result<Vec<_>>>()?;
        match parts[..] {
            [KEPT_PER_GROUP, GROUP_COLUMNS] => Ok(Self::PLAIN),
            [v, KEPT_PER_GROUP, m] => Self::new(v, m),
            [v, n, m] => Err(Error::PatternRange { v, n, m }),
            _ => Err(syntax()),
        }
    }
}

/// A pattern laid over a `[rows, cols]` weight.
///
/// Padding rules. Where `V` does not divide the rows, the last row block is shorter. Where `M` does not divide the
/// columns, the last column block is narrower; it still has a group of 4, and where fewer than 4 real columns are left
/// the group is filled up with *padding columns* `cols, cols + 1, …`, whose weight is zero by definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    pattern: Pattern,
    rows: usize,
    cols: usize,
}

impl Grid {
    /// The pattern.
    pub fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// Rows of the weight (`out_features`).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the weight (`in_features`).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row blocks: `ceil(rows / V)`.
    pub fn row_blocks(&self) -> usize {
        self.rows.div_ceil(self.pattern.v)
    }

    /// `G`, groups in a row: `ceil(cols / M)`.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.pattern.m)
    }

    /// Rows of one row block.
    pub fn block_rows(&self, block: usize) -> std::ops::Range<usize> {
        let start = block * self.pattern.v;
        start..(start + self.pattern.v).min(self.rows)
    }

    /// Real columns of one group's block.
    pub fn block_cols(&self, group: usize) -> std::ops::Range<usize> {
        let start = group * self.pattern.m;
        start..(start + self.pattern.m).min(self.cols)
    }

    /// Columns a group may list: the real ones, and padding only where fewer than 4 are real.
    pub fn group_range(&self, group: usize) -> std::ops::Range<usize> {
        let real = self.block_cols(group);
        real.start..real.end.max(real.start + GROUP_COLUMNS)
    }

    /// Values each row stores: `2 G`.
    pub fn kept_per_row(&self) -> usize {
        self.groups() * KEPT_PER_GROUP
    }

    /// Weights kept in the whole matrix, padding not counted.
    pub fn kept(&self) -> usize {
        let per_row: usize = (0..self.groups()).map(|g| self.block_cols(g).len().min(KEPT_PER_GROUP)).sum();
        per_row * self.rows
    }

    /// Share of weights kept: exactly `2 / M` where M divides the columns.
    pub fn density(&self) -> f64 {
        self.kept() as f64 / (self.rows as f64 * self.cols as f64)
    }
}
