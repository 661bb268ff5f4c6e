//! What executes launches: a GPU ([`launch::Device`](crate::launch::Device)), or in the tests the same kernels compiled
//! for the host (`tests/support/emulator.rs`). Whoever launches knows only what is here, so the tests see every launch that
//! a GPU would get.
//!
//! All work of a machine is done in the order in which it was asked for.

use std::any::Any;

use crate::error::Result;
use crate::kernels::{Kernel, Limits};
use crate::tiles::HalfType;

/// Something with memory that runs kernels.
pub trait Machine: Send + Sync {
    /// What decides on shapes of kernels.
    fn limits(&self) -> Limits;

    /// Takes memory, whose content is any.
    fn allocate(&self, bytes: usize) -> Result<Buffer>;

    /// Copies to the beginning of a buffer.
    fn write(&self, to: &Buffer, bytes: &[u8]) -> Result<()>;

    /// Copies from the beginning of a buffer, once all work is done.
    fn read(&self, from: &Buffer, bytes: usize) -> Result<Vec<u8>>;

    /// Runs a kernel.
    fn launch(&self, call: &Call) -> Result<()>;

    /// Multiplies by a dense weight.
    fn multiply(&self, product: &DenseProduct) -> Result<()>;

    /// Adds the product of two matrices over their tokens to a third.
    fn add_outer(&self, product: &OuterProduct) -> Result<()>;

    /// Waits until all work is done; an error of any of it comes to light here.
    fn synchronize(&self) -> Result<()>;

    /// Takes down the launches and products of `work` instead of doing them. It may take no memory, and must have been done
    /// before, so that everything is compiled.
    fn record(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Recording>>;
}

/// Recorded work. What it reads and writes must live as long.
pub trait Recording: Send + Sync {
    /// Does it once more.
    fn replay(&self) -> Result<()>;
}

/// Memory of a machine, given back when dropped.
pub struct Buffer {
    address: u64,
    bytes: usize,
    owner: Box<dyn Any + Send + Sync>,
}

impl Buffer {
    /// For machines: `owner` gives the memory back when it is dropped.
    pub fn new(address: u64, bytes: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        Self { address, bytes, owner }
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How much it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What [`Self::new`] was given.
    pub fn owner(&self) -> &(dyn Any + Send + Sync) {
        &*self.owner
    }
}

/// A kernel with its grid and its one argument, a struct.
#[derive(Debug, Clone)]
pub struct Call {
    pub(crate) kernel: Kernel,
    pub(crate) blocks: [u32; 2],
    pub(crate) shared_bytes: u32,
    pub(crate) operands: Operands,
}

impl Call {
    /// Which.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// Blocks of threads, `gridDim.x` and `gridDim.y`.
    pub fn blocks(&self) -> [u32; 2] {
        self.blocks
    }

    /// Dynamic shared memory of a block.
    pub fn shared_bytes(&self) -> u32 {
        self.shared_bytes
    }

    /// The struct, byte by byte.
    pub fn operands(&self) -> &[u8] {
        &self.operands.0
    }
}

/// The struct that a kernel takes: its pointers, then its numbers of 32 bits, so that C leaves no gaps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operands(Vec<u8>);

impl Operands {
    pub(crate) fn address(mut self, address: u64) -> Self {
        debug_assert!(self.0.len().is_multiple_of(8), "pointers come before numbers");
        self.0.extend(address.to_le_bytes());
        self
    }

    pub(crate) fn number(mut self, number: usize) -> Self {
        self.0.extend((number as u32).to_le_bytes());
        self
    }

    /// With another struct behind it; their length is a multiple of 8.
    pub(crate) fn then(mut self, other: &Self) -> Self {
        self.0.extend(&other.0);
        self
    }

    pub(crate) fn float(mut self, number: f32) -> Self {
        self.0.extend(number.to_le_bytes());
        self
    }
}

/// `y[R, T] = W[R, K] x[K, T]`, or `y +=` it; sums in f32.
pub struct DenseProduct<'a> {
    /// type of `W` and `x`, and of `y` unless it is wide
    pub half: HalfType,
    /// `[R, K]`
    pub weight: &'a Buffer,
    /// `[K, stride]`
    pub x: &'a Buffer,
    /// `[R, stride]`
    pub y: &'a Buffer,
    /// R
    pub rows: usize,
    /// K
    pub cols: usize,
    /// T
    pub tokens: usize,
    /// values from one row of `x` and `y` to the next
    pub stride: usize,
    /// whether `y` is f32
    pub wide: bool,
    /// whether the product is added to what `y` holds
    pub add: bool,
}

/// `out[R, K] += left[R, T] x[K, T]ᵀ`, all f32.
pub struct OuterProduct<'a> {
    /// `[R, T]`
    pub left: &'a Buffer,
    /// `[K, T]`
    pub x: &'a Buffer,
    /// `[R, K]`
    pub out: &'a Buffer,
    /// R
    pub rows: usize,
    /// K
    pub cols: usize,
    /// T
    pub tokens: usize,
}
