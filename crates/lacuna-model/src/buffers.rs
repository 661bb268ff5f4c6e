//! Matrices that live for one layer, over and over: memory fresh from the system costs a page fault every 4 KiB, a tenth
//! of a prefill's time, so what a layer is done with waits here for the next one.

use std::sync::Mutex;

use lacuna_core::Matrix;

static SHELF: Mutex<Vec<Vec<f32>>> = Mutex::new(vec![]);

/// Buffers that may wait; more are freed. A block has no more than this many at a time.
const PLACES: usize = 16;

/// A matrix to be overwritten as a whole: its values are any.
pub(crate) fn take(rows: usize, cols: usize) -> Matrix {
    let len = rows * cols;
    let found = SHELF.lock().ok().and_then(|mut shelf| {
        let smallest_that_fits = (0..shelf.len()).filter(|&i| shelf[i].len() >= len).min_by_key(|&i| shelf[i].len());
        smallest_that_fits.or(shelf.len().checked_sub(1)).map(|i| shelf.swap_remove(i))
    });
    let mut data = found.unwrap_or_default();
    data.resize(len, 0.0);
    Matrix::new(rows, cols, data).expect("as many values as the shape has")
}

/// Takes back what is no longer needed.
pub(crate) fn give(matrix: Matrix) {
    if let Ok(mut shelf) = SHELF.lock()
        && shelf.len() < PLACES
    {
        shelf.push(matrix.into_data());
    }
}
