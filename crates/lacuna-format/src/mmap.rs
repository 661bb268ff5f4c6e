//! Memory-mapped ranges of files: the only unsafe code of this crate.
//!
//! A range is mapped for as long as it is read and unmapped after, so that the resident size of a process that walks
//! through a large checkpoint stays that of the tensors in hand.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

use crate::{Error, Result};

/// Bytes of a file, mapped read-only.
pub(crate) struct Mapped(Option<Mmap>);

impl Mapped {
    /// Maps `len` bytes from `offset`; both must lie inside the file, which the header check has made sure of.
    pub(crate) fn range(path: &Path, offset: u64, len: usize) -> Result<Self> {
        if len == 0 {
            return Ok(Self(None));
        }
        let file = File::open(path).map_err(Error::io(path))?;
        let size = file.metadata().map_err(Error::io(path))?.len();
        if offset.checked_add(len as u64).is_none_or(|end| end > size) {
            return Err(Error::shorter(path));
        }
        // SAFETY: the mapping is private and read-only and the range lies inside the file. Like every memory-mapped
        // reader we rely on nobody truncating or rewriting the checkpoint while it is read; SECURITY.md says so.
        let map = unsafe { MmapOptions::new().offset(offset).len(len).map(&file) }.map_err(Error::io(path))?;
        Ok(Self(Some(map)))
    }

    /// Says that all of it will be read at once: the system then fetches it ahead of whoever works on it.
    pub(crate) fn soon(self) -> Self {
        #[cfg(unix)]
        if let Some(map) = &self.0 {
            // Advice that is not taken costs time, nothing else.
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
        self
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}
