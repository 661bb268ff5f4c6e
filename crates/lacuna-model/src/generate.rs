//! Generating text for a batch of prompts.

use std::time::{Duration, Instant};

use crate::buffers::give;
use crate::{Cache, Decoder, Sampler, Sampling};

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
    mut on_token: impl FnMut(usize, u32),
) -> Generation {
    let config = model.config();
    let mut caches: Vec<Cache> = prompts.iter().map(|_| Cache::new(config)).collect();
    let mut samplers: Vec<Sampler> = (0..prompts.len()).map(|i| Sampler::new(sampling, i)).collect();
    let mut result = Generation { tokens: vec![vec![]; prompts.len()], ..Generation::default() };
    let mut inputs: Vec<Vec<u32>> = prompts.to_vec();
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    for step in 0..max_new {
        let started = Instant::now();
        active.retain(|&i| caches[i].len() + inputs[i].len() <= config.max_positions);
        if active.is_empty() {
            break;
        }
        let slots = caches.iter_mut().enumerate().filter(|(i, _)| active.contains(i));
        let mut batch: Vec<(&[u32], &mut Cache)> = slots.map(|(i, cache)| (&inputs[i][..], cache)).collect();
        let hidden = model.forward(&mut batch);
        let mut last = 0;
        let ends = batch.iter().map(|(tokens, _)| {
            last += tokens.len();
            last - 1
        });
        let logits = model.logits(&hidden, &ends.collect::<Vec<_>>());
        let mut ended = vec![];
        for (column, &i) in active.iter().enumerate() {
            let scores: Vec<f32> = (0..logits.rows()).map(|v| logits.row(v)[column]).collect();
            let token = samplers[i].next(&scores);
            if config.eos_token_ids.contains(&token) {
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
    result
}
