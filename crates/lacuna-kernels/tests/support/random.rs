//! Random weights of every pattern, for the tests of kernels, here and in lacuna-cuda.

#![allow(dead_code, reason = "each test program uses a part")]

use lacuna_core::{GROUP_COLUMNS, Mask, Matrix, Pair, Pattern, Permutation};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

pub fn random_matrix(rng: &mut ChaCha8Rng, rows: usize, cols: usize) -> Matrix {
    Matrix::new(rows, cols, (0..rows * cols).map(|_| rng.random_range(-1.0..1.0)).collect()).unwrap()
}

pub fn random_order(rng: &mut ChaCha8Rng, rows: usize) -> Permutation {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    order.shuffle(rng);
    Permutation::new(order).unwrap()
}

pub fn random_mask(rng: &mut ChaCha8Rng, pattern: Pattern, rows: usize, cols: usize) -> Mask {
    let grid = pattern.grid(rows, cols).unwrap();
    let mut columns = vec![];
    for _ in 0..grid.row_blocks() {
        let mut block: Vec<[u32; GROUP_COLUMNS]> = vec![];
        for window in 0..grid.windows() {
            let mut dealt: Vec<u32> = grid.window_cols(window).map(|c| c as u32).collect();
            dealt.shuffle(rng);
            dealt.extend(cols as u32..(cols + grid.padding()) as u32);
            block.extend(&dealt.as_chunks().0[..grid.window_groups(window).len()]);
        }
        grid.arrange(&mut block);
        columns.extend(block);
    }
    let mut pair = || Pair::from_code([4, 8, 9, 12, 13, 14][rng.random_range(0..6)]).unwrap();
    let pairs = (0..rows * grid.groups()).map(|_| pair()).collect();
    Mask::new(grid, columns, pairs).unwrap()
}
