//! One pass over the weight files: hashed from end to end while somebody else works through the tensors.
//!
//! The order of the work is not that of the files, so the two read on their own; what makes them read from the disk only
//! once is that hashing stays near the work. A file that was not in memory before leaves it again behind both: it would
//! only drive out what others need, and fresh memory for each page costs a virtual machine more than reading it.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use sha2::{Digest, Sha256};

use crate::mmap::Mapped;
use crate::{Checkpoint, Error, Result, TensorInfo};

/// Bytes that are hashed at a time, while the next ones are fetched.
const PART: usize = 16 << 20;

/// Bytes by which hashing may be ahead of the work: it then does the reading, in the order that disks like, and the work
/// still finds all of it in memory.
const AHEAD: u64 = 1 << 30;

/// What the work tells hashing.
enum Step {
    Read { file: usize, bytes: Range<u64> },
    Finished,
}

/// The end of a pass that works on tensors. Dropped before [`Progress::finish`], it gives up the pass.
pub struct Progress(Sender<Step>);

impl Progress {
    /// A tensor that is not needed any more.
    pub fn read(&self, tensor: &TensorInfo) {
        let (file, bytes) = tensor.place();
        self.tell(Step::Read { file, bytes });
    }

    /// No tensor is needed any more.
    pub fn finish(self) {
        self.tell(Step::Finished);
    }

    fn tell(&self, step: Step) {
        // If nobody listens, hashing came to its end, good or bad: its result says which.
        let _ = self.0.send(step);
    }
}

/// The end of a pass that hashes.
pub struct Hashing<'a> {
    files: Vec<Passed<'a>>,
    steps: Receiver<Step>,
    /// bytes that the work is done with; all, when it is finished
    read: u64,
    /// those of them that are still to be hashed
    waiting: Vec<(usize, Range<u64>)>,
}

impl Checkpoint {
    /// Begins to read all weights once, hashing the files along the way.
    pub fn pass(&self) -> Result<(Progress, Hashing<'_>)> {
        let (progress, steps) = channel();
        let files = self.files().iter().map(Passed::open).collect::<Result<_>>()?;
        Ok((Progress(progress), Hashing { files, steps, read: 0, waiting: vec![] }))
    }
}

impl Hashing<'_> {
    /// SHA-256 of each weight file in hex, by name; `None` if the work was given up.
    pub fn run(mut self) -> Result<Option<BTreeMap<String, String>>> {
        let mut hashes = BTreeMap::new();
        let mut before = 0;
        for file in 0..self.files.len() {
            let Passed { path, len, .. } = self.files[file];
            let part =
                |start: u64| Mapped::range(path, start, (PART as u64).min(len - start) as usize).map(Mapped::soon);
            let mut hasher = Sha256::new();
            let (mut done, mut next) = (0, part(0)?);
            while done < len {
                if !self.wait_for_work(before + done) {
                    return Ok(None);
                }
                let end = (done + PART as u64).min(len);
                let here = std::mem::replace(&mut next, part(end)?);
                hasher.update(here.bytes());
                drop(here);
                done = end;
                self.leave_behind(file, done);
            }
            before += len;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let hex = hasher.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
            hashes.insert(name, hex);
        }
        Ok(Some(hashes))
    }

    /// Hears what the work is done with, until it is near enough to what is hashed. Returns whether it goes on.
    fn wait_for_work(&mut self, hashed: u64) -> bool {
        loop {
            let far = hashed > self.read.saturating_add(AHEAD);
            let step = if far { self.steps.recv().ok() } else { self.steps.try_recv().ok() };
            match step {
                Some(Step::Read { file, bytes }) => {
                    self.read = self.read.saturating_add(bytes.end - bytes.start);
                    self.waiting.push((file, bytes));
                }
                Some(Step::Finished) => self.read = u64::MAX,
                None => return !far,
            }
        }
    }

    /// Lets go of what the work is done with and is hashed now.
    fn leave_behind(&mut self, file: usize, hashed: u64) {
        let files = &self.files;
        self.waiting.retain(|(of, bytes)| {
            let both = *of < file || (*of == file && bytes.end <= hashed);
            if both {
                files[*of].forget(bytes);
            }
            !both
        });
    }
}

/// A file that is read once.
struct Passed<'a> {
    path: &'a Path,
    file: File,
    len: u64,
    /// whether it was in memory before, and is to stay there
    stays: bool,
}

impl<'a> Passed<'a> {
    fn open(path: &'a PathBuf) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let len = file.metadata().map_err(Error::io(path))?.len();
        let stays = in_memory(path, len).unwrap_or(true);
        Ok(Self { path, file, len, stays })
    }

    /// Takes bytes out of memory, if nobody had them there before.
    fn forget(&self, bytes: &Range<u64>) {
        if !self.stays {
            forget(&self.file, bytes);
        }
    }
}

#[cfg(target_os = "linux")]
fn forget(file: &File, bytes: &Range<u64>) {
    let len = std::num::NonZeroU64::new(bytes.end - bytes.start);
    // Advice that is not taken costs memory that the system could use for others, nothing else.
    let _ = len.map(|len| rustix::fs::fadvise(file, bytes.start, Some(len), rustix::fs::Advice::DontNeed));
}

#[cfg(not(target_os = "linux"))]
fn forget(_: &File, _: &Range<u64>) {}

/// Whether most of a file is in memory, as far as a few places tell; `None` where the system does not say.
#[cfg(target_os = "linux")]
fn in_memory(path: &Path, len: u64) -> Option<bool> {
    use rustix::fs::Advice;
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    const PROBES: u64 = 64;
    let file = File::open(path).ok()?;
    // So that looking at a page does not fetch those behind it.
    rustix::fs::fadvise(&file, 0, None, Advice::Random).ok()?;
    let mut there = 0;
    for probe in 0..PROBES {
        let byte = &mut [0];
        let at = len / PROBES * probe;
        match preadv2(&file, &mut [std::io::IoSliceMut::new(byte)], at, ReadWriteFlags::NOWAIT) {
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

    /// A checkpoint of two shards, one with a tensor of several parts.
    fn checkpoint(dir: &Path) -> Checkpoint {
        let bytes: Vec<u8> = (0..2 * PART + 4).map(|i| (i as u32).wrapping_mul(2_654_435_761) as u8).collect();
        let mut map = serde_json::Map::new();
        for (name, len) in [("a", 8), ("b", bytes.len())] {
            let tensor = OutTensor::new(TensorDtype::U8, vec![len], &bytes[..len]);
            let shard = format!("{name}.safetensors");
            std::fs::write(dir.join(&shard), safetensors::serialize([(name, &tensor)], None).unwrap()).unwrap();
            map.insert(name.to_owned(), shard.into());
        }
        let index = serde_json::json!({ "weight_map": map });
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        std::fs::write(dir.join("config.json"), "{}").unwrap();
        Checkpoint::open(dir).unwrap()
    }

    #[test]
    fn every_file_is_hashed_whatever_the_order_of_the_work() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let (progress, hashing) = checkpoint.pass().unwrap();
        checkpoint.tensors().values().rev().for_each(|tensor| progress.read(tensor));
        progress.finish();
        let hashes = hashing.run().unwrap().unwrap();
        for path in checkpoint.files() {
            let whole = Sha256::digest(std::fs::read(path).unwrap());
            let hex: String = whole.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hashes[path.file_name().unwrap().to_str().unwrap()], hex);
        }
        assert_eq!(hashes.len(), 2);
    }

    #[test]
    fn hashing_waits_for_the_work_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let begin = || checkpoint.pass().unwrap();

        let (progress, mut hashing) = begin();
        assert!(hashing.wait_for_work(AHEAD), "near enough");
        progress.read(checkpoint.info("a").unwrap());
        assert!(hashing.wait_for_work(AHEAD + 8), "near enough to what was read");
        drop(progress);
        assert!(!hashing.wait_for_work(AHEAD + 9), "nobody reads any more");

        let (progress, mut hashing) = begin();
        let waits = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| hashing.wait_for_work(u64::MAX));
            progress.finish();
            waiting.join().unwrap()
        });
        assert!(waits, "all is read");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_was_not_in_memory_leaves_it() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = checkpoint(dir.path());
        let path = &checkpoint.files()[1];
        let file = File::open(path).unwrap();
        for was_there in [true, false] {
            file.sync_all().unwrap();
            if !was_there {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
            if in_memory(path, file.metadata().unwrap().len()) != Some(was_there) {
                eprintln!("SKIPPED: this file system keeps its files in memory, or does not tell");
                return;
            }
            let (progress, hashing) = checkpoint.pass().unwrap();
            checkpoint.tensors().values().for_each(|tensor| progress.read(tensor));
            progress.finish();
            hashing.run().unwrap().unwrap();
            assert_eq!(in_memory(path, file.metadata().unwrap().len()), Some(was_there));
        }
    }
}
