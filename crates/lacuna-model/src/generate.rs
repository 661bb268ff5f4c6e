//! Generating text for a batch of prompts.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use lacuna_core::Matrix;

use crate::buffers::give;
use crate::{Cache, Decoder, DecoderConfig, Sampler, Sampling};

/// What a generation took.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// the new tokens of each prompt, without the one that ended it
    pub tokens: Vec<Vec<u32>>,
    /// time until the prompts were read
    pub prefill: Duration,
    /// time of all further steps
    pub decode: Duration,
}

/// Sequences that a decoder continues side by side, wherever it runs.
pub trait Sequences {
    /// Why it may fail.
    type Error;

    /// Of the decoder.
    fn config(&self) -> &DecoderConfig;

    /// Gives some sequences, by their numbers in rising order, their new tokens; the logits `[vocab, n]` behind the last of
    /// each.
    fn extend(&mut self, inputs: &[(usize, &[u32])]) -> Result<Matrix, Self::Error>;
}

/// Sequences of a decoder on the CPU.
struct OnCpu<'a> {
    model: &'a Decoder,
    caches: Vec<Cache>,
}

impl Sequences for OnCpu<'_> {
    type Error = Infallible;

    fn config(&self) -> &DecoderConfig {
        self.model.config()
    }

    fn extend(&mut self, inputs: &[(usize, &[u32])]) -> Result<Matrix, Infallible> {
        let chosen = |number: usize| inputs.iter().find(|(chosen, _)| *chosen == number).map(|(_, tokens)| *tokens);
        let caches = self.caches.iter_mut().enumerate();
        let mut batch: Vec<(&[u32], &mut Cache)> =
            caches.filter_map(|(number, cache)| Some((chosen(number)?, cache))).collect();
        let hidden = self.model.forward(&mut batch);
        let ends = inputs.iter().scan(0, |end, (_, tokens)| {
            *end += tokens.len();
            Some(*end - 1)
        });
        Ok(self.model.logits(&hidden, &ends.collect::<Vec<_>>()))
    }
}

/// Continues every prompt by up to `max_new` tokens, until an end token or the model's last position. `on_token` is
/// told of each new token and the number of its prompt.
///
/// # Panics
/// If a prompt is empty or a token is not in the vocabulary.
pub fn generate(
    model: &Decoder,
    prompts: &[Vec<u32>],
    max_new: usize,
    sampling: Sampling,
    on_token: impl FnMut(usize, u32),
) -> Generation {
    let caches = prompts.iter().map(|_| Cache::new(model.config())).collect();
    let Ok(made) = generate_on(&mut OnCpu { model, caches }, prompts, max_new, sampling, on_token);
    made
}

/// The same with sequences that have seen nothing yet, one a prompt, wherever they run.
pub fn generate_on<S: Sequences>(
    sequences: &mut S,
    prompts: &[Vec<u32>],
    max_new: usize,
    sampling: Sampling,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Generation, S::Error> {
    let (most, ends) = (sequences.config().max_positions, sequences.config().eos_token_ids.clone());
    let mut samplers: Vec<Sampler> = (0..prompts.len()).map(|i| Sampler::new(sampling, i)).collect();
    let mut result = Generation { tokens: vec![vec![]; prompts.len()], ..Generation::default() };
    let mut inputs: Vec<Vec<u32>> = prompts.to_vec();
    let mut lengths = vec![0; prompts.len()];
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    for step in 0..max_new {
        let started = Instant::now();
        active.retain(|&i| lengths[i] + inputs[i].len() <= most);
        if active.is_empty() {
            break;
        }
        let batch: Vec<(usize, &[u32])> = active.iter().map(|&i| (i, &inputs[i][..])).collect();
        let logits = sequences.extend(&batch)?;
        for &i in &active {
            lengths[i] += inputs[i].len();
        }
        let mut ended = vec![];
        for (column, &i) in active.iter().enumerate() {
            let scores: Vec<f32> = (0..logits.rows()).map(|v| logits.row(v)[column]).collect();
            let token = samplers[i].next(&scores);
            if ends.contains(&token) {
                ended.push(i);
            } else {
                result.tokens[i].push(token);
                on_token(i, token);
                inputs[i] = vec![token];
            }
        }
        give(logits);
        active.retain(|i| !ended.contains(i));
        *(if step == 0 { &mut result.prefill } else { &mut result.decode }) += started.elapsed();
    }
    Ok(result)
}
