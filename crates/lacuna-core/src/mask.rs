//! Which weights are kept, stored structurally: a [`Mask`] cannot break its pattern.

use crate::{Error, GROUP_COLUMNS, Grid, KEPT_PER_GROUP, Matrix, Pattern, Result};

/// The two positions, ascending, that a row keeps of the 4 columns of a group.
///
/// The code is `low | high << 2`, one of 4, 8, 9, c, d, e: the nibble of PTX's ordered sparsity metadata
/// (PTX ISA, "Sparse matrix storage", `mma.sp` with `.f16`/`.bf16`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair(u8);

impl Pair {
    /// Positions 0 and 1.
    pub const FIRST: Self = Self(0b0100);

    /// Takes two positions `low < high < 4`.
    pub fn new(low: usize, high: usize) -> Option<Self> {
        if low < high && high < GROUP_COLUMNS { Some(Self((low | high << 2) as u8)) } else { None }
    }

    /// Reads a code.
    pub fn from_code(code: u8) -> Option<Self> {
        if code < 16 { Self::new(usize::from(code & 3), usize::from(code >> 2)) } else { None }
    }

    /// The code.
    pub fn code(self) -> u8 {
        self.0
    }

    /// The two positions, ascending.
    pub fn positions(self) -> [usize; KEPT_PER_GROUP] {
        [usize::from(self.0 & 3), usize::from(self.0 >> 2)]
    }

    /// The two largest of 4 values; of equal ones the first. No branches and no table: which wins is a coin's toss in
    /// pruning, and a loop over this becomes vector instructions.
    #[expect(clippy::needless_bitwise_bool, reason = "lazy operators are branches")]
    #[inline(always)]
    pub fn top_two([a, b, c, d]: [f32; GROUP_COLUMNS]) -> Self {
        let (ab, ac, ad, bc, bd, cd) = (a >= b, a >= c, a >= d, b >= c, b >= d, c >= d);
        let two_of = |x: bool, y: bool, z: bool| x & y | x & z | y & z;
        // A value is kept that wins against two others.
        let (keeps_a, keeps_b) = (two_of(ab, ac, ad), two_of(!ab, bc, bd));
        let (keeps_c, keeps_d) = (two_of(!ac, !bc, cd), two_of(!ad, !bd, !cd));
        let low = u8::from(!keeps_a) + u8::from(!keeps_a & !keeps_b);
        let high = 1 + u8::from(keeps_c | keeps_d) + u8::from(keeps_d);
        // Outcomes that no values have (NaN) still get a pair.
        Self(low | u8::max(high, low + 1) << 2)
    }
}

/// A mask of a `[rows, cols]` weight under a pattern: for each row block and group 4 ascending columns of its window, for
/// each row and group the [`Pair`] of them that is kept. No two groups of a row block share a column, and the groups of
/// a window are in the order of [`Grid::arrange`]: there is one way to write each mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    grid: Grid,
    /// `[row_blocks, G, 4]`, absolute
    columns: Vec<[u32; GROUP_COLUMNS]>,
    /// `[rows, G]`
    pairs: Vec<Pair>,
}

impl Mask {
    /// `columns` is `[row_blocks, G]`, `pairs` is `[rows, G]`. Refuses columns that do not ascend within their window,
    /// that two groups share, and groups in another order than [`Grid::arrange`]'s.
    pub fn new(grid: Grid, columns: Vec<[u32; GROUP_COLUMNS]>, pairs: Vec<Pair>) -> Result<Self> {
        let groups = grid.groups();
        let length = |what, want, got| if want == got { Ok(()) } else { Err(Error::Length { what, want, got }) };
        length("columns of a mask", grid.row_blocks() * groups, columns.len())?;
        length("pairs of a mask", grid.rows() * groups, pairs.len())?;
        let mut used = vec![false; grid.cols() + grid.padding()];
        for (block, columns) in columns.chunks_exact(groups).enumerate() {
            for window in 0..grid.windows() {
                let (first, last) = (grid.window_groups(window).start, grid.window_groups(window).end - 1);
                for group in first..=last {
                    let (kept, range) = (columns[group], grid.group_range(group));
                    if !(kept.is_sorted_by(|a, b| a < b) && kept.iter().all(|&c| range.contains(&(c as usize)))) {
                        let (start, end) = (range.start, range.end);
                        return Err(Error::BadColumns { block, group, columns: kept, start, end });
                    }
                    for column in kept {
                        if std::mem::replace(&mut used[column as usize], true) {
                            return Err(Error::SharedColumn { block, group, column });
                        }
                    }
                    let padded = kept[GROUP_COLUMNS - 1] as usize >= grid.cols();
                    if group > first && !padded && kept[0] < columns[group - 1][0] {
                        return Err(Error::GroupOrder { block, group });
                    }
                }
            }
            used.fill(false);
        }
        Ok(Self { grid, columns, pairs })
    }

    /// How the pattern tiles the weight.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Kept columns of a row block and group; one at or past `cols` is padding.
    pub fn columns(&self, block: usize, group: usize) -> [u32; GROUP_COLUMNS] {
        self.columns[block * self.grid.groups() + group]
    }

    /// All kept columns, `[row_blocks, G]`.
    pub fn all_columns(&self) -> &[[u32; GROUP_COLUMNS]] {
        &self.columns
    }

    /// The pairs of one row, one a group.
    pub fn row_pairs(&self, row: usize) -> &[Pair] {
        &self.pairs[row * self.grid.groups()..(row + 1) * self.grid.groups()]
    }

    /// The columns of the two values that a row keeps of each group, ascending; one at or past `cols` is padding.
    pub fn kept(&self, row: usize) -> impl Iterator<Item = [usize; KEPT_PER_GROUP]> + '_ {
        let groups = self.grid.groups();
        let block = row / self.grid.pattern().v();
        let columns = &self.columns[block * groups..(block + 1) * groups];
        columns.iter().zip(self.row_pairs(row)).map(|(four, pair)| pair.positions().map(|p| four[p & 3] as usize))
    }

    /// One mask of the rows of several, which must share pattern and columns; all but the last must be whole row blocks.
    pub fn stack(parts: Vec<Self>) -> Result<Self> {
        let rows = parts.iter().map(|part| part.grid.rows()).sum();
        let (pattern, cols) = parts.first().map_or((Pattern::PLAIN, 0), |p| (p.grid.pattern(), p.grid.cols()));
        let grid = pattern.grid(rows, cols)?;
        let (mut columns, mut pairs) = (vec![], Vec::with_capacity(rows * grid.groups()));
        for part in parts {
            if pattern != part.grid.pattern()
                || cols != part.grid.cols()
                || pairs.len() % (pattern.v() * grid.groups()) != 0
            {
                let (got_rows, got_cols) = (part.grid.rows(), part.grid.cols());
                return Err(Error::Shape { what: "part of a mask", rows: pattern.v(), cols, got_rows, got_cols });
            }
            columns.extend(part.columns);
            pairs.extend(part.pairs);
        }
        Ok(Self { grid, columns, pairs })
    }

    /// The mask of one row block, as of a matrix of its own.
    pub fn block(&self, block: usize) -> Result<Self> {
        let (rows, groups) = (self.grid.block_rows(block), self.grid.groups());
        Ok(Self {
            grid: self.grid.pattern().grid(rows.len(), self.grid.cols())?,
            columns: self.columns[block * groups..(block + 1) * groups].to_vec(),
            pairs: self.pairs[rows.start * groups..rows.end * groups].to_vec(),
        })
    }

    /// `mask ⊙ W`: removed weights become +0.
    pub fn apply(&self, weight: &Matrix) -> Result<Matrix> {
        self.check_shape("weight", weight)?;
        let mut out = Matrix::zeros(weight.rows(), weight.cols());
        for row in 0..weight.rows() {
            for col in self.kept(row).flatten().filter(|&col| col < weight.cols()) {
                out.row_mut(row)[col] = weight.row(row)[col];
            }
        }
        Ok(out)
    }

    /// Sum of the kept entries of a weight-shaped matrix, in f64.
    pub fn kept_sum(&self, matrix: &Matrix) -> Result<f64> {
        self.sum_kept("scores", matrix, |v| v)
    }

    /// Sum of the squares of the kept entries of a weight-shaped matrix, in f64.
    pub fn kept_energy(&self, matrix: &Matrix) -> Result<f64> {
        self.sum_kept("weight", matrix, |v| v * v)
    }

    fn sum_kept(&self, what: &'static str, matrix: &Matrix, f: impl Fn(f64) -> f64) -> Result<f64> {
        self.check_shape(what, matrix)?;
        let mut sum = 0.0;
        for row in 0..matrix.rows() {
            let source = matrix.row(row);
            let value = |c: usize| source.get(c).map_or(0.0, |&v| f(v.into()));
            // Two sums: an addition takes longer than what it waits for.
            let (mut low, mut high) = (0.0, 0.0);
            for [a, b] in self.kept(row) {
                low += value(a);
                high += value(b);
            }
            sum += low + high;
        }
        Ok(sum)
    }

    /// The boolean form: true where a weight is kept.
    pub fn to_bools(&self) -> BoolMask {
        let mut keep = BoolMask { rows: self.grid.rows(), cols: self.grid.cols(), keep: vec![] };
        keep.keep = vec![false; keep.rows * keep.cols];
        for row in 0..keep.rows {
            for col in self.kept(row).flatten().filter(|&col| col < keep.cols) {
                keep.keep[row * keep.cols + col] = true;
            }
        }
        keep
    }

    /// Refuses a boolean mask that keeps what this one removes, naming the first.
    pub fn covers(&self, bools: &BoolMask) -> Result<()> {
        let own = self.to_bools();
        if (own.rows, own.cols) != (bools.rows, bools.cols) {
            let (rows, cols, got_rows, got_cols) = (own.rows, own.cols, bools.rows, bools.cols);
            return Err(Error::Shape { what: "boolean mask", rows, cols, got_rows, got_cols });
        }
        match own.keep.iter().zip(&bools.keep).position(|(&own, &keep)| keep && !own) {
            Some(i) => Err(Error::NotKept { row: i / own.cols, col: i % own.cols }),
            None => Ok(()),
        }
    }

    fn check_shape(&self, what: &'static str, matrix: &Matrix) -> Result<()> {
        let (rows, cols) = (self.grid.rows(), self.grid.cols());
        if (matrix.rows(), matrix.cols()) == (rows, cols) {
            Ok(())
        } else {
            Err(Error::Shape { what, rows, cols, got_rows: matrix.rows(), got_cols: matrix.cols() })
        }
    }
}

/// A boolean mask from elsewhere, `[rows, cols]`, which may obey a pattern or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoolMask {
    rows: usize,
    cols: usize,
    keep: Vec<bool>,
}

impl BoolMask {
    /// Takes `rows * cols` flags in row-major order, true where a weight is kept.
    pub fn new(rows: usize, cols: usize, keep: Vec<bool>) -> Result<Self> {
        match rows.checked_mul(cols) {
            Some(want) if want == keep.len() => Ok(Self { rows, cols, keep }),
            want => Err(Error::Length { what: "boolean mask", want: want.unwrap_or(usize::MAX), got: keep.len() }),
        }
    }

    /// True where the weight is not zero.
    pub fn non_zero(weight: &Matrix) -> Self {
        let keep = weight.data().iter().map(|&w| w != 0.0).collect();
        Self { rows: weight.rows(), cols: weight.cols(), keep }
    }

    /// All flags, row-major.
    pub fn as_slice(&self) -> &[bool] {
        &self.keep
    }
}

/// The smallest structural mask that keeps everything the boolean one keeps. The two are equal where every row keeps
/// exactly two of each group; where it keeps fewer (a kept weight that happens to be zero), the first free positions
/// fill up. Refuses a mask that keeps more, naming the first offending row and group, and a pattern whose groups do not
/// have their own columns.
impl TryFrom<(Pattern, &BoolMask)> for Mask {
    type Error = Error;

    fn try_from((pattern, bools): (Pattern, &BoolMask)) -> Result<Self> {
        if !pattern.is_grouped() {
            return Err(Error::WindowOfBools(pattern.to_string()));
        }
        let grid = pattern.grid(bools.rows, bools.cols)?;
        let groups = grid.groups();
        let mut columns = Vec::with_capacity(grid.row_blocks() * groups);
        let mut pairs = vec![Pair::FIRST; grid.rows() * groups];
        let kept = |row: usize, col: usize| col < bools.cols && bools.keep[row * bools.cols + col];
        for block in 0..grid.row_blocks() {
            for group in 0..groups {
                let breaks = |row, why| Error::BreaksPattern { pattern: pattern.to_string(), row, group, why };
                let mut used: Vec<usize> = Vec::with_capacity(GROUP_COLUMNS);
                for row in grid.block_rows(block) {
                    for col in grid.block_cols(group).filter(|&c| kept(row, c)) {
                        if !used.contains(&col) {
                            used.push(col);
                        }
                    }
                    if used.len() > GROUP_COLUMNS {
                        return Err(breaks(row, "the block keeps more than 4 columns"));
                    }
                }
                let free = grid.group_range(group).filter(|c| !used.contains(c)).take(GROUP_COLUMNS - used.len());
                let mut chosen: Vec<usize> = used.iter().copied().chain(free).collect();
                chosen.sort_unstable();
                for row in grid.block_rows(block) {
                    let flags: Vec<bool> = chosen.iter().map(|&c| kept(row, c)).collect();
                    let mut order: Vec<usize> = (0..GROUP_COLUMNS).collect();
                    order.sort_by_key(|&p| !flags[p]);
                    if flags.iter().filter(|&&f| f).count() > KEPT_PER_GROUP {
                        return Err(breaks(row, "the row keeps more than 2 values"));
                    }
                    let (a, b) = (order[0].min(order[1]), order[0].max(order[1]));
                    pairs[row * groups + group] = Pair((a | b << 2) as u8);
                }
                columns.push(std::array::from_fn(|i| chosen[i] as u32));
            }
        }
        Self::new(grid, columns, pairs)
    }
}
