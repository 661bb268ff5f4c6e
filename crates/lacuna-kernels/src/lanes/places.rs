//! Rows of a product that are computed in another order than they stand in: each goes to its own place of `y[R, T]`, written
//! by whichever thread has computed it.

use std::marker::PhantomData;

use lacuna_core::{Matrix, Permutation};

/// The rows of a result, to be written in any order by any thread.
pub(super) struct Places<'a> {
    rows: *mut f32,
    tokens: usize,
    /// the place of each computed row
    order: &'a [u32],
    of: PhantomData<&'a mut Matrix>,
}

// SAFETY: the pointer is to a matrix that is borrowed exclusively, and whoever writes through it promises to write rows that
// nobody else does.
unsafe impl Sync for Places<'_> {}

impl<'a> Places<'a> {
    /// Those of `y`.
    ///
    /// # Panics
    /// If there is another number of rows.
    pub(super) fn new(y: &'a mut Matrix, order: &'a Permutation) -> Self {
        let order = order.as_slice();
        assert_eq!(order.len(), y.rows(), "an order of other rows");
        Self { rows: y.data_mut().as_mut_ptr(), tokens: y.cols(), order, of: PhantomData }
    }

    /// Writes the computed rows from `first` on.
    ///
    /// # Safety
    /// No other thread may be writing any of these rows.
    pub(super) unsafe fn put(&self, first: usize, rows: &[f32]) {
        let tokens = self.tokens;
        for (row, &place) in rows.chunks_exact(tokens).zip(&self.order[first..]) {
            // SAFETY: a permutation names places below the number of rows, each once, so that only this row goes there.
            let out = unsafe { std::slice::from_raw_parts_mut(self.rows.add(place as usize * tokens), tokens) };
            match (&mut *out, row) {
                // A call of memcpy would take longer than the copy.
                ([out], &[value]) => *out = value,
                (out, row) => out.copy_from_slice(row),
            }
        }
    }
}
