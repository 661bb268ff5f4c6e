//! Matrices that live for one layer, over and over: memory fresh from the system costs a page fault every 4 KiB, a tenth
//! of a prefill's time, so what a layer is done with waits here for the next one.

use std::sync::Mutex;

use lacuna_core::Matrix;

static SHELF: Mutex<Vec<Vec<f32>>> = Mutex::new(vec![]);

/// Buffers that may wait; the oldest make room for others. A block has no more than half as many at a time.
const PLACES: usize = 32;

/// A matrix to be overwritten as a whole: its values are any.
pub(crate) fn take(rows: usize, cols: usize) -> Matrix {
    // Of just this length: a layer's sizes come again in the next one, and growing another would clear it.
    let len = rows * cols;
    let found = SHELF.lock().ok().and_then(|mut shelf| {
        let found = shelf.iter().rposition(|data| data.len() == len);
        found.map(|i| shelf.remove(i))
    });
    Matrix::new(rows, cols, found.unwrap_or_else(|| vec![0.0; len])).expect("as many values as the shape has")
}

/// Takes back what is no longer needed, such as logits of one step before the next.
pub fn give(matrix: Matrix) {
    if let Ok(mut shelf) = SHELF.lock() {
        if shelf.len() == PLACES {
            shelf.remove(0);
        }
        shelf.push(matrix.into_data());
    }
}
