//! Writing a checkpoint directory so that it is there whole or not at all, and so that a killed run goes on.
//!
//! Files are collected in `TARGET.lacuna-partial/`. A shard is written under a temporary name, synced and renamed; then
//! its entry is added to the journal `TARGET.lacuna-partial.json`. When all is written the directory is renamed to
//! `TARGET`. The journal lies beside the directory, so that at no moment a directory under the final name has anything
//! in it that does not belong there.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{SafeTensorError, View};
use serde_json::{Value, json};

use crate::header::read_json;
use crate::sink::Sink;
use crate::tensor::OutTensor;
use crate::{Error, Result};

/// How long a lock is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);

/// A directory in the making.
pub struct Staging {
    target: PathBuf,
    dir: PathBuf,
    journal_path: PathBuf,
    journal: Value,
    replace: bool,
    _lock: File,
}

/// Where the unfinished output for `target` lies.
fn partial_dir(target: &Path) -> PathBuf {
    suffixed(target, ".lacuna-partial")
}

impl Staging {
    /// Starts, or goes on with, the output `target`.
    ///
    /// `fingerprint` says what is being made. Unfinished output with the same fingerprint is taken up again; with
    /// another one it is refused unless `force`, which discards it. `force` also allows an existing target to be
    /// replaced, at the end.
    pub fn open(target: &Path, force: bool, fingerprint: &Value) -> Result<Self> {
        if target.exists() && !force {
            return Err(Error::file(target, "already exists; choose another output or pass --force to replace it"));
        }
        let (dir, journal_path) = (partial_dir(target), suffixed(target, ".lacuna-partial.json"));
        // The lock comes first: what another run is writing must not even be looked at.
        let lock_path = suffixed(target, ".lacuna-partial.lock");
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(Error::io(parent))?;
        }
        let lock = lock_file(target, &lock_path)?;
        let mut journal = json!({ "fingerprint": fingerprint, "shards": {} });
        if dir.exists() {
            // A journal that cannot be read belongs to a run that finished nothing.
            let old = read_json(&journal_path).unwrap_or(Value::Null);
            if old["fingerprint"] == *fingerprint {
                journal = old;
            } else if old.is_null() || force {
                fs::remove_dir_all(&dir).map_err(Error::io(&dir))?;
            } else {
                let problem = "unfinished output of a run with other settings; finish that one or pass --force";
                return Err(Error::file(&dir, problem));
            }
        }
        fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let staging = Self { target: target.to_owned(), dir, journal_path, journal, replace: force, _lock: lock };
        staging.write_journal()?;
        Ok(staging)
    }

    /// The directory in the making.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was noted for a shard that is already whole.
    pub fn finished(&self, shard: &str) -> Option<&Value> {
        self.journal["shards"].get(shard)
    }

    /// Writes one shard and notes `report` for it.
    pub fn write_shard(&mut self, shard: &str, tensors: &[(String, OutTensor)], report: Value) -> Result<()> {
        let path = self.dir.join(shard);
        let temporary = suffixed(&path, ".tmp");
        write_tensors(&temporary, tensors).map_err(|e| match e {
            SafeTensorError::IoError(cause) => Error::Io { path: path.clone(), cause },
            other => Error::file(&path, other.to_string()),
        })?;
        rename(&temporary, &path)?;
        self.journal["shards"][shard] = report;
        self.write_journal()
    }

    /// Writes a small file.
    pub fn write_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        write_whole(&self.dir.join(name), bytes)
    }

    /// Copies the file `name` of the directory `source`, if it is there; `name` may lie in a folder of its own.
    pub fn copy_file(&self, source: &Path, name: &str) -> Result<()> {
        let (from, to) = (source.join(name), self.dir.join(name));
        if !from.is_file() {
            return Ok(());
        }
        let folder = to.parent().unwrap_or(&self.dir);
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        fs::copy(&from, &to).map_err(Error::io(&to))?;
        Ok(())
    }

    /// Gives the directory its final name.
    pub fn finish(self) -> Result<()> {
        let old = suffixed(&self.target, ".lacuna-replaced");
        if self.replace && self.target.exists() {
            // A run that was killed between the two renames left its old one.
            remove(&old)?;
            rename(&self.target, &old)?;
        }
        rename(&self.dir, &self.target)?;
        remove(&old)?;
        for leftover in [&self.journal_path, &suffixed(&self.target, ".lacuna-partial.lock")] {
            fs::remove_file(leftover).map_err(Error::io(leftover))?;
        }
        Ok(())
    }

    fn write_journal(&self) -> Result<()> {
        write_whole(&self.journal_path, self.journal.to_string().as_bytes())
    }
}

/// Takes the lock of an output. A run that was killed a moment ago may still be on its way out, so this waits a little.
fn lock_file(target: &Path, path: &Path) -> Result<File> {
    let lock = File::create(path).map_err(Error::io(path))?;
    let started = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::file(target, "another lacuna is writing this output; wait for it"));
            }
            Err(TryLockError::Error(cause)) => return Err(Error::Io { path: path.to_owned(), cause }),
        }
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a file or a directory, if it is there.
fn remove(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).map_err(Error::io(path)),
        Ok(_) => fs::remove_file(path).map_err(Error::io(path)),
        Err(_) => Ok(()),
    }
}

/// Writes a safetensors file as the library does, wide types first, so that every tensor starts at a multiple of its size;
/// but past the page cache, for which the library has no door.
fn write_tensors(path: &Path, tensors: &[(String, OutTensor)]) -> std::result::Result<(), SafeTensorError> {
    let mut tensors: Vec<(&String, &OutTensor)> = tensors.iter().map(|(name, tensor)| (name, tensor)).collect();
    tensors.sort_by(|(a, one), (b, other)| other.dtype().cmp(&one.dtype()).then(a.cmp(b)));
    let mut end = 0;
    let infos = tensors.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.bytes();
        let info = TensorInfo { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), data_offsets: (start, end) };
        ((*name).clone(), info)
    });
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut header = serde_json::to_vec(&Metadata::new(Some(format), infos.collect())?)?;
    header.resize(header.len().next_multiple_of(size_of::<u64>()), b' ');
    let mut file = Sink::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (_, tensor) in tensors {
        file.write_all(tensor.data())?;
    }
    Ok(file.finish()?)
}

/// Writes a small file that appears whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = suffixed(path, ".tmp");
    fs::write(&temporary, bytes).map_err(Error::io(path))?;
    publish(&temporary, path)
}

/// Syncs a file and gives it its name.
fn publish(temporary: &Path, path: &Path) -> Result<()> {
    File::open(temporary).and_then(|file| file.sync_all()).map_err(Error::io(path))?;
    rename(temporary, path)
}

/// Renames and, where directories can be synced, makes the new name last through a loss of power.
fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io(to))?;
    if cfg!(unix)
        && let Some(parent) = to.parent()
    {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(Error::io(parent))?;
    }
    Ok(())
}
