//! What can be wrong with files: one line each, naming the file or the tensor and the way out.

use std::path::{Path, PathBuf};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// file or folder
        path: PathBuf,
        /// its answer
        source: std::io::Error,
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
    #[error("packed layer {layer}: {source}")]
    Packed {
        /// module name of the layer
        layer: String,
        /// what is wrong
        source: lacuna_core::Error,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` after a call of the file system.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// A file's content cannot be used.
    pub fn file(path: &Path, problem: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into() }
    }

    /// A tensor cannot be used.
    pub fn tensor(name: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.to_owned(), problem: problem.into() }
    }
}
