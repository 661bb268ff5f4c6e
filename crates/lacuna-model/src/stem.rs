//! The two ends of a model for whoever walks through it block by block: what its first block sees of an input, and what
//! its heads see of the last block.

use lacuna_core::Matrix;
use lacuna_format::{Checkpoint, Result};

use crate::config::{Config, LinearSpec};
use crate::linear::Execution;
use crate::{decoder, text, vision};

/// An input of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// of a text
    Tokens(Vec<u32>),
    /// of an image, `[channels, height, width]`
    Pixels(Vec<f32>),
}

impl Config {
    /// The linear layers behind the blocks that have a weight of their own in this checkpoint.
    pub fn heads(&self, checkpoint: &Checkpoint) -> Vec<LinearSpec> {
        match self {
            Self::Decoder(config) if decoder::has_own_head(checkpoint, config) => vec![config.head()],
            Self::Decoder(_) | Self::Text(_) => vec![],
            Self::Vision(config) => config.heads(),
        }
    }

    /// How many tokens an input is.
    pub fn tokens_of(&self, sample: &Sample) -> usize {
        match (sample, self) {
            (Sample::Tokens(tokens), _) => tokens.len(),
            (Sample::Pixels(_), Self::Vision(config)) => config.tokens(),
            (Sample::Pixels(_), Self::Decoder(_) | Self::Text(_)) => 0,
        }
    }

    /// What the first block sees of some inputs, `[H, T]`, and how many tokens each of them is.
    ///
    /// # Panics
    /// If an input is of another kind than the model takes.
    pub fn embed(&self, checkpoint: &Checkpoint, samples: &[Sample]) -> Result<(Matrix, Vec<usize>)> {
        let lengths: Vec<usize> = samples.iter().map(|sample| self.tokens_of(sample)).collect();
        let tokens = || {
            samples.iter().map(|sample| match sample {
                Sample::Tokens(tokens) => &tokens[..],
                Sample::Pixels(_) => panic!("a model of text is given an image"),
            })
        };
        let all = || tokens().collect::<Vec<_>>().concat();
        let hidden = match self {
            Self::Decoder(config) => decoder::embed(checkpoint, config, &all())?,
            Self::Text(config) => {
                text::TextStem::load(checkpoint, config)?.apply(text::words(checkpoint, config, &all())?, &lengths)
            }
            Self::Vision(config) => {
                let pixels = samples.iter().map(|sample| match sample {
                    Sample::Pixels(pixels) => &pixels[..],
                    Sample::Tokens(_) => panic!("a model of images is given a text"),
                });
                let stem = vision::VisionStem::load(checkpoint, config, Execution::EXACT)?;
                stem.apply(&pixels.collect::<Vec<_>>())
            }
        };
        Ok((hidden, lengths))
    }

    /// The heads with what each of them sees of the stream `hidden[H, T]` behind the last block.
    pub fn head_inputs(&self, checkpoint: &Checkpoint, hidden: &Matrix) -> Result<Vec<(LinearSpec, Matrix)>> {
        let inputs = match self {
            Self::Decoder(config) => vec![decoder::final_norm(checkpoint, config, hidden)?],
            Self::Text(_) => vec![],
            Self::Vision(config) => vision::head_inputs(config, &vision::final_norm(checkpoint, config)?, hidden),
        };
        Ok(self.heads(checkpoint).into_iter().zip(inputs).collect())
    }
}
