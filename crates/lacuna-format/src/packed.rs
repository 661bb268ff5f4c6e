//! The tensors of a packed layer, to and from [`Packed`]. `docs/format.md` is the specification.
//!
//! For a layer `NAME` of shape `[R, K]`, `B = ceil(R / V)` row blocks and `G = ceil(K / M)` groups:
//! `NAME.values` `[R, G, 2]` (`[R, G]` for int4), `NAME.columns` `[B, G, 4]`, `NAME.positions` `[R, ceil(G / 2)]`, for
//! integers `NAME.scales` `[R, ceil(2G / group)]` and, where an output permutation was chosen, `NAME.row_order` `[R]`.

use half::f16;
use lacuna_core::{
    GROUP_COLUMNS, Grid, IntType, KEPT_PER_GROUP, Mask, Packed, Pair, Pattern, Permutation, Quantized, ScaleGroup,
    ValueType, Values,
};
use safetensors::Dtype as TensorDtype;

use crate::tensor::{OutTensor, decode_codes, decode_f16, decode_floats, encode_values};
use crate::{Error, Result};

/// The widest matrix whose columns fit u16: ids run to `K + 2` where a narrow last group is padded.
const U16_COLUMNS: usize = 65_536 - GROUP_COLUMNS;

/// Types of values that stand for themselves.
const FLOATS: [TensorDtype; 3] = [TensorDtype::F32, TensorDtype::F16, TensorDtype::BF16];
/// Types of values under scales: int8, and int4 two a byte.
const INTEGERS: [TensorDtype; 2] = [TensorDtype::I8, TensorDtype::U8];

/// One tensor as it lies in a file.
type Raw<'a> = (TensorDtype, &'a [usize], &'a [u8]);

/// The tensors of one packed layer as they lie in a file.
#[derive(Clone, Copy)]
pub struct PackedTensors<'a> {
    /// `NAME.values`
    pub values: Raw<'a>,
    /// `NAME.columns`
    pub columns: Raw<'a>,
    /// `NAME.positions`
    pub positions: Raw<'a>,
    /// `NAME.row_order`
    pub row_order: Option<Raw<'a>>,
    /// `NAME.scales`, and how many values share one; `None` where values are floating-point numbers
    pub scales: Option<(ScaleGroup, Raw<'a>)>,
}

/// Type of the column ids of a layer with `cols` input columns.
fn column_dtype(cols: usize) -> TensorDtype {
    if cols <= U16_COLUMNS { TensorDtype::U16 } else { TensorDtype::U32 }
}

/// Shape that each tensor must have.
struct Shapes {
    values: Vec<usize>,
    columns: Vec<usize>,
    positions: Vec<usize>,
    row_order: Vec<usize>,
    /// of integers
    scales: Option<Vec<usize>>,
}

impl Shapes {
    fn new(grid: &Grid, integers: Option<(IntType, ScaleGroup)>) -> Self {
        let (rows, groups) = (grid.rows(), grid.groups());
        Self {
            values: match integers {
                // one byte a group
                Some((IntType::Int4, _)) => vec![rows, groups],
                Some((IntType::Int8, _)) | None => vec![rows, groups, KEPT_PER_GROUP],
            },
            columns: vec![grid.row_blocks(), groups, GROUP_COLUMNS],
            positions: vec![rows, groups.div_ceil(2)],
            row_order: vec![rows],
            scales: integers.map(|(_, group)| vec![rows, group.blocks(grid.kept_per_row())]),
        }
    }
}

/// Bytes of a packed layer, with a row order or without.
pub fn packed_bytes(grid: &Grid, values: ValueType, row_order: bool) -> usize {
    let shapes = Shapes::new(grid, values.integers());
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let value = match values {
        ValueType::Float(dtype) => dtype.size(),
        ValueType::Int(..) => 1,
    };
    elements(&shapes.values) * value
        + shapes.scales.map_or(0, |shape| elements(&shape) * size_of::<f16>())
        + elements(&shapes.columns) * (column_dtype(grid.cols()).bitsize() / 8)
        + elements(&shapes.positions)
        + if row_order { grid.rows() * size_of::<u32>() } else { 0 }
}

/// Bytes of this packed layer.
pub fn bytes_of(packed: &Packed) -> usize {
    packed_bytes(packed.mask().grid(), packed.values().value_type(), packed.row_order().is_some())
}

/// Checks and decodes a layer of `[rows, cols]` under `pattern`. Every length, column id, order and position code is
/// checked; the error names the tensor.
pub fn read_packed(layer: &str, pattern: Pattern, [rows, cols]: [usize; 2], raw: &PackedTensors) -> Result<Packed> {
    let wrong = |cause| Error::Packed { layer: layer.to_owned(), cause };
    let grid = pattern.grid(rows, cols).map_err(wrong)?;
    let integers = raw.scales.map(|(group, _)| {
        let int = if raw.values.0 == TensorDtype::U8 { IntType::Int4 } else { IntType::Int8 };
        (int, group)
    });
    let shapes = Shapes::new(&grid, integers);
    let expect = |part: &str, (dtype, shape, bytes): Raw, dtypes: &[TensorDtype], want: &[usize]| {
        let name = format!("{layer}.{part}");
        if !dtypes.contains(&dtype) {
            return Err(Error::tensor(&name, format!("type {dtype:?} where {dtypes:?} is needed; prune again")));
        }
        let elements = want.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
        let length = elements.and_then(|n| n.checked_mul(dtype.bitsize() / 8));
        if shape != want || length != Some(bytes.len()) {
            return Err(Error::tensor(
                &name,
                format!("shape {shape:?} where {pattern} asks for {want:?}; prune again"),
            ));
        }
        Ok(())
    };
    let value_types = if integers.is_some() { &INTEGERS[..] } else { &FLOATS };
    expect("values", raw.values, value_types, &shapes.values)?;
    if let (Some((_, scales)), Some(shape)) = (raw.scales, &shapes.scales) {
        expect("scales", scales, &[TensorDtype::F16], shape)?;
    }
    expect("columns", raw.columns, &[column_dtype(cols)], &shapes.columns)?;
    expect("positions", raw.positions, &[TensorDtype::U8], &shapes.positions)?;
    if let Some(order) = raw.row_order {
        expect("row_order", order, &[TensorDtype::U32], &shapes.row_order)?;
    }

    let ids: Vec<u32> = match raw.columns.0 {
        TensorDtype::U16 => {
            raw.columns.2.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect()
        }
        _ => read_u32(raw.columns.2),
    };
    let columns = ids.chunks_exact(GROUP_COLUMNS).map(|c| [c[0], c[1], c[2], c[3]]).collect();
    let pairs = read_positions(&grid, raw.positions.2).map_err(wrong)?;
    let mask = Mask::new(grid, columns, pairs).map_err(wrong)?;
    let values = match integers.zip(raw.scales) {
        Some(((int, group), (_, scales))) => {
            let (codes, scales) = (decode_codes(int, raw.values.2), decode_f16(scales.2));
            let quantized = Quantized::from_parts(int, group, grid.kept_per_row(), codes, scales);
            Values::Quantized(quantized.map_err(wrong)?)
        }
        None => {
            let values = decode_floats(raw.values.0, raw.values.2);
            if let Some(i) = (0..values.len()).find(|&i| !values.get(i).is_finite()) {
                let problem = format!("row {} holds {}; prune again", i / grid.kept_per_row(), values.get(i));
                return Err(Error::tensor(&format!("{layer}.values"), problem));
            }
            values
        }
    };
    let order = raw.row_order.map(|(_, _, bytes)| Permutation::new(read_u32(bytes))).transpose().map_err(wrong)?;
    Packed::from_parts(mask, values, order).map_err(wrong)
}

/// The tensors of a packed layer under their names.
pub fn pack_tensors<'a>(layer: &str, packed: &'a Packed) -> Vec<(String, OutTensor<'a>)> {
    let grid = packed.mask().grid();
    let shapes = Shapes::new(grid, packed.values().value_type().integers());
    let (dtype, values) = encode_values(packed.values());
    let column_type = column_dtype(grid.cols());
    let ids = packed.mask().all_columns().iter().flatten();
    let columns: Vec<u8> = match column_type {
        TensorDtype::U16 => ids.flat_map(|&c| (c as u16).to_le_bytes()).collect(),
        _ => ids.flat_map(|&c| c.to_le_bytes()).collect(),
    };
    let mut positions = Vec::with_capacity(shapes.positions.iter().product());
    for row in 0..grid.rows() {
        for two in packed.mask().row_pairs(row).chunks(2) {
            let high = two.get(1).map_or(0, |pair| pair.code());
            positions.push(two[0].code() | high << 4);
        }
    }
    let mut tensors = vec![
        (format!("{layer}.values"), OutTensor::new(dtype, shapes.values, values)),
        (format!("{layer}.columns"), OutTensor::new(column_type, shapes.columns, columns)),
        (format!("{layer}.positions"), OutTensor::new(TensorDtype::U8, shapes.positions, positions)),
    ];
    if let (Values::Quantized(values), Some(shape)) = (packed.values(), shapes.scales) {
        let bytes: Vec<u8> = values.scales().iter().flat_map(|scale| scale.to_le_bytes()).collect();
        tensors.push((format!("{layer}.scales"), OutTensor::new(TensorDtype::F16, shape, bytes)));
    }
    if let Some(order) = packed.row_order() {
        let bytes: Vec<u8> = order.as_slice().iter().flat_map(|r| r.to_le_bytes()).collect();
        tensors.push((format!("{layer}.row_order"), OutTensor::new(TensorDtype::U32, shapes.row_order, bytes)));
    }
    tensors
}

fn read_u32(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Two groups a byte, low nibble first; the high nibble of an odd last group must be 0, so that equal layers are equal
/// bytes.
fn read_positions(grid: &Grid, bytes: &[u8]) -> lacuna_core::Result<Vec<Pair>> {
    let (groups, stride) = (grid.groups(), grid.groups().div_ceil(2));
    let mut pairs = Vec::with_capacity(grid.rows() * groups);
    for row in 0..grid.rows() {
        let bytes = &bytes[row * stride..(row + 1) * stride];
        for group in 0..stride * 2 {
            let code = bytes[group / 2] >> (group % 2 * 4) & 15;
            match Pair::from_code(code) {
                Some(pair) if group < groups => pairs.push(pair),
                None if group == groups && code == 0 => {}
                _ => return Err(lacuna_core::Error::BadPair { row, group, code }),
            }
        }
    }
    Ok(pairs)
}
