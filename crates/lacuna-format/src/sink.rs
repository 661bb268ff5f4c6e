//! Large files written past the page cache: what is read back once, or not at all, is not needed there.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::direct::{self, SECTOR, Sectors};

/// Bytes that are written at once: enough for a disk to run at its full rate.
const BUFFER: usize = 4 << 20;

/// A new file; [`Sink::finish`] makes it last.
pub(crate) struct Sink {
    path: PathBuf,
    file: File,
    direct: bool,
    buffer: Sectors,
    filled: usize,
    written: u64,
}

impl Sink {
    /// Creates the file, or empties it.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let (file, direct) = direct::open(OpenOptions::new().write(true).create(true).truncate(true), path)?;
        Ok(Self { path: path.to_owned(), file, direct, buffer: Sectors::new(BUFFER), filled: 0, written: 0 })
    }

    /// Writes what is left and waits until the disk has it all.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let len = self.written + self.filled as u64;
        // Whole sectors, of which the file then loses what is too much.
        let end = self.filled.next_multiple_of(SECTOR);
        self.buffer[self.filled..end].fill(0);
        self.filled = end;
        self.drain()?;
        self.file.set_len(len)?;
        self.file.sync_all()
    }

    fn drain(&mut self) -> io::Result<()> {
        let bytes = &self.buffer[..self.filled];
        match self.file.write_all(bytes) {
            // Opened, but not written to: some file systems say no only here, as does a limit that ends within a sector.
            Err(e) if self.direct && e.kind() == io::ErrorKind::InvalidInput => {
                self.direct = false;
                self.file = OpenOptions::new().write(true).open(&self.path)?;
                self.file.seek(SeekFrom::Start(self.written))?;
                self.file.write_all(bytes)?;
            }
            other => other?,
        }
        self.written += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filled == BUFFER {
            self.drain()?;
        }
        let taken = bytes.len().min(BUFFER - self.filled);
        self.buffer[self.filled..][..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        Ok(taken)
    }

    /// Does nothing: an end that is no whole sector has to wait for [`Sink::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_what_was_written_at_every_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> =
            (0..2 * BUFFER + SECTOR + 5).map(|i| (i as u32).wrapping_mul(2_654_435_761) as u8).collect();
        for len in [0, 1, SECTOR - 1, SECTOR, SECTOR + 1, BUFFER, BUFFER + 1, 2 * BUFFER, bytes.len()] {
            for piece in [4097, BUFFER + 3] {
                let mut sink = Sink::create(&path).unwrap();
                bytes[..len].chunks(piece).for_each(|piece| sink.write_all(piece).unwrap());
                sink.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == bytes[..len], "{len} bytes, {piece} at a time");
            }
        }
    }

    #[test]
    fn a_file_that_takes_no_direct_writes_is_written_through_the_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..BUFFER + 77).map(|i| i as u8).collect();
        let mut sink = Sink::create(&path).unwrap();
        sink.write_all(&bytes[..BUFFER]).unwrap();
        // An address between sectors is what such a file system would say no to.
        let full = std::mem::replace(&mut sink.buffer, Sectors::askew(BUFFER));
        sink.buffer.copy_from_slice(&full);
        sink.write_all(&bytes[BUFFER..]).unwrap();
        sink.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}
