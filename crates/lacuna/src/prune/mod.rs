//! The main job: a dense checkpoint in, a pruned and packed one out, one block in memory at a time.
//!
//! Each transformer block becomes one shard of the output and whatever is left the last one. With calibration, a block
//! sees activations that already went through the pruned blocks before it; those are read back from their shards, so
//! that a resumed run does just what an undisturbed one does. Without, layers are pruned as they lie in the files.

mod by_block;
mod in_passing;
mod report;
mod shards;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use lacuna_core::{Pattern, ValueType};
use lacuna_format::{Checkpoint, IN_FLIGHT, LayerSparsity, METHOD, SPARSITY_KEY, Sparsity, Staging, VERSION, bytes_of};
use lacuna_model::{Config, LinearSpec, Sample, family};
use lacuna_prune::{Permute, Stats, Update};
use serde_json::{Value, json};

use crate::UsageError;
use crate::calibrate::Calibration;
use crate::device::Device;
use crate::modules::{Selector, linears};
use crate::output::{check_output, copy_companions, write_index};
use crate::plan::PlanFile;
use crate::recipe::{Order, Recipe};
use crate::source::Source;

use shards::{PrunedLayer, Shards};

pub use report::{Forecast, LayerForecast, LayerReport, Report};

/// Which layers get which pattern.
#[derive(Debug, Clone)]
pub enum Patterns {
    /// all that are chosen the same
    Uniform(Pattern),
    /// each its own; those that have none stay dense
    Planned(Box<PlanFile>),
}

/// How to prune.
#[derive(Debug, Clone)]
pub struct Options {
    /// how much
    pub patterns: Patterns,
    /// how
    pub recipe: Recipe,
    /// type of the kept values; `None` for that of the weights
    pub values: Option<ValueType>,
    /// which layers
    pub layers: Selector,
    /// what to calibrate on, if the recipe looks at activations or errors shall be measured on them
    pub calibration: Option<Calibration>,
    /// where whole matrices are multiplied: inputs with inputs, and by ALPS weights with Hessians
    pub device: Device,
    /// replace what is there
    pub force: bool,
}

/// A layer to prune.
struct Chosen {
    spec: LinearSpec,
    pattern: Pattern,
}

/// A job that was checked as far as it can be without reading weights.
pub struct Job {
    checkpoint: Checkpoint,
    config: Config,
    options: Options,
    chosen: Vec<Chosen>,
    samples: Vec<Sample>,
}

impl Job {
    /// Opens the checkpoint, chooses the layers, checks that the pattern fits them, draws the calibration samples.
    pub fn new(source: &Path, options: Options) -> Result<Self> {
        let checkpoint = Checkpoint::open(source)?;
        if checkpoint.sparsity().is_some() {
            bail!("{}: already pruned; start from the dense checkpoint", source.display());
        }
        let config = family::config(&checkpoint)?;
        let linears = linears(&checkpoint, &config)?;
        let planned = match &options.patterns {
            Patterns::Uniform(_) => BTreeMap::new(),
            Patterns::Planned(plan) => {
                plan.check(&linears)?;
                plan.patterns()
            }
        };
        let mut chosen = vec![];
        for spec in options.layers.select(linears)? {
            let pattern = match &options.patterns {
                Patterns::Uniform(pattern) => Some(*pattern),
                Patterns::Planned(_) => planned.get(&spec.name).copied().flatten(),
            };
            if let Some(pattern) = pattern {
                let pattern = options.recipe.widen(pattern);
                let fits = pattern.grid(spec.rows, spec.cols);
                fits.map_err(|e| UsageError(format!("layer {}: {e}", spec.name)))?;
                checkpoint.dtype(&spec.weight())?;
                chosen.push(Chosen { spec, pattern });
            }
        }
        if chosen.is_empty() {
            return Err(UsageError("--include, --exclude and --plan leave no layer to prune".to_owned()).into());
        }
        let samples = match (&options.calibration, options.recipe.needs_calibration()) {
            (None, Some(what)) => {
                let data = match config {
                    Config::Vision(_) => "DIR (a folder of images)",
                    Config::Decoder(_) | Config::Text(_) => "FILE (.txt or .jsonl)",
                };
                let problem = format!("{what} looks at activations: pass --calibration {data}, or --recipe magnitude");
                return Err(UsageError(problem).into());
            }
            (None, None) => vec![],
            (Some(calibration), _) => calibration.draw(source, &config)?,
        };
        Ok(Self { checkpoint, config, options, chosen, samples })
    }

    /// The plan that gives the patterns, if one does.
    pub fn plan(&self) -> Option<&PlanFile> {
        match &self.options.patterns {
            Patterns::Uniform(_) => None,
            Patterns::Planned(plan) => Some(plan),
        }
    }

    /// Steps of the progress bar that [`Self::run`] drives.
    pub fn steps(&self) -> u64 {
        self.chosen.len() as u64
    }

    /// Writes the calibration samples, a line of JSON each: their token ids.
    pub fn write_samples(&self, path: &Path) -> Result<()> {
        let mut lines = String::new();
        for sample in &self.samples {
            match sample {
                Sample::Tokens(tokens) => lines += &(serde_json::to_string(tokens)? + "\n"),
                Sample::Pixels(_) => bail!("--write-samples writes token ids; images are files already"),
            }
        }
        std::fs::write(path, lines).with_context(|| path.display().to_string())
    }

    /// What will be done.
    pub fn forecast(&self) -> Result<Forecast> {
        let mut layers = vec![];
        for Chosen { spec: layer, pattern } in &self.chosen {
            let grid = pattern.grid(layer.rows, layer.cols)?;
            let ordered = self.options.recipe.permute.orders_rows(*pattern);
            let packed = lacuna_format::packed_bytes(&grid, self.value_type(layer)?, ordered);
            layers.push(LayerForecast {
                name: layer.name.clone(),
                shape: [layer.rows, layer.cols],
                pattern: pattern.to_string(),
                density: grid.density(),
                bytes_before: self.checkpoint.info(&layer.weight())?.len as u64,
                bytes_after: packed as u64,
            });
        }
        let before: u64 = layers.iter().map(|l| l.bytes_before).sum();
        let after: u64 = layers.iter().map(|l| l.bytes_after).sum();
        let bytes_before = self.checkpoint.weight_bytes();
        Ok(Forecast {
            peak_memory_bytes: self.peak_memory(&layers),
            layers,
            bytes_before,
            bytes_after: bytes_before - before + after,
        })
    }

    /// Prunes into `output`, or goes on where an interrupted run with the same settings stopped.
    pub fn run(&self, output: &Path, progress: &ProgressBar) -> Result<Report> {
        let started = Instant::now();
        check_output(self.checkpoint.dir(), output, self.options.force)?;
        let staging = Mutex::new(Staging::open(output, self.options.force, &self.fingerprint()?)?);
        let (hashes, layers, resumed_shards) = std::thread::scope(|scope| {
            let mut shards = Shards::of(self, &staging, scope)?;
            let resumed = shards.reports().count();
            progress.inc(shards.reports().map(|layers| layers.len() as u64).sum());
            // Steps that were free must not make the rest look free.
            progress.reset_eta();
            let in_passing = self.comes_by_block();
            let wanted = if in_passing { self.wanted(&shards) } else { BTreeSet::new() };
            let (pass, mut passing) = self.checkpoint.pass(wanted);
            let hashes = scope.spawn(|| pass.run());
            if in_passing {
                self.prune_in_passing(&mut passing, &mut shards, progress)?;
            } else {
                self.prune_by_block(&mut shards, progress)?;
            }
            let layers = shards.finish()?;
            let hashes = hashes.join().expect("reading does not panic")?.expect("nobody gave up");
            Ok::<_, anyhow::Error>((hashes, layers, resumed))
        })?;
        let staging = staging.into_inner().expect("writing does not panic");
        self.write_companions(&staging, hashes)?;
        let bytes_after = Checkpoint::open(staging.dir())?.weight_bytes();
        staging.finish()?;
        Ok(Report {
            output: output.to_owned(),
            bytes_before: self.checkpoint.weight_bytes(),
            bytes_after,
            pruned_bytes_before: layers.iter().map(|l| l.bytes_before).sum(),
            pruned_bytes_after: layers.iter().map(|l| l.bytes_after).sum(),
            seconds: started.elapsed().as_secs_f64(),
            peak_rss_bytes: crate::memory::peak_rss_bytes(),
            calibration_tokens: self.calibration_tokens(),
            resumed_shards,
            layers,
        })
    }

    /// Prunes one layer.
    fn prune_layer(
        &self,
        Chosen { spec: layer, pattern }: &Chosen,
        weight: &Source,
        stats: Option<&Stats>,
        progress: &ProgressBar,
    ) -> Result<PrunedLayer> {
        progress.set_message(layer.name.clone());
        let method = self.options.recipe.method(*pattern, self.value_type(layer)?);
        let pruned = method.prune(weight, stats).with_context(|| format!("layer {}", layer.name))?;
        progress.set_message(format!("{}: relative error {:.4}", layer.name, pruned.relative_error));
        progress.inc(1);
        let report = LayerReport {
            name: layer.name.clone(),
            pattern: pattern.to_string(),
            density: pruned.packed.mask().grid().density(),
            retained_score: pruned.retained_score,
            relative_error: pruned.relative_error,
            quantization_error: pruned.quantization_error,
            bytes_before: self.checkpoint.info(&layer.weight())?.len as u64,
            bytes_after: bytes_of(&pruned.packed) as u64,
        };
        Ok((pruned.packed, report))
    }

    fn calibration_tokens(&self) -> usize {
        self.samples.iter().map(|sample| self.config.tokens_of(sample)).sum()
    }

    /// The blocks, and behind them what is of no block.
    fn parts(&self) -> std::ops::RangeInclusive<usize> {
        0..=self.config.blocks().layers
    }

    /// The chosen layers of a block; behind the last block, those of no block.
    fn layers_of(&self, part: usize) -> Vec<&Chosen> {
        self.chosen.iter().filter(|layer| self.part_of(&layer.spec.name) == part).collect()
    }

    /// Tensors of a block that stay as they are; behind the last block, those of no block.
    fn kept_tensors(&self, part: usize) -> impl Iterator<Item = &String> {
        let replaced: Vec<String> = self.layers_of(part).iter().map(|layer| layer.spec.weight()).collect();
        self.checkpoint.tensors().keys().filter(move |name| self.part_of(name) == part && !replaced.contains(name))
    }

    fn part_of(&self, name: &str) -> usize {
        let blocks = self.config.blocks();
        blocks.layer_of(name).unwrap_or(blocks.layers)
    }

    fn shard_name(&self, part: usize) -> String {
        format!("model-{:05}-of-{:05}.safetensors", part + 1, self.config.blocks().layers + 1)
    }

    fn value_type(&self, layer: &LinearSpec) -> Result<ValueType> {
        self.options.values.map_or_else(|| Ok(self.checkpoint.dtype(&layer.weight())?.into()), Ok)
    }

    /// Everything that shapes the result, beside the patterns and the layers.
    fn recipe(&self) -> Result<Value> {
        let mut recipe = serde_json::to_value(&self.options.recipe)?;
        recipe["values"] = json!(self.options.values.map_or("as the weights", ValueType::name));
        if let Some(calibration) = &self.options.calibration {
            recipe["calibration"] = json!({
                "file": calibration.data.file_name().map(|name| name.to_string_lossy()),
                "samples": self.samples.len(),
                "tokens": self.calibration_tokens(),
                "seed": calibration.seed,
            });
            // In another order of summing, so with other last bits.
            if self.options.device.is_cuda() {
                recipe["calibration"]["device"] = json!("cuda");
            }
            if let Some(split) = Calibration::split(&self.config) {
                recipe["calibration"]["split"] = json!(split);
            }
        }
        Ok(recipe)
    }

    fn sparsity(&self, source_sha256: BTreeMap<String, String>) -> Result<Sparsity> {
        let pattern = self.commonest_pattern();
        let layer = |Chosen { spec, pattern: own }: &Chosen| {
            let shape = [spec.rows, spec.cols];
            (spec.name.clone(), LayerSparsity { shape, pattern: Some(*own).filter(|&own| own != pattern) })
        };
        Ok(Sparsity {
            quant_method: METHOD.to_owned(),
            version: VERSION,
            pattern,
            scale_group: self.options.values.and_then(ValueType::integers).map(|(_, group)| group),
            criterion: self.options.recipe.criterion.name().to_owned(),
            recipe: self.recipe()?,
            source_sha256,
            layers: self.chosen.iter().map(layer).collect(),
        })
    }

    /// The pattern of most layers, of equally many the first.
    fn commonest_pattern(&self) -> Pattern {
        let count = |pattern: Pattern| self.chosen.iter().filter(|layer| layer.pattern == pattern).count();
        let patterns = self.chosen.iter().map(|layer| layer.pattern);
        patterns.rev().max_by_key(|&pattern| count(pattern)).unwrap_or(Pattern::PLAIN)
    }

    /// What must be equal for a run to go on where another one stopped.
    fn fingerprint(&self) -> Result<Value> {
        let mut files = vec![];
        for path in self.checkpoint.files() {
            let meta = std::fs::metadata(path).with_context(|| path.display().to_string())?;
            let modified = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
            files.push(json!([path.canonicalize()?, meta.len(), modified.map(|t: Duration| t.as_nanos().to_string())]));
        }
        // The samples themselves, not where they came from: the text or the tokenizer may have changed.
        Ok(json!({ "files": files, "sparsity": self.sparsity(BTreeMap::new())?, "samples": digest(&self.samples) }))
    }

    /// config.json, the index and the tokenizer.
    fn write_companions(&self, staging: &Staging, hashes: BTreeMap<String, String>) -> Result<()> {
        let mut config = self.checkpoint.config().clone();
        config[SPARSITY_KEY] = serde_json::to_value(self.sparsity(hashes)?)?;
        let shards = self.parts().map(|part| self.shard_name(part));
        write_index(staging, shards)?;
        staging.write_file("config.json", serde_json::to_string_pretty(&config)?.as_bytes())?;
        copy_companions(staging, self.checkpoint.dir())
    }

    /// Estimate: the largest layer at work, with what is known of its input, beside one block and the samples.
    fn peak_memory(&self, layers: &[LayerForecast]) -> u64 {
        let largest = layers.iter().map(|l| (l.shape[0] * l.shape[1]) as u64).max().unwrap_or(0);
        let block_bytes = self.parts().map(|part| {
            let names: Vec<&str> = self.layers_of(part).iter().map(|l| l.spec.name.as_str()).collect();
            layers.iter().filter(|l| names.contains(&l.name.as_str())).map(|l| l.bytes_after).sum::<u64>()
        });
        // the weights in memory, mapped (4 bytes at most) or read; bands in hand and the packed layer; bytes to write of the
        // blocks that are begun, and of the one before them, which is being written
        let (weights, begun) = if self.comes_by_block() {
            let longest = layers.iter().map(|l| l.bytes_before).max().unwrap_or(0);
            (IN_FLIGHT as u64 * longest, self.most_begun() as u64)
        } else {
            (largest * 4, 1)
        };
        let pruning = weights + largest * 4 + (begun + 1) * block_bytes.max().unwrap_or(0);
        if self.samples.is_empty() {
            return pruning;
        }
        let (blocks, recipe) = (self.config.blocks(), &self.options.recipe);
        let tokens = self.calibration_tokens() as u64;
        let (hidden, inner) = (blocks.hidden_size as u64, blocks.intermediate_size as u64);
        let block: u64 = blocks.linears(0).iter().map(|l| (l.rows * l.cols) as u64 * 4).sum();
        let inputs = [hidden, hidden, (blocks.heads * blocks.head_dim) as u64, inner].map(|k| k * k);
        let widest = inputs.into_iter().max().unwrap_or(0);
        let held: u64 = if recipe.order == Order::Layer { widest } else { inputs.iter().sum() };
        // The dense model runs along with a stream and a block of its own, and its inputs against the others.
        let models = if recipe.aim > 0.0 { 2 } else { 1 };
        let streams = models * (tokens * hidden * 4 + block + 2048 * 4 * (3 * inner + 6 * hidden));
        // of f32: a Gram matrix, beside the dense model four of its kind; the scaled Hessian and there what maps to the target;
        // of f64 a matrix in whose place its inverse is made, of f32 that inverse and what it meets
        let grams = if models == 2 { 16 * held } else { 4 * held };
        let (of_inputs, factors) = match recipe.update {
            Update::None | Update::DsNoT => (grams, 0),
            Update::Lsq | Update::SparseGpt | Update::Alps => (grams + 4 * models * held, 16 * widest),
        };
        // whole copies of a layer at work beside the weight
        let copies = match recipe.update {
            Update::None if recipe.permute == Permute::None => 0,
            Update::None | Update::DsNoT => 3,
            Update::Lsq | Update::SparseGpt => 6,
            Update::Alps => 11,
        };
        pruning + streams + of_inputs + factors + copies * 4 * largest
    }
}

/// A short name of the samples (FNV-1a, 64 bits): tells one draw from another.
fn digest(samples: &[Sample]) -> String {
    let step = |hash: u64, value: u32| (hash ^ u64::from(value)).wrapping_mul(0x0100_0000_01b3);
    let hash = samples.iter().fold(0xcbf2_9ce4_8422_2325, |hash, sample| match sample {
        Sample::Tokens(tokens) => tokens.iter().fold(step(hash, tokens.len() as u32), |hash, &token| step(hash, token)),
        Sample::Pixels(pixels) => pixels.iter().fold(hash, |hash, pixel| step(hash, pixel.to_bits())),
    });
    format!("{hash:016x}")
}
