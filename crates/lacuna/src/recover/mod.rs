//! Recovery: training that keeps the pattern. A pruned checkpoint and some data in, a checkpoint of the same layout out.
//!
//! Beside the output there is a folder `{output}.lacuna-training` while it runs: the log, what was generated, and a saved
//! training to go on with. Settings that differ from those it was begun with are refused.

mod curves;
mod data;
mod images;
mod output;
mod progress;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use lacuna_format::{Checkpoint, read_json};
use lacuna_model::{Config, family};
use lacuna_train::{By, Fit, Losses, Masks, Recipe, Setup, StepReport, Teacher, Trainer};
use serde::Serialize;
use serde_json::{Value, json};

use crate::UsageError;
use crate::output::check_output;
use crate::recipe::read_named;
use data::Data;
use progress::Log;

pub use data::DataSource;

/// How to recover.
#[derive(Debug, Clone)]
pub struct Options {
    /// the dense checkpoint, where the recipe needs it
    pub dense: Option<PathBuf>,
    /// what to train on
    pub data: Vec<DataSource>,
    /// name of the recipe, or its file
    pub method: String,
    /// how
    pub recipe: Recipe,
    /// steps of the optimizer
    pub steps: usize,
    /// samples of a step
    pub batch: usize,
    /// tokens of a sample; `None` for the model's context, at most 512
    pub length: Option<usize>,
    /// seed of everything drawn
    pub seed: u64,
    /// whether products round what they multiply to bfloat16
    pub bf16: bool,
    /// whether activations are computed again on the way back
    pub recompute: bool,
    /// steps between two saved states
    pub save_every: usize,
    /// trainings that are averaged
    pub soup: usize,
    /// replace what is there
    pub force: bool,
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// the new checkpoint
    pub output: PathBuf,
    /// recipe
    pub method: String,
    /// steps of the optimizer
    pub steps: usize,
    /// tokens trained on in this run
    pub tokens: usize,
    /// what was lost at the first step
    pub first: Option<Losses>,
    /// mean of what was lost in the last tenth of the steps
    pub last: Losses,
    /// share of the kept weights that others took the place of, over the whole training
    pub flipped: f64,
    /// of this run
    pub seconds: f64,
    /// peak resident memory
    pub peak_rss_bytes: Option<u64>,
    /// step that this run went on from
    pub resumed_step: usize,
}

/// The recipes that are built in.
const BUILT_IN: [(&str, &str); 16] = [
    ("masked", include_str!("../../recipes/recover/masked.json")),
    ("ste", include_str!("../../recipes/recover/ste.json")),
    ("sr-ste", include_str!("../../recipes/recover/sr-ste.json")),
    ("ast", include_str!("../../recipes/recover/ast.json")),
    ("mdgf", include_str!("../../recipes/recover/mdgf.json")),
    ("step", include_str!("../../recipes/recover/step.json")),
    ("dsd", include_str!("../../recipes/recover/dsd.json")),
    ("maskllm", include_str!("../../recipes/recover/maskllm.json")),
    ("joint", include_str!("../../recipes/recover/joint.json")),
    ("lora", include_str!("../../recipes/recover/lora.json")),
    ("lora3", include_str!("../../recipes/recover/lora3.json")),
    ("lora-beside", include_str!("../../recipes/recover/lora-beside.json")),
    ("squarehead", include_str!("../../recipes/recover/squarehead.json")),
    ("text-encoder", include_str!("../../recipes/recover/text-encoder.json")),
    ("image-classifier", include_str!("../../recipes/recover/image-classifier.json")),
    ("blockwise", include_str!("../../recipes/recover/blockwise.json")),
];

/// The recipe of that name, or of that file.
pub fn recipe(name: &str) -> Result<Recipe, UsageError> {
    let recipe: Recipe = read_named("method", name, &BUILT_IN)?;
    recipe.checked().map_err(|problem| UsageError(format!("method {name}: {problem}")))
}

/// A recovery that was checked as far as it can be without training.
pub struct Job {
    pruned: Checkpoint,
    dense: Option<Checkpoint>,
    config: Config,
    options: Options,
}

impl Job {
    /// Opens the checkpoints and checks that they and the recipe go together.
    pub fn new(pruned: &Path, options: Options) -> Result<Self> {
        let checkpoint = Checkpoint::open(pruned)?;
        let Some(sparsity) = checkpoint.sparsity() else {
            bail!("{}: is not pruned; run `lacuna prune` on it first", pruned.display());
        };
        let config = family::config(&checkpoint)?;
        if options.recipe.needs_dense() && options.dense.is_none() {
            let problem = format!("method {} looks at the dense model: pass --dense DIR", options.method);
            return Err(UsageError(problem).into());
        }
        let still = options.recipe.phases.iter().all(|phase| phase.masks == Masks::Fixed);
        if options.soup > 1 && !still {
            let problem = "--soup averages trainings that share their masks: use a method that leaves them as they are";
            return Err(UsageError(problem.to_owned()).into());
        }
        let layers: Vec<&str> = sparsity.layers.keys().map(String::as_str).collect();
        options.recipe.check_targets(&layers).map_err(|e| UsageError(format!("method {}: {e}", options.method)))?;
        let loss = options.recipe.loss;
        match config {
            Config::Text(_) if loss.ce + loss.kl > 0.0 => {
                let problem = format!(
                    "method {}: a text encoder has no logits for the losses ce and kl; --method text-encoder has its own",
                    options.method
                );
                return Err(UsageError(problem).into());
            }
            Config::Decoder(_) | Config::Vision(_) if loss.cosine > 0.0 => {
                let problem = format!("method {}: the loss cosine is for text encoders; use ce or kl", options.method);
                return Err(UsageError(problem).into());
            }
            Config::Vision(_) | Config::Text(_) | Config::Decoder(_) => {}
        }
        let dense = options.dense.as_ref().map(|dir| Checkpoint::open(dir)).transpose()?;
        if let Some(dense) = &dense {
            if dense.sparsity().is_some() {
                bail!("{}: is pruned; --dense takes the checkpoint that it came from", dense.dir().display());
            }
            for (layer, sparse) in &sparsity.layers {
                dense.check_shape(&format!("{layer}.weight"), &sparse.shape)?;
            }
        }
        Ok(Self { pruned: checkpoint, dense, config, options })
    }

    /// Steps of the progress bar that [`Self::run`] drives.
    pub fn steps(&self) -> u64 {
        (self.options.steps * self.options.soup) as u64
    }

    /// What must be equal for a run to go on where another one stopped.
    fn fingerprint(&self) -> Result<Value> {
        let Options { data, recipe, steps, batch, length, seed, bf16, soup, .. } = &self.options;
        let sources: Vec<String> = data.iter().map(ToString::to_string).collect();
        Ok(json!({
            "pruned": self.pruned.dir().canonicalize()?, "dense": self.options.dense, "data": sources, "recipe": recipe,
            "steps": steps, "batch": batch, "length": length, "seed": seed, "bf16": bf16, "soup": soup,
        }))
    }

    /// Trains, or goes on where an interrupted run with the same settings stopped, and writes `output`.
    pub fn run(&self, output: &Path, bar: &ProgressBar) -> Result<Report> {
        let started = Instant::now();
        check_output(self.pruned.dir(), output, self.options.force)?;
        if let Some(dense) = &self.dense {
            check_output(dense.dir(), output, self.options.force)?;
        }
        let work = self.open_work(output)?;
        let opened = Data::open(&self.pruned, self.dense.as_ref(), &self.config, &self.options, &work, bar);
        if opened.is_err() && !work.join("state-0").exists() {
            std::fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
        }
        let data = opened?;
        let mut log = Log::open(&work.join("log.jsonl"))?;
        let (mut cooks, mut tokens, mut resumed_step) = (vec![], 0, 0);
        let mut trainer = self.trainer(self.options.seed)?;
        for cook in 0..self.options.soup {
            if cook > 0 {
                trainer = self.trainer(self.options.seed + cook as u64)?;
            }
            let state = work.join(format!("state-{cook}"));
            let (trained, resumed) = self.train(&mut trainer, &data, &state, cook, &mut log, bar)?;
            (tokens, resumed_step) = (tokens + trained, resumed_step + resumed);
            cooks.push(trainer.parameters()?);
        }
        if cooks.len() > 1 {
            trainer.average(&cooks)?;
        }
        output::write(self, &trainer, &log, output)?;
        std::fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
        let last = self.options.soup - 1;
        Ok(Report {
            output: output.to_owned(),
            method: self.options.method.clone(),
            steps: self.options.steps,
            tokens,
            first: log.first(last),
            last: log.last(last),
            flipped: log.flipped(last),
            seconds: started.elapsed().as_secs_f64(),
            peak_rss_bytes: crate::memory::peak_rss_bytes(),
            resumed_step,
        })
    }

    fn trainer(&self, seed: u64) -> Result<Trainer> {
        let Options { recipe, steps, bf16, recompute, .. } = &self.options;
        Ok(Trainer::new(&Setup {
            pruned: &self.pruned,
            dense: self.dense.as_ref(),
            config: &self.config,
            recipe,
            steps: *steps,
            seed,
            bf16: *bf16,
            recompute: *recompute,
        })?)
    }

    /// The folder of an unfinished training: this one's, or a new one.
    fn open_work(&self, output: &Path) -> Result<PathBuf> {
        let mut name = output.file_name().context("the output has no name")?.to_owned();
        name.push(".lacuna-training");
        let (work, fingerprint) = (output.with_file_name(name), self.fingerprint()?);
        let settings = work.join("settings.json");
        if work.exists() {
            let same = read_json(&settings).is_ok_and(|old| old == fingerprint);
            if !same && !self.options.force {
                bail!("{}: a training with other settings; finish that one or pass --force", work.display());
            }
            if !same {
                std::fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
            }
        }
        std::fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
        lacuna_format::write_whole(&settings, serde_json::to_string_pretty(&fingerprint)?.as_bytes())?;
        Ok(work)
    }

    /// One training from where it stands to its end: the tokens it took, and the step that it went on from.
    fn train(
        &self,
        trainer: &mut Trainer,
        data: &Data,
        state: &Path,
        cook: usize,
        log: &mut Log,
        bar: &ProgressBar,
    ) -> Result<(usize, usize)> {
        let Options { recipe, steps, seed, save_every, .. } = &self.options;
        if state.exists() {
            trainer.restore(state, self.pruned.sparsity().expect("checked"))?;
        }
        let resumed_step = trainer.steps_done();
        log.cut(cook, resumed_step)?;
        bar.inc(resumed_step as u64);
        bar.reset_eta();
        let teacher = match &self.options.dense {
            Some(dense) if recipe.by == By::Model && recipe.loss.needs_teacher() => {
                Some(Teacher::open(dense, &self.config, self.options.bf16)?)
            }
            _ => None,
        };
        let seed = seed + cook as u64;
        let mut fit = match &self.dense {
            Some(dense) if recipe.by == By::Block => {
                let all = data.all(seed)?;
                let per_step = (all.len() * self.options.batch).div_ceil(data.len());
                Some(Fit::new(dense, &self.config, all, per_step, seed)?)
            }
            _ => None,
        };
        let (started, mut tokens, mut flipped) = (Instant::now(), 0, log.flipped(cook));
        while trainer.steps_done() < *steps {
            let report = if let Some(fit) = &mut fit {
                trainer.fit_step(fit)?
            } else {
                let mut batches = data.step(trainer.steps_done(), seed)?;
                tokens += batches.iter().flat_map(|batch| &batch.lengths).sum::<usize>();
                if let Some(teacher) = &teacher {
                    teacher.teach(&mut batches, &recipe.loss)?;
                }
                trainer.step(&batches)?
            };
            log.push(cook, &report)?;
            bar.inc(1);
            flipped += report.flipped.unwrap_or(0.0);
            bar.set_message(said(&report, flipped, tokens as f64 / started.elapsed().as_secs_f64()));
            let done = trainer.steps_done();
            if done.is_multiple_of(*save_every) || done == *steps {
                trainer.save(state)?;
            }
        }
        Ok((tokens, resumed_step))
    }
}

fn said(report: &StepReport, flipped: f64, rate: f64) -> String {
    format!("loss {:.4}  {rate:.0} tokens/s  flipped {:.2} %", report.losses.total, 100.0 * flipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_can_be_read() {
        for (name, _) in BUILT_IN {
            let recipe = recipe(name).unwrap();
            let text = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe, "{name}");
        }
    }
}
