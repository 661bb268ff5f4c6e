//! What a target speed-up is about: a phase of a model at a batch size, as `bench` times it.

use std::fmt;

use lacuna_model::{Config, RUN_TOKENS};
use serde::{Deserialize, Serialize};

use crate::UsageError;

/// Runs of an encoder that are timed for each thread.
const RUNS_A_THREAD: usize = 4;

/// A phase of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// a decoder reads its prompts
    Prefill,
    /// a decoder adds a token to each sequence, again and again
    Decode,
    /// an encoder reads its texts or images
    Encode,
}

impl Phase {
    /// Name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Encode => "encode",
        }
    }
}

/// A phase at a batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// the phase
    pub phase: Phase,
    /// sequences or images side by side
    pub batch: usize,
    /// tokens of a prompt, text or image
    pub tokens: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, batch {}", self.phase.name(), self.batch)
    }
}

impl Case {
    /// The cases of a model, phase by phase. Without phases asked for: decoding of a decoder, encoding of an encoder; without
    /// a number of tokens: 256, or as many as the model takes. Images have as many as they have.
    pub fn of(
        config: &Config,
        phases: &[Phase],
        batches: &[usize],
        tokens: Option<usize>,
        decode_tokens: usize,
    ) -> Result<Vec<Self>, UsageError> {
        let (own, most): (&[Phase], usize) = match config {
            Config::Decoder(c) => (&[Phase::Decode, Phase::Prefill], c.max_positions.saturating_sub(decode_tokens)),
            Config::Text(c) => (&[Phase::Encode], c.positions()),
            Config::Vision(_) => (&[Phase::Encode], usize::MAX),
        };
        if let Some(phase) = phases.iter().find(|phase| !own.contains(phase)) {
            let offered = own.iter().map(|phase| phase.name()).collect::<Vec<_>>().join(", ");
            return Err(UsageError(format!(
                "--phase {} does not fit: this model {}, so there is {offered}",
                phase.name(),
                config.purpose()
            )));
        }
        let tokens = match (config, tokens) {
            (Config::Vision(config), _) => config.tokens(),
            (_, None) => 256.min(most),
            (_, Some(tokens)) if tokens <= most => tokens,
            (_, Some(tokens)) => {
                return Err(UsageError(format!("--prompt-tokens asks for {tokens}; this model takes {most} here")));
            }
        };
        let phases = if phases.is_empty() { &own[..1] } else { phases };
        let case = |&phase: &Phase| batches.iter().map(move |&batch| Self { phase, batch, tokens });
        Ok(phases.iter().flat_map(case).collect())
    }

    /// The case that is timed for this one, and its share of the time. Encoders cut a batch into runs that threads take one
    /// after the other, so a few runs a thread tell what all take.
    pub(super) fn timed(&self) -> (Self, f64) {
        let (tokens, runs) = self.runs();
        let enough = RUNS_A_THREAD * rayon::current_num_threads();
        if self.phase != Phase::Encode || runs <= enough {
            return (*self, 1.0);
        }
        let batch = tokens / self.tokens * enough;
        (Self { batch, ..*self }, batch as f64 / self.batch as f64)
    }

    /// How many tokens run through a layer together, and how often in a pass.
    pub(super) fn runs(&self) -> (usize, usize) {
        match self.phase {
            Phase::Decode => (self.batch, 1),
            Phase::Prefill => (self.batch * self.tokens, 1),
            Phase::Encode => {
                let side_by_side = (RUN_TOKENS / self.tokens).clamp(1, self.batch);
                (side_by_side * self.tokens, self.batch.div_ceil(side_by_side))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_those_of_the_models() {
        let runs = |phase, batch, tokens| Case { phase, batch, tokens }.runs();
        assert_eq!(runs(Phase::Decode, 32, 256), (32, 1));
        assert_eq!(runs(Phase::Prefill, 2, 256), (512, 1));
        for (batch, tokens) in [(1, 256), (32, 256), (32, 100), (3, 300), (1, 7)] {
            let model = lacuna_model::runs(&vec![tokens; batch], RUN_TOKENS);
            let longest = model.iter().map(|run| run.len() * tokens).max().unwrap();
            assert_eq!(runs(Phase::Encode, batch, tokens), (longest, model.len()));
        }
    }
}
