//! From logits to the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token always
    pub temperature: f32,
    /// only the k most likely tokens
    pub top_k: Option<usize>,
    /// only the fewest most likely tokens whose probabilities sum to at least this; 1 keeps all
    pub top_p: f32,
    /// seed of the draws
    pub seed: u64,
}

/// Draws the tokens of one sequence.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// `sequence` numbers the sequences of a batch: each has a stream of draws of its own.
    pub fn new(sampling: Sampling, sequence: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(sequence as u64);
        Self { sampling, rng }
    }

    /// The next token. Of equally likely ones, greedy takes the first.
    pub fn next(&mut self, logits: &[f32]) -> u32 {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        let mut order: Vec<usize> = (0..logits.len()).collect();
        if temperature <= 0.0 {
            let first = order.into_iter().reduce(|best, i| if logits[i] > logits[best] { i } else { best });
            return first.unwrap_or(0) as u32;
        }
        // Where nothing is left out, the order does not matter, and sorting a vocabulary takes longer than a small model.
        if top_k.is_some() || top_p < 1.0 {
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.truncate(top_k.unwrap_or(usize::MAX).max(1));
        }
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |i: usize| f64::from(((logits[i] - most) / temperature).exp());
        let mut weights: Vec<f64> = order.iter().map(|&i| weight(i)).collect();
        if top_p < 1.0 {
            let total: f64 = weights.iter().sum();
            let mut sum = 0.0;
            let enough = weights.iter().position(|w| {
                sum += w;
                sum >= f64::from(top_p) * total
            });
            weights.truncate(enough.map_or(weights.len(), |last| last + 1));
        }
        let mut draw = self.rng.random::<f64>() * weights.iter().sum::<f64>();
        for (w, &token) in weights.iter().zip(&order) {
            draw -= w;
            if draw < 0.0 {
                return token as u32;
            }
        }
        order[weights.len() - 1] as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, -1.0, 2.0];

    fn draws(temperature: f32, top_k: Option<usize>, top_p: f32, seed: u64) -> Vec<u32> {
        let mut sampler = Sampler::new(Sampling { temperature, top_k, top_p, seed }, 0);
        (0..2000).map(|_| sampler.next(&LOGITS)).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_most_likely() {
        assert!(draws(0.0, None, 1.0, 1).iter().all(|&t| t == 1));
    }

    #[test]
    fn temperature_one_draws_from_the_softmax() {
        let drawn = draws(1.0, None, 1.0, 7);
        let total: f64 = LOGITS.iter().map(|&l| f64::from(l).exp()).sum();
        for (token, &logit) in LOGITS.iter().enumerate() {
            let p = f64::from(logit).exp() / total;
            let share = drawn.iter().filter(|&&t| t as usize == token).count() as f64 / 2000.0;
            // four standard deviations of a binomial share
            assert!((share - p).abs() < 4.0 * (p * (1.0 - p) / 2000.0).sqrt(), "token {token}: {share} for {p}");
        }
    }

    #[test]
    fn top_k_and_top_p_leave_the_tail_out() {
        assert!(draws(1.0, Some(2), 1.0, 1).iter().all(|t| [1, 4].contains(t)));
        // The two likeliest hold 0.76 of the probability, the third 0.14.
        assert!(draws(1.0, None, 0.7, 1).iter().all(|t| [1, 4].contains(t)));
        let three = draws(1.0, None, 0.8, 1);
        assert!(three.iter().all(|t| [1, 2, 4].contains(t)) && three.contains(&2));
    }

    #[test]
    fn a_seed_repeats_and_sequences_differ() {
        assert_eq!(draws(1.0, None, 1.0, 3), draws(1.0, None, 1.0, 3));
        assert_ne!(draws(1.0, None, 1.0, 3), draws(1.0, None, 1.0, 4));
        let sampling = Sampling { temperature: 1.0, top_k: None, top_p: 1.0, seed: 3 };
        let mut other = Sampler::new(sampling, 1);
        assert_ne!(draws(1.0, None, 1.0, 3), (0..2000).map(|_| other.next(&LOGITS)).collect::<Vec<_>>());
    }
}
