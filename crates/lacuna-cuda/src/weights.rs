//! Weights in the memory of a machine, sparse and dense, and their products.

use lacuna_core::{Matrix, Packed};

use crate::activations::{Activations, upload_bytes, upload_f32, upload_u32};
use crate::error::{Error, Result};
use crate::kernels::{Kernel, Launch, choose};
use crate::machine::{Buffer, Call, DenseProduct, Machine, Operands, OuterProduct};
use crate::tiles::{HalfType, Tiles};

/// A sparse weight `[R, K]` with its bias.
pub struct Sparse {
    /// its shapes; the buffers of it are on the machine alone
    tiles: Tiles,
    values: Buffer,
    metadata: Buffer,
    scales: Option<Buffer>,
    places: Buffer,
    slab_columns: Buffer,
    columns: Buffer,
    output_rows: Buffer,
    bias: Option<Buffer>,
}

impl Sparse {
    /// Packs a weight for a machine and copies it there. `bias` is `[R]`.
    pub fn upload(machine: &dyn Machine, packed: &Packed, bias: Option<&[f32]>, half: HalfType) -> Result<Self> {
        let mut tiles = Tiles::new(packed, half, machine.limits())?;
        if let Some(bias) = bias.filter(|bias| bias.len() != tiles.rows()) {
            return Err(Error::Shape { what: "bias", want: tiles.rows(), got: bias.len() });
        }
        let buffers = tiles.take_buffers();
        let scales = buffers.scales.iter().map(|scale| scale.to_bits().to_le_bytes());
        Ok(Self {
            values: upload_bytes(machine, buffers.values.iter().map(|&byte| [byte]))?,
            metadata: upload_u32(machine, &buffers.metadata)?,
            scales: (scales.len() > 0).then(|| upload_bytes(machine, scales)).transpose()?,
            places: upload_bytes(machine, buffers.places.iter().map(|place| place.to_le_bytes()))?,
            slab_columns: upload_u32(machine, &buffers.slab_columns)?,
            columns: upload_u32(machine, &buffers.columns)?,
            output_rows: upload_u32(machine, &buffers.output_rows)?,
            bias: bias.map(|bias| upload_f32(machine, bias)).transpose()?,
            tiles,
        })
    }

    /// The same in other memory, for measurements that must not find it in a cache.
    pub fn duplicate(&self, machine: &dyn Machine) -> Result<Self> {
        let copy = |buffer: &Buffer| duplicate(machine, buffer);
        Ok(Self {
            tiles: self.tiles.clone(),
            values: copy(&self.values)?,
            metadata: copy(&self.metadata)?,
            scales: self.scales.as_ref().map(copy).transpose()?,
            places: copy(&self.places)?,
            slab_columns: copy(&self.slab_columns)?,
            columns: copy(&self.columns)?,
            output_rows: copy(&self.output_rows)?,
            bias: self.bias.as_ref().map(copy).transpose()?,
        })
    }

    /// Bytes that it takes there.
    pub fn bytes(&self) -> usize {
        let all = [&self.values, &self.metadata, &self.places, &self.slab_columns, &self.columns, &self.output_rows];
        let all = all.into_iter().chain(&self.scales).chain(&self.bias);
        all.map(Buffer::bytes).sum()
    }

    /// The kernel that a product with so many tokens takes.
    pub fn kernel(&self, machine: &dyn Machine, tokens: usize) -> Kernel {
        choose(&self.tiles, tokens, machine.limits()).kernel
    }

    /// `y = W x + b`.
    pub fn multiply(&self, machine: &dyn Machine, x: &Activations, y: &mut Activations) -> Result<()> {
        Self::multiply_all(machine, x, &mut [(self, y)])
    }

    /// `y = W x + b` of some weights, in as few launches as there can be.
    pub fn multiply_all(machine: &dyn Machine, x: &Activations, all: &mut [(&Self, &mut Activations)]) -> Result<()> {
        let mut products = vec![];
        for (weight, y) in all {
            products.extend(weight.product(machine, x, y, None)?);
        }
        let same = |(one, _): &(Launch, Operands), (other, _): &(Launch, Operands)| one.kernel == other.kernel;
        for run in products.chunk_by(same) {
            run.chunks(run[0].0.kernel.products()).try_for_each(|together| launch(machine, together))?;
        }
        Ok(())
    }

    /// `y += W x + b`, rounded once.
    pub fn multiply_add(&self, machine: &dyn Machine, x: &Activations, y: &mut Activations) -> Result<()> {
        let residual = Some(y.data.address());
        self.product(machine, x, y, residual)?.map_or(Ok(()), |product| launch(machine, &[product]))
    }

    /// How it is launched with its `Product` of kernels/product.cuh; not at all for no tokens.
    fn product(
        &self,
        machine: &dyn Machine,
        x: &Activations,
        y: &mut Activations,
        residual: Option<u64>,
    ) -> Result<Option<(Launch, Operands)>> {
        let tiles = &self.tiles;
        x.check("activations", tiles.half(), tiles.cols(), x.tokens())?;
        y.check("result", tiles.half(), tiles.rows(), x.tokens())?;
        if x.tokens() == 0 {
            return Ok(None);
        }
        let launch = choose(tiles, x.tokens(), machine.limits());
        let optional = |buffer: &Option<Buffer>| buffer.as_ref().map_or(0, Buffer::address);
        // Field by field.
        let operands = Operands::default()
            .address(self.values.address())
            .address(self.metadata.address())
            .address(optional(&self.scales))
            .address(self.places.address())
            .address(self.slab_columns.address())
            .address(self.columns.address())
            .address(self.output_rows.address())
            .address(x.data.address())
            .address(optional(&self.bias))
            .address(residual.unwrap_or(0))
            .address(y.data.address())
            .number(tiles.rows())
            .number(x.tokens())
            .number(x.stride())
            .number(tiles.v())
            .number(tiles.slabs())
            .number(tiles.slabs_per_scale())
            .number(tiles.row_tile())
            .number(tiles.slab_places())
            .number(launch.stages)
            .number(launch.blocks[0] as usize);
        Ok(Some((launch, operands)))
    }
}

/// Launches products of one kernel together: with more than one place their list is `Products` of kernels/decode.cu.
fn launch(machine: &dyn Machine, products: &[(Launch, Operands)]) -> Result<()> {
    let (first, _) = &products[0];
    let rows: u32 = products.iter().map(|(launch, _)| launch.blocks[0]).sum();
    let places = first.kernel.products();
    // Places that are left over are of the last product, and have no blocks.
    let filled = |i: usize| &products[i.min(products.len() - 1)];
    let mut operands = (0..places).fold(Operands::default(), |all, i| all.then(&filled(i).1));
    if places > 1 {
        let ends = (0..places).map(|i| products.iter().take(i + 1).map(|(launch, _)| launch.blocks[0] as usize).sum());
        operands = ends.fold(operands, Operands::number);
    }
    let (kernel, shared_bytes) = (first.kernel, first.shared_bytes);
    machine.launch(&Call { kernel, blocks: [rows, first.blocks[1]], shared_bytes, operands })
}

/// A dense weight `[R, K]`.
pub struct Dense {
    weight: Buffer,
    half: HalfType,
    rows: usize,
    cols: usize,
}

impl Dense {
    /// Rounds a weight and copies it to a machine. Refuses values that f16 cannot hold.
    pub fn upload(
        machine: &dyn Machine,
        half: HalfType,
        [rows, cols]: [usize; 2],
        weight: impl ExactSizeIterator<Item = f32>,
    ) -> Result<Self> {
        if weight.len() != rows * cols {
            return Err(Error::Shape { what: "weight", want: rows * cols, got: weight.len() });
        }
        let mut overflow = None;
        let bits = weight.enumerate().map(|(i, value)| {
            if value.is_finite() && !half.dtype().holds(value) {
                overflow.get_or_insert(Error::Overflow { row: i / cols, value });
            }
            half.round(value).to_le_bytes()
        });
        let weight = upload_bytes(machine, bits)?;
        overflow.map_or(Ok(Self { weight, half, rows, cols }), Err)
    }

    /// The same in other memory, for measurements that must not find it in a cache.
    pub fn duplicate(&self, machine: &dyn Machine) -> Result<Self> {
        let Self { half, rows, cols, .. } = *self;
        Ok(Self { weight: duplicate(machine, &self.weight)?, half, rows, cols })
    }

    /// Bytes that it takes there.
    pub fn bytes(&self) -> usize {
        self.weight.bytes()
    }

    /// R and K.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Where it lies.
    pub(crate) fn address(&self) -> u64 {
        self.weight.address()
    }

    /// `y = W x`.
    pub fn multiply(&self, machine: &dyn Machine, x: &Activations, y: &mut Activations) -> Result<()> {
        self.product(machine, x, y, false)
    }

    /// `y += W x`, rounded once.
    pub fn multiply_add(&self, machine: &dyn Machine, x: &Activations, y: &mut Activations) -> Result<()> {
        self.product(machine, x, y, true)
    }

    fn product(&self, machine: &dyn Machine, x: &Activations, y: &mut Activations, add: bool) -> Result<()> {
        y.check("result", self.half, self.rows, x.tokens())?;
        self.launch(machine, x, &y.data, false, add)
    }

    /// `y = W x` in f32, `[R, stride]` of the activations' stride.
    pub(crate) fn multiply_wide(&self, machine: &dyn Machine, x: &Activations, y: &Buffer) -> Result<()> {
        let want = 4 * self.rows * x.stride();
        if y.bytes() < want {
            return Err(Error::Shape { what: "result", want, got: y.bytes() });
        }
        self.launch(machine, x, y, true, false)
    }

    fn launch(&self, machine: &dyn Machine, x: &Activations, y: &Buffer, wide: bool, add: bool) -> Result<()> {
        x.check("activations", self.half, self.cols, x.tokens())?;
        if x.tokens() == 0 {
            return Ok(());
        }
        machine.multiply(&DenseProduct {
            half: self.half,
            weight: &self.weight,
            x: &x.data,
            y,
            rows: self.rows,
            cols: self.cols,
            tokens: x.tokens(),
            stride: x.stride(),
            wide,
            add,
        })
    }
}

fn duplicate(machine: &dyn Machine, buffer: &Buffer) -> Result<Buffer> {
    let copy = machine.allocate(buffer.bytes())?;
    machine.write(&copy, &machine.read(buffer, buffer.bytes())?)?;
    Ok(copy)
}

/// `out[R, K] += left[R, T] x[K, T]ᵀ` of the CPU's memory, on a machine: the products of calibration and of pruning.
pub fn add_outer(machine: &dyn Machine, out: &mut Matrix, left: &Matrix, x: &Matrix) -> Result<()> {
    for (what, want, got) in [
        ("tokens of both factors", x.cols(), left.cols()),
        ("rows of a sum of products", left.rows(), out.rows()),
        ("columns of a sum of products", x.rows(), out.cols()),
    ] {
        if want != got {
            return Err(Error::Shape { what, want, got });
        }
    }
    let (left_on, x_on) = (upload_f32(machine, left.data())?, upload_f32(machine, x.data())?);
    let sum = upload_f32(machine, out.data())?;
    let (rows, cols, tokens) = (left.rows(), x.rows(), x.cols());
    if tokens > 0 {
        machine.add_outer(&OuterProduct { left: &left_on, x: &x_on, out: &sum, rows, cols, tokens })?;
    }
    let bytes = machine.read(&sum, sum.bytes())?;
    let values = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    out.data_mut().iter_mut().zip(values).for_each(|(out, value)| *out = value);
    Ok(())
}
