//! What a recovery is trained on: text, images, or samples of the dense model itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use lacuna_format::{Checkpoint, Tokenizer};
use lacuna_model::{Config, Decoder, DecoderConfig, Execution, Sample, Sampling, generate, runs};
use lacuna_train::{MicroBatch, NO_TARGET};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::Options;
use super::images::Pictures;
use crate::UsageError;
use crate::calibrate::checked_length;
use crate::text::{read_documents, read_sentences};

/// Tokens that run through the model together on one thread, at least and at most: an eighth of a step's, so that small steps
/// have work for several threads too.
const MICRO_TOKENS: [usize; 2] = [256, 1024];

/// Texts that are generated side by side.
const GENERATED_TOGETHER: usize = 32;

/// Where samples come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// a text, or a folder of images
    Path(PathBuf),
    /// so many texts that the dense model writes
    Generated(usize),
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.file_name().unwrap_or_default().to_string_lossy()),
            Self::Generated(samples) => write!(f, "self ({samples})"),
        }
    }
}

/// All samples.
pub(super) struct Data<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    batch: usize,
    items: Items,
}

enum Items {
    Tokens(Vec<Vec<u32>>),
    Pictures(Box<Pictures>),
}

impl<'a> Data<'a> {
    /// Reads or generates all samples. What is generated is kept in `work`.
    pub(super) fn open(
        checkpoint: &'a Checkpoint,
        dense: Option<&Checkpoint>,
        config: &'a Config,
        options: &Options,
        work: &Path,
        bar: &ProgressBar,
    ) -> Result<Self> {
        let items = match config {
            Config::Decoder(decoder) => {
                let mut samples = vec![];
                for source in &options.data {
                    samples.extend(match source {
                        DataSource::Path(path) => pieces(checkpoint, decoder, path, options.length)?,
                        DataSource::Generated(count) => {
                            let Some(dense) = dense else {
                                let problem = "--data self has the dense model write texts: pass --dense DIR";
                                return Err(UsageError(problem.to_owned()).into());
                            };
                            generated(dense, decoder, *count, options, work, bar)?
                        }
                    });
                }
                Items::Tokens(samples)
            }
            Config::Text(text) => {
                let tokenizer = Tokenizer::open(checkpoint.dir(), text.vocab_size, None)?;
                let length = length_of(options.length, text.max_tokens)?;
                let mut samples = vec![];
                for source in &options.data {
                    let DataSource::Path(path) = source else { return Err(writes_nothing(config).into()) };
                    for sentence in read_sentences(path)? {
                        samples.push(tokenizer.encode_with_specials(&sentence, length)?);
                    }
                }
                samples.sort_unstable();
                samples.dedup();
                Items::Tokens(samples)
            }
            Config::Vision(vision) => {
                let [DataSource::Path(folder)] = &options.data[..] else { return Err(writes_nothing(config).into()) };
                Items::Pictures(Box::new(Pictures::open(
                    checkpoint.dir(),
                    vision,
                    folder,
                    options.recipe.loss.ce > 0.0,
                )?))
            }
        };
        let data = Self { checkpoint, config, batch: options.batch, items };
        if data.len() == 0 {
            bail!("--data gives no samples");
        }
        Ok(data)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        match &self.items {
            Items::Tokens(samples) => samples.len(),
            Items::Pictures(pictures) => pictures.len(),
        }
    }

    /// The samples of a step: every epoch visits all, in an order of its own.
    pub(super) fn step(&self, step: usize, seed: u64) -> Result<Vec<MicroBatch>> {
        let (count, mut picked) = (self.len(), vec![]);
        let drawn = step * self.batch..(step + 1) * self.batch;
        for epoch in drawn.start / count..drawn.end.div_ceil(count) {
            let mut order: Vec<usize> = (0..count).collect();
            order.shuffle(&mut random(seed, 1, epoch));
            let first = epoch * count;
            picked.extend(&order[drawn.start.max(first) - first..drawn.end.min(first + count) - first]);
        }
        self.batches(&picked, drawn.start, seed)
    }

    /// All samples once.
    pub(super) fn all(&self, seed: u64) -> Result<Vec<MicroBatch>> {
        self.batches(&(0..self.len()).collect::<Vec<_>>(), 0, seed)
    }

    /// Some samples, the first of which is the `first`th that is drawn.
    fn batches(&self, picked: &[usize], first: usize, seed: u64) -> Result<Vec<MicroBatch>> {
        let mut samples: Vec<(Sample, Vec<u32>)> = match &self.items {
            Items::Tokens(all) => {
                picked.iter().map(|&i| (Sample::Tokens(all[i].clone()), self.targets(&all[i]))).collect()
            }
            Items::Pictures(pictures) => {
                let draw = |(at, &i): (usize, &usize)| pictures.sample(i, &mut random(seed, 2, first + at));
                picked.par_iter().enumerate().map(draw).collect::<Result<_>>()?
            }
        };
        // Of like lengths together.
        samples.sort_by_key(|(sample, _)| self.config.tokens_of(sample));
        let lengths: Vec<usize> = samples.iter().map(|(sample, _)| self.config.tokens_of(sample)).collect();
        let batch = |run: &std::ops::Range<usize>| {
            let (inputs, targets): (Vec<Sample>, Vec<Vec<u32>>) = samples[run.clone()].iter().cloned().unzip();
            let (hidden, lengths) = self.config.embed(self.checkpoint, &inputs)?;
            let tokens = inputs.into_iter().flat_map(|input| match input {
                Sample::Tokens(tokens) => tokens,
                Sample::Pixels(_) => vec![],
            });
            Ok(MicroBatch::new(hidden, tokens.collect(), lengths, targets.concat()))
        };
        let [least, most] = MICRO_TOKENS;
        let limit = (lengths.iter().sum::<usize>() / 8).clamp(least, most);
        runs(&lengths, limit).iter().map(batch).collect()
    }

    /// Of a decoder, each token's next one.
    fn targets(&self, tokens: &[u32]) -> Vec<u32> {
        match self.config {
            Config::Decoder(_) => tokens.iter().skip(1).copied().chain([NO_TARGET]).collect(),
            Config::Text(_) | Config::Vision(_) => vec![],
        }
    }
}

/// A source of random numbers for one thing at one place.
fn random(seed: u64, what: u64, place: usize) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(what << 48 | place as u64);
    random
}

fn writes_nothing(config: &Config) -> UsageError {
    UsageError(format!("--data self is for models that write text; this one {}: give it one source", config.purpose()))
}

fn length_of(asked: Option<usize>, max: usize) -> Result<usize, UsageError> {
    checked_length("--length", asked.unwrap_or(max.min(512)), max)
}

/// Documents one by one, cut into pieces where they are longer.
fn pieces(
    checkpoint: &Checkpoint,
    config: &DecoderConfig,
    path: &Path,
    length: Option<usize>,
) -> Result<Vec<Vec<u32>>> {
    let tokenizer = Tokenizer::open(checkpoint.dir(), config.vocab_size, config.bos_token_id)?;
    let length = length_of(length, config.max_positions)?;
    let mut pieces = vec![];
    for document in read_documents(path)? {
        let tokens = tokenizer.encode(&document)?;
        pieces.extend(tokens.chunks(length).filter(|piece| piece.len() > 1).map(<[u32]>::to_vec));
    }
    Ok(pieces)
}

/// Texts that the dense model writes, at temperature 1.
fn generated(
    dense: &Checkpoint,
    config: &DecoderConfig,
    count: usize,
    options: &Options,
    work: &Path,
    bar: &ProgressBar,
) -> Result<Vec<Vec<u32>>> {
    let path = work.join("generated.jsonl");
    if path.exists() {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        return text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect();
    }
    let Some(first) = config.bos_token_id else {
        return Err(UsageError("--data self needs a bos_token_id in config.json to begin with".to_owned()).into());
    };
    let length = length_of(options.length, config.max_positions)?;
    let model = Decoder::load(dense, config, Execution::EXACT)?;
    let starts: Vec<usize> = (0..count).step_by(GENERATED_TOGETHER).collect();
    let written = AtomicUsize::new(0);
    // A thread each: their products are too small to share, and drawing tokens takes as long as they do.
    let texts = starts.into_par_iter().map(|start| {
        let prompts = vec![vec![first]; GENERATED_TOGETHER.min(count - start)];
        let seed = options.seed.wrapping_mul(1_000_003).wrapping_add(start as u64);
        let sampling = Sampling { temperature: 1.0, top_k: None, top_p: 1.0, seed };
        let tokens = generate(&model, &prompts, length - 1, sampling, |_, _| {}).tokens;
        let done = written.fetch_add(prompts.len(), Ordering::Relaxed) + prompts.len();
        bar.set_message(format!("texts of the dense model: {done} of {count}"));
        tokens.into_iter().map(|tokens| [vec![first], tokens].concat()).collect::<Vec<_>>()
    });
    let mut texts = texts.collect::<Vec<_>>().concat();
    texts.retain(|tokens| tokens.len() > 1);
    let lines: String = texts.iter().map(|tokens| format!("{}\n", serde_json::json!(tokens))).collect();
    lacuna_format::write_whole(&path, lines.as_bytes())?;
    Ok(texts)
}
