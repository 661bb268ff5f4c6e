//! A checkpoint directory, opened for reading: every header checked, no weight read yet.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use lacuna_core::{Dtype, Matrix, Packed, Values};
use rayon::prelude::*;
use safetensors::Dtype as TensorDtype;
use serde_json::Value;

use crate::header::{read_file_header, read_json};
use crate::mmap::Mapped;
use crate::packed::{PackedTensors, read_packed};
use crate::pass::Piece;
use crate::tensor::decode_floats;
use crate::{Error, Result, Sparsity};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Values that one thread widens at a time.
const PART: usize = 1 << 16;

/// Type, shape and place of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// element type
    pub dtype: TensorDtype,
    /// dimensions, outermost first
    pub shape: Vec<usize>,
    /// bytes
    pub len: usize,
    file: usize,
    offset: u64,
}

impl TensorInfo {
    /// The file, counted as in [`Checkpoint::files`], and the bytes of it.
    pub(crate) fn place(&self) -> (usize, Range<u64>) {
        (self.file, self.offset..self.offset + self.len as u64)
    }
}

/// Values of a band that are widened and checked at a time.
const LOOKED_AT: usize = 4096;

/// One tensor as it lies in its file.
pub struct RawTensor<'a> {
    /// type and shape
    pub info: &'a TensorInfo,
    pub(crate) piece: Arc<Piece>,
}

impl RawTensor<'_> {
    /// The bytes, little-endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        self.piece.bytes()
    }
}

/// A floating-point matrix as it lies in its file, whose rows are widened as they are asked for.
pub struct RawMatrix<'a> {
    name: String,
    shape: [usize; 2],
    dtype: Dtype,
    raw: RawTensor<'a>,
}

impl RawMatrix<'_> {
    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Some rows, widened to f32. Refuses NaN and infinities.
    pub fn band(&self, rows: Range<usize>) -> Result<Matrix> {
        let cols = self.shape[1];
        let stride = cols * self.dtype.size();
        let bytes = &self.raw.bytes()[rows.start * stride..rows.end * stride];
        let mut data = Vec::with_capacity(rows.len() * cols);
        // Cleared, widened and looked at while it is in the cache.
        for part in bytes.chunks(LOOKED_AT * self.dtype.size()) {
            let done = data.len();
            data.resize(done + part.len() / self.dtype.size(), 0.0);
            widen(self.dtype, part, &mut data[done..]);
            if let Some((i, value)) = first_not_finite(&data[done..]) {
                return Err(not_finite(&self.name, rows.start * cols + done + i, value));
            }
        }
        Matrix::new(rows.len(), cols, data).map_err(|e| Error::tensor(&self.name, e.to_string()))
    }
}

/// A Hugging Face checkpoint directory, dense or pruned by us.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    sparsity: Option<Sparsity>,
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Reads config.json and the headers of all weight files.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::file(dir, "no such checkpoint directory"));
        }
        let config_path = dir.join("config.json");
        let config = read_json(&config_path)?;
        let sparsity = Sparsity::from_config(&config).map_err(|problem| Error::file(&config_path, problem))?;
        let (files, expected) = weight_files(dir)?;
        Self::of_files(dir, config, sparsity, files, &expected)
    }

    /// One shard of a checkpoint in the making, read as if it were the whole.
    pub fn of_shard(shard: &Path, sparsity: Option<&Sparsity>) -> Result<Self> {
        let dir = shard.parent().unwrap_or(Path::new("."));
        Self::of_files(dir, Value::Null, sparsity.cloned(), vec![shard.to_owned()], &BTreeMap::new())
    }

    fn of_files(
        dir: &Path,
        config: Value,
        sparsity: Option<Sparsity>,
        files: Vec<PathBuf>,
        expected: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (file, path) in files.iter().enumerate() {
            let header = read_file_header(path)?;
            for (name, info) in header.metadata.tensors() {
                let (start, end) = info.data_offsets;
                let offset = header.data_start + start as u64;
                let info = TensorInfo { dtype: info.dtype, shape: info.shape.clone(), len: end - start, file, offset };
                if tensors.insert(name.clone(), info).is_some() {
                    return Err(Error::file(path, format!("tensor {name} is also in another shard; keep one of them")));
                }
            }
        }
        for (name, file) in expected {
            if tensors.get(name).is_none_or(|info| files[info.file].file_name() != Some(file.as_ref())) {
                let problem = format!("tensor {name} is missing, though {INDEX} names it; download it again");
                return Err(Error::file(&dir.join(file), problem));
            }
        }
        Ok(Self { dir: dir.to_owned(), config, sparsity, files, tensors })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// config.json as it is.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Path of config.json, for error messages.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// What was pruned, if this is a pruned checkpoint.
    pub fn sparsity(&self) -> Option<&Sparsity> {
        self.sparsity.as_ref()
    }

    /// The weight files.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The weight file that holds a tensor.
    pub fn file_of(&self, info: &TensorInfo) -> &Path {
        &self.files[info.file]
    }

    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Bytes of all weight files.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|info| info.len as u64).sum()
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Type, shape and place of a tensor.
    pub fn info(&self, name: &str) -> Result<&TensorInfo> {
        let ways = "download the checkpoint again, or correct config.json if it asks for too much";
        let missing = || Error::tensor(name, format!("missing from {}; {ways}", self.dir.display()));
        self.tensors.get(name).ok_or_else(missing)
    }

    /// Maps a tensor.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        self.mapped(name, |map| map)
    }

    /// Maps a tensor, with advice on how it will be read.
    fn mapped(&self, name: &str, advise: impl FnOnce(Mapped) -> Mapped) -> Result<RawTensor<'_>> {
        let info = self.info(name)?;
        let map = Mapped::range(&self.files[info.file], info.offset, info.len)?;
        Ok(RawTensor { info, piece: Arc::new(Piece::Mapped(advise(map))) })
    }

    /// The storage type of a floating-point tensor.
    pub fn dtype(&self, name: &str) -> Result<Dtype> {
        match self.info(name)?.dtype {
            TensorDtype::F32 => Ok(Dtype::F32),
            TensorDtype::F16 => Ok(Dtype::F16),
            TensorDtype::BF16 => Ok(Dtype::Bf16),
            other => Err(Error::tensor(name, format!("type {other:?} is not supported; convert to f32, f16 or bf16"))),
        }
    }

    /// Maps a tensor; if it is a floating-point one, refuses NaN and infinities.
    pub fn finite(&self, name: &str) -> Result<RawTensor<'_>> {
        let raw = self.raw(name)?;
        let Ok(dtype) = self.dtype(name) else { return Ok(raw) };
        let parts = raw.bytes().par_chunks(PART * dtype.size()).enumerate();
        let bad = parts.map_init(Vec::new, |values, (part, bytes)| {
            values.resize(bytes.len() / dtype.size(), 0.0);
            widen(dtype, bytes, values);
            first_not_finite(values).map(|(i, value)| (part * PART + i, value))
        });
        match bad.flatten().min_by_key(|&(i, _)| i) {
            Some((i, value)) => Err(not_finite(name, i, value)),
            None => Ok(raw),
        }
    }

    /// A floating-point tensor of just this shape, in its own type. Refuses NaN and infinities.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Values> {
        self.check_shape(name, shape)?;
        self.dtype(name)?;
        let raw = self.finite(name)?;
        Ok(decode_floats(raw.info.dtype, raw.bytes()))
    }

    /// A floating-point tensor of just this shape, widened to f32. Refuses NaN and infinities.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.check_shape(name, shape)?;
        let dtype = self.dtype(name)?;
        let raw = self.raw(name)?;
        let mut values = vec![0.0; raw.bytes().len() / dtype.size()];
        let parts = values.par_chunks_mut(PART).zip(raw.bytes().par_chunks(PART * dtype.size())).enumerate();
        let bad = parts.filter_map(|(part, (values, bytes))| {
            widen(dtype, bytes, values);
            first_not_finite(values).map(|(i, value)| (part * PART + i, value))
        });
        if let Some((i, value)) = bad.min_by_key(|&(i, _)| i) {
            return Err(not_finite(name, i, value));
        }
        Ok(values)
    }

    /// Maps a floating-point matrix of just this shape.
    pub fn raw_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<RawMatrix<'_>> {
        self.matrix_of(name, rows, cols, self.mapped(name, Mapped::soon)?)
    }

    /// The tensor `name` as a floating-point matrix of just this shape.
    pub fn matrix_of<'a>(&self, name: &str, rows: usize, cols: usize, raw: RawTensor<'a>) -> Result<RawMatrix<'a>> {
        self.check_shape(name, &[rows, cols])?;
        Ok(RawMatrix { name: name.to_owned(), shape: [rows, cols], dtype: self.dtype(name)?, raw })
    }

    /// A matrix of just this shape, widened to f32.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let data = self.floats(name, &[rows, cols])?;
        Matrix::new(rows, cols, data).map_err(|e| Error::tensor(name, e.to_string()))
    }

    /// Some rows of a matrix with `cols` columns, widened to f32, without reading the others.
    pub fn rows(&self, name: &str, ids: &[u32], cols: usize) -> Result<Matrix> {
        let dtype = self.dtype(name)?;
        let raw = self.raw(name)?;
        let stride = cols * dtype.size();
        let mut data = vec![0.0; ids.len() * cols];
        for (&id, values) in ids.iter().zip(data.chunks_exact_mut(cols)) {
            let row = raw.bytes().get(id as usize * stride..(id as usize + 1) * stride);
            let row =
                row.ok_or_else(|| Error::tensor(name, format!("has no row {id}; the tokenizer does not match")))?;
            widen(dtype, row, values);
            if let Some(i) = values.iter().position(|x| !x.is_finite()) {
                return Err(not_finite(name, id as usize * cols + i, values[i]));
            }
        }
        Matrix::new(ids.len(), cols, data).map_err(|e| Error::tensor(name, e.to_string()))
    }

    /// The packed layer of a pruned checkpoint, checked; `None` if the layer is dense.
    pub fn packed(&self, layer: &str) -> Result<Option<Packed>> {
        let Some((pattern, shape)) = self.sparsity.as_ref().and_then(|s| s.layer(layer)) else { return Ok(None) };
        let part = |part: &str| self.raw(&format!("{layer}.{part}"));
        let (values, columns, positions) = (part("values")?, part("columns")?, part("positions")?);
        let row_order = if self.has(&format!("{layer}.row_order")) { Some(part("row_order")?) } else { None };
        let scale_group = self.sparsity.as_ref().and_then(|s| s.scale_group);
        let scales = scale_group.map(|group| Ok((group, part("scales")?))).transpose()?;
        let raw = PackedTensors {
            values: (values.info.dtype, &values.info.shape, values.bytes()),
            columns: (columns.info.dtype, &columns.info.shape, columns.bytes()),
            positions: (positions.info.dtype, &positions.info.shape, positions.bytes()),
            row_order: row_order.as_ref().map(|t| (t.info.dtype, &t.info.shape[..], t.bytes())),
            scales: scales.as_ref().map(|(group, t)| (*group, (t.info.dtype, &t.info.shape[..], t.bytes()))),
        };
        read_packed(layer, pattern, shape, &raw).map(Some)
    }

    /// Refuses a tensor of another shape than config.json asks for.
    pub fn check_shape(&self, name: &str, want: &[usize]) -> Result<()> {
        let got = &self.info(name)?.shape;
        if got == want {
            return Ok(());
        }
        let problem = format!("shape {got:?} contradicts config.json, which asks for {want:?}; one of them is wrong");
        Err(Error::tensor(name, problem))
    }
}

/// Index and value of the first infinity or NaN.
fn first_not_finite(values: &[f32]) -> Option<(usize, f32)> {
    // x * 0 is NaN just for infinities and NaN: one sum instead of a branch each.
    let fine = lacuna_core::sum_of(values, |x| x * 0.0) == 0.0;
    if fine { None } else { values.iter().position(|x| !x.is_finite()).map(|i| (i, values[i])) }
}

/// Little-endian bytes to f32, exactly.
fn widen(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        Dtype::F32 => {
            for (v, b) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *v = f32::from_le_bytes(*b);
            }
        }
        Dtype::F16 => {
            for (v, b) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *v = f16::from_le_bytes(*b).to_f32();
            }
        }
        // By hand, because half's own conversion also quiets NaN, which hides the shift from the vectoriser.
        Dtype::Bf16 => {
            for (v, b) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *v = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
    }
}

fn not_finite(name: &str, element: usize, value: f32) -> Error {
    Error::tensor(name, format!("element {element} is {value}; the checkpoint is damaged or overflowed"))
}

/// The weight files of a directory, and where the index says each tensor lies.
fn weight_files(dir: &Path) -> Result<(Vec<PathBuf>, BTreeMap<String, String>)> {
    let index_path = dir.join(INDEX);
    if !index_path.exists() {
        let single = dir.join(SINGLE);
        if !single.exists() {
            let problem = format!("neither {SINGLE} nor {INDEX} here; convert the checkpoint to safetensors");
            return Err(Error::file(dir, problem));
        }
        return Ok((vec![single], BTreeMap::new()));
    }
    let index = read_json(&index_path)?;
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| Error::file(&index_path, "has no weight_map; download it again"))?;
    let mut expected = BTreeMap::new();
    let mut names = std::collections::BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|f| Path::new(f).file_name() == Some(f.as_ref()));
        let problem = || format!("the file of tensor {tensor} is no plain name; download the index again");
        let file = file.ok_or_else(|| Error::file(&index_path, problem()))?;
        expected.insert(tensor.clone(), file.to_owned());
        names.insert(file.to_owned());
    }
    let files: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    match files.iter().find(|path| !path.exists()) {
        Some(path) => Err(Error::file(path, format!("shard is missing, though {INDEX} names it; download it again"))),
        None => Ok((files, expected)),
    }
}
