//! Buffers that begin at a cache line: a vector as wide as a line that straddles two takes two loads.
//!
//! Products need the same few buffers again and again; fresh ones from the system cost a page fault every 4 KiB, a fifth
//! of a product's time. So a buffer goes back to a shelf, and the next one is taken from there.

use std::cell::RefCell;
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

/// Buffers that wait for their next use by any thread.
static SHELF: Mutex<Vec<Vec<Line>>> = Mutex::new(vec![]);

/// Buffers that may wait there; more are freed.
const SHELF_PLACES: usize = 64;

thread_local! {
    /// The buffers that a thread used last: with few tokens a task is shorter than waiting for the shelf.
    static OWN: RefCell<Vec<Vec<Line>>> = const { RefCell::new(vec![]) };
}

/// Buffers that a thread keeps for itself.
const OWN_PLACES: usize = 4;

impl<E: Pod> Aligned<E> {
    /// `len` zeros, to be kept.
    pub(super) fn zeros(len: usize) -> Self {
        let mut new = Self { lines: vec![], len: 0, of: PhantomData };
        new.resize(len);
        new
    }

    /// `len` numbers of any value, to be overwritten.
    pub(super) fn scratch(len: usize) -> Self {
        let take = |shelf: &mut Vec<Vec<Line>>| {
            let large_enough = shelf.iter().rposition(|lines| lines.len() >= lines_of::<E>(len));
            large_enough.map(|i| shelf.swap_remove(i))
        };
        let lines = OWN.with_borrow_mut(take).or_else(|| {
            let mut shelf = SHELF.lock().ok()?;
            take(&mut shelf).or_else(|| shelf.pop())
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
        let lines = OWN.with_borrow_mut(|own| {
            if own.len() < OWN_PLACES {
                own.push(self.lines);
                return None;
            }
            Some(self.lines)
        });
        if let Some(lines) = lines
            && let Ok(mut shelf) = SHELF.lock()
            && shelf.len() < SHELF_PLACES
        {
            shelf.push(lines);
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
