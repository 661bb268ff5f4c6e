//! `V:N:M`, the window `W` of its groups, and how it tiles a matrix whose sides it does not divide.

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
/// How the window over the whole row is written.
const ALL: &str = "all";

/// `W`: among how many columns the groups of a row block choose theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    /// a multiple of M; M itself is the pattern of the paper
    Columns(usize),
    /// the whole row
    All,
}

/// A sparsity pattern `V:2:M`, or `V:2:M@W` with a window.
///
/// ```
/// use lacuna_core::{Pattern, Window};
/// let p: Pattern = "64:2:8".parse()?;
/// assert_eq!((p.v(), p.m(), p.window(), p.density()), (64, 8, Window::Columns(8), 0.25));
/// assert_eq!("2:4".parse::<Pattern>()?.to_string(), "2:4");
/// assert_eq!("64:2:8@all".parse::<Pattern>()?.window(), Window::All);
/// # Ok::<(), lacuna_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pattern {
    v: usize,
    m: usize,
    window: Window,
}

impl Pattern {
    /// `2:4`: the pattern that GPUs accelerate natively.
    pub const PLAIN: Self = Self { v: PLAIN_V, m: GROUP_COLUMNS, window: Window::Columns(GROUP_COLUMNS) };

    /// `V:2:M` with `1 <= v <= 65536` and `4 <= m <= 65536`, each group in its own M columns.
    pub fn new(v: usize, m: usize) -> Result<Self> {
        if (1..=MAX_SIDE).contains(&v) && (GROUP_COLUMNS..=MAX_SIDE).contains(&m) {
            Ok(Self { v, m, window: Window::Columns(m) })
        } else {
            Err(Error::PatternRange { v, n: KEPT_PER_GROUP, m })
        }
    }

    /// The same with another window. Refuses one that is no multiple of M, or wider than 65536 columns.
    pub fn with_window(self, window: Window) -> Result<Self> {
        match window {
            Window::Columns(w) if w == 0 || w % self.m != 0 || w > MAX_SIDE => {
                let nearest = (w.min(MAX_SIDE) / self.m).max(1) * self.m;
                Err(Error::PatternWindow { v: self.v, m: self.m, window: w, nearest })
            }
            window => Ok(Self { window, ..self }),
        }
    }

    /// The same with the widest window of at most so many columns, and at least of M.
    #[must_use]
    pub fn with_window_up_to(self, columns: usize) -> Self {
        let groups = (columns.min(MAX_SIDE) / self.m).max(1);
        Self { window: Window::Columns(groups * self.m), ..self }
    }

    /// Rows of a block.
    pub fn v(self) -> usize {
        self.v
    }

    /// Columns of a block.
    pub fn m(self) -> usize {
        self.m
    }

    /// Among how many columns a group chooses.
    pub fn window(self) -> Window {
        self.window
    }

    /// Whether each group has its own M columns: the pattern of the paper.
    pub fn is_grouped(self) -> bool {
        self.window == Window::Columns(self.m)
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

/// `2:4` for the hardware's plain pattern, `V:2:M` for every other; `@W` or `@all` behind it where W is not M.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if (self.v, self.m) == (PLAIN_V, GROUP_COLUMNS) {
            write!(f, "{KEPT_PER_GROUP}:{GROUP_COLUMNS}")?;
        } else {
            write!(f, "{}:{KEPT_PER_GROUP}:{}", self.v, self.m)?;
        }
        match self.window {
            Window::Columns(w) if w == self.m => Ok(()),
            Window::Columns(w) => write!(f, "@{w}"),
            Window::All => write!(f, "@{ALL}"),
        }
    }
}

impl FromStr for Pattern {
    type Err = Error;

    /// `V:2:M`, or `2:4` for `64:2:4`; behind it `@W` or `@all`.
    fn from_str(text: &str) -> Result<Self> {
        let syntax = || Error::PatternSyntax(text.to_owned());
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            if digits { part.parse::<usize>().map_err(|_| syntax()) } else { Err(syntax()) }
        };
        let (sides, window) = text.split_once('@').map_or((text, None), |(sides, window)| (sides, Some(window)));
        let parts = sides.split(':').map(number).collect::<Result<Vec<_>>>()?;
        let pattern = match parts[..] {
            [KEPT_PER_GROUP, GROUP_COLUMNS] => Self::PLAIN,
            [v, KEPT_PER_GROUP, m] => Self::new(v, m)?,
            [v, n, m] => return Err(Error::PatternRange { v, n, m }),
            _ => return Err(syntax()),
        };
        match window {
            None => Ok(pattern),
            Some(ALL) => pattern.with_window(Window::All),
            Some(columns) => pattern.with_window(Window::Columns(number(columns)?)),
        }
    }
}

/// A pattern laid over a `[rows, cols]` weight.
///
/// Padding rules. Where `V` does not divide the rows, the last row block is shorter. Where `M` does not divide the
/// columns, the last column block is narrower; it still has a group of 4, and where fewer than 4 real columns are left
/// the group is filled up with *padding columns* `cols, cols + 1, …`, whose weight is zero by definition.
///
/// The groups of a window of W columns choose among all of them: as many groups as column blocks begin in the window.
/// Where it has fewer than 4 real columns a group, at most 3 too few, its last group, the last of the row, has the
/// padding.
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

    /// Windows in a row.
    pub fn windows(&self) -> usize {
        self.groups().div_ceil(self.window_size())
    }

    /// Groups of one window.
    pub fn window_groups(&self, window: usize) -> std::ops::Range<usize> {
        let start = window * self.window_size();
        start..(start + self.window_size()).min(self.groups())
    }

    /// Real columns of one window.
    pub fn window_cols(&self, window: usize) -> std::ops::Range<usize> {
        let start = window * self.window_size() * self.pattern.m;
        start..(start + self.window_size() * self.pattern.m).min(self.cols)
    }

    /// Real columns that one group chooses among: those of its window.
    pub fn block_cols(&self, group: usize) -> std::ops::Range<usize> {
        self.window_cols(group / self.window_size())
    }

    /// Columns a group may list: the real ones of its window, and in the last group the padding.
    pub fn group_range(&self, group: usize) -> std::ops::Range<usize> {
        let real = self.block_cols(group);
        let padding = if group + 1 == self.groups() { self.padding() } else { 0 };
        real.start..real.end + padding
    }

    /// Padding columns, 0 to 3: what the last window lacks to 4 real columns a group.
    pub fn padding(&self) -> usize {
        let last = self.windows() - 1;
        (self.window_groups(last).len() * GROUP_COLUMNS).saturating_sub(self.window_cols(last).len())
    }

    /// Puts the groups of one row block, `[G]`, in the order in which a mask lists them: columns ascend in a group, the
    /// groups of a window by their first columns, and the one with padding is the last.
    ///
    /// # Panics
    /// If there is another number of groups.
    pub fn arrange(&self, groups: &mut [[u32; GROUP_COLUMNS]]) {
        assert_eq!(groups.len(), self.groups(), "groups of another row");
        for four in &mut *groups {
            four.sort_unstable();
        }
        for window in groups.chunks_mut(self.window_size()) {
            window.sort_unstable_by_key(|four| (four[GROUP_COLUMNS - 1] as usize >= self.cols, four[0]));
        }
    }

    /// Groups of a whole window.
    fn window_size(&self) -> usize {
        match self.pattern.window {
            Window::Columns(w) => w / self.pattern.m,
            Window::All => self.groups(),
        }
    }

    /// Values each row stores: `2 G`.
    pub fn kept_per_row(&self) -> usize {
        self.groups() * KEPT_PER_GROUP
    }

    /// Weights kept in the whole matrix, padding not counted.
    pub fn kept(&self) -> usize {
        // Of the last group's columns one is real at least, and two are kept.
        let padding = (self.padding() + KEPT_PER_GROUP).saturating_sub(GROUP_COLUMNS);
        (self.kept_per_row() - padding) * self.rows
    }

    /// Share of weights kept: exactly `2 / M` where M divides the columns.
    pub fn density(&self) -> f64 {
        self.kept() as f64 / (self.rows as f64 * self.cols as f64)
    }
}
