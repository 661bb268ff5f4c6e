//! What passes for pruned layers before anything is pruned: random weights under random masks, of the kind that `prune` will
//! make. What they compute is nonsense, how long they take and how large they are is not.

use anyhow::Result;
use lacuna_core::{Grid, Matrix, Packed, Pattern, Permutation, ValueType};
use lacuna_format::packed_bytes;
use lacuna_prune::Permute;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::kernel_bench::random_mask;
use crate::recipe::Recipe;

/// How `prune` will make a pattern's masks, and what it will round kept values to.
#[derive(Clone, Copy)]
pub(super) struct StandIns<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) values: ValueType,
}

impl StandIns<'_> {
    /// The grid of a pattern's masks; none if it does not fit.
    pub(super) fn grid(&self, pattern: Pattern, rows: usize, cols: usize) -> Option<Grid> {
        self.recipe.widen(pattern).grid(rows, cols).ok()
    }

    /// Whether rows will be in an order of their own.
    fn orders_rows(&self) -> bool {
        self.recipe.permute != Permute::None
    }

    /// Bytes of a packed layer.
    pub(super) fn bytes(&self, grid: &Grid) -> usize {
        packed_bytes(grid, self.values, self.orders_rows())
    }

    /// A weight under a random mask.
    pub(super) fn pack(&self, rng: &mut ChaCha8Rng, pattern: Pattern, weight: &Matrix) -> Result<Packed> {
        let mask = random_mask(rng, self.recipe.widen(pattern), weight.rows(), weight.cols())?;
        let order = self.orders_rows().then(|| {
            let mut rows: Vec<u32> = (0..weight.rows() as u32).collect();
            rows.shuffle(rng);
            Permutation::new(rows).expect("each row once")
        });
        Ok(Packed::pack(weight, mask, self.values, order)?)
    }
}
