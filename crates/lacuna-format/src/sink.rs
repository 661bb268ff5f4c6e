//! Large files written past the page cache where the system can: what is read back once, or not at all, would only
//! drive the source out of memory, and copying it there costs more time than the disk takes.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Addresses, offsets and lengths of direct writes are multiples of this: no common disk has larger sectors.
const SECTOR: usize = 4096;

/// Bytes that are written at once: enough for a disk to run at its full rate.
const BUFFER: usize = 4 << 20;

/// A new file; [`Sink::finish`] makes it last.
pub(crate) struct Sink {
    path: PathBuf,
    file: File,
    direct: bool,
    buffer: Vec<u8>,
    /// first byte of the buffer at a sector's address
    start: usize,
    filled: usize,
    written: u64,
}

impl Sink {
    /// Creates the file, or empties it.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        let (file, direct) = match open_direct(&mut options.clone(), path) {
            Ok(file) => (file, true),
            // There are systems and file systems that know of no such thing. Any other problem shows again here.
            Err(_) => (options.open(path)?, false),
        };
        let buffer = vec![0; BUFFER + SECTOR];
        let start = buffer.as_ptr().align_offset(SECTOR);
        Ok(Self { path: path.to_owned(), file, direct, buffer, start, filled: 0, written: 0 })
    }

    /// Writes what is left and waits until the disk has it all.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let len = self.written + self.filled as u64;
        // Whole sectors, of which the file then loses what is too much.
        let end = self.filled.next_multiple_of(SECTOR);
        self.buffer[self.start..][self.filled..end].fill(0);
        self.filled = end;
        self.drain()?;
        self.file.set_len(len)?;
        self.file.sync_all()
    }

    fn drain(&mut self) -> io::Result<()> {
        let bytes = &self.buffer[self.start..self.start + self.filled];
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
        self.buffer[self.start + self.filled..][..taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        Ok(taken)
    }

    /// Does nothing: an end that is no whole sector has to wait for [`Sink::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn open_direct(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed()).open(path)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &mut OpenOptions, _: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
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
        sink.start += 1;
        sink.buffer.push(0);
        sink.buffer.copy_within(sink.start - 1..sink.start - 1 + BUFFER, sink.start);
        sink.write_all(&bytes[BUFFER..]).unwrap();
        sink.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
}
