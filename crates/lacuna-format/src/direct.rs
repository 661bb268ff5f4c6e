//! Files read and written past the page cache, where the system can: what is needed once would only drive out of memory
//! what others need, and fresh pages for it cost more time than the disk takes.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;

/// Addresses, offsets and lengths of direct reads and writes are multiples of this: no common disk has larger sectors.
pub(crate) const SECTOR: usize = 4096;

/// Opens a file for direct access if it can be had, else as usual. Returns which.
pub(crate) fn open(options: &OpenOptions, path: &Path) -> io::Result<(File, bool)> {
    match open_direct(options.clone(), path) {
        Ok(file) => Ok((file, true)),
        // There are systems and file systems that know of no such thing. Any other problem shows again here.
        Err(_) => Ok((options.open(path)?, false)),
    }
}

#[cfg(target_os = "linux")]
fn open_direct(mut options: OpenOptions, path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed()).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: OpenOptions, _: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Bytes whose address is a multiple of [`SECTOR`].
#[derive(Default)]
pub(crate) struct Sectors {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Sectors {
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + SECTOR];
        let start = memory.as_ptr().align_offset(SECTOR);
        Self { memory, start, len }
    }

    /// Bytes that no direct access takes.
    #[cfg(test)]
    pub(crate) fn askew(len: usize) -> Self {
        let Self { memory, start, .. } = Self::new(len + 1);
        Self { memory, start: start + 1, len }
    }
}

impl Deref for Sectors {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Sectors {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
