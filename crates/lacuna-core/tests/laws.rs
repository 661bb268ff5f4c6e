//! The laws of the design, over random patterns and shapes that V and M need not divide.

use lacuna_core::{
    BoolMask, Dtype, Error, GROUP_COLUMNS, Grid, Mask, Matrix, Packed, Pair, Pattern, Permutation, Scores, Window,
};
use proptest::prelude::*;

/// Each group in its own M columns.
fn grouped() -> impl Strategy<Value = Pattern> {
    (1_usize..20, 4_usize..20).prop_map(|(v, m)| Pattern::new(v, m).unwrap())
}

fn pattern() -> impl Strategy<Value = Pattern> {
    let window = prop_oneof![2 => (1_usize..5).prop_map(Some), 1 => Just(None)];
    (grouped(), window).prop_map(|(p, groups)| {
        let window = groups.map_or(Window::All, |groups| Window::Columns(groups * p.m()));
        p.with_window(window).unwrap()
    })
}

fn grid_of(pattern: impl Strategy<Value = Pattern>) -> impl Strategy<Value = Grid> {
    (pattern, 1_usize..40, 0_usize..40).prop_map(|(p, rows, more)| p.grid(rows, p.m() + more).unwrap())
}

fn grid() -> impl Strategy<Value = Grid> {
    grid_of(pattern())
}

/// A random mask: the columns of each window shuffled and dealt to its groups, pairs by drawing one of the six codes.
fn mask_of(grid: impl Strategy<Value = Grid>) -> impl Strategy<Value = Mask> {
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
                    let padding = grid.cols() as u32..;
                    let groups = grid.window_groups(window).len();
                    let listed: Vec<u32> =
                        columns.iter().copied().chain(padding).take(groups * GROUP_COLUMNS).collect();
                    dealt.extend(listed.as_chunks::<GROUP_COLUMNS>().0);
                }
                grid.arrange(&mut dealt);
                columns.extend(dealt);
            }
            Mask::new(grid, columns, pairs).unwrap()
        })
    })
}

fn mask() -> impl Strategy<Value = Mask> {
    mask_of(grid())
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

fn bits(m: &Matrix) -> Vec<u32> {
    m.data().iter().map(|w| w.to_bits()).collect()
}

proptest! {
    #[test]
    fn a_pattern_prints_what_it_parses(p in pattern()) {
        prop_assert_eq!(p.to_string().parse::<Pattern>().unwrap(), p);
    }

    #[test]
    fn any_text_parses_or_is_refused(text in "([0-9:a ]{0,9}|[0-9]{1,2}:2:[0-9]{1,2}@([0-9]{1,3}|all|[@a:]))") {
        if let Ok(p) = text.parse::<Pattern>() {
            prop_assert_eq!(p.to_string().parse::<Pattern>().unwrap(), p);
        }
    }

    #[test]
    fn a_grid_covers_every_weight_once(grid in grid()) {
        let rows: Vec<usize> = (0..grid.row_blocks()).flat_map(|b| grid.block_rows(b)).collect();
        let cols: Vec<usize> = (0..grid.windows()).flat_map(|w| grid.window_cols(w)).collect();
        let groups: Vec<usize> = (0..grid.windows()).flat_map(|w| grid.window_groups(w)).collect();
        prop_assert_eq!(rows, (0..grid.rows()).collect::<Vec<_>>());
        prop_assert_eq!(cols, (0..grid.cols()).collect::<Vec<_>>());
        prop_assert_eq!(groups, (0..grid.groups()).collect::<Vec<_>>());
        prop_assert!(grid.padding() < GROUP_COLUMNS);
        for window in 0..grid.windows() {
            let last = grid.group_range(grid.window_groups(window).end - 1);
            prop_assert!(last.len() >= GROUP_COLUMNS * grid.window_groups(window).len());
            for group in grid.window_groups(window) {
                prop_assert_eq!(grid.block_cols(group), grid.window_cols(window));
            }
        }
    }

    #[test]
    fn every_mask_obeys_its_pattern(mask in mask()) {
        let grid = *mask.grid();
        let bools = mask.to_bools();
        let at = |r: usize, c: usize| bools.as_slice()[r * grid.cols() + c];
        for block in 0..grid.row_blocks() {
            let mut listed = vec![0; grid.cols()];
            for group in 0..grid.groups() {
                let columns = mask.columns(block, group).map(|c| c as usize);
                prop_assert!(columns.iter().all(|c| grid.group_range(group).contains(c)));
                let real: Vec<usize> = columns.into_iter().filter(|&c| c < grid.cols()).collect();
                for &c in &real {
                    listed[c] += 1;
                }
                for row in grid.block_rows(block) {
                    prop_assert!(real.iter().filter(|&&c| at(row, c)).count() <= 2);
                }
            }
            prop_assert!(listed.iter().all(|&times| times <= 1));
            for (c, times) in listed.into_iter().enumerate() {
                prop_assert!(times == 1 || grid.block_rows(block).all(|r| !at(r, c)));
            }
        }
        prop_assert!(bools.as_slice().iter().filter(|&&k| k).count() <= grid.kept());
    }

    /// Groups that change places, or share a column, are refused.
    #[test]
    fn a_mask_is_written_in_one_way(mask in mask(), one in any::<prop::sample::Index>()) {
        let grid = *mask.grid();
        let pairs: Vec<Pair> = (0..grid.rows()).flat_map(|row| mask.row_pairs(row).to_vec()).collect();
        let columns = mask.all_columns().to_vec();
        prop_assert_eq!(Mask::new(grid, columns.clone(), pairs.clone()).unwrap(), mask);
        let group = one.index(grid.groups());
        let window = (0..grid.windows()).find(|&w| grid.window_groups(w).contains(&group)).unwrap();
        if group + 1 < grid.window_groups(window).end {
            let mut swapped = columns.clone();
            swapped.swap(group, group + 1);
            let refused = Mask::new(grid, swapped, pairs.clone()).unwrap_err();
            let named = matches!(refused, Error::GroupOrder { block: 0, .. } | Error::BadColumns { block: 0, .. });
            prop_assert!(named, "{refused}");
            let mut shared = columns;
            shared[group + 1][0] = shared[group][0];
            let refused = Mask::new(grid, shared, pairs).unwrap_err();
            let named = matches!(refused, Error::SharedColumn { block: 0, .. } | Error::BadColumns { block: 0, .. });
            prop_assert!(named, "{refused}");
        }
    }

    #[test]
    fn a_mask_covers_what_it_keeps_and_no_more(mask in mask(), at in any::<prop::sample::Index>()) {
        let bools = mask.to_bools();
        mask.covers(&bools).unwrap();
        let (rows, cols) = (mask.grid().rows(), mask.grid().cols());
        let mut keep = bools.as_slice().to_vec();
        let i = at.index(keep.len());
        let kept = std::mem::replace(&mut keep[i], true);
        let more = BoolMask::new(rows, cols, keep).unwrap();
        let want = if kept { Ok(()) } else { Err(Error::NotKept { row: i / cols, col: i % cols }) };
        prop_assert_eq!(mask.covers(&more), want);
    }

    #[test]
    fn a_mask_survives_its_boolean_form(mask in mask_of(grid_of(grouped()))) {
        let bools = mask.to_bools();
        let back = Mask::try_from((mask.grid().pattern(), &bools)).unwrap();
        // Positions may differ where a padding column was listed; what is kept may only grow by free positions.
        let again = back.to_bools();
        prop_assert!(bools.as_slice().iter().zip(again.as_slice()).all(|(&a, &b)| !a || b));
        if mask.grid().cols() % mask.grid().pattern().m() == 0 {
            prop_assert_eq!(bools, again);
        }
        let window = mask.grid().pattern().with_window(Window::All).unwrap();
        prop_assert!(matches!(Mask::try_from((window, &back.to_bools())), Err(Error::WindowOfBools(_))));
    }

    #[test]
    fn a_boolean_mask_that_breaks_the_pattern_is_named(
        mask in mask_of(grid_of(grouped())),
        seed in any::<prop::sample::Index>(),
    ) {
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
        let blocks = (0..grid.row_blocks()).map(|block| mask.block(block).unwrap()).collect();
        prop_assert_eq!(&Mask::stack(blocks).unwrap(), &mask);
        prop_assert_eq!(stacked.mask(), whole.mask());
        prop_assert_eq!(bits(&stacked.unpack()), bits(&whole.unpack()));
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
    for text in ["64:2:8@", "@8", "64:2:8@8@8", "64:2:8@+8", "64:2:8@al", "64:2:8@12", "64:2:8@0", "64:2:8@65544"] {
        assert!(text.parse::<Pattern>().is_err(), "{text}");
    }
    let refused = "64:2:5@512".parse::<Pattern>().unwrap_err().to_string();
    assert!(refused.contains("64:2:5@512") && refused.contains("@510"), "{refused}");
    assert_eq!("2:4".parse::<Pattern>(), "64:2:4".parse::<Pattern>());
    assert_eq!("64:2:8@8".parse::<Pattern>(), "64:2:8".parse::<Pattern>());
    assert_eq!("2:4@128".parse::<Pattern>().unwrap().to_string(), "2:4@128");
    let pattern = Pattern::new(64, 5).unwrap();
    for (columns, window) in [(512, 510), (4, 5), (0, 5), (70_000, 65_535)] {
        assert_eq!(pattern.with_window_up_to(columns).window(), Window::Columns(window));
    }
    assert!("64:2:8".parse::<Pattern>().unwrap().grid(64, 7).is_err());
}

#[test]
fn m_that_does_not_divide_leaves_a_narrow_group() {
    // 4096 = 819 * 5 + 1: the last group has one real column and three of padding.
    let grid = "64:2:5".parse::<Pattern>().unwrap().grid(4096, 4096).unwrap();
    assert_eq!((grid.groups(), grid.block_cols(819), grid.group_range(819)), (820, 4095..4096, 4095..4099));
    assert_eq!(grid.kept(), 4096 * (819 * 2 + 1));
    // Among all columns it has four to choose; 16 of 4 have too few for four groups of five.
    let grid = "64:2:5@all".parse::<Pattern>().unwrap().grid(4096, 4096).unwrap();
    assert_eq!((grid.groups(), grid.windows(), grid.group_range(819)), (820, 1, 0..4096));
    assert_eq!((grid.padding(), grid.kept()), (0, 4096 * 820 * 2));
    let grid = "64:2:4@all".parse::<Pattern>().unwrap().grid(1, 17).unwrap();
    assert_eq!((grid.groups(), grid.group_range(3), grid.group_range(4)), (5, 0..17, 0..20));
    assert_eq!((grid.padding(), grid.kept()), (3, 9));
    let grid = "64:2:4@8".parse::<Pattern>().unwrap().grid(1, 18).unwrap();
    assert_eq!((grid.windows(), grid.block_cols(3), grid.group_range(4)), (3, 8..16, 16..20));
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
    // Three groups of a window that all columns and three of padding fill.
    let grid = "2:2:4@all".parse::<Pattern>().unwrap().grid(2, 9).unwrap();
    let of = |columns: [[u32; 4]; 3]| Mask::new(grid, columns.to_vec(), vec![Pair::FIRST; 6]);
    assert!(of([[1, 3, 5, 7], [2, 4, 6, 8], [0, 9, 10, 11]]).is_ok());
    for (group, bad) in [
        (1, [[1, 3, 5, 7], [0, 9, 10, 11], [2, 4, 6, 8]]),
        (0, [[0, 9, 10, 11], [1, 3, 5, 7], [2, 4, 6, 8]]),
        (1, [[1, 3, 5, 7], [2, 4, 6, 9], [0, 8, 10, 11]]),
        (2, [[1, 3, 5, 7], [2, 4, 6, 8], [0, 9, 10, 12]]),
    ] {
        assert!(matches!(of(bad), Err(Error::BadColumns { block: 0, group: g, .. }) if g == group), "{bad:?}");
    }
    let shared = of([[1, 3, 5, 7], [2, 4, 6, 8], [1, 9, 10, 11]]);
    assert_eq!(shared, Err(Error::SharedColumn { block: 0, group: 2, column: 1 }));
    let swapped = of([[2, 4, 6, 8], [1, 3, 5, 7], [0, 9, 10, 11]]);
    assert_eq!(swapped, Err(Error::GroupOrder { block: 0, group: 1 }));
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

#[test]
fn scores_refuse_nan_infinity_and_negatives() {
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        let scores = Scores::new(Matrix::new(1, 2, vec![0.0, bad]).unwrap());
        assert!(matches!(scores, Err(Error::BadScore { row: 0, col: 1, .. })));
    }
}
