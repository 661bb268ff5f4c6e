//! Law: what `mma.sp` would multiply, read back lane by lane from the fragments, is the packed weight, bit for bit, whether
//! the columns are found as prefill finds them or as decode does.

#[path = "../../lacuna-kernels/tests/support/random.rs"]
mod support;

use half::f16;
use lacuna_core::{Dtype, IntType, Matrix, Packed, Pattern, ScaleGroup, ValueType};
use lacuna_cuda::{Codes, Error, HalfType, Limits, NO_COLUMN, Tiles};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const LARGE: Limits = Limits { shared_bytes: 227 << 10, multiprocessors: 132, bulk: false };
const SMALL: Limits = Limits { shared_bytes: 99 << 10, multiprocessors: 20, bulk: false };

/// How a kernel finds the column of k-row `k` of a slab.
type FindColumn = fn(&Tiles, usize, usize, usize) -> u32;

fn prefill_column(tiles: &Tiles, row: usize, slab: usize, k: usize) -> u32 {
    let (runs, of_strip) = ((64 / tiles.v()).max(1), row % 64 / tiles.v());
    let places = tiles.places()[((row / 64 * tiles.slabs() + slab) * runs + of_strip) * 32 + k % 32];
    let place = usize::from(places.to_le_bytes()[k / 32]);
    tiles.slab_columns()[(row / tiles.row_tile() * tiles.slabs() + slab) * tiles.slab_places() + place]
}

fn decode_column(tiles: &Tiles, row: usize, slab: usize, k: usize) -> u32 {
    // k = 32 step + 8 i + 2 t + odd lies at [step, t, i, odd].
    let at = k / 32 * 32 + k % 8 / 2 * 8 + k % 32 / 8 * 2 + k % 2;
    tiles.columns()[(row / tiles.v() * tiles.slabs() + slab) * 64 + at]
}

/// The value of A's register of a lane, first or second.
fn value(tiles: &Tiles, m_tile: usize, slab: usize, step: usize, lane: usize, register: usize, second: usize) -> f32 {
    let (strip_slab, m) = (m_tile / 4 * tiles.slabs() + slab, m_tile % 4);
    let scale = |row: usize| {
        let blocks = tiles.slabs().div_ceil(tiles.slabs_per_scale());
        tiles.scales()[(m_tile * blocks + slab / tiles.slabs_per_scale()) * 16 + row].to_f32()
    };
    let row = lane / 4 + 8 * (register % 2);
    match tiles.codes() {
        Codes::Float => {
            let at = (((strip_slab * 2 + step) * 4 + m) * 32 + lane) * 16 + 4 * register + 2 * second;
            tiles.half().widen(u16::from_le_bytes([tiles.values()[at], tiles.values()[at + 1]]))
        }
        Codes::Int8 => {
            let at = (((strip_slab * 4 + m) * 32 + lane) * 2 + step) * 8 + 2 * register + second;
            (f32::from(tiles.values()[at]) - 128.0) * scale(row) + 0.0
        }
        Codes::Int4 => {
            let nibble = register + 4 * second;
            let byte = tiles.values()[(((strip_slab * 4 + m) * 32 + lane) * 2 + step) * 4 + nibble / 2];
            (f32::from(byte >> (4 * (nibble % 2)) & 15) - 8.0) * scale(row) + 0.0
        }
    }
}

/// The dense weight that the fragments stand for, by PTX's layouts. Panics on two values in one place and on metadata that
/// is not in order.
fn unpack(tiles: &Tiles, find: FindColumn) -> Matrix {
    let mut dense = Matrix::zeros(tiles.rows(), tiles.cols());
    let mut seen = vec![false; tiles.rows() * tiles.cols()];
    let m_tiles = tiles.metadata().len() / tiles.slabs() / 32;
    for (m_tile, slab, step, row, chunk) in fragments(m_tiles, tiles.slabs()) {
        let (g, half) = (row % 8, row / 8);
        let lane = 4 * g + 2 * step + chunk / 4;
        let metadata = tiles.metadata()[((m_tile / 4 * tiles.slabs() + slab) * 32 + lane) * 4 + m_tile % 4];
        let nibble = (metadata >> (16 * half + 4 * (chunk % 4))) as usize & 15;
        let positions = [nibble & 3, nibble >> 2];
        assert!(positions[0] < positions[1], "metadata {nibble:x}");
        let packed_row = m_tile * 16 + row;
        for (second, position) in positions.into_iter().enumerate() {
            let value = value(tiles, m_tile, slab, step, 4 * g + chunk % 4, half + 2 * (chunk / 4), second);
            if packed_row >= tiles.rows() {
                assert_eq!(value.to_bits(), 0, "a value past the last row");
                continue;
            }
            let column = find(tiles, packed_row, slab, 32 * step + 4 * chunk + position);
            if column == NO_COLUMN {
                assert_eq!(value.to_bits(), 0, "a value without a column");
                continue;
            }
            let (row, column) = (tiles.output_rows()[packed_row] as usize, column as usize);
            assert!(!std::mem::replace(&mut seen[row * tiles.cols() + column], true), "two values in one place");
            dense.row_mut(row)[column] = value;
        }
    }
    dense
}

/// Every m-tile, slab, step, row of the tile and chunk of the step.
fn fragments(m_tiles: usize, slabs: usize) -> impl Iterator<Item = (usize, usize, usize, usize, usize)> {
    (0..m_tiles * slabs * 2 * 16 * 8).map(move |i| (i / 256 / slabs, i / 256 % slabs, i / 128 % 2, i / 8 % 16, i % 8))
}

fn bits(matrix: &Matrix) -> Vec<u32> {
    matrix.data().iter().map(|value| value.to_bits()).collect()
}

fn pattern() -> impl Strategy<Value = String> {
    let v = prop::sample::select(vec![16, 32, 64, 128, 192, 256, 512]);
    let window = prop::sample::select(vec!["", "@all", "@twice"]);
    (v, 4_usize..40, window).prop_map(|(v, m, window)| match window {
        "@twice" => format!("{v}:2:{m}@{}", 2 * m),
        window => format!("{v}:2:{m}{window}"),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn fragments_unpack_to_the_packed_weight(
        pattern in pattern(),
        rows in 1_usize..600,
        cols in 40_usize..400,
        integers in prop::sample::select(vec![None, Some(IntType::Int8), Some(IntType::Int4)]),
        group in prop::sample::select(vec![ScaleGroup::Of32, ScaleGroup::Of64, ScaleGroup::Of128]),
        half in prop::sample::select(vec![HalfType::F16, HalfType::Bf16]),
        limits in prop::sample::select(vec![LARGE, SMALL]),
        reorder: bool,
        seed: u64,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let pattern: Pattern = pattern.parse().unwrap();
        let mask = support::random_mask(&mut rng, pattern, rows, cols);
        let weight = support::random_matrix(&mut rng, rows, cols);
        let order = reorder.then(|| support::random_order(&mut rng, rows));
        let values = integers.map_or(half.dtype().into(), |int| ValueType::Int(int, group));
        let packed = Packed::pack(&weight, mask, values, order).unwrap();
        let tiles = Tiles::new(&packed, half, limits).unwrap();
        let want = bits(&packed.unpack());
        prop_assert!(bits(&unpack(&tiles, prefill_column)) == want, "as prefill reads it");
        prop_assert!(bits(&unpack(&tiles, decode_column)) == want, "as decode reads it");
    }
}

#[test]
fn floats_are_rounded_to_the_activations_type() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mask = support::random_mask(&mut rng, "64:2:8".parse().unwrap(), 64, 64);
    let packed = Packed::pack(&support::random_matrix(&mut rng, 64, 64), mask, Dtype::F32, None).unwrap();
    let rounded = packed.unpack().data().iter().map(|&w| f16::from_f32(w).to_f32()).collect();
    let tiles = Tiles::new(&packed, HalfType::F16, LARGE).unwrap();
    assert_eq!(unpack(&tiles, prefill_column), Matrix::new(64, 64, rounded).unwrap());
}

#[test]
fn what_no_kernel_runs_is_refused() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for v in [1, 8, 24, 48, 96, 100] {
        let mask = support::random_mask(&mut rng, Pattern::new(v, 8).unwrap(), 130, 64);
        let packed = Packed::pack(&support::random_matrix(&mut rng, 130, 64), mask, Dtype::F16, None).unwrap();
        let refused = Tiles::new(&packed, HalfType::F16, LARGE);
        assert!(matches!(refused, Err(Error::RowBlock { v: refused }) if refused == v), "V = {v}");
    }
    let mask = support::random_mask(&mut rng, "16:2:4".parse().unwrap(), 16, 4);
    let huge = Matrix::new(16, 4, vec![1e5; 64]).unwrap();
    let packed = Packed::pack(&huge, mask, Dtype::Bf16, None).unwrap();
    assert!(matches!(Tiles::new(&packed, HalfType::F16, LARGE), Err(Error::Overflow { row: 0, .. })));
    assert!(Tiles::new(&packed, HalfType::Bf16, LARGE).is_ok());
}
