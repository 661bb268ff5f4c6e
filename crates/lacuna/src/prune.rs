//! The main job: a dense checkpoint in, a pruned and packed one out, one block in memory at a time.
//!
//! Each transformer block becomes one shard of the output and whatever is left the last one. With calibration, a block
//! sees activations that already went through the pruned blocks before it; those are read back from their shards, so
//! that a resumed run does just what an undisturbed one does.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use lacuna_core::{Matrix, Packed, Pattern, ValueType};
use lacuna_format::{
    Checkpoint, LayerSparsity, METHOD, OutTensor, RawMatrix, SPARSITY_KEY, Sparsity, Staging, VERSION,
};
use lacuna_model::{Block, Config, Execution, LinearSpec, Sample, family};
use lacuna_prune::{Criterion, Method, Selection, Stats, Update, Weight};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::UsageError;
use crate::calibrate::{Calibration, Stream};
use crate::modules::{Selector, linears};
use crate::output::{check_output, copy_companions, write_index};

/// Tensors to write under their names.
type NamedTensors = Vec<(String, OutTensor<'static>)>;

/// How to prune.
#[derive(Debug, Clone)]
pub struct Options {
    /// pattern of every pruned layer
    pub pattern: Pattern,
    /// how weights are scored
    pub criterion: Criterion,
    /// how masks are chosen
    pub selection: Selection,
    /// what becomes of the kept weights
    pub update: Update,
    /// which outputs an update aims at
    pub aim: Aim,
    /// what a layer has before it when it is calibrated
    pub order: Order,
    /// type of the kept values; `None` for that of the weights
    pub values: Option<ValueType>,
    /// which layers
    pub layers: Selector,
    /// calibration text, if the criterion looks at activations or errors shall be measured on them
    pub calibration: Option<Calibration>,
    /// replace what is there
    pub force: bool,
}

/// Which outputs of a layer an update aims at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aim {
    /// those of its own weights on the pruned model's input
    Pruned,
    /// those of the dense model
    Dense,
}

/// What a layer has before it in its block when it is calibrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// dense layers: a block is looked at once
    Block,
    /// pruned ones: a block is looked at again for each of its inputs
    Layer,
}

/// What pruning did to one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// module name
    pub name: String,
    /// as printed
    pub pattern: String,
    /// share of weights kept
    pub density: f64,
    /// share of the sum of scores kept
    pub retained_score: f64,
    /// `‖(W − Ŵ)·X‖ / ‖W·X‖` on the calibration tokens, or without calibration `‖W − Ŵ‖ / ‖W‖`
    pub relative_error: f64,
    /// `‖Ŵ − Ŵq‖ / ‖Ŵ‖`, the kept weights before and after they became integers
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization_error: Option<f64>,
    /// bytes of the dense weight
    pub bytes_before: u64,
    /// bytes of the packed weight
    pub bytes_after: u64,
}

/// What pruning did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// the new checkpoint
    pub output: PathBuf,
    /// bytes of all weights of the original
    pub bytes_before: u64,
    /// bytes of all weights of the new checkpoint
    pub bytes_after: u64,
    /// bytes of the pruned layers alone, before
    pub pruned_bytes_before: u64,
    /// bytes of the pruned layers alone, after
    pub pruned_bytes_after: u64,
    /// seconds that this run took
    pub seconds: f64,
    /// largest resident size of this process
    pub peak_rss_bytes: Option<u64>,
    /// tokens of calibration
    pub calibration_tokens: usize,
    /// shards taken over from an interrupted run
    pub resumed_shards: usize,
    /// every pruned layer
    pub layers: Vec<LayerReport>,
}

/// What pruning would do, known before any weight is read.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// module name, pattern, shape and sizes of every layer to prune
    pub layers: Vec<PlannedLayer>,
    /// bytes of all weights of the original
    pub bytes_before: u64,
    /// expected bytes of all weights of the new checkpoint
    pub bytes_after: u64,
    /// estimate of the largest resident size
    pub peak_memory_bytes: u64,
}

/// One layer of a [`Plan`].
#[derive(Debug, Clone, Serialize)]
pub struct PlannedLayer {
    /// module name
    pub name: String,
    /// `[out_features, in_features]`
    pub shape: [usize; 2],
    /// as printed
    pub pattern: String,
    /// share of weights kept
    pub density: f64,
    /// bytes of the dense weight
    pub bytes_before: u64,
    /// bytes of the packed weight
    pub bytes_after: u64,
}

/// A job that was checked as far as it can be without reading weights.
pub struct Job {
    checkpoint: Checkpoint,
    config: Config,
    options: Options,
    chosen: Vec<LinearSpec>,
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
        let chosen = options.layers.select(linears(&checkpoint, &config)?)?;
        if chosen.is_empty() {
            return Err(UsageError("--include and --exclude leave no layer to prune".to_owned()).into());
        }
        for layer in &chosen {
            let fits = options.pattern.grid(layer.rows, layer.cols);
            fits.map_err(|e| UsageError(format!("layer {}: {e}", layer.name)))?;
            checkpoint.dtype(&layer.weight())?;
        }
        let samples = match &options.calibration {
            None if options.criterion.needs_stats() => {
                let name = options.criterion.name();
                let what = match config {
                    Config::Vision(_) => "DIR (a folder of images)",
                    Config::Decoder(_) | Config::Text(_) => "FILE (.txt or .jsonl)",
                };
                let problem = format!("criterion {name} looks at activations: pass --calibration {what}");
                return Err(UsageError(problem).into());
            }
            None => vec![],
            Some(calibration) => calibration.draw(source, &config)?,
        };
        Ok(Self { checkpoint, config, options, chosen, samples })
    }

    /// Steps of the progress bar that [`Self::run`] drives.
    pub fn steps(&self) -> u64 {
        self.chosen.len() as u64
    }

    /// What will be done.
    pub fn plan(&self) -> Result<Plan> {
        let mut layers = vec![];
        for layer in &self.chosen {
            let grid = self.options.pattern.grid(layer.rows, layer.cols)?;
            let packed = lacuna_format::packed_bytes(&grid, self.value_type(layer)?);
            layers.push(PlannedLayer {
                name: layer.name.clone(),
                shape: [layer.rows, layer.cols],
                pattern: self.options.pattern.to_string(),
                density: grid.density(),
                bytes_before: self.checkpoint.info(&layer.weight())?.len as u64,
                bytes_after: packed as u64,
            });
        }
        let before: u64 = layers.iter().map(|l| l.bytes_before).sum();
        let after: u64 = layers.iter().map(|l| l.bytes_after).sum();
        let bytes_before = self.checkpoint.weight_bytes();
        Ok(Plan {
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
        let mut staging = Staging::open(output, self.options.force, &self.fingerprint()?)?;
        let hashes = std::thread::scope(|scope| {
            let hashes = scope.spawn(|| hash_files(&self.checkpoint));
            let written = self.write_shards(&mut staging, progress)?;
            let hashes = hashes.join().expect("hashing does not panic")?;
            Ok::<_, anyhow::Error>((hashes, written))
        });
        let (hashes, written) = hashes?;
        self.write_companions(&staging, hashes)?;
        let bytes_after = Checkpoint::open(staging.dir())?.weight_bytes();
        staging.finish()?;
        let layers = written.layers;
        Ok(Report {
            output: output.to_owned(),
            bytes_before: self.checkpoint.weight_bytes(),
            bytes_after,
            pruned_bytes_before: layers.iter().map(|l| l.bytes_before).sum(),
            pruned_bytes_after: layers.iter().map(|l| l.bytes_after).sum(),
            seconds: started.elapsed().as_secs_f64(),
            peak_rss_bytes: crate::memory::peak_rss_bytes(),
            calibration_tokens: written.calibration_tokens,
            resumed_shards: written.resumed_shards,
            layers,
        })
    }

    /// Writes the shards that are not there yet.
    ///
    /// A shard is written while the next block is pruned, one at a time and in order, so that the journal is what it
    /// would be without the thread.
    fn write_shards(&self, staging: &mut Staging, progress: &ProgressBar) -> Result<Written> {
        let sparsity = self.sparsity(BTreeMap::new());
        let calibrating = !self.samples.is_empty();
        let blocks = self.config.blocks().layers;
        let beside_dense = self.options.aim == Aim::Dense;
        let mut stream = Stream::new(&self.checkpoint, &self.config, &self.samples, beside_dense)?;
        let calibration_tokens = stream.tokens();
        let (mut reports, mut resumed) = (vec![], 0);
        let finished: Vec<_> = (0..=blocks).map(|part| staging.finished(&self.shard_name(part)).cloned()).collect();
        let dir = staging.dir().to_owned();
        let staging = Mutex::new(staging);
        let written = |writing: Option<ScopedJoinHandle<Result<()>>>| {
            writing.map_or(Ok(()), |thread| thread.join().expect("writing does not panic"))
        };
        std::thread::scope(|scope| {
            let mut writing = None;
            for (part, finished) in finished.into_iter().enumerate() {
                let shard = self.shard_name(part);
                let layers = self.layers_of(part);
                if let Some(report) = finished {
                    let report: Vec<LayerReport> = serde_json::from_value(report)?;
                    progress.inc(report.len() as u64);
                    // Steps that were free must not make the rest look free.
                    progress.reset_eta();
                    reports.extend(report);
                    resumed += 1;
                } else {
                    let (tensors, report) = if !calibrating {
                        self.prune_layers(&layers, &Statistics::new(), progress, |_, _| Ok(()))?
                    } else if part < blocks {
                        self.prune_block(part, &layers, &stream, progress)?
                    } else {
                        let stats = self.observe_heads(&layers, &stream)?;
                        self.prune_layers(&layers, &stats, progress, |_, _| Ok(()))?
                    };
                    let noted = serde_json::to_value(&report)?;
                    reports.extend(report);
                    written(writing.take())?;
                    let (staging, shard) = (&staging, shard.clone());
                    writing = Some(scope.spawn(move || self.write_shard(staging, &shard, part, tensors, noted)));
                }
                if calibrating && part < blocks {
                    written(writing.take())?;
                    let shard = Checkpoint::of_shard(&dir.join(&shard), Some(&sparsity))?;
                    let block = Block::load(&shard, self.config.blocks(), part, Execution::EXACT)?;
                    stream.advance(&block, || self.dense_block(part))?;
                }
            }
            written(writing)
        })?;
        Ok(Written { layers: reports, resumed_shards: resumed, calibration_tokens })
    }

    /// Writes the pruned layers of a block beside the tensors that stay as they are.
    fn write_shard(
        &self,
        staging: &Mutex<&mut Staging>,
        shard: &str,
        part: usize,
        pruned: NamedTensors,
        report: Value,
    ) -> Result<()> {
        let mut tensors: Vec<(String, OutTensor)> = pruned;
        let raw = self.kept_tensors(part);
        let raw = raw.map(|name| Ok((name.clone(), self.checkpoint.finite(name)?))).collect::<Result<Vec<_>>>()?;
        for (name, tensor) in &raw {
            let out = OutTensor::new(tensor.info.dtype, tensor.info.shape.clone(), tensor.bytes());
            tensors.push((name.clone(), out));
        }
        Ok(staging.lock().expect("writing does not panic").write_shard(shard, &tensors, report)?)
    }

    /// A block of the original.
    fn dense_block(&self, part: usize) -> Result<Block> {
        Ok(Block::load(&self.checkpoint, self.config.blocks(), part, Execution::EXACT)?)
    }

    /// Prunes the layers of a block, observing it as often as the order asks for.
    fn prune_block(
        &self,
        part: usize,
        layers: &[&LinearSpec],
        stream: &Stream,
        progress: &ProgressBar,
    ) -> Result<(NamedTensors, Vec<LayerReport>)> {
        let (dense, mut block) = (self.dense_block(part)?, self.dense_block(part)?);
        let stages: Vec<Vec<&LinearSpec>> = match self.options.order {
            Order::Block => vec![layers.to_vec()],
            Order::Layer => {
                let stages = self.config.blocks().stages(part);
                let of = |stage: &Vec<LinearSpec>| layers.iter().copied().filter(|l| stage.contains(l)).collect();
                stages.iter().map(of).collect()
            }
        };
        let (mut tensors, mut reports) = (vec![], vec![]);
        for stage in stages.iter().filter(|stage| !stage.is_empty()) {
            let mut stats = Statistics::new();
            stream.observe(&block, &dense, &mut |sharing, x, beside| {
                if sharing.iter().any(|layer| stage.contains(layer)) {
                    stats.observe(sharing, x, beside);
                }
            });
            let replace = |name: &str, packed: &Packed| Ok(block.replace(&self.checkpoint, name, packed)?);
            let (of_stage, report) = self.prune_layers(stage, &stats, progress, replace)?;
            tensors.extend(of_stage);
            reports.extend(report);
        }
        Ok((tensors, reports))
    }

    /// Statistics of the inputs of some layers behind the last block.
    fn observe_heads(&self, layers: &[&LinearSpec], stream: &Stream) -> Result<Statistics> {
        let mut stats = Statistics::new();
        if layers.is_empty() {
            return Ok(stats);
        }
        for (hidden, dense) in stream.hidden() {
            let beside = dense.map(|dense| self.config.head_inputs(&self.checkpoint, dense)).transpose()?;
            for (i, (head, x)) in self.config.head_inputs(&self.checkpoint, hidden)?.iter().enumerate() {
                if layers.contains(&head) {
                    stats.observe(&[head], x, beside.as_ref().map(|beside| &beside[i].1));
                }
            }
        }
        Ok(stats)
    }

    fn prune_layers(
        &self,
        layers: &[&LinearSpec],
        stats: &Statistics,
        progress: &ProgressBar,
        mut replace: impl FnMut(&str, &Packed) -> Result<()>,
    ) -> Result<(NamedTensors, Vec<LayerReport>)> {
        let (mut tensors, mut reports) = (vec![], vec![]);
        for layer in layers {
            progress.set_message(layer.name.clone());
            let weight = Source(self.checkpoint.raw_matrix(&layer.weight(), layer.rows, layer.cols)?);
            let Options { criterion, selection, update, pattern, .. } = self.options;
            let values = self.value_type(layer)?;
            let method = Method { criterion, selection, update, pattern, values };
            let pruned = method.prune(&weight, stats.of(layer)).with_context(|| format!("layer {}", layer.name))?;
            let parts = lacuna_format::pack_tensors(&layer.name, &pruned.packed);
            reports.push(LayerReport {
                name: layer.name.clone(),
                pattern: pattern.to_string(),
                density: pruned.packed.mask().grid().density(),
                retained_score: pruned.retained_score,
                relative_error: pruned.relative_error,
                quantization_error: pruned.quantization_error,
                bytes_before: self.checkpoint.info(&layer.weight())?.len as u64,
                bytes_after: parts.iter().map(|(_, tensor)| tensor.bytes() as u64).sum(),
            });
            tensors.extend(parts);
            replace(&layer.name, &pruned.packed)?;
            progress.inc(1);
        }
        Ok((tensors, reports))
    }

    /// The chosen layers of a block; behind the last block, those of no block.
    fn layers_of(&self, part: usize) -> Vec<&LinearSpec> {
        self.chosen.iter().filter(|layer| self.part_of(&layer.name) == part).collect()
    }

    /// Tensors of a block that stay as they are.
    fn kept_tensors(&self, part: usize) -> impl Iterator<Item = &String> {
        let replaced: Vec<String> = self.layers_of(part).iter().map(|layer| layer.weight()).collect();
        let names = self.checkpoint.tensors().keys();
        names.filter(move |name| self.part_of(name) == part && !replaced.contains(name))
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

    /// Everything that shapes the result, beside the pattern and the layers.
    fn recipe(&self) -> Value {
        let Options { criterion, selection, update, aim, order, values, .. } = &self.options;
        let mut recipe = json!({
            "selection": selection.name(),
            "update": update.name(),
            "aim": aim,
            "order": order,
            "values": values.map_or("as the weights", ValueType::name),
        });
        if let Criterion::Ria(ria) = criterion {
            recipe["ria_parts"] = json!(format!("{:?}", ria.parts).to_lowercase());
            recipe["ria_exponent"] = json!(ria.exponent);
        }
        if let Some(calibration) = &self.options.calibration {
            recipe["calibration"] = json!({
                "file": calibration.data.file_name().map(|name| name.to_string_lossy()),
                "samples": self.samples.len(),
                "tokens": self.samples.iter().map(|sample| self.config.tokens_of(sample)).sum::<usize>(),
                "seed": calibration.seed,
            });
            if let Some(split) = Calibration::split(&self.config) {
                recipe["calibration"]["split"] = json!(split);
            }
        }
        recipe
    }

    fn sparsity(&self, source_sha256: BTreeMap<String, String>) -> Sparsity {
        let layer = |l: &LinearSpec| (l.name.clone(), LayerSparsity { shape: [l.rows, l.cols], pattern: None });
        Sparsity {
            quant_method: METHOD.to_owned(),
            version: VERSION,
            pattern: self.options.pattern,
            scale_group: self.options.values.and_then(ValueType::integers).map(|(_, group)| group),
            criterion: self.options.criterion.name().to_owned(),
            recipe: self.recipe(),
            source_sha256,
            layers: self.chosen.iter().map(layer).collect(),
        }
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
        Ok(json!({ "files": files, "sparsity": self.sparsity(BTreeMap::new()), "samples": digest(&self.samples) }))
    }

    /// config.json, the index and the tokenizer.
    fn write_companions(&self, staging: &Staging, hashes: BTreeMap<String, String>) -> Result<()> {
        let mut config = self.checkpoint.config().clone();
        config[SPARSITY_KEY] = serde_json::to_value(self.sparsity(hashes))?;
        let shards = (0..=self.config.blocks().layers).map(|part| self.shard_name(part));
        write_index(staging, shards)?;
        staging.write_file("config.json", serde_json::to_string_pretty(&config)?.as_bytes())?;
        copy_companions(staging, self.checkpoint.dir())
    }

    /// Estimate: the largest layer beside its packed form, or one block at work on a batch.
    fn peak_memory(&self, layers: &[PlannedLayer]) -> u64 {
        let weights = |l: &PlannedLayer| (l.shape[0] * l.shape[1]) as u64;
        let largest = layers.iter().map(weights).max().unwrap_or(0);
        let block_bytes = (0..=self.config.blocks().layers).map(|part| {
            let names: Vec<&str> = self.layers_of(part).iter().map(|l| l.name.as_str()).collect();
            layers.iter().filter(|l| names.contains(&l.name.as_str())).map(|l| l.bytes_after).sum::<u64>()
        });
        // mapped source (4 bytes at most), bands in hand and the packed layer; bytes to write of the block and of the one
        // before it, which are being written
        let pruning = largest * 8 + 2 * block_bytes.max().unwrap_or(0);
        if self.samples.is_empty() {
            return pruning;
        }
        let blocks = self.config.blocks();
        let tokens: u64 = self.samples.iter().map(|sample| self.config.tokens_of(sample) as u64).sum();
        let (hidden, inner) = (blocks.hidden_size as u64, blocks.intermediate_size as u64);
        let block: u64 = blocks.linears(0).iter().map(|l| (l.rows * l.cols) as u64 * 4).sum();
        let grams = 4 * (2 * hidden * hidden + (blocks.heads * blocks.head_dim).pow(2) as u64 + inner * inner);
        pruning + tokens * hidden * 4 + block + grams + 2048 * 4 * (3 * inner + 6 * hidden)
    }
}

/// What came of writing the shards.
struct Written {
    /// of all layers
    layers: Vec<LayerReport>,
    /// how many shards were there already
    resumed_shards: usize,
    calibration_tokens: usize,
}

/// A weight as it lies in the checkpoint.
struct Source<'a>(RawMatrix<'a>);

impl Weight for Source<'_> {
    type Error = anyhow::Error;

    fn shape(&self) -> [usize; 2] {
        self.0.shape()
    }

    fn band(&self, rows: Range<usize>) -> Result<Matrix> {
        Ok(self.0.band(rows)?)
    }
}

/// Statistics of the distinct inputs of some layers.
#[derive(Default)]
struct Statistics {
    inputs: Vec<Stats>,
    of_layer: BTreeMap<String, usize>,
}

impl Statistics {
    fn new() -> Self {
        Self::default()
    }

    fn observe(&mut self, sharing: &[&LinearSpec], x: &Matrix, dense: Option<&Matrix>) {
        let input = *self.of_layer.entry(sharing[0].name.clone()).or_insert_with(|| {
            self.inputs.push(Stats::new(x.rows()));
            self.inputs.len() - 1
        });
        for layer in sharing {
            self.of_layer.insert(layer.name.clone(), input);
        }
        match dense {
            Some(dense) => self.inputs[input].observe_beside(x, dense),
            None => self.inputs[input].observe(x),
        }
    }

    fn of(&self, layer: &LinearSpec) -> Option<&Stats> {
        self.of_layer.get(&layer.name).map(|&input| &self.inputs[input])
    }
}

/// SHA-256 of the weight files, by name.
fn hash_files(checkpoint: &Checkpoint) -> Result<BTreeMap<String, String>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    checkpoint.files().iter().map(|path| Ok((name(path), Checkpoint::sha256(path)?))).collect()
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
