//! The two ends of a model for whoever walks through it block by block: what its first block sees of an input, and what
//! its heads see of the last block.

use lacuna_core::Matrix;
use lacuna_format::{Checkpoint, Result};

use crate::config::{Config, LinearSpec, VisionConfig};
use crate::linear::{Execution, Linear};
use crate::norm::Norm;
use crate::pooling::Pooling;
use crate::{decoder, text, vision};

/// An input of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// of a text
    Tokens(Vec<u32>),
    /// of an image, `[channels, height, width]`
    Pixels(Vec<f32>),
}

/// Where a head's tensors are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadSource {
    /// the weight, `[out_features, in_features]`; a packed one has the name of its layer before `.weight`
    pub weight: String,
    /// its shape
    pub shape: [usize; 2],
    /// the bias
    pub bias: Option<String>,
}

impl Config {
    /// What the ending is made of: the module name of the last norm, and the heads, of which one may be the embedding.
    pub fn ending(&self, checkpoint: &Checkpoint) -> Result<(Option<String>, Vec<HeadSource>)> {
        let source = |spec: &LinearSpec| HeadSource {
            weight: spec.weight(),
            shape: [spec.rows, spec.cols],
            bias: spec.bias.then(|| spec.bias_name()),
        };
        Ok(match self {
            Self::Decoder(config) => {
                let mut head = source(&config.head());
                if !decoder::has_own_head(checkpoint, config) {
                    decoder::embedding_name(checkpoint, config)?.clone_into(&mut head.weight);
                }
                (Some(decoder::FINAL_NORM.to_owned()), vec![head])
            }
            Self::Text(_) => (None, vec![]),
            Self::Vision(config) => (Some(config.names.norm.clone()), config.heads().iter().map(source).collect()),
        })
    }

    /// Name of the tensor that holds a decoder's token embeddings, `[vocab_size, hidden_size]`.
    pub fn token_embeddings(&self, checkpoint: &Checkpoint) -> Result<Option<&'static str>> {
        match self {
            Self::Decoder(config) => Ok(Some(decoder::embedding_name(checkpoint, config)?)),
            Self::Text(_) | Self::Vision(_) => Ok(None),
        }
    }

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

/// What a model makes of the stream behind its last block.
pub struct Ending(Kind);

enum Kind {
    Logits(Norm, Linear),
    Vectors(Pooling),
    Classes(Box<VisionConfig>, Norm, Vec<Linear>),
}

impl Ending {
    /// Reads the last norm and the heads.
    pub fn load(checkpoint: &Checkpoint, config: &Config, execution: Execution) -> Result<Self> {
        Ok(Self(match config {
            Config::Decoder(config) => {
                let (norm, head) = decoder::ending(checkpoint, config, execution)?;
                Kind::Logits(norm, head)
            }
            Config::Text(config) => Kind::Vectors(config.pooling),
            Config::Vision(config) => {
                let heads = config.heads().into_iter().map(|spec| Linear::load(checkpoint, spec, execution));
                let norm = vision::final_norm(checkpoint, config)?;
                Kind::Classes(Box::new(config.clone()), norm, heads.collect::<Result<_>>()?)
            }
        }))
    }

    /// From the stream `hidden[H, T]` of sequences of some lengths, a column each: the logits `[vocab, T]` of all tokens, the
    /// vectors `[H, texts]`, or the logits `[classes, images]`, means over the classifiers.
    pub fn apply(&self, hidden: &Matrix, lengths: &[usize]) -> Matrix {
        match &self.0 {
            Kind::Logits(norm, head) => head.forward(&norm.apply(hidden)),
            Kind::Vectors(pooling) => {
                let vectors = pooling.pool(hidden, lengths);
                Matrix::new(vectors.len(), hidden.rows(), vectors.concat()).expect("a vector a text").transposed()
            }
            Kind::Classes(config, norm, heads) => {
                let inputs = vision::head_inputs(config, norm, hidden);
                let mut logits = Matrix::zeros(config.labels.len(), lengths.len());
                for part in heads.iter().zip(inputs).map(|(head, x)| head.forward(&x)) {
                    let share = (heads.len() as f32).recip();
                    logits.data_mut().iter_mut().zip(part.data()).for_each(|(sum, logit)| *sum += share * logit);
                }
                logits
            }
        }
    }
}
