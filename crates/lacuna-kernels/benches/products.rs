//! A quick look at the kernels while working on them: `cargo bench -p lacuna-kernels`, and a filter such as `-- int4`.
//!
//! One weight a case, so that small ones stay in the cache; items are the multiply-adds of the dense product. What is
//! claimed is measured by `lacuna bench --kernels`, beside rivals.

use std::fmt;

use divan::Bencher;
use divan::counter::ItemsCount;
use lacuna_core::{Dtype, GROUP_COLUMNS, IntType, Mask, Matrix, Packed, Pair, Pattern, ScaleGroup, ValueType, Values};
use lacuna_kernels::{Activations, Weight, dense, sparse};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

// As the command has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SHAPES: [[usize; 2]; 2] = [[4096, 4096], [896, 4864]];
const TOKENS: [usize; 3] = [1, 16, 256];
const VALUES: [ValueType; 4] = [
    ValueType::Float(Dtype::Bf16),
    ValueType::Float(Dtype::F32),
    ValueType::Int(IntType::Int8, ScaleGroup::Of32),
    ValueType::Int(IntType::Int4, ScaleGroup::Of32),
];
const PATTERN: &str = "64:2:8";

fn main() {
    // Inside the pool, as a model runs its layers.
    rayon::scope(|_| divan::main());
}

/// What is multiplied.
struct Case {
    shape: [usize; 2],
    tokens: usize,
    values: ValueType,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rows, cols] = self.shape;
        write!(f, "{rows}x{cols} T={} {}", self.tokens, self.values.name())
    }
}

fn cases() -> impl Iterator<Item = Case> {
    SHAPES.into_iter().flat_map(|shape| {
        VALUES.into_iter().flat_map(move |values| TOKENS.into_iter().map(move |tokens| Case { shape, tokens, values }))
    })
}

impl Case {
    fn activations(&self) -> Activations {
        if self.values == Dtype::Bf16.into() { Activations::Bf16 } else { Activations::F32 }
    }

    fn random(&self, rows: usize, cols: usize) -> Matrix {
        let mut rng = ChaCha8Rng::seed_from_u64(self.tokens as u64);
        Matrix::new(rows, cols, (0..rows * cols).map(|_| rng.random_range(-1.0..1.0)).collect()).unwrap()
    }

    fn time(&self, bencher: Bencher, weight: &dyn Weight) {
        let [rows, cols] = self.shape;
        let x = self.random(cols, self.tokens);
        let mut y = Matrix::zeros(rows, self.tokens);
        bencher
            .counter(ItemsCount::new(rows * cols * self.tokens))
            .bench_local(|| weight.multiply(divan::black_box(&x), &mut y));
    }
}

#[divan::bench(args = cases(), max_time = 0.5)]
fn dense_kernel(bencher: Bencher, case: &Case) {
    let [rows, cols] = case.shape;
    let values = Values::round(case.random(rows, cols).into_data(), cols, case.values).unwrap();
    case.time(bencher, &*dense::prepare(&values, case.shape, None, case.activations()));
}

#[divan::bench(args = cases(), max_time = 0.5)]
fn sparse_kernel(bencher: Bencher, case: &Case) {
    let [rows, cols] = case.shape;
    let pattern: Pattern = PATTERN.parse().unwrap();
    let grid = pattern.grid(rows, cols).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let columns = (0..grid.row_blocks() * grid.groups()).map(|i| {
        let mut range: Vec<u32> = grid.group_range(i % grid.groups()).map(|c| c as u32).collect();
        range.shuffle(&mut rng);
        let mut four: [u32; GROUP_COLUMNS] = range[..GROUP_COLUMNS].try_into().unwrap();
        four.sort_unstable();
        four
    });
    let columns = columns.collect();
    let pairs =
        (0..rows * grid.groups()).map(|_| Pair::from_code([4, 8, 9, 12, 13, 14][rng.random_range(0..6)]).unwrap());
    let mask = Mask::new(grid, columns, pairs.collect()).unwrap();
    let packed = Packed::pack(&case.random(rows, cols), mask, case.values, None).unwrap();
    case.time(bencher, &*(sparse::choose(&packed).prepare)(&packed, None, case.activations()));
}
