//! Our own kernels as contestants: random weights made ready, timed as the engines are, and checked.

use std::time::Instant;

use anyhow::Result;
use lacuna_core::{GROUP_COLUMNS, KEPT_PER_GROUP, Mask, Matrix, Packed, Pair, Pattern, ValueType, Values};
use lacuna_kernels::{Activations, Weight, dense, sparse};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{ROTATED_TOKENS, Shape, Timing, median};

/// Bytes that the copies of a weight fill together: four times a last-level cache of 32 MiB.
const ROTATED_BYTES: f64 = (128_u32 << 20) as f64;
const MINIMUM_SWEEPS: usize = 5;
/// Rows and tokens of a result that are checked.
const CHECKED_ROWS: usize = 16;
const CHECKED_TOKENS: usize = 4;

/// Values from N(0, 1) times `scale`, rows of `cols`, each row of its own stream.
pub(crate) fn normal(seed: u64, rows: usize, cols: usize, scale: f32) -> Matrix {
    let mut matrix = Matrix::zeros(rows, cols);
    matrix.data_mut().par_chunks_exact_mut(cols).enumerate().for_each(|(row, values)| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(row as u64);
        for pair in values.chunks_mut(2) {
            // Box and Muller's; 1 - u is never 0.
            let radius = scale * (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
            let (sin, cos) = (std::f32::consts::TAU * rng.random::<f32>()).sin_cos();
            pair.iter_mut().zip([radius * cos, radius * sin]).for_each(|(value, drawn)| *value = drawn);
        }
    });
    matrix
}

/// A mask of a pattern in which everything is equally likely.
pub(crate) fn random_mask(rng: &mut ChaCha8Rng, pattern: Pattern, rows: usize, cols: usize) -> Result<Mask> {
    let grid = pattern.grid(rows, cols)?;
    let mut columns = Vec::with_capacity(grid.row_blocks() * grid.groups());
    for _ in 0..grid.row_blocks() {
        let first = columns.len();
        for window in 0..grid.windows() {
            let mut dealt: Vec<u32> = grid.window_cols(window).map(|c| c as u32).collect();
            dealt.shuffle(rng);
            dealt.extend(cols as u32..(cols + grid.padding()) as u32);
            columns.extend(&dealt.as_chunks::<GROUP_COLUMNS>().0[..grid.window_groups(window).len()]);
        }
        grid.arrange(&mut columns[first..]);
    }
    let pairs: Vec<Pair> = [[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]]
        .iter()
        .map(|&[low, high]| Pair::new(low, high).expect("ascending positions"))
        .collect();
    let pairs = (0..rows * grid.groups()).map(|_| pairs[rng.random_range(0..pairs.len())]).collect();
    Ok(Mask::new(grid, columns, pairs)?)
}

/// A row of a weight as f64 sums see it: its values that are not removed.
struct Sample {
    row: usize,
    weights: Vec<(usize, f32)>,
}

/// One of our weights, in as many copies as the rule of rotation wants.
pub(super) struct Own {
    /// `dense`, or the pattern as written
    pub(super) pattern: String,
    /// the pattern without its window, where it has one
    pub(super) grouped: Option<String>,
    /// name of the kernel
    pub(super) kernel: &'static str,
    /// bytes that one product reads of it
    pub(super) bytes: f64,
    /// multiply-adds of one token
    pub(super) work: f64,
    value_type: ValueType,
    activations: Activations,
    copies: Vec<Box<dyn Weight>>,
    samples: Vec<Sample>,
}

impl Own {
    /// Every value of `base` kept.
    pub(super) fn dense(base: &Matrix, value_type: ValueType, rotated: bool) -> Result<Self> {
        let (rows, cols) = (base.rows(), base.cols());
        let values = Values::round(base.data().to_vec(), cols, value_type)?;
        let samples = sampled(rows)
            .map(|row| Sample { row, weights: (0..cols).map(|k| (k, values.get(row * cols + k))).collect() });
        let activations = activations(value_type);
        // Scales are not counted for copies, as the engines do it.
        let n = if rotated { copies((rows * cols) as f64 * value_bytes(value_type)) } else { 1 };
        Ok(Self {
            pattern: "dense".to_owned(),
            grouped: None,
            kernel: dense::kernels().next().unwrap_or("gemm"),
            bytes: stored_bytes(rows, cols, value_type),
            work: (rows * cols) as f64,
            value_type,
            activations,
            samples: samples.collect(),
            copies: prepared(n, || dense::prepare(&values, [rows, cols], None, activations)),
        })
    }

    /// What a random mask keeps of `base`.
    pub(super) fn sparse(
        base: &Matrix,
        pattern: Pattern,
        value_type: ValueType,
        rotated: bool,
        seed: u64,
    ) -> Result<Self> {
        let (rows, cols) = (base.rows(), base.cols());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Not a stream that a row of `base` has.
        rng.set_stream(u64::MAX);
        let packed = Packed::pack(base, random_mask(&mut rng, pattern, rows, cols)?, value_type, None)?;
        let grid = packed.mask().grid();
        let samples = sampled(rows).map(|row| {
            let columns = packed.mask().kept(row).flatten();
            let values = (row * grid.kept_per_row()..).map(|i| packed.values().get(i));
            Sample { row, weights: columns.zip(values).filter(|&(column, _)| column < cols).collect() }
        });
        let bytes = packed_bytes(pattern, rows, cols, value_type)?;
        let n = if rotated { copies(bytes) } else { 1 };
        let (kernel, activations) = (sparse::choose(&packed), activations(value_type));
        Ok(Self {
            pattern: pattern.to_string(),
            grouped: (!pattern.is_grouped()).then(|| pattern.with_window_up_to(pattern.m()).to_string()),
            kernel: kernel.name,
            bytes,
            work: (rows * grid.kept_per_row()) as f64,
            value_type,
            activations,
            samples: samples.collect(),
            copies: prepared(n, || (kernel.prepare)(&packed, None, activations)),
        })
    }

    /// Times `W · x` by the rules of `bench/engines/README.md`.
    pub(super) fn time(&self, x: &Matrix, y: &mut Matrix, min_seconds: f64) -> Timing {
        let copies = if x.cols() <= ROTATED_TOKENS { &self.copies[..] } else { &self.copies[..1] };
        let mut sweep = || {
            let started = Instant::now();
            // Inside the pool, as layers are that follow one another: entering it anew for each product costs 20 µs.
            rayon::scope(|_| copies.iter().for_each(|copy| copy.multiply(x, y)));
            started.elapsed().as_secs_f64() / copies.len() as f64
        };
        sweep();
        sweep();
        let mut seconds = vec![];
        let started = Instant::now();
        while seconds.len() < MINIMUM_SWEEPS || started.elapsed().as_secs_f64() < min_seconds {
            seconds.push(sweep());
        }
        let minimum = seconds.iter().copied().fold(f64::INFINITY, f64::min);
        Timing { seconds: median(&mut seconds), minimum, variant: self.kernel.to_owned() }
    }

    /// Largest error of some rows and tokens against sums in f64, in units of the tolerance of
    /// `lacuna-kernels/tests/oracle.rs`, where it is derived: of `n` products in f32 it is `n · eps · ‖w‖·‖x‖`, to which
    /// the rounding of activations adds `2⁻⁸ · ‖w‖·‖x‖` for bfloat16, twice that where integers may be rounded so too, and
    /// `‖w‖₁ · max|x| / 65534` for 16 bits.
    pub(super) fn check(&self, x: &Matrix, y: &mut Matrix) -> f64 {
        // An element that is never written shows.
        y.data_mut().fill(f32::NAN);
        self.copies[0].multiply(x, y);
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let unit = if self.activations == Activations::Bf16 { 2_f64.powi(-8) } else { 0.0 };
        let rounding = if self.value_type.integers().is_some() { 2.0 * unit + unit * unit } else { unit };
        let mut worst = 0.0_f64;
        for token in spread(x.cols(), CHECKED_TOKENS) {
            let column: Vec<f32> = (0..x.rows()).map(|k| x.row(k)[token]).collect();
            let x_norm = norm(&mut column.iter().copied());
            let x_max = column.iter().fold(0.0, |most, v| f64::from(v.abs()).max(most));
            for Sample { row, weights } in &self.samples {
                let want: f64 = weights.iter().map(|&(k, w)| f64::from(w) * f64::from(column[k])).sum();
                let n = weights.len() as f64 + 1.0;
                let size = norm(&mut weights.iter().map(|&(_, w)| w)) * x_norm;
                let mut bound = (n * f64::from(f32::EPSILON) + rounding) * size + 1e-30;
                if self.value_type.integers().is_some() {
                    bound += weights.iter().map(|(_, w)| f64::from(w.abs())).sum::<f64>() * x_max / 65534.0;
                }
                let off = (f64::from(y.row(*row)[token]) - want).abs() / bound;
                // NaN is worse than anything; `max` would drop it.
                worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
            }
        }
        worst
    }
}

/// What the kernels may round activations to: as much as the rivals do, which meet integers with 8 bits.
fn activations(value_type: ValueType) -> Activations {
    let rounded = value_type.name() == "bf16" || value_type.integers().is_some();
    if rounded { Activations::Bf16 } else { Activations::F32 }
}

fn copies(bytes: f64) -> usize {
    (ROTATED_BYTES / bytes) as usize + 1
}

fn prepared(n: usize, prepare: impl Fn() -> Box<dyn Weight> + Sync) -> Vec<Box<dyn Weight>> {
    (0..n).into_par_iter().map(|_| prepare()).collect()
}

fn sampled(rows: usize) -> impl Iterator<Item = usize> {
    spread(rows, CHECKED_ROWS)
}

/// Up to `count` different numbers below `n`: the same ones each time, at random places, first and last among them.
fn spread(n: usize, count: usize) -> impl Iterator<Item = usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
    let mut all: Vec<usize> = (0..n).collect();
    all[1.min(n - 1)..].shuffle(&mut rng);
    if let Some(last) = all.iter().position(|&i| i == n - 1) {
        all.swap(last, 1.min(n - 1));
    }
    all.truncate(count);
    all.into_iter()
}

fn value_bytes(value_type: ValueType) -> f64 {
    match value_type.name() {
        "int4" => 0.5,
        "int8" => 1.0,
        "f32" => 4.0,
        _ => 2.0,
    }
}

/// Bytes of `rows` rows of `values` values, with their f16 scales.
fn stored_bytes(rows: usize, values: usize, value_type: ValueType) -> f64 {
    let scales = value_type.integers().map_or(0, |(_, group)| group.blocks(values) * 2);
    rows as f64 * (values as f64 * value_bytes(value_type) + scales as f64)
}

/// Bytes of a packed weight as a product reads it: of each group and row two values, with scales, and 4 bits of
/// positions; of each group and row block 4 columns of a byte, of two where a window is wider than a byte reaches.
fn packed_bytes(pattern: Pattern, rows: usize, cols: usize, value_type: ValueType) -> Result<f64> {
    let grid = pattern.grid(rows, cols)?;
    let positions = (rows * grid.groups() * KEPT_PER_GROUP) as f64 / 4.0;
    let column_bytes = if grid.window_cols(0).len() <= 1 << 8 { 1 } else { 2 };
    let columns = (grid.row_blocks() * grid.groups() * GROUP_COLUMNS * column_bytes) as f64;
    Ok(stored_bytes(rows, grid.kept_per_row(), value_type) + positions + columns)
}

/// What the fastest dense product over this weight's may at most be: by bytes read while weights come from memory, by
/// multiply-adds where they are many, in between by what allows less.
pub(super) fn limit(own: &Own, dense: &Own, tokens: usize) -> f64 {
    let (bytes, work) = (dense.bytes / own.bytes, dense.work / own.work);
    match tokens {
        ..=ROTATED_TOKENS => bytes,
        COMPUTE_TOKENS.. => work,
        _ => bytes.min(work),
    }
}

/// From so many tokens on, multiply-adds are the limit.
const COMPUTE_TOKENS: usize = 64;

/// Seed of a shape's weight.
pub(super) fn shape_seed(seed: u64, shape: &Shape) -> u64 {
    seed ^ ((shape.rows as u64) << 32 | shape.cols as u64)
}
