//! A sparse weight on a GPU, and its products.

use cudarc::driver::{CudaSlice, DeviceRepr, LaunchConfig, PushKernelArg};
use lacuna_core::Packed;

use super::device::{Device, failed};
use super::memory::{Activations, address, address_mut};
use crate::error::{Error, Result};
use crate::kernels::{Kernel, choose, source};
use crate::tiles::{HalfType, Tiles};

/// `Product` of kernels/product.cuh, field by field.
#[repr(C)]
#[derive(Clone, Copy)]
struct Product {
    values: u64,
    metadata: u64,
    scales: u64,
    places: u64,
    slab_columns: u64,
    columns: u64,
    output_rows: u64,
    x: u64,
    bias: u64,
    residual: u64,
    y: u64,
    rows: u32,
    tokens: u32,
    stride: u32,
    v: u32,
    slabs: u32,
    slabs_per_scale: u32,
    row_tile: u32,
    slab_places: u32,
}

// SAFETY: plain numbers in C's layout, the struct that the kernels take by value.
unsafe impl DeviceRepr for Product {}

/// A weight `[R, K]` with its bias.
pub struct Sparse {
    /// its shapes; the buffers of it are on the GPU alone
    tiles: Tiles,
    values: CudaSlice<u8>,
    metadata: CudaSlice<u32>,
    scales: Option<CudaSlice<u16>>,
    places: CudaSlice<u16>,
    slab_columns: CudaSlice<u32>,
    columns: CudaSlice<u32>,
    output_rows: CudaSlice<u32>,
    bias: Option<CudaSlice<f32>>,
}

impl Sparse {
    /// Packs a weight for a GPU and copies it there. `bias` is `[R]`.
    pub fn upload(device: &Device, packed: &Packed, bias: Option<&[f32]>, half: HalfType) -> Result<Self> {
        let mut tiles = Tiles::new(packed, half, device.gpu().limits)?;
        if let Some(bias) = bias.filter(|bias| bias.len() != tiles.rows()) {
            return Err(Error::Shape { what: "bias", want: tiles.rows(), got: bias.len() });
        }
        let stream = &device.stream;
        let buffers = tiles.take_buffers();
        let up = failed("copying a weight to the GPU");
        let scales: Vec<u16> = buffers.scales.iter().map(|scale| scale.to_bits()).collect();
        Ok(Self {
            values: stream.clone_htod(&buffers.values).map_err(&up)?,
            metadata: stream.clone_htod(&buffers.metadata).map_err(&up)?,
            scales: (!scales.is_empty()).then(|| stream.clone_htod(&scales)).transpose().map_err(&up)?,
            places: stream.clone_htod(&buffers.places).map_err(&up)?,
            slab_columns: stream.clone_htod(&buffers.slab_columns).map_err(&up)?,
            columns: stream.clone_htod(&buffers.columns).map_err(&up)?,
            output_rows: stream.clone_htod(&buffers.output_rows).map_err(&up)?,
            bias: bias.map(|bias| stream.clone_htod(bias)).transpose().map_err(&up)?,
            tiles,
        })
    }

    /// The same in other memory, for measurements that must not find it in a cache.
    pub fn duplicate(&self, device: &Device) -> Result<Self> {
        let copy = failed("copying a weight");
        let stream = &device.stream;
        Ok(Self {
            tiles: self.tiles.clone(),
            values: stream.clone_dtod(&self.values).map_err(&copy)?,
            metadata: stream.clone_dtod(&self.metadata).map_err(&copy)?,
            scales: self.scales.as_ref().map(|scales| stream.clone_dtod(scales)).transpose().map_err(&copy)?,
            places: stream.clone_dtod(&self.places).map_err(&copy)?,
            slab_columns: stream.clone_dtod(&self.slab_columns).map_err(&copy)?,
            columns: stream.clone_dtod(&self.columns).map_err(&copy)?,
            output_rows: stream.clone_dtod(&self.output_rows).map_err(&copy)?,
            bias: self.bias.as_ref().map(|bias| stream.clone_dtod(bias)).transpose().map_err(&copy)?,
        })
    }

    /// Bytes that it takes on the GPU.
    pub fn bytes(&self) -> usize {
        let words = self.metadata.len() + self.slab_columns.len() + self.columns.len() + self.output_rows.len();
        let halves = self.places.len() + self.scales.as_ref().map_or(0, CudaSlice::len);
        self.values.len() + 4 * words + 2 * halves + 4 * self.bias.as_ref().map_or(0, CudaSlice::len)
    }

    /// The kernel that a product with so many tokens takes.
    pub fn kernel(&self, device: &Device, tokens: usize) -> Kernel {
        choose(&self.tiles, tokens, device.gpu().limits).kernel
    }

    /// `y = W x + b`.
    pub fn multiply(&self, device: &Device, x: &Activations, y: &mut Activations) -> Result<()> {
        self.launch(device, x, y, false)
    }

    /// `y += W x + b`, rounded once.
    pub fn multiply_add(&self, device: &Device, x: &Activations, y: &mut Activations) -> Result<()> {
        self.launch(device, x, y, true)
    }

    fn launch(&self, device: &Device, x: &Activations, y: &mut Activations, add: bool) -> Result<()> {
        let tiles = &self.tiles;
        x.check("activations", tiles.half(), tiles.cols(), x.tokens())?;
        y.check("result", tiles.half(), tiles.rows(), x.tokens())?;
        if x.tokens() == 0 {
            return Ok(());
        }
        let launch = choose(tiles, x.tokens(), device.gpu().limits);
        let name = launch.kernel.name();
        let function = device.function(&name, || source(&[launch.kernel]))?;
        let stride = x.stride() as u32;
        let y = address_mut(device, &mut y.data);
        let product = Product {
            values: address(device, &self.values),
            metadata: address(device, &self.metadata),
            scales: self.scales.as_ref().map_or(0, |scales| address(device, scales)),
            places: address(device, &self.places),
            slab_columns: address(device, &self.slab_columns),
            columns: address(device, &self.columns),
            output_rows: address(device, &self.output_rows),
            x: address(device, &x.data),
            bias: self.bias.as_ref().map_or(0, |bias| address(device, bias)),
            residual: if add { y } else { 0 },
            y,
            rows: tiles.rows() as u32,
            tokens: x.tokens() as u32,
            stride,
            v: tiles.v() as u32,
            slabs: tiles.slabs() as u32,
            slabs_per_scale: tiles.slabs_per_scale() as u32,
            row_tile: tiles.row_tile() as u32,
            slab_places: tiles.slab_places() as u32,
        };
        let grid = LaunchConfig {
            grid_dim: (launch.blocks[0], launch.blocks[1], 1),
            block_dim: (launch.kernel.threads(), 1, 1),
            shared_mem_bytes: launch.shared_bytes,
        };
        let mut arguments = device.stream.launch_builder(&function);
        // SAFETY: the kernel takes a `Product` and nothing else; every buffer has the length that `Tiles` and
        // `Activations` give it, which tests/host.rs runs the same kernels on with a forbidden page behind each, and all
        // of them outlive the launch, because freeing them is queued on the same stream.
        unsafe { arguments.arg(&product).launch(grid) }.map_err(failed("launching a product"))?;
        Ok(())
    }
}
