//! How long the linear layers of a model take on this machine, dense and under each pattern, by the kernels that would run
//! them.
//!
//! Times depend on a weight's shape, not on its values, so each distinct shape is timed once with random weights. As in a
//! model, layers follow one another: a product goes over different copies of its weight, as many as fit into what the
//! whole model takes in that form (or into a few caches), so that a small model finds them in the cache and a large one
//! does not. Dense and sparse take turns, and the least time of each counts, since whatever else a machine does only adds
//! to it.

use std::time::Instant;

use anyhow::Result;
use indicatif::ProgressBar;
use lacuna_core::{Matrix, Pattern, ValueType, Values};
use lacuna_kernels::{Activations, Weight, dense, sparse};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::case::Case;
use super::stand_in::StandIns;
use crate::kernel_bench::normal;

/// Bytes that copies of a weight fill together at most: twice a last-level cache of 32 MiB.
const ROTATED_BYTES: usize = 64 << 20;
/// From so many tokens on a product is bound by multiply-adds, and one copy does.
const COMPUTE_TOKENS: usize = 64;
/// Sweeps of a pair of contestants: at least so many and so long.
const MIN_SWEEPS: usize = 6;
const MIN_SECONDS: f64 = 0.03;

/// What is timed.
pub(super) struct Settings<'a> {
    /// the cases
    pub(super) cases: &'a [Case],
    /// sparse contestants
    pub(super) patterns: &'a [Pattern],
    /// what is timed in the place of pruned layers; dense values are of the same type
    pub(super) stand_ins: StandIns<'a>,
    /// what activations are rounded to
    pub(super) activations: Activations,
    /// weights of all layers together
    pub(super) model_weights: usize,
    /// of weights, masks and activations
    pub(super) seed: u64,
}

/// Seconds of one layer in a pass: of each case, first dense and then under each pattern; infinite where a pattern does not
/// fit.
pub(super) type Times = Vec<Vec<f64>>;

impl Settings<'_> {
    /// Times a shape.
    pub(super) fn time(&self, [rows, cols]: [usize; 2], progress: &ProgressBar) -> Result<Times> {
        let base = normal(self.seed, rows, cols, 0.02);
        let inputs: Vec<Input> = self.cases.iter().map(|case| Input::new(case, rows, cols, self.seed)).collect();
        let dense_values = Values::round(base.data().to_vec(), cols, self.stand_ins.values)?;
        let dense_copies = self.copies(rows * cols, 1.0);
        let prepare = || dense::prepare(&dense_values, [rows, cols], None, self.activations);
        let dense: Vec<Box<dyn Weight>> = (0..dense_copies).into_par_iter().map(|_| prepare()).collect();
        let mut times = vec![vec![f64::INFINITY; self.patterns.len() + 1]; self.cases.len()];
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        for (p, &pattern) in self.patterns.iter().enumerate() {
            progress.inc(1);
            let Some(grid) = self.stand_ins.grid(pattern, rows, cols) else { continue };
            let packed = self.stand_ins.pack(&mut rng, pattern, &base)?;
            let kernel = sparse::choose(&packed);
            let prepare = |_| (kernel.prepare)(&packed, None, self.activations);
            let copies = self.copies(rows * cols, grid.density());
            let sparse: Vec<Box<dyn Weight>> = (0..copies).into_par_iter().map(prepare).collect();
            for (input, times) in inputs.iter().zip(&mut times) {
                let [of_dense, of_sparse] = input.time([&dense, &sparse]);
                times[0] = times[0].min(of_dense);
                // As many chances as its rival had: the least of many is less than the least of a few.
                times[p + 1] = of_sparse / of_dense;
            }
        }
        for times in &mut times {
            let dense = times[0];
            times[1..].iter_mut().for_each(|ratio| *ratio *= dense);
        }
        Ok(times)
    }

    /// Copies of a weight that keeps a share of its values.
    fn copies(&self, weights: usize, density: f64) -> usize {
        let bytes = |weights: usize| weights as f64 * density * f64::from(value_bits(self.stand_ins.values)) / 8.0;
        let together = bytes(self.model_weights).min(ROTATED_BYTES as f64);
        (together / bytes(weights)).ceil().max(1.0) as usize
    }
}

fn value_bits(values: ValueType) -> u32 {
    match values.name() {
        "int4" => 4,
        "int8" => 8,
        "f32" => 32,
        _ => 16,
    }
}

/// Activations of a case, as many runs of them as there are threads.
struct Input {
    x: Vec<Matrix>,
    rows: usize,
    /// runs of a pass by runs at a time
    passes: f64,
}

impl Input {
    fn new(case: &Case, rows: usize, cols: usize, seed: u64) -> Self {
        let (tokens, runs) = case.runs();
        let at_a_time = runs.min(rayon::current_num_threads());
        let x = (0..at_a_time).map(|i| normal(seed + 1 + i as u64, cols, tokens, 1.0)).collect();
        Self { x, rows, passes: runs as f64 / at_a_time as f64 }
    }

    /// Seconds of a pass through one layer by two contestants in turn, the least of some sweeps over the copies of each.
    fn time(&self, contestants: [&[Box<dyn Weight>]; 2]) -> [f64; 2] {
        let tokens = self.x[0].cols();
        let mut y: Vec<Matrix> = self.x.iter().map(|_| Matrix::zeros(self.rows, tokens)).collect();
        let mut sweep = |copies: &[Box<dyn Weight>]| {
            let copies = if tokens < COMPUTE_TOKENS { copies } else { &copies[..1] };
            let started = Instant::now();
            // Inside the pool and run by run, as models do it.
            rayon::scope(|_| {
                let through = |(x, y): (&Matrix, &mut Matrix)| copies.iter().for_each(|copy| copy.multiply(x, y));
                match &mut y[..] {
                    [y] => through((&self.x[0], y)),
                    y => self.x.par_iter().zip(y).for_each(through),
                }
            });
            started.elapsed().as_secs_f64() / copies.len() as f64
        };
        let (started, mut least, mut sweeps) = (Instant::now(), [f64::INFINITY; 2], 0);
        while sweeps < MIN_SWEEPS || started.elapsed().as_secs_f64() < MIN_SECONDS {
            for (least, copies) in least.iter_mut().zip(contestants) {
                *least = least.min(sweep(copies));
            }
            sweeps += 1;
        }
        least.map(|seconds| seconds * self.passes)
    }
}
