//! Products of LLaMA-2-7B's shapes beside cuBLASLt's dense one, interleaved. Weights that a cache could hold are there
//! several times, in turn: decoding reads every weight once a token. Each measurement is a graph of launches, so that the
//! host's part of a launch is not in it.

use std::time::Instant;

use lacuna_core::{IntType, Matrix, Packed, Pattern, ScaleGroup, ValueType};
use lacuna_cuda::launch::Device;
use lacuna_cuda::{Activations, Dense, HalfType, Machine, Recording, Sparse};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::record::{Record, median};
use crate::support::random_mask;
use crate::{Outcome, Settings};

const HALF: HalfType = HalfType::Bf16;
const SHAPES: [(&str, usize, usize); 3] =
    [("llama-2-7b q/k/v/o", 4096, 4096), ("llama-2-7b gate/up", 11008, 4096), ("llama-2-7b down", 4096, 11008)];
const TOKENS: [usize; 6] = [4096, 1, 16, 256, 1024, 64];
const PATTERNS: [&str; 6] = ["64:2:8", "2:4", "128:2:8", "64:2:5", "64:2:16", "64:2:8@256"];
/// Interleaved rounds, and the seconds that each graph runs in one.
const ROUNDS: usize = 7;
const SECONDS: f64 = 0.03;
/// Launches of a graph.
const LAUNCHES: usize = 20;
/// Weights together hold so many times what the cache holds.
const CACHES: usize = 3;

const HEAD: &str = "shape,rows,cols,tokens,value_type,pattern,engine,variant,seconds,minimum,ratio,limit,share";

pub fn run(device: &Device, settings: &Settings) -> Outcome {
    let mut record = Record::create(&settings.record, "gpu-products", HEAD, device)?;
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    let mut wrong = 0;
    for (shape, rows, cols) in SHAPES.into_iter().filter(|(_, rows, cols)| settings.wants(&format!("{rows}x{cols}"))) {
        let weight: Vec<f32> = (0..rows * cols).map(|_| rng.random_range(-1.0..1.0)).collect();
        let dense = Dense::upload(device, HALF, [rows, cols], weight.iter().copied())?;
        let weight = Matrix::new(rows, cols, weight)?;
        let mut sparse = vec![];
        for pattern in PATTERNS.into_iter().filter(|pattern| settings.wants(pattern)) {
            let mask = random_mask(&mut rng, pattern.parse()?, rows, cols);
            let integers = [IntType::Int8, IntType::Int4].map(|int| ValueType::Int(int, ScaleGroup::Of32));
            // Integers where the design has its main case.
            let integers = integers.into_iter().filter(|_| pattern == PATTERNS[0]);
            for values in [HALF.dtype().into()].into_iter().chain(integers) {
                let packed = Packed::pack(&weight, mask.clone(), values, None)?;
                match Sparse::upload(device, &packed, None, HALF) {
                    Ok(weight) => sparse.push(Rival { pattern, values, weight }),
                    Err(error) => {
                        println!("{shape} {pattern} {}: {error}", values.name());
                        wrong += 1;
                    }
                }
            }
        }
        for tokens in TOKENS.into_iter().filter(|tokens| settings.wants(&tokens.to_string())) {
            let case = Case { device, shape, rows, cols, tokens };
            if let Err(error) = case.run(&dense, &sparse, &mut record) {
                println!("{shape}, {tokens} tokens: {error}");
                wrong += 1;
            }
        }
    }
    Ok(wrong)
}

struct Rival {
    pattern: &'static str,
    values: ValueType,
    weight: Sparse,
}

struct Case<'a> {
    device: &'a Device,
    shape: &'a str,
    rows: usize,
    cols: usize,
    tokens: usize,
}

impl Case<'_> {
    fn run(&self, dense: &Dense, sparse: &[Rival], record: &mut Record) -> Result<(), Box<dyn std::error::Error>> {
        let values: Vec<f32> =
            (0..self.cols * self.tokens).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0).collect();
        let x = Activations::upload(self.device, HALF, [self.cols, self.tokens], &values)?;
        let mut y = Activations::filled(self.device, HALF, [self.rows, self.tokens], f32::NAN)?;
        let mut graphs = vec![self.dense_graph(dense, &x, &mut y)?];
        let mut run = vec![];
        for rival in sparse {
            match self.sparse_graph(&rival.weight, &x, &mut y) {
                Ok(graph) => {
                    graphs.push(graph);
                    run.push(rival);
                }
                Err(error) => println!("{} {} {}: {error}", self.shape, rival.pattern, rival.values.name()),
            }
        }
        let mut seconds = vec![vec![]; graphs.len()];
        for _ in 0..ROUNDS {
            for (graph, seconds) in graphs.iter().zip(&mut seconds) {
                seconds.push(self.time(graph)?);
            }
        }
        let head = |values: &str, pattern: &str| {
            format!("{},{},{},{},{values},{pattern}", self.shape, self.rows, self.cols, self.tokens)
        };
        let minimum = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let of_dense = median(&mut seconds[0].clone());
        record.row(&format!(
            "{},cublaslt,dense,{of_dense:e},{:e},1,1,1",
            head("bf16", "dense"),
            minimum(&seconds[0])
        ))?;
        for (rival, seconds) in run.into_iter().zip(&seconds[1..]) {
            let median = median(&mut seconds.clone());
            let (ratio, limit) = (of_dense / median, self.limit(rival, dense));
            let kernel = rival.weight.kernel(self.device, self.tokens).name();
            record.row(&format!(
                "{},lacuna-cuda,{kernel},{median:e},{:e},{ratio:.3},{limit:.3},{:.3}",
                head(rival.values.name(), rival.pattern),
                minimum(seconds),
                ratio / limit
            ))?;
        }
        Ok(())
    }

    /// What bounds the ratio: bytes of the weight where it is read for few tokens, else products.
    fn limit(&self, rival: &Rival, dense: &Dense) -> f64 {
        if self.tokens <= 64 {
            return dense.bytes() as f64 / rival.weight.bytes() as f64;
        }
        rival.pattern.parse::<Pattern>().map_or(1.0, |pattern| pattern.m() as f64 / 2.0)
    }

    fn dense_graph(&self, weight: &Dense, x: &Activations, y: &mut Activations) -> lacuna_cuda::Result<Timed> {
        let mut copies = vec![];
        for _ in 1..self.copies(weight.bytes()) {
            copies.push(weight.duplicate(self.device)?);
        }
        weight.multiply(self.device, x, y)?;
        self.device.synchronize()?;
        let graph = self.device.record(&mut || {
            let mut weights = std::iter::once(weight).chain(&copies).cycle();
            (0..LAUNCHES).try_for_each(|_| weights.next().map_or(Ok(()), |weight| weight.multiply(self.device, x, y)))
        })?;
        Ok(Timed { graph, _weights: Box::new(copies) })
    }

    fn sparse_graph(&self, weight: &Sparse, x: &Activations, y: &mut Activations) -> lacuna_cuda::Result<Timed> {
        let mut copies = vec![];
        for _ in 1..self.copies(weight.bytes()) {
            copies.push(weight.duplicate(self.device)?);
        }
        weight.multiply(self.device, x, y)?;
        self.device.synchronize()?;
        let graph = self.device.record(&mut || {
            let mut weights = std::iter::once(weight).chain(&copies).cycle();
            (0..LAUNCHES).try_for_each(|_| weights.next().map_or(Ok(()), |weight| weight.multiply(self.device, x, y)))
        })?;
        Ok(Timed { graph, _weights: Box::new(copies) })
    }

    /// How often a weight of some bytes has to be there; no oftener than a graph has launches.
    fn copies(&self, bytes: usize) -> usize {
        if self.tokens > 256 { 1 } else { (CACHES * self.device.gpu().cache).div_ceil(bytes.max(1)).clamp(1, LAUNCHES) }
    }

    /// Seconds of one product.
    fn time(&self, timed: &Timed) -> lacuna_cuda::Result<f64> {
        // The first run is not timed: the clock begins when the GPU is free and warm.
        timed.graph.replay()?;
        self.device.synchronize()?;
        let started = Instant::now();
        let mut graphs = 0;
        while graphs == 0 || started.elapsed().as_secs_f64() < SECONDS {
            timed.graph.replay()?;
            graphs += 1;
            // Ahead of the GPU by a few graphs, not by thousands.
            if graphs % 32 == 0 {
                self.device.synchronize()?;
            }
        }
        self.device.synchronize()?;
        Ok(started.elapsed().as_secs_f64() / f64::from(graphs) / LAUNCHES as f64)
    }
}

/// A graph and what it reads.
struct Timed {
    graph: Box<dyn Recording>,
    _weights: Box<dyn std::any::Any>,
}
