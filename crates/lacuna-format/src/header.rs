//! What is read before any weight: JSON files, and the header of a safetensors file, checked against the size of the
//! file before anything is mapped.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::Metadata;
use serde_json::Value;

use crate::{Error, Result};

/// Bytes of the header's length field.
const LENGTH_FIELD: u64 = 8;
/// The format's own limit on a header.
const MAX_HEADER: u64 = 100_000_000;

/// A checked header.
pub struct Header {
    /// Names, types, shapes and offsets relative to `data_start`.
    pub metadata: Metadata,
    /// Where the tensors' bytes begin in the file.
    pub data_start: u64,
}

/// Reads the header from `source`, which is `size` bytes long in all. The error is a sentence without the file's name.
pub fn read_header(mut source: impl Read, size: u64) -> std::result::Result<Header, String> {
    let mut length = [0; LENGTH_FIELD as usize];
    let short = "not a safetensors file: shorter than its length field; download it again";
    source.read_exact(&mut length).map_err(|_| short.to_owned())?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        let claim = format!("its header claims {length} bytes (limit {MAX_HEADER})");
        return Err(format!("not a safetensors file: {claim}; download it again"));
    }
    let data_start = LENGTH_FIELD + length;
    if data_start > size {
        return Err(format!("truncated: the header claims {length} bytes, the file has {size}; download it again"));
    }
    let mut json = vec![0; length as usize];
    source.read_exact(&mut json).map_err(|e| format!("header cannot be read: {e}; download the file again"))?;
    let json = std::str::from_utf8(&json).map_err(|_| "header is not UTF-8; download the file again".to_owned())?;
    let metadata: Metadata =
        serde_json::from_str(json).map_err(|e| format!("header is invalid: {e}; download the file again"))?;
    let end = data_start.checked_add(metadata.data_len() as u64);
    match end {
        Some(end) if end == size => Ok(Header { metadata, data_start }),
        Some(end) if end > size => {
            Err(format!("truncated: the header describes {end} bytes, the file has {size}; download it again"))
        }
        _ => Err(format!("the header does not describe the file's {size} bytes; download it again")),
    }
}

/// Reads the header of a file.
pub(crate) fn read_file_header(path: &Path) -> Result<Header> {
    let file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    read_header(file, size).map_err(|problem| Error::file(path, problem))
}

/// Reads a JSON file.
pub fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("invalid JSON: {e}")))
}
