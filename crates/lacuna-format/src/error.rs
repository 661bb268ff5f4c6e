//! What can be wrong with files: one line each, naming the file or the tensor and the way out.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {cause}{}", path.display(), advice(cause))]
    Io {
        /// file or folder
        path: PathBuf,
        /// its answer; part of the message, hence not a `source` that a report would print once more
        cause: std::io::Error,
    },
    /// A file's content cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// the file
        path: PathBuf,
        /// what is wrong and what to do
        problem: String,
    },
    /// A tensor cannot be used.
    #[error("tensor {name}: {problem}")]
    Tensor {
        /// the tensor
        name: String,
        /// what is wrong and what to do
        problem: String,
    },
    /// A packed layer breaks its pattern or its lengths.
    #[error("packed layer {layer}: {cause}; prune again")]
    Packed {
        /// module name of the layer
        layer: String,
        /// what is wrong
        cause: lacuna_core::Error,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` after a call of the file system.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::Io { path, cause }
    }

    /// A file's content cannot be used.
    pub fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into() }
    }

    /// A file that lost its end since its header was checked.
    pub(crate) fn shorter(path: &Path) -> Self {
        Self::file(path, "the file became shorter while it was being read; start again")
    }

    /// A tensor cannot be used.
    pub fn tensor(name: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), problem: problem.into() }
    }
}

/// The way out, where the system's answer does not show it.
fn advice(cause: &std::io::Error) -> &'static str {
    match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::FileTooLarge | ErrorKind::QuotaExceeded => {
            "; free some space and give the same command again"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; check the permissions or choose another place"
        }
        ErrorKind::NotFound => "; check the path",
        _ => "",
    }
}
