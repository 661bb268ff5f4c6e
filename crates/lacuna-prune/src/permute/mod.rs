//! Orders of channels that let a grouped mask keep more: the permutation of arXiv 2410.16135, section 3.
//!
//! `Y = W·X` is `Y = P_oᵀ·(P_o·W·P_i)·P_iᵀ·X`: a mask may be chosen on `P_o·W·P_i`, so which columns share a group of `M`
//! and which rows a block of `V` is free. Wanted are the two orders with the largest score kept, taken in turns, each by
//! linear assignment: some places are emptied, the benefit of each channel at each of them is computed, and all go where
//! the sum of benefits is largest. RIA (Zhang et al., ICLR 2024) does the same for the columns of 2:4.
//!
//! An order may be shared: the channels of a residual stream are columns of some weights and rows of others. So what is
//! searched for is one order of *places*, and benefits add up over all weights that it moves ([`Moved`]).

mod columns;
mod rows;
mod search;

use std::borrow::Cow;

use lacuna_core::{GROUP_COLUMNS, Mask, Matrix, Pattern, Permutation, Result, Scores, Window};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Selection;
use crate::select::{cluster_rows, of_columns, select_blocks};
pub use search::{Found, Places, search};

/// Times that columns and rows are ordered in turns, at most.
const TURNS: usize = 3;
/// A turn that keeps less than this share more is the last one.
const LEAST_GAIN: f64 = 2e-3;
/// Rounds over all columns, or rows, in one turn.
const ROUNDS: usize = 2;

/// A weight that an order moves columns or rows of: its scores, and which of them belong to each place.
pub struct Moved<'a> {
    /// scores, arranged as they are before the search
    pub scores: Cow<'a, Scores>,
    /// what a unit of these scores counts beside those of other weights
    pub weight: f32,
    /// the column of each place, once for each way in which columns follow the order
    pub columns: Vec<Vec<usize>>,
    /// the row of each place, likewise
    pub rows: Vec<Vec<usize>>,
}

impl Moved<'_> {
    /// The scores under an order: at place `i` is what was at place `order[i]`.
    fn arranged(&self, order: &Permutation) -> Result<Scores> {
        let of = |len: usize, ways: &[Vec<usize>]| {
            let mut whole: Vec<usize> = (0..len).collect();
            for line_of in ways {
                for (&line, &old) in line_of.iter().zip(order.as_slice()) {
                    whole[line] = line_of[old as usize];
                }
            }
            whole
        };
        let matrix = self.scores.matrix();
        let (rows, columns) = (of(matrix.rows(), &self.rows), of(matrix.cols(), &self.columns));
        let mut arranged = Matrix::zeros(matrix.rows(), matrix.cols());
        arranged.data_mut().par_chunks_mut(matrix.cols()).zip(&rows).for_each(|(out, &row)| {
            let source = matrix.row(row);
            if self.columns.is_empty() {
                out.copy_from_slice(source);
            } else {
                out.iter_mut().zip(&columns).for_each(|(out, &column)| *out = source[column]);
            }
        });
        Scores::new(arranged)
    }
}

/// In which order the rows and columns of a weight are when its mask is chosen. Any order is stored with the layer and
/// costs nothing at run time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permute {
    /// as they are
    #[default]
    None,
    /// rows that keep the same columns together; columns are up to the selection and its window
    Rows,
    /// rows and columns by the paper's alternating assignments; groups are of M columns in that order
    Paper,
}

/// A weight's scores in the order of its rows that was found, and the mask selected on them.
pub(crate) struct Arrangement {
    pub(crate) scores: Scores,
    pub(crate) mask: Mask,
    pub(crate) rows: Option<Permutation>,
}

impl Permute {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Rows => "rows",
            Self::Paper => "paper",
        }
    }

    /// Whether a layer of this pattern gets an order of its rows. Where groups keep all of their columns, any is as good.
    pub fn orders_rows(self, pattern: Pattern) -> bool {
        match self {
            Self::None => false,
            Self::Rows => pattern.m() > GROUP_COLUMNS || !pattern.is_grouped(),
            Self::Paper => true,
        }
    }

    pub(crate) fn arrange(self, scores: &Scores, pattern: Pattern, selection: Selection) -> Result<Arrangement> {
        let mut arranged = scores.clone();
        let mut rows = None;
        match self {
            Self::Rows if self.orders_rows(pattern) => {
                let order = cluster_rows(scores, pattern, selection)?;
                arranged = Scores::new(order.permute_rows(scores.matrix())?)?;
                rows = Some(order);
            }
            Self::Paper => {
                let pattern = Pattern::new(pattern.v(), pattern.m())?;
                let orders = paper(scores, pattern)?;
                arranged = Scores::new(orders.rows.permute_rows(scores.matrix())?)?;
                let by_column = Scores::new(orders.columns.permute_columns(arranged.matrix())?)?;
                let mask = back_in_order(&select_blocks(&by_column, pattern, selection)?, &orders.columns, &arranged)?;
                return Ok(Arrangement { scores: arranged, mask, rows: Some(orders.rows) });
            }
            Self::None | Self::Rows => {}
        }
        Ok(Arrangement { mask: select_blocks(&arranged, pattern, selection)?, scores: arranged, rows })
    }
}

/// A mask that was chosen on reordered columns as one of the columns as they are: its groups take theirs from anywhere.
/// Where the last block was too narrow for a group, the best of the columns that are left fill it up.
fn back_in_order(mask: &Mask, order: &Permutation, scores: &Scores) -> Result<Mask> {
    let grid = *mask.grid();
    let free = grid.pattern().with_window(Window::All)?.grid(grid.rows(), grid.cols())?;
    let column = |c: u32| order.as_slice().get(c as usize).copied().unwrap_or(c);
    let mut columns: Vec<[u32; GROUP_COLUMNS]> = mask.all_columns().iter().map(|four| four.map(column)).collect();
    for (block, groups) in columns.chunks_mut(grid.groups()).enumerate() {
        let mut sums = vec![0.0; grid.cols()];
        for row in grid.block_rows(block) {
            sums.iter_mut().zip(scores.matrix().row(row)).for_each(|(sum, score)| *sum += score);
        }
        let mut left: Vec<u32> = (0..grid.cols() as u32).filter(|c| !groups.as_flattened().contains(c)).collect();
        left.sort_by(|&a, &b| sums[a as usize].total_cmp(&sums[b as usize]).then(b.cmp(&a)));
        let padding = groups.as_flattened_mut().iter_mut().filter(|c| **c as usize >= grid.cols());
        padding.for_each(|c| *c = left.pop().unwrap_or(*c));
        free.arrange(groups);
    }
    of_columns(scores, free, columns)
}

/// Orders of the rows and columns of one weight.
#[derive(Debug, Clone)]
pub struct Orders {
    /// of the rows: row `i` of the arranged weight is row `rows[i]` of the weight
    pub rows: Permutation,
    /// of the columns, likewise
    pub columns: Permutation,
    /// share of the sum of scores that the paper's selection keeps, before and after
    pub retained: [f64; 2],
}

impl Orders {
    /// A weight-shaped matrix, arranged.
    pub fn apply(&self, matrix: &Matrix) -> Result<Matrix> {
        self.columns.permute_columns(&self.rows.permute_rows(matrix)?)
    }
}

/// Orders under which the paper's selection keeps more of the scores of one weight; never less than it keeps as it is.
pub fn paper(scores: &Scores, pattern: Pattern) -> Result<Orders> {
    let (rows, cols) = (scores.matrix().rows(), scores.matrix().cols());
    let whole = scores.sum().max(f64::MIN_POSITIVE);
    let mut orders =
        Orders { rows: Permutation::identity(rows), columns: Permutation::identity(cols), retained: [0.0; 2] };
    for turn in 0..TURNS {
        let arranged = Scores::new(orders.apply(scores.matrix())?)?;
        let moved = |scores, columns, rows| Moved { scores: Cow::Owned(scores), weight: 1.0, columns, rows };
        let of_columns = moved(arranged, vec![(0..cols).collect()], vec![]);
        let columns = search(Places::free(cols), pattern, ROUNDS, |look| look(&of_columns))?;
        let of_rows = moved(of_columns.arranged(&columns.order)?, vec![], vec![(0..rows).collect()]);
        let by_rows = search(Places::free(rows), pattern, ROUNDS, |look| look(&of_rows))?;
        orders.columns = orders.columns.then(&columns.order)?;
        orders.rows = orders.rows.then(&by_rows.order)?;
        if turn == 0 {
            orders.retained[0] = columns.before / whole;
        }
        orders.retained[1] = by_rows.after / whole;
        if by_rows.after - columns.before < LEAST_GAIN * by_rows.after {
            break;
        }
    }
    Ok(orders)
}

/// What the paper's selection keeps of some scores.
pub fn kept(scores: &Scores, pattern: Pattern) -> Result<f64> {
    let matrix = scores.matrix();
    pattern.grid(matrix.rows(), matrix.cols())?;
    let height = (crate::BAND_WEIGHTS / matrix.cols() / pattern.v()).max(1) * pattern.v();
    let starts: Vec<usize> = (0..matrix.rows()).step_by(height).collect();
    let bands = starts.into_par_iter().map(|start| {
        let band = Scores::new(matrix.band(start..matrix.rows().min(start + height)))?;
        Selection::Paper.select(&band, pattern)?.kept_sum(band.matrix())
    });
    let bands: Vec<Result<f64>> = bands.collect();
    bands.into_iter().sum()
}
