//! Whole models on the clock: dense beside a plan's patterns under random masks, in turn, before anything is pruned.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use lacuna_core::{Packed, Pattern, ValueType};
use lacuna_format::Checkpoint;
use lacuna_model::{Block, Cache, Config, Decoder, Execution, LinearSpec, TextEncoder, VisionEncoder};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::case::{Case, Phase};
use super::stand_in::StandIns;
use crate::bench::{images, texts};
use crate::kernel_bench::normal;

/// Tokens that a decoder adds in a timed round.
pub(super) const DECODE_TOKENS: usize = 16;
const MIN_ROUNDS: usize = 3;
const MAX_ROUNDS: usize = 100;
const MIN_SECONDS: f64 = 1.5;

/// A model in memory.
pub(super) enum Whole {
    Decoder(Decoder),
    Text(TextEncoder),
    Vision(VisionEncoder),
}

/// What a model is given in a case.
pub(super) enum Input {
    Prompts(Vec<Vec<u32>>),
    /// prompts that were read already
    Sequences(Vec<Vec<u32>>, Vec<Cache>),
    Images(Vec<Vec<f32>>),
}

impl Whole {
    pub(super) fn load(checkpoint: &Checkpoint, config: &Config, execution: Execution) -> Result<Self> {
        Ok(match config {
            Config::Decoder(config) => Self::Decoder(Decoder::load(checkpoint, config, execution)?),
            Config::Text(config) => Self::Text(TextEncoder::load(checkpoint, config, execution)?),
            Config::Vision(config) => Self::Vision(VisionEncoder::load(checkpoint, config, execution)?),
        })
    }

    fn blocks_mut(&mut self) -> &mut [Block] {
        match self {
            Self::Decoder(model) => model.blocks_mut(),
            Self::Text(model) => model.blocks_mut(),
            Self::Vision(model) => model.blocks_mut(),
        }
    }

    /// Puts stand-ins in the place of layers.
    pub(super) fn disguise<'a>(
        &mut self,
        checkpoint: &Checkpoint,
        config: &Config,
        layers: impl Iterator<Item = (&'a LinearSpec, Pattern)>,
        (stand_ins, execution): (StandIns, Execution),
    ) -> Result<()> {
        let mut made: BTreeMap<(usize, usize, String), Packed> = BTreeMap::new();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for (layer, pattern) in layers {
            let LinearSpec { rows, cols, .. } = *layer;
            let packed = match made.entry((rows, cols, pattern.to_string())) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(stand_ins.pack(&mut rng, pattern, &normal(0, rows, cols, 0.02))?)
                }
            };
            let block = config.blocks().layer_of(&layer.name).expect("plans are of layers of blocks");
            self.blocks_mut()[block].replace(checkpoint, &layer.name, packed, execution)?;
        }
        Ok(())
    }

    /// Rounds the dense weights of layers: what pruned ones of that type of values are held against.
    pub(super) fn round<'a>(
        &mut self,
        checkpoint: &Checkpoint,
        config: &Config,
        layers: impl Iterator<Item = &'a LinearSpec>,
        (values, execution): (ValueType, Execution),
    ) -> Result<()> {
        let execution = Execution { dense_values: Some(values), ..execution };
        for layer in layers {
            let block = config.blocks().layer_of(&layer.name).expect("plans are of layers of blocks");
            self.blocks_mut()[block].round(checkpoint, &layer.name, execution)?;
        }
        Ok(())
    }

    /// What the model is given in a case; prompts before decoding are read here, off the clock.
    pub(super) fn input(&self, case: &Case) -> Input {
        match self {
            Self::Decoder(model) => {
                let prompts = texts(model.config().vocab_size, case.batch, case.tokens);
                match case.phase {
                    Phase::Decode => {
                        let read = |prompt: &Vec<u32>| {
                            let mut cache = Cache::new(model.config());
                            model.forward(&mut [(prompt, &mut cache)]);
                            cache
                        };
                        let caches = prompts.iter().map(read).collect();
                        Input::Sequences(prompts, caches)
                    }
                    Phase::Prefill | Phase::Encode => Input::Prompts(prompts),
                }
            }
            Self::Text(model) => Input::Prompts(texts(model.config().vocab_size, case.batch, case.tokens)),
            Self::Vision(model) => Input::Images(images(model.config(), case.batch)),
        }
    }

    /// Seconds of a pass: of a decoder's decoding one token of each sequence.
    fn time(&self, input: &Input) -> f64 {
        match (self, input) {
            (Self::Decoder(model), Input::Prompts(prompts)) => {
                let mut caches = vec![Cache::new(model.config()); prompts.len()];
                let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
                seconds(|| step(model, &prompts, &mut caches))
            }
            (Self::Decoder(model), Input::Sequences(prompts, caches)) => {
                let mut caches = caches.clone();
                let next = |i: usize| prompts.iter().map(|prompt| &prompt[i % prompt.len()..][..1]).collect::<Vec<_>>();
                let all = seconds(|| (0..DECODE_TOKENS).for_each(|i| step(model, &next(i), &mut caches)));
                all / DECODE_TOKENS as f64
            }
            (Self::Text(model), Input::Prompts(texts)) => {
                let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
                seconds(|| drop(std::hint::black_box(model.embed(&texts))))
            }
            (Self::Vision(model), Input::Images(images)) => {
                let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
                seconds(|| drop(std::hint::black_box(model.logits(&images))))
            }
            _ => unreachable!("inputs are made by the model that is given them, or by one of its kind"),
        }
    }
}

/// New tokens of each sequence, up to the logits of the last.
fn step(model: &Decoder, tokens: &[&[u32]], caches: &mut [Cache]) {
    let mut batch: Vec<_> = tokens.iter().copied().zip(caches).collect();
    let hidden = model.forward(&mut batch);
    let per_sequence = hidden.cols() / tokens.len();
    let last: Vec<usize> = (1..=tokens.len()).map(|s| s * per_sequence - 1).collect();
    lacuna_model::give(std::hint::black_box(model.logits(&hidden, &last)));
}

fn seconds(run: impl FnOnce()) -> f64 {
    let started = Instant::now();
    run();
    started.elapsed().as_secs_f64()
}

/// What came of timing two models side by side.
pub(super) struct Comparison {
    /// seconds of a pass of the dense one, the least: whatever else a machine does only adds to it
    pub(super) dense: f64,
    /// the dense one's seconds by the other's, round by round; the median, as in `bench`
    pub(super) speedup: f64,
}

/// Times two models in a case, round by round in turn.
pub(super) fn compare(dense: &Whole, sparse: &Whole, input: &Input) -> Comparison {
    let round = || [dense, sparse].map(|model| model.time(input));
    // One that warms up.
    round();
    let (started, mut rounds) = (Instant::now(), vec![]);
    while rounds.len() < MIN_ROUNDS || rounds.len() < MAX_ROUNDS && started.elapsed().as_secs_f64() < MIN_SECONDS {
        rounds.push(round());
    }
    let mut ratios: Vec<f64> = rounds.iter().map(|[dense, sparse]| dense / sparse).collect();
    ratios.sort_by(f64::total_cmp);
    let n = ratios.len();
    Comparison {
        dense: rounds.iter().map(|[dense, _]| *dense).fold(f64::INFINITY, f64::min),
        speedup: f64::midpoint(ratios[(n - 1) / 2], ratios[n / 2]),
    }
}
