//! Everything a constructor of this crate can refuse, one sentence each.

/// Why a value of this crate could not be built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The text is no pattern.
    #[error(
        "'{0}' is not a pattern: write V:2:M, such as 64:2:8, or 2:4 (V >= 1, M >= 4, 2 values kept of each 4), and @W or @all behind it for groups that choose among more columns"
    )]
    PatternSyntax(String),
    /// V, N or M is out of range.
    #[error("pattern {v}:{n}:{m} is out of range: V must be 1 to 65536, N must be 2, M must be 4 to 65536")]
    PatternRange {
        /// rows of a block
        v: usize,
        /// values kept in each row of a group
        n: usize,
        /// columns of a block
        m: usize,
    },
    /// The window of a pattern is out of range.
    #[error("the window of {v}:2:{m}@{window} must be a multiple of {m}, at most 65536: write @{nearest}, or @all")]
    PatternWindow {
        /// rows of a block
        v: usize,
        /// columns of a block
        m: usize,
        /// the window as given
        window: usize,
        /// a window that it may have
        nearest: usize,
    },
    /// A selection that looks at one group at a time got a pattern with a window.
    #[error(
        "selection {selection} takes the columns of each group from its own M, and pattern {pattern} has a window: leave out what follows the @, or choose the selection top or assignment"
    )]
    NoWindow {
        /// name of the selection
        selection: &'static str,
        /// the pattern, as printed
        pattern: String,
    },
    /// The matrix has no room for one block.
    #[error(
        "pattern {pattern} cannot fit a {rows}x{cols} weight: it needs at least {m} input columns; choose a smaller M or exclude the layer"
    )]
    DoesNotFit {
        /// the pattern, as printed
        pattern: String,
        /// out_features
        rows: usize,
        /// in_features
        cols: usize,
        /// columns of a block
        m: usize,
    },
    /// What multiplies matrices instead of the CPU failed.
    #[error("multiplying matrices: {0}")]
    Product(String),
    /// A buffer has another length than its shape says.
    #[error("{what} has {got} elements where its shape asks for {want}")]
    Length {
        /// which buffer
        what: &'static str,
        /// elements the shape asks for
        want: usize,
        /// elements given
        got: usize,
    },
    /// Two things that must share a shape do not.
    #[error("{what} is {got_rows}x{got_cols} where {rows}x{cols} is needed")]
    Shape {
        /// which operand
        what: &'static str,
        /// rows needed
        rows: usize,
        /// columns needed
        cols: usize,
        /// rows given
        got_rows: usize,
        /// columns given
        got_cols: usize,
    },
    /// A score is negative, infinite or NaN.
    #[error("score at row {row}, column {col} is {value}: scores must be finite and not negative")]
    BadScore {
        /// row of the score
        row: usize,
        /// column of the score
        col: usize,
        /// the offending value
        value: f32,
    },
    /// A boolean mask keeps more than the pattern allows.
    #[error("row {row}, group {group} breaks pattern {pattern}: {why}")]
    BreaksPattern {
        /// the pattern, as printed
        pattern: String,
        /// first offending row
        row: usize,
        /// its group
        group: usize,
        /// what is wrong there
        why: &'static str,
    },
    /// A boolean mask does not say which of a window's columns make a group.
    #[error(
        "pattern {0} cannot be read off a boolean mask: its groups may choose among the columns of a window; use a pattern without @, or the packed form"
    )]
    WindowOfBools(String),
    /// A mask does not keep what it should.
    #[error("row {row} keeps column {col}, which the mask removes")]
    NotKept {
        /// first offending row
        row: usize,
        /// its column
        col: usize,
    },
    /// The kept columns of a group are not 4 ascending columns that it may list.
    #[error("row block {block}, group {group} lists columns {columns:?}: they must ascend and lie in {start}..{end}")]
    BadColumns {
        /// row block
        block: usize,
        /// group in the block
        group: usize,
        /// the columns as given
        columns: [u32; GROUP],
        /// first column allowed
        start: usize,
        /// first column past them
        end: usize,
    },
    /// Two groups of a window list the same column.
    #[error("row block {block}, group {group} lists column {column}, which another group of its window has")]
    SharedColumn {
        /// row block
        block: usize,
        /// the later of the two groups
        group: usize,
        /// the column
        column: u32,
    },
    /// The groups of a window are not in their one order.
    #[error(
        "row block {block}, group {group} is out of order: the groups of a window ascend by their first columns, and one with padding is last"
    )]
    GroupOrder {
        /// row block
        block: usize,
        /// the group that belongs before the one before it
        group: usize,
    },
    /// A pair of kept positions is not ascending.
    #[error("row {row}, group {group} has position code {code:#x}: legal codes are 4, 8, 9, c, d, e")]
    BadPair {
        /// row
        row: usize,
        /// group
        group: usize,
        /// the code as given
        code: u8,
    },
    /// A slot outside the matrix holds a value.
    #[error("row {row}, group {group} stores a non-zero value for a padding column")]
    PaddingValue {
        /// row
        row: usize,
        /// group
        group: usize,
    },
    /// Calibration saw nothing that a weight update could go by.
    #[error(
        "the calibration inputs of this layer have a mean square of {mean}: calibrate on other data, or leave the layer out"
    )]
    NoSignal {
        /// mean over features of the sum of squares
        mean: f64,
    },
    /// A weight does not fit the type it shall be stored in.
    #[error(
        "weight {value} at row {row} does not fit {dtype}: store the values in a wider type (bf16 reaches further than f16, f32 furthest)"
    )]
    Overflow {
        /// row of the weight
        row: usize,
        /// the weight
        value: f32,
        /// the type's name
        dtype: &'static str,
    },
    /// A code is out of the range of its type.
    #[error("row {row} holds the code {code}, which {int} does not have")]
    BadCode {
        /// row
        row: usize,
        /// the code
        code: i8,
        /// the type's name
        int: &'static str,
    },
    /// A scale is not finite or does not belong to its codes.
    #[error("scale {block} of row {row} is {value}: {why}")]
    BadScale {
        /// row
        row: usize,
        /// which of the row's scales
        block: usize,
        /// the scale
        value: f32,
        /// what is wrong with it
        why: &'static str,
    },
    /// Not a bijection of `0..len`.
    #[error("entry {index} of a permutation of {len} is {value}, out of range or used twice")]
    NotAPermutation {
        /// index of the offending entry
        index: usize,
        /// the entry
        value: u32,
        /// length
        len: usize,
    },
}

impl Error {
    /// The same error, where what was looked at began at row `start` of something larger.
    #[must_use]
    pub fn in_rows_from(mut self, start: usize) -> Self {
        if let Self::BadScore { row, .. } | Self::Overflow { row, .. } = &mut self {
            *row += start;
        }
        self
    }
}

const GROUP: usize = crate::GROUP_COLUMNS;

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
