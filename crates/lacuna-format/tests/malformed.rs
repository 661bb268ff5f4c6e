//! The tensors of a packed layer: whatever is wrong with them is refused by name, whatever is packed reads back equal.

use std::collections::BTreeMap;

use half::f16;
use lacuna_core::{
    Dtype, GROUP_COLUMNS, Grid, IntType, Mask, Matrix, Packed, Pair, Pattern, Permutation, Quantized, ScaleGroup,
    ValueType, Values, Window,
};
use lacuna_format::{
    Checkpoint, Error, LayerSparsity, METHOD, OutTensor, PackedTensors, Result, Sparsity, TensorDtype, VERSION,
    pack_tensors, packed_bytes, read_packed,
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, View};

const LAYER: &str = "model.layers.0.mlp.up_proj";
/// 3 row blocks, the last one short; 3 groups, so the last nibble of a row is padding; the last group has 2 columns.
const SHAPE: [usize; 2] = [10, 18];
const GROUPS: usize = 3;
const COLUMNS: [[u32; 4]; GROUPS] = [[0, 2, 5, 7], [8, 9, 14, 15], [16, 17, 18, 19]];

/// One tensor as it goes into a file.
#[derive(Clone, Debug)]
struct Tensor {
    dtype: TensorDtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Tensor {
    /// Another type or shape, and as many bytes as that takes.
    fn reshape(&mut self, dtype: TensorDtype, shape: &[usize]) {
        self.dtype = dtype;
        self.shape = shape.to_vec();
        self.data.resize(shape.iter().product::<usize>() * dtype.bitsize() / 8, 0);
    }

    fn put(&mut self, element: usize, bytes: &[u8]) {
        self.data[element * bytes.len()..][..bytes.len()].copy_from_slice(bytes);
    }

    /// The columns of a row block and group.
    fn columns(&mut self, block: usize, group: usize, ids: [u16; 4]) {
        ids.iter().enumerate().for_each(|(i, id)| self.put((block * GROUPS + group) * 4 + i, &id.to_le_bytes()));
    }

    /// A kept value, of two a group.
    fn value(&mut self, row: usize, group: usize, slot: usize, value: f32) {
        self.put((row * GROUPS + group) * 2 + slot, &value.to_le_bytes());
    }

    /// The position code of a row and group; group 3 is the padding nibble.
    fn code(&mut self, row: usize, group: usize, code: u8) {
        let (byte, shift) = (row * 2 + group / 2, group % 2 * 4);
        self.data[byte] = self.data[byte] & !(15 << shift) | code << shift;
    }

    /// An int4 code, the low nibble of a group first.
    fn nibble(&mut self, row: usize, group: usize, slot: usize, code: u8) {
        let (byte, shift) = (row * GROUPS + group, slot * 4);
        self.data[byte] = self.data[byte] & !(15 << shift) | code << shift;
    }

    /// The one scale of a row.
    fn scale(&mut self, row: usize, value: f32) {
        self.put(row, &f16::from_f32(value).to_le_bytes());
    }

    fn entry(&mut self, row: usize, value: u32) {
        self.put(row, &value.to_le_bytes());
    }
}

type Parts = BTreeMap<String, Tensor>;

fn pattern() -> Pattern {
    "4:2:8".parse().unwrap()
}

/// A sound layer in f32.
fn packed() -> Packed {
    packed_as(Dtype::F32.into())
}

/// Rows 0 to 4 keep a padding column each, and the rows are in reverse order.
fn packed_as(values: ValueType) -> Packed {
    let grid = pattern().grid(SHAPE[0], SHAPE[1]).unwrap();
    let columns = (0..grid.row_blocks()).flat_map(|_| COLUMNS).collect();
    let code = |i: usize| match (i / GROUPS, i % GROUPS) {
        (0..5, 2) => 8,
        (_, 2) => 4,
        (row, _) => [4, 8, 9, 12, 13, 14][row % 6],
    };
    let pairs = (0..grid.rows() * GROUPS).map(|i| Pair::from_code(code(i)).unwrap()).collect();
    let mask = Mask::new(grid, columns, pairs).unwrap();
    let weight = (1..=SHAPE[0] * SHAPE[1]).map(|i| i as f32 / 8.0).collect();
    let weight = Matrix::new(SHAPE[0], SHAPE[1], weight).unwrap();
    let order = Permutation::new((0..SHAPE[0] as u32).rev().collect()).unwrap();
    Packed::pack(&weight, mask, values, Some(order)).unwrap()
}

fn parts(packed: &Packed) -> Parts {
    let part = |(name, tensor): &(String, OutTensor)| {
        let part = name.strip_prefix(LAYER).unwrap().trim_start_matches('.').to_owned();
        let (dtype, shape) = (View::dtype(&tensor), View::shape(&tensor).to_vec());
        (part, Tensor { dtype, shape, data: tensor.data().to_vec() })
    };
    pack_tensors(LAYER, packed).iter().map(part).collect()
}

/// Writes the tensors into a file and reads the layer as a checkpoint does.
fn read(parts: &Parts, shape: [usize; 2]) -> Result<Option<Packed>> {
    read_under(parts, shape, None)
}

fn read_under(parts: &Parts, shape: [usize; 2], scale_group: Option<ScaleGroup>) -> Result<Option<Packed>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let views = parts.iter().map(|(part, t)| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.data).unwrap();
        (format!("{LAYER}.{part}"), view)
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let sparsity = Sparsity {
        quant_method: METHOD.to_owned(),
        version: VERSION,
        pattern: pattern(),
        scale_group,
        criterion: "magnitude".to_owned(),
        recipe: serde_json::Value::Null,
        source_sha256: BTreeMap::new(),
        layers: BTreeMap::from([(LAYER.to_owned(), LayerSparsity { shape, pattern: None })]),
    };
    Checkpoint::of_shard(&path, Some(&sparsity))?.packed(LAYER)
}

/// Reading must fail with one line that names the layer and holds `word`.
fn refuses(parts: &Parts, what: &str, word: &str) {
    refuses_under(parts, None, what, word);
}

fn refuses_under(parts: &Parts, scale_group: Option<ScaleGroup>, what: &str, word: &str) {
    let error = read_under(parts, SHAPE, scale_group).expect_err(what).to_string();
    assert!(error.contains(LAYER) && error.contains(word) && !error.contains('\n'), "{what}: {error}");
}

#[test]
fn a_sound_layer_is_read() {
    let packed = packed();
    assert_eq!(read(&parts(&packed), SHAPE).unwrap(), Some(packed));
}

#[test]
fn a_missing_tensor_is_named() {
    for part in ["values", "columns", "positions"] {
        let mut parts = parts(&packed());
        parts.remove(part);
        refuses(&parts, "missing", &format!("tensor {LAYER}.{part}: missing"));
    }
    let mut parts = parts(&packed());
    parts.remove("row_order");
    assert_eq!(read(&parts, SHAPE).unwrap().unwrap().row_order(), None);
}

#[test]
fn a_wrong_type_is_named() {
    use TensorDtype::{BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
    let floats = [F16, BF16, F32];
    for (part, legal) in
        [("values", &floats[..]), ("columns", &[U16][..]), ("positions", &[U8][..]), ("row_order", &[U32][..])]
    {
        for dtype in [BOOL, F16, BF16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64] {
            if !legal.contains(&dtype) {
                let mut parts = parts(&packed());
                let tensor = parts.get_mut(part).unwrap();
                tensor.reshape(dtype, &tensor.shape.clone());
                refuses(&parts, part, &format!("tensor {LAYER}.{part}: type {dtype:?} where "));
            }
        }
    }
}

#[test]
fn a_wrong_shape_is_named() {
    for part in ["values", "columns", "positions", "row_order"] {
        let sound = parts(&packed());
        let shape = &sound[part].shape;
        let mut wrong = vec![vec![], vec![shape.iter().product()], [&shape[..], &[1]].concat()];
        for dim in 0..shape.len() {
            for size in [0, shape[dim] - 1, shape[dim] + 1] {
                wrong.push(shape.clone());
                wrong.last_mut().unwrap()[dim] = size;
            }
        }
        wrong.push(shape.iter().copied().rev().collect());
        for wrong in wrong.into_iter().filter(|wrong| wrong != shape) {
            let mut parts = sound.clone();
            let tensor = parts.get_mut(part).unwrap();
            tensor.reshape(tensor.dtype, &wrong);
            refuses(&parts, part, &format!("tensor {LAYER}.{part}: shape {wrong:?} where "));
        }
    }
}

#[test]
fn wrong_content_is_refused() {
    type Case = (&'static str, &'static str, fn(&mut Tensor), &'static str);
    let cases: [Case; 25] = [
        ("columns", "id out of range", |t| t.columns(0, 0, [0, 2, 5, u16::MAX]), "block 0, group 0 lists"),
        ("columns", "id past the padding", |t| t.columns(2, 2, [16, 17, 18, 20]), "block 2, group 2 lists"),
        ("columns", "padding id in a full group", |t| t.columns(0, 1, [8, 9, 14, 18]), "block 0, group 1 lists"),
        ("columns", "ids not ascending", |t| t.columns(1, 0, [2, 0, 5, 7]), "block 1, group 0 lists"),
        ("columns", "ids descending", |t| t.columns(1, 0, [7, 5, 2, 0]), "block 1, group 0 lists"),
        ("columns", "last two swapped", |t| t.columns(2, 1, [8, 9, 15, 14]), "block 2, group 1 lists"),
        ("columns", "duplicate first", |t| t.columns(0, 0, [0, 0, 5, 7]), "block 0, group 0 lists"),
        ("columns", "duplicate last", |t| t.columns(0, 0, [0, 2, 7, 7]), "block 0, group 0 lists"),
        ("columns", "id in the next block", |t| t.columns(0, 0, [0, 2, 5, 8]), "must ascend and lie in 0..8"),
        ("columns", "id in the block before", |t| t.columns(2, 1, [7, 9, 14, 15]), "must ascend and lie in 8..16"),
        ("columns", "ids of another group", |t| t.columns(1, 1, [0, 2, 5, 7]), "block 1, group 1 lists"),
        ("positions", "padding nibble", |t| t.code(0, 3, 4), "row 0, group 3 has position code 0x4"),
        ("positions", "padding nibble", |t| t.code(9, 3, 1), "row 9, group 3 has position code 0x1"),
        ("values", "NaN", |t| t.value(0, 0, 0, f32::NAN), "values: row 0 holds NaN"),
        ("values", "NaN at the end", |t| t.value(9, 2, 1, -f32::NAN), "values: row 9 holds NaN"),
        ("values", "infinity", |t| t.value(4, 1, 0, f32::INFINITY), "values: row 4 holds inf"),
        ("values", "infinity", |t| t.value(4, 1, 0, f32::NEG_INFINITY), "values: row 4 holds -inf"),
        ("values", "padding", |t| t.value(3, 2, 1, 1.0), "row 3, group 2 stores a non-zero value for a padding"),
        ("values", "tiny padding", |t| t.value(0, 2, 1, 1e-45), "row 0, group 2 stores a non-zero value"),
        ("values", "negative zero as padding", |t| t.value(0, 2, 1, -0.0), "row 0, group 2 stores a non-zero value"),
        ("values", "NaN as padding", |t| t.value(0, 2, 1, f32::NAN), "row 0 holds NaN"),
        ("row_order", "duplicate", |t| t.entry(1, 9), "entry 1 of a permutation of 10 is 9"),
        ("row_order", "out of range", |t| t.entry(9, 10), "entry 9 of a permutation of 10 is 10"),
        ("row_order", "far out of range", |t| t.entry(0, u32::MAX), "entry 0 of a permutation of 10 is 4294967295"),
        ("row_order", "all the same", |t| t.data.fill(0), "entry 1 of a permutation of 10 is 0"),
    ];
    for (part, what, spoil, word) in cases {
        let mut parts = parts(&packed());
        spoil(parts.get_mut(part).unwrap());
        refuses(&parts, &format!("{part}: {what}"), word);
    }
}

/// 3 groups of a window that 18 columns fill but for 2 of padding.
fn windowed() -> Packed {
    let grid = "4:2:8@all".parse::<Pattern>().unwrap().grid(SHAPE[0], SHAPE[1]).unwrap();
    let columns = [[0, 8, 11, 17], [1, 2, 3, 16], [4, 7, 12, 15]].repeat(grid.row_blocks());
    let mask = Mask::new(grid, columns, vec![Pair::FIRST; SHAPE[0] * GROUPS]).unwrap();
    Packed::pack(&Matrix::zeros(SHAPE[0], SHAPE[1]), mask, Dtype::F32, None).unwrap()
}

#[test]
fn wrong_columns_of_a_window_are_refused() {
    type Case = (&'static str, fn(&mut Tensor), &'static str);
    let read = |parts: &Parts, pattern: &str, shape: [usize; 2]| {
        let raw = |part: &str| parts.get(part).map(|t| (t.dtype, &t.shape[..], &t.data[..]));
        let (values, columns, positions) = (raw("values").unwrap(), raw("columns").unwrap(), raw("positions").unwrap());
        let raw = PackedTensors { values, columns, positions, row_order: None, scales: None };
        read_packed(LAYER, pattern.parse().unwrap(), shape, &raw)
    };
    let sound = windowed();
    assert_eq!(read(&parts(&sound), "4:2:8@all", SHAPE).unwrap(), sound);
    let cases: [Case; 8] = [
        ("past the row", |t| t.columns(0, 2, [4, 7, 12, 18]), "block 0, group 2 lists"),
        ("far past the row", |t| t.columns(1, 0, [0, 8, 11, u16::MAX]), "must ascend and lie in 0..18"),
        ("not ascending", |t| t.columns(2, 1, [1, 3, 2, 16]), "block 2, group 1 lists"),
        ("twice in a group", |t| t.columns(2, 1, [1, 2, 2, 16]), "block 2, group 1 lists"),
        ("in two groups", |t| t.columns(0, 1, [1, 2, 3, 17]), "group 1 lists column 17, which another group"),
        ("in two groups far apart", |t| t.columns(1, 2, [4, 7, 8, 15]), "group 2 lists column 8, which another group"),
        ("groups the same", |t| t.columns(2, 1, [0, 8, 11, 17]), "block 2, group 1 lists column 0, which another"),
        (
            "groups in another order",
            |t| {
                t.columns(0, 1, [4, 7, 12, 15]);
                t.columns(0, 2, [1, 2, 3, 16]);
            },
            "block 0, group 2 is out of order",
        ),
    ];
    for (what, spoil, word) in cases {
        let mut parts = parts(&sound);
        spoil(parts.get_mut("columns").unwrap());
        let error = read(&parts, "4:2:8@all", SHAPE).expect_err(what).to_string();
        assert!(error.contains(LAYER) && error.contains(word) && !error.contains('\n'), "{what}: {error}");
    }
    // Under a narrower window, and under none, other groups' columns are out of range.
    for pattern in ["4:2:8@16", "4:2:8"] {
        let error = read(&parts(&sound), pattern, SHAPE).unwrap_err().to_string();
        assert!(error.contains("block 0, group 0 lists") && error.contains("in 0.."), "{error}");
    }
    // Of 9 columns three groups take all, and three of padding stand in the last.
    let grid = "4:2:4@all".parse::<Pattern>().unwrap().grid(10, 9).unwrap();
    let columns = [[1, 3, 5, 7], [2, 4, 6, 8], [0, 9, 10, 11]].repeat(grid.row_blocks());
    let mask = Mask::new(grid, columns, vec![Pair::FIRST; 10 * GROUPS]).unwrap();
    let sound = Packed::pack(&Matrix::zeros(10, 9), mask, Dtype::F32, None).unwrap();
    assert_eq!(read(&parts(&sound), "4:2:4@all", [10, 9]).unwrap(), sound);
    let mut parts = parts(&sound);
    parts.get_mut("columns").unwrap().columns(0, 1, [0, 9, 10, 11]);
    let error = read(&parts, "4:2:4@all", [10, 9]).unwrap_err().to_string();
    assert!(
        error.contains("block 0, group 1 lists columns [0, 9, 10, 11]: they must ascend and lie in 0..9"),
        "{error}"
    );
}

#[test]
fn illegal_position_codes_are_refused() {
    for code in (0..16).filter(|code| ![4, 8, 9, 12, 13, 14].contains(code)) {
        for (row, group) in [(0, 0), (0, 1), (5, 2), (9, 1)] {
            let mut parts = parts(&packed());
            parts.get_mut("positions").unwrap().code(row, group, code);
            refuses(&parts, "code", &format!("row {row}, group {group} has position code {code:#x}"));
        }
    }
}

#[test]
fn a_shape_in_the_config_that_the_tensors_contradict_is_refused() {
    let sizes = [0, 1, 9, 11, 17, 100, u32::MAX as usize, usize::MAX / 2, usize::MAX];
    let shapes = sizes.iter().flat_map(|&n| [[SHAPE[0], n], [n, SHAPE[1]], [n, n]]);
    for shape in shapes.filter(|&shape| shape != [10, 17]) {
        let error = read(&parts(&packed()), shape).expect_err(&format!("{shape:?}")).to_string();
        assert!(error.contains(LAYER), "{shape:?}: {error}");
    }
    // 17 columns leave as many groups, but another padding column, and its value is not zero.
    let error = read(&parts(&packed()), [10, 17]).unwrap_err().to_string();
    assert!(error.contains("padding column"), "{error}");
}

const INT8: ValueType = ValueType::Int(IntType::Int8, GROUP);
const INT4: ValueType = ValueType::Int(IntType::Int4, GROUP);
const GROUP: ScaleGroup = ScaleGroup::Of32;

#[test]
fn integers_lie_as_the_format_says() {
    // The example of docs/format.md: one row, two groups.
    let grid = Pattern::new(1, 4).unwrap().grid(1, 8).unwrap();
    let mask = Mask::new(grid, vec![[0, 1, 2, 3], [4, 5, 6, 7]], vec![Pair::FIRST; 2]).unwrap();
    for (int, dtype, shape, data) in [
        (IntType::Int8, TensorDtype::I8, vec![1, 2, 2], vec![3, 0xff, 0xf9, 7]),
        (IntType::Int4, TensorDtype::U8, vec![1, 2], vec![0xf3, 0x79]),
    ] {
        let values = Quantized::from_parts(int, GROUP, 4, vec![3, -1, -7, 7], vec![f16::from_f32(0.5)]).unwrap();
        let packed = Packed::from_parts(mask.clone(), Values::Quantized(values), None).unwrap();
        let parts = parts(&packed);
        let values = &parts["values"];
        assert_eq!((values.dtype, &values.shape, &values.data), (dtype, &shape, &data));
        let scales = &parts["scales"];
        assert_eq!(
            (scales.dtype, &scales.shape[..], &scales.data[..]),
            (TensorDtype::F16, &[1, 1][..], &[0, 0x38][..])
        );
        assert_eq!(packed.unpack().data(), [1.5, -0.5, 0.0, 0.0, -3.5, 3.5, 0.0, 0.0]);
    }
    for values in [INT8, INT4] {
        let packed = packed_as(values);
        assert_eq!(read_under(&parts(&packed), SHAPE, Some(GROUP)).unwrap(), Some(packed));
    }
}

#[test]
fn integers_and_their_scales_need_each_other() {
    for values in [INT8, INT4] {
        let mut parts = parts(&packed_as(values));
        let dtype = parts["values"].dtype;
        refuses(&parts, "no group", &format!("tensor {LAYER}.values: type {dtype:?} where "));
        parts.remove("scales");
        refuses_under(&parts, Some(GROUP), "no scales", &format!("tensor {LAYER}.scales: missing"));
    }
    let floats = [(Dtype::F32, TensorDtype::F32), (Dtype::F16, TensorDtype::F16), (Dtype::Bf16, TensorDtype::BF16)];
    for (dtype, tensor) in floats {
        let mut parts = parts(&packed_as(dtype.into()));
        parts.insert("scales".to_owned(), self::parts(&packed_as(INT8))["scales"].clone());
        refuses_under(&parts, Some(GROUP), "floats", &format!("tensor {LAYER}.values: type {tensor:?} where [I8, U8]"));
    }
}

#[test]
fn wrong_types_and_shapes_of_integers_are_named() {
    for values in [INT8, INT4] {
        for dtype in [TensorDtype::BF16, TensorDtype::F32, TensorDtype::U16, TensorDtype::I8] {
            let mut parts = parts(&packed_as(values));
            parts.get_mut("scales").unwrap().reshape(dtype, &[SHAPE[0], 1]);
            refuses_under(&parts, Some(GROUP), "type", &format!("tensor {LAYER}.scales: type {dtype:?} where [F16]"));
        }
        for shape in [&[10][..], &[1, 10], &[10, 2], &[10, 0], &[9, 1], &[10, 1, 1]] {
            let mut parts = parts(&packed_as(values));
            parts.get_mut("scales").unwrap().reshape(TensorDtype::F16, shape);
            refuses_under(&parts, Some(GROUP), "shape", &format!("tensor {LAYER}.scales: shape {shape:?} where "));
        }
        // Of another type each has another shape.
        let other = if values == INT8 { TensorDtype::U8 } else { TensorDtype::I8 };
        let mut parts = parts(&packed_as(values));
        parts.get_mut("values").unwrap().dtype = other;
        let shape = parts["values"].shape.clone();
        refuses_under(&parts, Some(GROUP), "values", &format!("tensor {LAYER}.values: shape {shape:?} where "));
    }
}

#[test]
fn wrong_content_of_integers_is_refused() {
    type Case = (ValueType, &'static str, fn(&mut Tensor, &mut Tensor), &'static str);
    let cases: [Case; 14] = [
        (INT8, "-128", |v, _| v.data[9 * 6] = 0x80, "row 9 holds the code -128, which int8 does not have"),
        (INT8, "NaN", |_, s| s.scale(9, f32::NAN), "scale 0 of row 9 is NaN: scales must be finite"),
        (INT8, "infinity", |_, s| s.scale(9, f32::INFINITY), "scale 0 of row 9 is inf: scales must be finite"),
        (INT4, "infinity", |_, s| s.scale(9, f32::NEG_INFINITY), "scale 0 of row 9 is -inf: scales must be finite"),
        (INT8, "zero", |_, s| s.scale(9, 0.0), "scale 0 of row 9 is 0: only a block of zeros has scale 0"),
        (INT4, "negative zero", |_, s| s.scale(9, -0.0), "scale 0 of row 9 is -0: only a block of zeros has scale 0"),
        (INT8, "zeros under a scale", |v, _| v.data[54..60].fill(0), "a block of zeros has scale +0"),
        (INT4, "zeros under a scale", |v, _| v.data[27..30].fill(0), "a block of zeros has scale +0"),
        (INT8, "negative", |_, s| s.scale(9, -1.0), "scale 0 of row 9 is -1: only a block with the int4 code -8"),
        (
            INT4,
            "negative without -8",
            |v, s| {
                v.data[27..30].fill(0x79);
                s.scale(9, -1.0);
            },
            "scale 0 of row 9 is -1: only a block with the int4 code -8",
        ),
        (INT8, "padding", |v, _| v.data[3 * 6 + 5] = 1, "row 3, group 2 stores a non-zero value for a padding"),
        (INT4, "padding", |v, _| v.nibble(3, 2, 1, 1), "row 3, group 2 stores a non-zero value for a padding"),
        (INT4, "padding", |v, _| v.nibble(0, 2, 1, 15), "row 0, group 2 stores a non-zero value for a padding"),
        (INT4, "padding", |v, _| v.nibble(4, 2, 1, 8), "row 4, group 2 stores a non-zero value for a padding"),
    ];
    for (values, what, spoil, word) in cases {
        let mut parts = parts(&packed_as(values));
        let [mut codes, mut scales] = ["values", "scales"].map(|part| parts.remove(part).unwrap());
        spoil(&mut codes, &mut scales);
        parts.extend([("values".to_owned(), codes), ("scales".to_owned(), scales)]);
        refuses_under(&parts, Some(GROUP), what, word);
    }
}

/// `read_packed` itself, which unlike a file may be handed bytes of any length.
#[test]
fn lengths_that_the_shape_contradicts_are_refused() {
    let sound = parts(&packed());
    for part in ["values", "columns", "positions", "row_order"] {
        for length in [0, 1, sound[part].data.len() - 1, sound[part].data.len() + 1] {
            let mut parts = sound.clone();
            parts.get_mut(part).unwrap().data.resize(length, 0);
            let error = read_raw(&parts, SHAPE, None).unwrap_err().to_string();
            assert!(error.contains(&format!("{LAYER}.{part}")), "{error}");
        }
        let mut parts = sound.clone();
        let rows = usize::MAX / 2;
        parts.get_mut(part).unwrap().shape[0] = rows;
        assert!(read_raw(&parts, [rows, SHAPE[1]], None).is_err());
    }
}

fn read_raw(parts: &Parts, shape: [usize; 2], scale_group: Option<ScaleGroup>) -> Result<Packed> {
    let raw = |part: &str| parts.get(part).map(|t| (t.dtype, &t.shape[..], &t.data[..]));
    let (values, columns, positions) = (raw("values").unwrap(), raw("columns").unwrap(), raw("positions").unwrap());
    let scales = scale_group.map(|group| (group, raw("scales").unwrap()));
    let raw = PackedTensors { values, columns, positions, row_order: raw("row_order"), scales };
    read_packed(LAYER, pattern(), shape, &raw)
}

/// Columns come as u16 as long as every id fits, padding columns included.
#[test]
fn wide_layers_have_wide_ids() {
    for (cols, m, dtype) in [
        (65_532, 5, TensorDtype::U16),
        (65_532, 16, TensorDtype::U16),
        (65_533, 16, TensorDtype::U32),
        (70_001, 7, TensorDtype::U32),
    ] {
        let grid = Pattern::new(2, m).unwrap().grid(3, cols).unwrap();
        let columns = (0..grid.row_blocks()).flat_map(|_| (0..grid.groups()).map(|g| last_columns(&grid, g))).collect();
        let mask = Mask::new(grid, columns, vec![Pair::FIRST; 3 * grid.groups()]).unwrap();
        let packed = Packed::pack(&Matrix::zeros(3, cols), mask, Dtype::F16, None).unwrap();
        assert_eq!(parts(&packed)["columns"].dtype, dtype, "{cols}");
        assert_eq!(round_trip(&packed).unwrap(), packed, "{cols}");
    }
}

/// The last four columns that a group may list.
fn last_columns(grid: &Grid, group: usize) -> [u32; GROUP_COLUMNS] {
    let end = grid.group_range(group).end as u32;
    [end - 4, end - 3, end - 2, end - 1]
}

/// Through a safetensors file in memory.
fn round_trip(packed: &Packed) -> Result<Packed> {
    let tensors = pack_tensors(LAYER, packed);
    let file = safetensors::serialize(tensors.iter().map(|(name, t)| (name, t)), None).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let part = |part: &str| file.tensor(&format!("{LAYER}.{part}")).ok();
    let (values, columns, positions) = (part("values").unwrap(), part("columns").unwrap(), part("positions").unwrap());
    let (row_order, scales) = (part("row_order"), part("scales"));
    let group = packed.values().value_type().integers().map(|(_, group)| group);
    assert_eq!(group.is_some(), scales.is_some());
    let grid = packed.mask().grid();
    let raw = PackedTensors {
        values: (values.dtype(), values.shape(), values.data()),
        columns: (columns.dtype(), columns.shape(), columns.data()),
        positions: (positions.dtype(), positions.shape(), positions.data()),
        row_order: row_order.as_ref().map(|t| (t.dtype(), t.shape(), t.data())),
        scales: group.zip(scales.as_ref()).map(|(group, t)| (group, (t.dtype(), t.shape(), t.data()))),
    };
    read_packed(LAYER, grid.pattern(), [grid.rows(), grid.cols()], &raw)
}

fn bytes(packed: &Packed) -> Vec<Vec<u8>> {
    pack_tensors(LAYER, packed).iter().map(|(_, tensor)| tensor.data().to_vec()).collect()
}

/// A random mask over a shape that V, M and the window need not divide.
fn masks() -> impl Strategy<Value = Mask> {
    let window = prop_oneof![Just(Some(1)), (2_usize..5).prop_map(Some), Just(None)];
    let grid = (1_usize..20, 4_usize..20, window, 1_usize..20, prop_oneof![0_usize..40, 0_usize..300]);
    let grid = grid.prop_map(|(v, m, window, rows, more)| {
        let window = window.map_or(Window::All, |groups| Window::Columns(groups * m));
        Pattern::new(v, m).unwrap().with_window(window).unwrap().grid(rows, m + more).unwrap()
    });
    grid.prop_flat_map(|grid| {
        let windows: Vec<_> = (0..grid.row_blocks() * grid.windows())
            .map(|i| Just(grid.window_cols(i % grid.windows()).map(|c| c as u32).collect::<Vec<_>>()).prop_shuffle())
            .collect();
        let pair = prop::sample::select(vec![4_u8, 8, 9, 12, 13, 14]).prop_map(|c| Pair::from_code(c).unwrap());
        let pairs = prop::collection::vec(pair, grid.rows() * grid.groups());
        (windows, pairs).prop_map(move |(windows, pairs)| {
            let mut columns = vec![];
            for block in windows.chunks(grid.windows()) {
                let mut dealt = vec![];
                for (window, columns) in block.iter().enumerate() {
                    let listed = columns.iter().copied().chain(grid.cols() as u32..);
                    let listed: Vec<u32> = listed.take(grid.window_groups(window).len() * GROUP_COLUMNS).collect();
                    dealt.extend(listed.as_chunks::<GROUP_COLUMNS>().0);
                }
                grid.arrange(&mut dealt);
                columns.extend(dealt);
            }
            Mask::new(grid, columns, pairs).unwrap()
        })
    })
}

/// A random layer in any type of values, with or without a row order. The weights fit f16; among them are zeros of
/// both signs and values too small for it.
fn layers() -> impl Strategy<Value = Packed> {
    let mut types = [Dtype::F32, Dtype::F16, Dtype::Bf16].map(ValueType::from).to_vec();
    for int in [IntType::Int8, IntType::Int4] {
        types.extend([ScaleGroup::Of32, ScaleGroup::Of64, ScaleGroup::Of128].map(|group| ValueType::Int(int, group)));
    }
    let values = prop::sample::select(types);
    (masks(), values, any::<bool>()).prop_flat_map(|(mask, values, ordered)| {
        let (rows, cols) = (mask.grid().rows(), mask.grid().cols());
        let weight = prop_oneof![4 => -6e4_f32..6e4, 1 => -1e-9_f32..1e-9, 1 => Just(0.0), 1 => Just(-0.0)];
        let order = Just((0..rows as u32).collect::<Vec<_>>()).prop_shuffle();
        (prop::collection::vec(weight, rows * cols), order).prop_map(move |(weight, order)| {
            let weight = Matrix::new(rows, cols, weight).unwrap();
            let order = ordered.then(|| Permutation::new(order).unwrap());
            Packed::pack(&weight, mask.clone(), values, order).unwrap()
        })
    })
}

proptest! {
    #[test]
    fn what_is_packed_reads_back_equal(packed in layers()) {
        let again = round_trip(&packed).unwrap();
        prop_assert_eq!(&again, &packed);
        // Equality of floats takes zeros of both signs for the same; the bytes do not.
        prop_assert_eq!(bytes(&again), bytes(&packed));
        let size: usize = parts(&packed).iter().filter(|(part, _)| *part != "row_order").map(|(_, t)| t.data.len()).sum();
        prop_assert_eq!(packed_bytes(packed.mask().grid(), packed.values().value_type(), false), size);
    }

    /// One byte is changed: the layer is refused by name, or it is one that is written just like that.
    #[test]
    fn a_changed_byte_is_refused_or_believed(
        values in prop::sample::select(vec![Dtype::F32.into(), INT8, INT4]),
        part in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut parts = parts(&packed_as(values));
        let names: Vec<String> = parts.keys().cloned().collect();
        let part = &names[part.index(names.len())];
        let data = &mut parts.get_mut(part).unwrap().data;
        let at = at.index(data.len());
        data[at] = byte;
        let data = data.clone();
        match read_raw(&parts, SHAPE, values.integers().map(|(_, group)| group)) {
            Ok(read) => prop_assert_eq!(&self::parts(&read)[part].data, &data),
            Err(Error::Tensor { name, .. } | Error::Packed { layer: name, .. }) => prop_assert!(name.contains(LAYER)),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
