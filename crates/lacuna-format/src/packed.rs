//! The tensors of a packed layer, to and from [`Packed`]. `docs/format.md` is the specification.
//!
//! For a layer `NAME` of shape `[R, K]`, `B = ceil(R / V)` row blocks and `G = ceil(K / M)` groups:
//! `NAME.values` `[R, G, 2]`, `NAME.columns` `[B, G, 4]`, `NAME.positions` `[R, ceil(G / 2)]` and, where an output
//! permutation was chosen, `NAME.row_order` `[R]`.

use lacuna_core::{Dtype, GROUP_COLUMNS, Grid, KEPT_PER_GROUP, Mask, Packed, Pair, Pattern, Permutation};
use safetensors::Dtype as TensorDtype;

use crate::tensor::{OutTensor, decode_values, encode_values};
use crate::{Error, Result};

/// The widest matrix whose columns fit u16: ids run to `K + 2` where a narrow last group is padded.
const U16_COLUMNS: usize = 65_536 - GROUP_COLUMNS;

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
}

/// Type of the column ids of a layer with `cols` input columns.
fn column_dtype(cols: usize) -> TensorDtype {
    if cols <= U16_COLUMNS { TensorDtype::U16 } else { TensorDtype::U32 }
}

/// Type and shape that each tensor must have.
fn shapes(grid: &Grid) -> [Vec<usize>; 4] {
    let (rows, groups) = (grid.rows(), grid.groups());
    [
        vec![rows, groups, KEPT_PER_GROUP],
        vec![grid.row_blocks(), groups, GROUP_COLUMNS],
        vec![rows, groups.div_ceil(2)],
        vec![rows],
    ]
}

/// Bytes of a packed layer without a row order.
pub fn packed_bytes(grid: &Grid, values: Dtype) -> usize {
    let [values_len, columns_len, positions_len, _] = shapes(grid).map(|shape| shape.iter().product::<usize>());
    values_len * values.size() + columns_len * (column_dtype(grid.cols()).bitsize() / 8) + positions_len
}

/// Checks and decodes a layer of `[rows, cols]` under `pattern`. Every length, column id, order and position code is
/// checked; the error names the tensor.
pub fn read_packed(layer: &str, pattern: Pattern, [rows, cols]: [usize; 2], raw: &PackedTensors) -> Result<Packed> {
    let wrong = |cause| Error::Packed { layer: layer.to_owned(), cause };
    let grid = pattern.grid(rows, cols).map_err(wrong)?;
    let [values_shape, columns_shape, positions_shape, order_shape] = shapes(&grid);
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
    expect("values", raw.values, &[TensorDtype::F32, TensorDtype::F16, TensorDtype::BF16], &values_shape)?;
    expect("columns", raw.columns, &[column_dtype(cols)], &columns_shape)?;
    expect("positions", raw.positions, &[TensorDtype::U8], &positions_shape)?;
    if let Some(order) = raw.row_order {
        expect("row_order", order, &[TensorDtype::U32], &order_shape)?;
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
    let values = decode_values(raw.values.0, raw.values.2);
    let finite = (0..values.len()).find(|&i| !values.get(i).is_finite());
    if let Some(i) = finite {
        let problem = format!("row {} holds {}; prune again", i / grid.kept_per_row(), values.get(i));
        return Err(Error::tensor(&format!("{layer}.values"), problem));
    }
    let order = raw.row_order.map(|(_, _, bytes)| Permutation::new(read_u32(bytes))).transpose().map_err(wrong)?;
    Packed::from_parts(mask, values, order).map_err(wrong)
}

/// The tensors of a packed layer under their names.
pub fn pack_tensors(layer: &str, packed: &Packed) -> Vec<(String, OutTensor<'static>)> {
    let grid = packed.mask().grid();
    let [values_shape, columns_shape, positions_shape, order_shape] = shapes(grid);
    let (dtype, values) = encode_values(packed.values());
    let column_type = column_dtype(grid.cols());
    let ids = packed.mask().all_columns().iter().flatten();
    let columns: Vec<u8> = match column_type {
        TensorDtype::U16 => ids.flat_map(|&c| (c as u16).to_le_bytes()).collect(),
        _ => ids.flat_map(|&c| c.to_le_bytes()).collect(),
    };
    let mut positions = Vec::with_capacity(positions_shape.iter().product());
    for row in 0..grid.rows() {
        for two in packed.mask().row_pairs(row).chunks(2) {
            let high = two.get(1).map_or(0, |pair| pair.code());
            positions.push(two[0].code() | high << 4);
        }
    }
    let mut tensors = vec![
        (format!("{layer}.values"), OutTensor::new(dtype, values_shape, values)),
        (format!("{layer}.columns"), OutTensor::new(column_type, columns_shape, columns)),
        (format!("{layer}.positions"), OutTensor::new(TensorDtype::U8, positions_shape, positions)),
    ];
    if let Some(order) = packed.row_order() {
        let bytes: Vec<u8> = order.as_slice().iter().flat_map(|r| r.to_le_bytes()).collect();
        tensors.push((format!("{layer}.row_order"), OutTensor::new(TensorDtype::U32, order_shape, bytes)));
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
