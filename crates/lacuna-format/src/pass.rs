//! One pass over the weight files: every byte is read once, in the order that disks like, hashed, and handed to whoever
//! works on the tensor that it belongs to.
//!
//! Files come past the page cache into buffers that are used again and again: fresh memory for each page costs a virtual
//! machine more than reading it. Only a file that is in memory already is mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};

use sha2::{Digest, Sha256};

use crate::checkpoint::{RawTensor, TensorInfo};
use crate::direct::{self, SECTOR, Sectors};
use crate::mmap::Mapped;
use crate::{Checkpoint, Error, Result};

/// Bytes that are read at a time where no tensor is handed out.
const PART: usize = 16 << 20;

/// Pieces that wait for the work, and for hashing, while the next one is read.
const WAITING: usize = 1;

/// Tensors of a pass that can be in memory at once: being read, waiting for hashing and for the work, and there.
pub const IN_FLIGHT: usize = 1 + 2 * (WAITING + 1);

/// A tensor by its name.
type Named<'a> = (&'a str, &'a TensorInfo);

/// The end of a pass that reads and hashes.
pub struct Pass<'a> {
    checkpoint: &'a Checkpoint,
    wanted: BTreeSet<String>,
    work: SyncSender<(&'a str, RawTensor<'a>)>,
    worker: Weak<()>,
}

/// The end of a pass that works: the tensors asked for, as they come by. Dropped before [`Pass::run`] came to its end, it
/// gives up the pass.
pub struct Passing<'a> {
    tensors: Receiver<(&'a str, RawTensor<'a>)>,
    _worker: Arc<()>,
}

impl<'a> Iterator for Passing<'a> {
    type Item = (&'a str, RawTensor<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        // An end of reading, good or bad: its own result says which.
        self.tensors.recv().ok()
    }
}

impl Checkpoint {
    /// A pass over all weight files that hands out some tensors, in the order of [`Self::in_order`].
    pub fn pass(&self, wanted: BTreeSet<String>) -> (Pass<'_>, Passing<'_>) {
        let (work, tensors) = sync_channel(WAITING);
        let worker = Arc::new(());
        let pass = Pass { checkpoint: self, wanted, work, worker: Arc::downgrade(&worker) };
        (pass, Passing { tensors, _worker: worker })
    }

    /// All tensors in the order of files, and within a file of bytes.
    pub fn in_order(&self) -> Vec<Named<'_>> {
        let mut tensors: Vec<_> = self.tensors().iter().map(|(name, info)| (name.as_str(), info)).collect();
        tensors.sort_by_key(|(_, info)| (info.place().0, info.place().1.start));
        tensors
    }
}

impl Pass<'_> {
    /// SHA-256 of each weight file in hex, by name; `None` if the work was given up.
    pub fn run(self) -> Result<Option<BTreeMap<String, String>>> {
        let files = self.checkpoint.files();
        let tensors = self.checkpoint.in_order();
        let tensors: Vec<_> = tensors.into_iter().filter(|(name, _)| self.wanted.contains(*name)).collect();
        let buffers = Buffers::default();
        std::thread::scope(|scope| {
            let (pieces, to_hash) = sync_channel(WAITING);
            let hashing = scope.spawn(|| hash(files, to_hash));
            for (file, path) in files.iter().enumerate() {
                let source = Source::open(path)?;
                let tensors = tensors.iter().filter(|(_, info)| info.place().0 == file);
                for (bytes, tensor) in cuts(source.len, tensors) {
                    let piece = Arc::new(source.piece(bytes, &buffers)?);
                    // If hashing panicked, joining it says so.
                    let _ = pieces.send((file, piece.clone()));
                    let given_up = match tensor {
                        Some((name, info)) => self.work.send((name, RawTensor { info, piece })).is_err(),
                        None => self.worker.strong_count() == 0,
                    };
                    if given_up {
                        return Ok(None);
                    }
                }
            }
            drop(pieces);
            Ok(Some(hashing.join().expect("hashing does not panic")))
        })
    }
}

/// Hashes files that come piece by piece.
fn hash(files: &[PathBuf], pieces: Receiver<(usize, Arc<Piece>)>) -> BTreeMap<String, String> {
    let mut hashers = vec![Sha256::new(); files.len()];
    for (file, piece) in pieces {
        hashers[file].update(piece.bytes());
    }
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let hex = |hash: Sha256| hash.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    files.iter().map(name).zip(hashers.into_iter().map(hex)).collect()
}

/// Cuts a file of `len` bytes into the tensors asked for, in order, and parts of what lies between them.
fn cuts<'t, 'a: 't>(len: u64, tensors: impl Iterator<Item = &'t Named<'a>>) -> Vec<(Range<u64>, Option<Named<'a>>)> {
    let mut all = vec![];
    let mut done = 0;
    let parts = |from: u64, to: u64| (from..to).step_by(PART).map(move |at| (at..to.min(at + PART as u64), None));
    for &(name, info) in tensors {
        let bytes = info.place().1;
        all.extend(parts(done, bytes.start));
        done = bytes.end;
        all.push((bytes, Some((name, info))));
    }
    all.extend(parts(done, len));
    all
}

/// Bytes of a file.
pub(crate) enum Piece {
    Mapped(Mapped),
    Read(Buffer),
}

impl Piece {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map.bytes(),
            Self::Read(buffer) => &buffer.memory[buffer.place.clone()],
        }
    }
}

/// A file that is read once.
#[derive(Clone, Copy)]
struct Source<'a> {
    path: &'a Path,
    len: u64,
    /// whether it is in memory
    there: bool,
}

impl<'a> Source<'a> {
    fn open(path: &'a PathBuf) -> Result<Self> {
        let len = std::fs::metadata(path).map_err(Error::io(path))?.len();
        Ok(Self { path, len, there: in_memory(path, len).unwrap_or(false) })
    }

    fn piece(&self, bytes: Range<u64>, buffers: &Buffers) -> Result<Piece> {
        if self.there {
            let map = Mapped::range(self.path, bytes.start, (bytes.end - bytes.start) as usize)?;
            return Ok(Piece::Mapped(map.soon()));
        }
        buffers.read(self, bytes).map(Piece::Read)
    }

    /// Fills memory with the bytes from an offset on, both whole sectors, as far as the file goes.
    fn fill(&self, offset: u64, memory: &mut [u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let (mut file, mut direct) = direct::open(options.read(true), self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut done = 0;
        while done < memory.len() {
            match file.read(&mut memory[done..]) {
                Ok(0) => break,
                Ok(bytes) => done += bytes,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Opened, but not read from: some file systems say no only here, as they do behind half a sector.
                Err(e) if direct && e.kind() == io::ErrorKind::InvalidInput => {
                    (file, direct) = (options.open(self.path)?, false);
                    file.seek(SeekFrom::Start(offset + done as u64))?;
                }
                Err(e) => return Err(e),
            }
        }
        let needed = self.len.saturating_sub(offset).min(memory.len() as u64);
        if (done as u64) < needed { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// Bytes that were read, among the sectors that they lie in. When nobody needs them any more, their memory is used for
/// others.
pub(crate) struct Buffer {
    memory: Sectors,
    place: Range<usize>,
    home: Buffers,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.home.0.lock().expect("nobody panics here").push(memory);
    }
}

/// Memory that nobody needs at the moment.
#[derive(Clone, Default)]
struct Buffers(Arc<Mutex<Vec<Sectors>>>);

impl Buffers {
    fn take(&self, len: usize) -> Sectors {
        let mut free = self.0.lock().expect("nobody panics here");
        match free.iter().position(|memory| memory.len() >= len) {
            Some(fits) => free.swap_remove(fits),
            None => {
                // One that is too small makes way.
                free.pop();
                Sectors::new(len)
            }
        }
    }

    /// Reads bytes of a file, the two halves of them at once: that keeps a disk busy.
    fn read(&self, source: &Source, bytes: Range<u64>) -> Result<Buffer> {
        let start = bytes.start / SECTOR as u64 * SECTOR as u64;
        let place = (bytes.start - start) as usize..(bytes.end - start) as usize;
        let len = place.end.next_multiple_of(SECTOR);
        let mut memory = self.take(len);
        let half = (len / 2).next_multiple_of(SECTOR);
        let (first, second) = memory[..len].split_at_mut(half);
        let read = std::thread::scope(|scope| {
            let first = scope.spawn(|| source.fill(start, first));
            source.fill(start + half as u64, second).and(first.join().expect("reading does not panic"))
        });
        read.map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => Error::shorter(source.path),
            _ => Error::io(source.path)(cause),
        })?;
        Ok(Buffer { memory, place, home: self.clone() })
    }
}

/// Whether most of a file is in memory, as far as a few places tell; `None` where the system does not say.
#[cfg(target_os = "linux")]
fn in_memory(path: &Path, len: u64) -> Option<bool> {
    use std::hash::{BuildHasher, Hasher, RandomState};

    use rustix::fs::Advice;
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    const PROBES: u64 = 64;
    let file = File::open(path).ok()?;
    // So that looking at a page does not fetch those behind it. It may fetch the page itself, without waiting for it, so
    // that who looks again has to look elsewhere.
    rustix::fs::fadvise(&file, 0, None, Advice::Random).ok()?;
    let stride = (len / PROBES).max(1);
    let first = RandomState::new().build_hasher().finish() % stride;
    let mut there = 0;
    for probe in 0..PROBES {
        let byte = &mut [0];
        match preadv2(&file, &mut [io::IoSliceMut::new(byte)], first + probe * stride, ReadWriteFlags::NOWAIT) {
            Ok(_) => there += 1,
            Err(Errno::AGAIN) => {}
            Err(_) => return None,
        }
    }
    Some(2 * there > PROBES)
}

#[cfg(not(target_os = "linux"))]
fn in_memory(_: &Path, _: u64) -> Option<bool> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OutTensor, TensorDtype};

    /// A checkpoint of two shards of several tensors, one of several parts; names are not in the order of bytes.
    fn checkpoint(dir: &Path) -> Checkpoint {
        let bytes: Vec<u8> = (0..2 * PART + 4).map(|i| (i as u32).wrapping_mul(2_654_435_761) as u8).collect();
        let mut map = serde_json::Map::new();
        for (shard, tensors) in [("1", [("z", 8), ("f", 5000)]), ("2", [("y", 12), ("b", bytes.len())])] {
            let shard = format!("{shard}.safetensors");
            let tensors: Vec<_> = tensors
                .iter()
                .map(|&(name, len)| (name, OutTensor::new(TensorDtype::U8, vec![len], &bytes[..len])))
                .collect();
            for (name, _) in &tensors {
                map.insert((*name).to_owned(), shard.clone().into());
            }
            let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
            std::fs::write(dir.join(&shard), safetensors::serialize(tensors, None).unwrap()).unwrap();
        }
        let index = serde_json::json!({ "weight_map": map });
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        std::fs::write(dir.join("config.json"), "{}").unwrap();
        Checkpoint::open(dir).unwrap()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn tensors_come_by_in_order_and_every_file_is_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let (pass, passing) = checkpoint.pass(names(&["b", "f", "z"]));
        let (hashes, came) = std::thread::scope(|scope| {
            let hashes = scope.spawn(|| pass.run());
            let came: Vec<&str> = passing
                .map(|(name, tensor)| {
                    assert!(tensor.bytes() == checkpoint.raw(name).unwrap().bytes(), "{name}");
                    name
                })
                .collect();
            (hashes.join().unwrap().unwrap().unwrap(), came)
        });
        assert_eq!(came, ["f", "z", "b"]);
        for path in checkpoint.files() {
            let whole = Sha256::digest(std::fs::read(path).unwrap());
            let hex: String = whole.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hashes[path.file_name().unwrap().to_str().unwrap()], hex);
        }
        assert_eq!(hashes.len(), 2);
    }

    #[test]
    fn a_pass_ends_with_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        for wanted in [names(&["f", "z", "b"]), names(&[])] {
            let (pass, passing) = checkpoint.pass(wanted);
            drop(passing);
            assert_eq!(pass.run().unwrap(), None);
        }
    }

    #[test]
    fn a_file_that_became_shorter_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let path = &checkpoint.files()[1];
        let whole = Source::open(path).unwrap();
        File::options().write(true).open(path).unwrap().set_len(5000).unwrap();
        for there in [true, false] {
            let problem = Source { there, ..whole }.piece(4000..6000, &Buffers::default()).err().unwrap().to_string();
            assert!(problem.contains("2.safetensors") && problem.contains("shorter"), "{problem}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_is_in_memory_after_a_pass_if_it_was_before() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let path = &checkpoint.files()[1];
        let is_there = || in_memory(path, std::fs::metadata(path).unwrap().len());
        for there in [true, false] {
            let file = File::open(path).unwrap();
            file.sync_all().unwrap();
            if there {
                std::fs::read(path).unwrap();
            } else {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            for _ in 0..3 {
                if is_there() != Some(there) {
                    eprintln!("SKIPPED: this file system keeps its files in memory, or does not tell");
                    return;
                }
            }
            let (pass, passing) = checkpoint.pass(names(&[]));
            pass.run().unwrap().unwrap();
            drop(passing);
            assert_eq!(is_there(), Some(there));
        }
    }
}
