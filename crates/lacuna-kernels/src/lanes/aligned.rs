//! Buffers that begin at a cache line: a vector as wide as a line that straddles two takes two loads.
//!
//! Products need the same few buffers again and again; fresh ones from the system cost a page fault every 4 KiB, a fifth
//! of a product's time. So a buffer goes back to a shelf, and the next one is taken from there.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use bytemuck::Pod;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; 16]);

/// A buffer of numbers.
pub(super) struct Aligned<E> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<E>,
}

/// Buffers that wait for their next use.
static SHELF: Mutex<Vec<Vec<Line>>> = Mutex::new(vec![]);

/// Buffers that may wait; more are freed.
const SHELF_PLACES: usize = 64;

impl<E: Pod> Aligned<E> {
    /// `len` zeros, to be kept.
    pub(super) fn zeros(len: usize) -> Self {
        let mut new = Self { lines: vec![], len: 0, of: PhantomData };
        new.resize(len);
        new
    }

    /// `len` numbers of any value, to be overwritten.
    pub(super) fn scratch(len: usize) -> Self {
        let lines = SHELF.lock().ok().and_then(|mut shelf| {
            let large_enough = shelf.iter().rposition(|lines| lines.len() >= lines_of::<E>(len));
            large_enough.or(shelf.len().checked_sub(1)).map(|i| shelf.swap_remove(i))
        });
        let mut new = Self { lines: lines.unwrap_or_default(), len: 0, of: PhantomData };
        new.resize(len);
        new
    }

    /// Changes the length; what is added has any value.
    pub(super) fn resize(&mut self, len: usize) {
        if self.lines.len() < lines_of::<E>(len) {
            self.lines.resize(lines_of::<E>(len), Line([0; 16]));
        }
        self.len = len;
    }

    /// Puts the buffer on the shelf.
    pub(super) fn shelve(self) {
        if let Ok(mut shelf) = SHELF.lock()
            && shelf.len() < SHELF_PLACES
        {
            shelf.push(self.lines);
        }
    }
}

/// Lines that `len` elements fill.
fn lines_of<E>(len: usize) -> usize {
    (len * size_of::<E>()).div_ceil(size_of::<Line>())
}

impl<E: Pod> Deref for Aligned<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        // SAFETY: `resize` made room for `len` elements; lines are more aligned than any number, have no padding, and
        // any bytes are a valid number.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<E: Pod> DerefMut for Aligned<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        // SAFETY: as in `deref`; the borrow is exclusive, and any bytes are a valid line.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
