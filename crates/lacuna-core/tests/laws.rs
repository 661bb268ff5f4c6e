//! The laws of the design, over random patterns and shapes that V and M need not divide.

use half::f16;
use lacuna_core::{
    BoolMask, Dtype, Error, GROUP_COLUMNS, Grid, IntType, Mask, Matrix, Packed, Pair, Pattern, Permutation, Quantized,
    ScaleGroup, Scores, ValueType, Values,
};
use proptest::prelude::*;

fn pattern() -> impl Strategy<Value = Pattern> {
    (1_usize..20, 4_usize..20).prop_map(|(v, m)| Pattern::new(v, m).unwrap())
}

fn grid() -> impl Strategy<Value = Grid> {
    (pattern(), 1_usize..40, 0_usize..40).prop_map(|(p, rows, more)| p.grid(rows, p.m() + more).unwrap())
}

/// A random mask: columns by drawing 4 of each group's range, pairs by drawing one of the six codes.
fn mask() -> impl Strategy<Value = Mask> {
    grid().prop_flat_map(|grid| {
        let columns: Vec<_> = (0..grid.row_blocks() * grid.groups())
            .map(|i| {
                let range: Vec<u32> = grid.group_range(i % grid.groups()).map(|c| c as u32).collect();
                prop::sample::subsequence(range, GROUP_COLUMNS).prop_map(|c| <[u32; 4]>::try_from(c).unwrap())
            })
            .collect();
        let pair = prop::sample::select(vec![4_u8, 8, 9, 12, 13, 14]).prop_map(|c| Pair::from_code(c).unwrap());
        let pairs = prop::collection::vec(pair, grid.rows() * grid.groups());
        (columns, pairs).prop_map(move |(columns, pairs)| Mask::new(grid, columns, pairs).unwrap())
    })
}

/// Any bit pattern at all, infinities, NaN and negative zero included.
fn weight(rows: usize, cols: usize) -> impl Strategy<Value = Matrix> {
    prop::collection::vec(any::<u32>().prop_map(f32::from_bits), rows * cols)
        .prop_map(move |data| Matrix::new(rows, cols, data).unwrap())
}

fn masked_weight() -> impl Strategy<Value = (Mask, Matrix)> {
    mask().prop_flat_map(|mask| {
        let (rows, cols) = (mask.grid().rows(), mask.grid().cols());
        (Just(mask), weight(rows, cols))
    })
}

fn integers() -> impl Strategy<Value = (IntType, ScaleGroup)> {
    let groups = [ScaleGroup::Of32, ScaleGroup::Of64, ScaleGroup::Of128];
    (prop::sample::select(vec![IntType::Int8, IntType::Int4]), prop::sample::select(groups.to_vec()))
}

/// A mask with rows of up to some hundred kept values, and weights within the reach of f16 scales: of one magnitude,
/// small enough at times to need subnormal scales or none, with zeros and outliers among them.
fn masked_moderate_weight() -> impl Strategy<Value = (Mask, Matrix)> {
    let shape = (1_usize..4, 4_usize..9, 1_usize..6, 0_usize..700);
    let mask = shape.prop_map(|(v, m, rows, more)| {
        let grid = Pattern::new(v, m).unwrap().grid(rows, m + more).unwrap();
        let columns = |i: usize| {
            let start = grid.group_range(i % grid.groups()).start as u32;
            [start, start + 1, start + 2, start + 3]
        };
        let columns = (0..grid.row_blocks() * grid.groups()).map(columns).collect();
        let codes = [4_u8, 8, 9, 12, 13, 14];
        let pairs = (0..rows * grid.groups()).map(|i| Pair::from_code(codes[i % 6]).unwrap()).collect();
        Mask::new(grid, columns, pairs).unwrap()
    });
    mask.prop_flat_map(|mask| {
        let (rows, cols) = (mask.grid().rows(), mask.grid().cols());
        let weight = prop_oneof![8 => -1.0_f32..1.0, 1 => Just(0.0), 1 => Just(-0.0), 1 => -9.0_f32..9.0];
        let scale = prop_oneof![(-24_i32..16).prop_map(|e| 2_f32.powi(e)), Just(1e-30)];
        (Just(mask), prop::collection::vec(weight, rows * cols), scale).prop_map(move |(mask, weight, scale)| {
            (mask, Matrix::new(rows, cols, weight.into_iter().map(|w| w * scale).collect()).unwrap())
        })
    })
}

fn quantized(packed: &Packed) -> &Quantized {
    match packed.values() {
        Values::Quantized(values) => values,
        other => panic!("{:?}", other.value_type()),
    }
}

/// The kept weights of a row, with 0 in padding columns.
fn kept(mask: &Mask, weight: &Matrix, row: usize) -> Vec<f32> {
    mask.kept(row).flatten().map(|col| weight.row(row).get(col).copied().unwrap_or(0.0)).collect()
}

fn bits(m: &Matrix) -> Vec<u32> {
    m.data().iter().map(|w| w.to_bits()).collect()
}

proptest! {
    #[test]
    fn a_pattern_prints_what_it_parses(p in pattern()) {
        prop_assert_eq!(p.to_string().parse::<Pattern>().unwrap(), p);
    }

    #[test]
    fn any_text_parses_or_is_refused(text in "[0-9:a ]{0,9}") {
        if let Ok(p) = text.parse::<Pattern>() {
            prop_assert_eq!(p.to_string().parse::<Pattern>().unwrap(), p);
        }
    }

    #[test]
    fn a_grid_covers_every_weight_once(grid in grid()) {
        let rows: Vec<usize> = (0..grid.row_blocks()).flat_map(|b| grid.block_rows(b)).collect();
        let cols: Vec<usize> = (0..grid.groups()).flat_map(|g| grid.block_cols(g)).collect();
        prop_assert_eq!(rows, (0..grid.rows()).collect::<Vec<_>>());
        prop_assert_eq!(cols, (0..grid.cols()).collect::<Vec<_>>());
        for group in 0..grid.groups() {
            prop_assert!(grid.group_range(group).len() >= GROUP_COLUMNS);
        }
    }

    #[test]
    fn every_mask_obeys_its_pattern(mask in mask()) {
        let grid = *mask.grid();
        let bools = mask.to_bools();
        let at = |r: usize, c: usize| bools.as_slice()[r * grid.cols() + c];
        for block in 0..grid.row_blocks() {
            for group in 0..grid.groups() {
                let used = grid.block_cols(group).filter(|&c| grid.block_rows(block).any(|r| at(r, c))).count();
                prop_assert!(used <= 4);
                for row in grid.block_rows(block) {
                    prop_assert!(grid.block_cols(group).filter(|&c| at(row, c)).count() <= 2);
                }
            }
        }
        prop_assert!(bools.as_slice().iter().filter(|&&k| k).count() <= grid.kept());
    }

    #[test]
    fn a_mask_survives_its_boolean_form(mask in mask()) {
        let bools = mask.to_bools();
        let back = Mask::try_from((mask.grid().pattern(), &bools)).unwrap();
        // Positions may differ where a padding column was listed; what is kept may only grow by free positions.
        let again = back.to_bools();
        prop_assert!(bools.as_slice().iter().zip(again.as_slice()).all(|(&a, &b)| !a || b));
        if mask.grid().cols() % mask.grid().pattern().m() == 0 {
            prop_assert_eq!(bools, again);
        }
    }

    #[test]
    fn a_boolean_mask_that_breaks_the_pattern_is_named(mask in mask(), seed in any::<prop::sample::Index>()) {
        let grid = *mask.grid();
        let row = seed.index(grid.rows());
        let mut keep = mask.to_bools().as_slice().to_vec();
        for col in 0..3 {
            keep[row * grid.cols() + col] = true;
        }
        let broken = BoolMask::new(grid.rows(), grid.cols(), keep).unwrap();
        let block = row / grid.pattern().v();
        match Mask::try_from((grid.pattern(), &broken)) {
            Err(Error::BreaksPattern { row, group, .. }) => {
                prop_assert!(grid.block_rows(block).contains(&row));
                prop_assert_eq!(group, 0);
            }
            other => prop_assert!(false, "{:?}", other.map(|_| ())),
        }
    }

    #[test]
    fn unpack_of_pack_is_the_masked_weight_bit_for_bit((mask, weight) in masked_weight()) {
        let want = mask.apply(&weight).unwrap();
        let packed = Packed::pack(&weight, mask, Dtype::F32, None).unwrap();
        prop_assert_eq!(bits(&packed.unpack()), bits(&want));
        let mut lost = weight.clone();
        packed.subtract_from(&mut lost).unwrap();
        let difference = |w: &Matrix, i: usize| w.data()[i] - want.data()[i];
        for i in 0..weight.data().len() {
            let (got, want) = (lost.data()[i], difference(&weight, i));
            prop_assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan());
        }
    }

    #[test]
    fn bf16_values_round_once((mask, weight) in masked_weight()) {
        let round = |w: &f32| half::bf16::from_f32(*w).to_f32();
        let rounded = Matrix::new(weight.rows(), weight.cols(), weight.data().iter().map(round).collect()).unwrap();
        let want = mask.apply(&rounded).unwrap();
        // Refused just where a kept weight that was finite would become infinite.
        let kept = mask.apply(&weight).unwrap();
        let overflows = kept.data().iter().zip(want.data()).any(|(w, r)| w.is_finite() && r.is_infinite());
        match Packed::pack(&weight, mask, Dtype::Bf16, None) {
            Ok(packed) => {
                prop_assert!(!overflows);
                prop_assert_eq!(bits(&packed.unpack()), bits(&want));
            }
            Err(e) => prop_assert!(overflows && matches!(e, Error::Overflow { .. }), "{e}"),
        }
    }

    #[test]
    fn a_row_order_changes_no_weight((mask, weight) in masked_weight(), shift in 0_usize..40) {
        let rows = weight.rows();
        let order = Permutation::new((0..rows).map(|r| ((r + shift) % rows) as u32).collect()).unwrap();
        let want = order.inverse().permute_rows(&mask.apply(&order.permute_rows(&weight).unwrap()).unwrap()).unwrap();
        let packed = Packed::pack(&weight, mask, Dtype::F32, Some(order)).unwrap();
        prop_assert_eq!(bits(&packed.unpack()), bits(&want));
    }

    #[test]
    fn row_bands_stack_to_the_whole((mask, weight) in masked_weight(), blocks in 1_usize..4) {
        let (grid, whole) = (*mask.grid(), Packed::pack(&weight, mask.clone(), Dtype::F32, None).unwrap());
        let band = blocks * grid.pattern().v();
        let parts: Vec<Packed> = (0..grid.rows()).step_by(band).map(|start| {
            let end = (start + band).min(grid.rows());
            let (first, last) = (start / grid.pattern().v(), end.div_ceil(grid.pattern().v()));
            let columns = mask.all_columns()[first * grid.groups()..last * grid.groups()].to_vec();
            let pairs = (start..end).flat_map(|row| mask.row_pairs(row).to_vec()).collect();
            let part = Mask::new(grid.pattern().grid(end - start, grid.cols()).unwrap(), columns, pairs).unwrap();
            let rows = weight.data()[start * grid.cols()..end * grid.cols()].to_vec();
            Packed::pack(&Matrix::new(end - start, grid.cols(), rows).unwrap(), part, Dtype::F32, None).unwrap()
        }).collect();
        let stacked = Packed::stack(parts).unwrap();
        prop_assert_eq!(stacked.mask(), whole.mask());
        prop_assert_eq!(bits(&stacked.unpack()), bits(&whole.unpack()));
    }

    #[test]
    fn integers_unpack_to_their_codes_times_their_scales(
        (mask, weight) in masked_moderate_weight(),
        (int, group) in integers(),
        shift in 0_usize..6,
    ) {
        let rows = weight.rows();
        let order = Permutation::new((0..rows).map(|r| ((r + shift) % rows) as u32).collect()).unwrap();
        let packed = Packed::pack(&weight, mask.clone(), ValueType::Int(int, group), Some(order)).unwrap();
        let values = quantized(&packed);
        let per_row = mask.grid().kept_per_row();
        prop_assert_eq!((values.int(), values.group(), values.kept_per_row()), (int, group, per_row));
        let blocks = per_row.div_ceil(group.values());
        prop_assert_eq!((values.codes().len(), values.scales().len()), (rows * per_row, rows * blocks));
        let mut want = Matrix::zeros(rows, weight.cols());
        for row in 0..rows {
            for (i, col) in mask.kept(row).flatten().enumerate() {
                let code = f32::from(values.codes()[row * per_row + i]);
                let value = code * values.scales()[row * blocks + i / group.values()].to_f32();
                // Zeros are positive whatever the sign of the scale.
                let value = if value == 0.0 { 0.0 } else { value };
                prop_assert_eq!(packed.values().get(row * per_row + i).to_bits(), value.to_bits());
                if let Some(place) = want.row_mut(packed.output_row(row)).get_mut(col) {
                    *place = value;
                }
            }
        }
        prop_assert_eq!(bits(&packed.unpack()), bits(&want));
        // What was chosen is what may be written.
        let (codes, scales) = (values.codes().to_vec(), values.scales().to_vec());
        let again = Quantized::from_parts(int, group, per_row, codes, scales).unwrap();
        let order = packed.row_order().cloned();
        prop_assert_eq!(Packed::from_parts(mask, Values::Quantized(again), order).unwrap(), packed);
    }

    /// The nearest code is at most half a scale away. Dividing in f32 moves a quotient below 128 by at most 2^-18, so
    /// that a value closer than that to a tie may go to the farther side. Where the smallest subnormal stands in for
    /// a smaller scale, or a block is taken for zeros because of it, it is half of that one.
    #[test]
    fn int8_is_within_half_a_scale((mask, weight) in masked_moderate_weight(), (_, group) in integers()) {
        let packed = Packed::pack(&weight, mask.clone(), ValueType::Int(IntType::Int8, group), None).unwrap();
        let values = quantized(&packed);
        for row in 0..weight.rows() {
            for (block, kept) in kept(&mask, &weight, row).chunks(group.values()).enumerate() {
                let scale = values.scales()[row * values.blocks() + block].to_f32();
                let largest = kept.iter().fold(0.0_f32, |m, w| m.max(w.abs()));
                let exact = largest / 127.0;
                // To nearest, an f16 is off by a 2048th, or by half the smallest subnormal; up, by all of that.
                prop_assert!((scale - exact).abs() <= (exact / 2048.0).max(2_f32.powi(-24)), "{scale} for {exact}");
                let bound = scale.max(2_f32.powi(-24)) * (0.5 + 2_f32.powi(-18));
                for (i, &w) in kept.iter().enumerate() {
                    let value = packed.values().get(row * values.kept_per_row() + block * group.values() + i);
                    prop_assert!((w - value).abs() <= bound, "{w} became {value} under {scale}");
                }
            }
        }
    }

    /// Against codes -7 to 7 under the largest magnitude / 7, rounded to f16. Sums of at most 128 squares in f32, 8 side
    /// by side, are off by at most (16 + 8 + 3) · 2^-24 of themselves, on both sides of the comparison that chose.
    #[test]
    fn int4_loses_no_more_than_the_symmetric_scheme((mask, weight) in masked_moderate_weight(), (_, group) in integers()) {
        let packed = Packed::pack(&weight, mask.clone(), ValueType::Int(IntType::Int4, group), None).unwrap();
        let values = quantized(&packed);
        for row in 0..weight.rows() {
            for (block, kept) in kept(&mask, &weight, row).chunks(group.values()).enumerate() {
                let scale = f16::from_f32(kept.iter().fold(0.0_f32, |m, w| m.max(w.abs())) / 7.0).to_f64();
                let symmetric = |w: f64| if scale == 0.0 { 0.0 } else { (w / scale).round().clamp(-7.0, 7.0) * scale };
                let own = |i: usize| packed.values().get(row * values.kept_per_row() + block * group.values() + i);
                let (mut lost, mut limit) = (0.0, 0.0);
                for (i, &w) in kept.iter().enumerate() {
                    lost += (f64::from(w) - f64::from(own(i))).powi(2);
                    limit += (f64::from(w) - symmetric(f64::from(w))).powi(2);
                }
                prop_assert!(lost <= limit * (1.0 + 4e-6), "{lost} where {limit} is plain");
            }
        }
    }

    #[test]
    fn integer_row_bands_stack_to_the_whole((mask, weight) in masked_moderate_weight(), (int, group) in integers()) {
        let (grid, values) = (*mask.grid(), ValueType::Int(int, group));
        let v = grid.pattern().v();
        let parts = (0..grid.row_blocks()).map(|block| {
            let rows = grid.block_rows(block);
            let columns = mask.all_columns()[block * grid.groups()..(block + 1) * grid.groups()].to_vec();
            let pairs = rows.clone().flat_map(|row| mask.row_pairs(row).to_vec()).collect();
            let part = Mask::new(grid.pattern().grid(rows.len(), grid.cols()).unwrap(), columns, pairs).unwrap();
            Packed::pack(&weight.band(rows), part, values, None).unwrap()
        });
        let mut parts: Vec<Packed> = parts.collect();
        prop_assert_eq!(parts.len(), grid.rows().div_ceil(v));
        let stacked = Packed::stack(parts.clone()).unwrap();
        prop_assert_eq!(stacked, Packed::pack(&weight, mask, values, None).unwrap());
        // Rows of another kind do not join.
        let last = parts.last_mut().unwrap();
        let other = ScaleGroup::new(group.values() % 128 * 2).unwrap_or(ScaleGroup::Of32);
        *last = Packed::pack(&last.unpack(), last.mask().clone(), ValueType::Int(int, other), None).unwrap();
        prop_assert_eq!(Packed::stack(parts.clone()).is_err(), parts.len() > 1);
    }

    #[test]
    fn a_permutation_is_a_bijection(order in prop::collection::vec(0_u32..8, 0..8)) {
        let mut sorted = order.clone();
        sorted.sort_unstable();
        let bijective = sorted.iter().enumerate().all(|(i, &v)| i as u32 == v);
        match Permutation::new(order) {
            Ok(p) => {
                prop_assert!(bijective);
                let inverse = p.inverse();
                let id: Vec<u32> = p.as_slice().iter().map(|&i| inverse.as_slice()[i as usize]).collect();
                prop_assert_eq!(id, (0..p.len() as u32).collect::<Vec<_>>());
            }
            Err(_) => prop_assert!(!bijective),
        }
    }

    #[test]
    fn orders_of_columns_and_rows_compose(
        keys in prop::collection::vec(any::<(u32, u32)>(), 1..21),
        values in prop::collection::vec(-9_i8..9, 40),
    ) {
        let sorted_by = |key: fn(&(u32, u32)) -> u32| {
            let mut order: Vec<u32> = (0..keys.len() as u32).collect();
            order.sort_by_key(|&i| key(&keys[i as usize]));
            Permutation::new(order).unwrap()
        };
        let (first, second) = (sorted_by(|k| k.0), sorted_by(|k| k.1));
        let data: Vec<f32> = values[..keys.len() * 2].iter().map(|&v| v.into()).collect();
        let wide = Matrix::new(2, keys.len(), data).unwrap();
        let columns = first.permute_columns(&wide).unwrap();
        prop_assert_eq!(columns.transposed(), first.permute_rows(&wide.transposed()).unwrap());
        let both = first.then(&second).unwrap();
        prop_assert_eq!(second.permute_columns(&columns).unwrap(), both.permute_columns(&wide).unwrap());
        prop_assert_eq!(first.then(&first.inverse()).unwrap(), Permutation::identity(keys.len()));
        let longer = Permutation::identity(keys.len() + 1);
        prop_assert!(first.then(&longer).is_err() && longer.permute_columns(&wide).is_err());
    }

    #[test]
    fn the_best_pair_keeps_the_most(values in prop::array::uniform4(0.0_f32..1.0)) {
        let kept: f32 = Pair::top_two(values).positions().iter().map(|&p| values[p]).sum();
        for code in [4, 8, 9, 12, 13, 14] {
            let other: f32 = Pair::from_code(code).unwrap().positions().iter().map(|&p| values[p]).sum();
            prop_assert!(kept >= other);
        }
    }
}

#[test]
fn patterns_out_of_range_are_refused() {
    for text in
        ["", "2:5", "1:4", "64:8", "0:2:8", "64:2:3", "64:1:8", "64:2:", ":2:8", "+1:2:8", "64:2:8:1", "70000:2:8"]
    {
        assert!(text.parse::<Pattern>().is_err(), "{text}");
    }
    assert_eq!("2:4".parse::<Pattern>(), "64:2:4".parse::<Pattern>());
    assert!("64:2:8".parse::<Pattern>().unwrap().grid(64, 7).is_err());
}

#[test]
fn m_that_does_not_divide_leaves_a_narrow_group() {
    // 4096 = 819 * 5 + 1: the last group has one real column and three of padding.
    let grid = "64:2:5".parse::<Pattern>().unwrap().grid(4096, 4096).unwrap();
    assert_eq!((grid.groups(), grid.block_cols(819), grid.group_range(819)), (820, 4095..4096, 4095..4099));
    assert_eq!(grid.kept(), 4096 * (819 * 2 + 1));
}

#[test]
fn a_mask_refuses_what_its_pattern_forbids() {
    let grid = "2:2:4".parse::<Pattern>().unwrap().grid(2, 6).unwrap();
    let pairs = vec![Pair::FIRST; 4];
    assert!(Mask::new(grid, vec![[0, 1, 2, 3], [4, 5, 6, 7]], pairs.clone()).is_ok());
    for bad in [[0, 1, 2, 2], [3, 2, 1, 0], [0, 1, 2, 4]] {
        let refused = Mask::new(grid, vec![bad, [4, 5, 6, 7]], pairs.clone());
        assert!(matches!(refused, Err(Error::BadColumns { block: 0, group: 0, .. })), "{bad:?}");
    }
    assert!(matches!(Mask::new(grid, vec![[0, 1, 2, 3]], pairs), Err(Error::Length { .. })));
    for code in [0, 1, 2, 3, 5, 6, 7, 10, 11, 15, 16, 255] {
        assert_eq!(Pair::from_code(code), None, "{code}");
    }
}

#[test]
fn values_that_f16_cannot_hold_are_refused() {
    let weight = Matrix::new(1, 4, vec![1e6, 0.0, 1.0, 0.5]).unwrap();
    let mask = Mask::try_from(("1:2:4".parse().unwrap(), &BoolMask::non_zero(&Matrix::zeros(1, 4)))).unwrap();
    assert!(matches!(Packed::pack(&weight, mask.clone(), Dtype::F16, None), Err(Error::Overflow { .. })));
    // Around the largest value of each type: refused just where rounding gives infinity.
    for dtype in [Dtype::F16, Dtype::Bf16] {
        let edge: f32 = if dtype == Dtype::F16 { 65_520.0 } else { f32::from_bits(0x7f7f_8000) };
        for bits in edge.to_bits() - 3..edge.to_bits() + 3 {
            let weight = Matrix::new(1, 4, vec![0.0, -f32::from_bits(bits), 1.0, 1.0]).unwrap();
            let packed = Packed::pack(&weight, mask.clone(), dtype, None);
            let infinite = match dtype {
                Dtype::F16 => half::f16::from_f32(f32::from_bits(bits)).is_infinite(),
                _ => half::bf16::from_f32(f32::from_bits(bits)).is_infinite(),
            };
            assert_eq!(packed.is_err(), infinite, "{dtype:?} {bits:x}");
        }
    }
}

/// One row of four columns of which the first two are kept.
fn pack_two(a: f32, b: f32, values: ValueType) -> Result<Packed, Error> {
    let grid = Pattern::new(1, 4).unwrap().grid(1, 4).unwrap();
    let mask = Mask::new(grid, vec![[0, 1, 2, 3]], vec![Pair::FIRST]).unwrap();
    Packed::pack(&Matrix::new(1, 4, vec![a, b, f32::NAN, f32::INFINITY]).unwrap(), mask, values, None)
}

#[test]
fn values_that_no_scale_reaches_are_refused() {
    for (int, reach) in [(IntType::Int8, 127.0), (IntType::Int4, 8.0)] {
        let values = ValueType::Int(int, ScaleGroup::Of32);
        // 65520 is the tie between the largest f16 and infinity, which goes to infinity.
        let edge = 65_520.0 * reach;
        for sign in [1.0, -1.0] {
            assert!(pack_two(1.0, sign * (edge - 4.0), values).is_ok(), "{int:?}");
            for bad in [sign * edge, sign * f32::MAX, sign * f32::INFINITY, f32::NAN] {
                match pack_two(1.0, bad, values) {
                    Err(Error::Overflow { row: 0, value, dtype }) => {
                        assert_eq!((value.to_bits(), dtype), (bad.to_bits(), int.name()));
                    }
                    other => panic!("{int:?} {bad}: {other:?}"),
                }
            }
        }
    }
}

#[test]
fn blocks_are_written_in_one_way() {
    let block = |a, b, int| {
        let packed = pack_two(a, b, ValueType::Int(int, ScaleGroup::Of128)).unwrap();
        let values = quantized(&packed);
        (values.codes().to_vec(), values.scales()[0].to_f32())
    };
    for int in [IntType::Int8, IntType::Int4] {
        for (a, b) in [(0.0, -0.0), (-0.0, -0.0), (1e-30, -1e-30)] {
            let (codes, scale) = block(a, b, int);
            assert_eq!((codes, scale.to_bits()), (vec![0, 0], 0), "{int:?} {a} {b}");
        }
    }
    assert_eq!(block(-127.0, 3.0, IntType::Int8), (vec![-127, 3], 1.0));
    // The extreme takes -8 by a scale of its opposite sign, where that is exact and a positive one is not.
    assert_eq!(block(8.0, 3.0, IntType::Int4), (vec![-8, -3], -1.0));
    assert_eq!(block(-8.0, 3.0, IntType::Int4), (vec![-8, 3], 1.0));
    assert_eq!(block(7.0, -3.0, IntType::Int4), (vec![7, -3], 1.0));
    assert_eq!(block(-7.0, 3.0, IntType::Int4), (vec![-7, 3], 1.0));
}

#[test]
fn second_ways_to_write_a_block_are_refused() {
    use IntType::{Int4, Int8};
    let one = |int, codes: &[i8], scale: f32| {
        Quantized::from_parts(int, ScaleGroup::Of32, codes.len(), codes.to_vec(), vec![f16::from_f32(scale)])
    };
    for (int, codes, scale) in [
        (Int8, [-127, 127], 1.0),
        (Int8, [0, 0], 0.0),
        (Int4, [-8, 7], 0.5),
        (Int4, [-8, 7], -0.5),
        (Int4, [0, 1], 6e-8),
    ] {
        assert!(one(int, &codes, scale).is_ok(), "{int:?} {codes:?} {scale}");
    }
    for (int, codes, scale) in [
        (Int8, [1, 2], f32::NAN),
        (Int8, [1, 2], f32::INFINITY),
        (Int4, [1, -8], f32::NEG_INFINITY),
        (Int8, [1, 0], 0.0),
        (Int4, [-8, 0], -0.0),
        (Int8, [0, 0], -0.0),
        (Int8, [0, 0], 1.0),
        (Int8, [1, 127], -1.0),
        (Int4, [-7, 7], -1.0),
    ] {
        let refused = one(int, &codes, scale);
        assert!(matches!(refused, Err(Error::BadScale { row: 0, block: 0, .. })), "{int:?} {codes:?} {scale}");
    }
    for (int, code) in [(Int8, -128), (Int4, -9), (Int4, 8), (Int4, 127), (Int4, -128)] {
        assert!(matches!(one(int, &[1, code], 1.0), Err(Error::BadCode { row: 0, .. })), "{int:?} {code}");
    }
    for (per_row, codes, scales) in [(2, 3, 1), (2, 4, 1), (0, 1, 0), (34, 68, 3)] {
        let scales = vec![f16::ONE; scales];
        let refused = Quantized::from_parts(Int8, ScaleGroup::Of32, per_row, vec![1; codes], scales);
        assert!(matches!(refused, Err(Error::Length { .. })), "{per_row} {codes}");
    }
}

#[test]
fn integers_in_padding_columns_and_of_other_rows_are_refused() {
    // One real column in the second group, three of padding.
    let grid = Pattern::new(1, 4).unwrap().grid(1, 5).unwrap();
    let mask = Mask::new(grid, vec![[0, 1, 2, 3], [4, 5, 6, 7]], vec![Pair::FIRST; 2]).unwrap();
    let values = |per_row, codes: &[i8]| {
        let scales = vec![f16::ONE; codes.len() / per_row];
        let values = Quantized::from_parts(IntType::Int4, ScaleGroup::Of32, per_row, codes.to_vec(), scales);
        Packed::from_parts(mask.clone(), Values::Quantized(values.unwrap()), None)
    };
    assert!(values(4, &[1, 2, 3, 0]).is_ok());
    assert!(matches!(values(4, &[1, 2, 3, -1]), Err(Error::PaddingValue { row: 0, group: 1 })));
    assert!(matches!(values(2, &[1, 2, 3, 0]), Err(Error::Length { .. })));
    assert!(matches!(values(2, &[1, 2]), Err(Error::Length { .. })));
}

#[test]
fn scores_refuse_nan_infinity_and_negatives() {
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let scores = Scores::new(Matrix::new(1, 2, vec![0.0, bad]).unwrap());
        assert!(matches!(scores, Err(Error::BadScore { row: 0, col: 1, .. })));
    }
}
