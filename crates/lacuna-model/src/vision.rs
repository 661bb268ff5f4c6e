//! An image classifier: ViT and DeiT (Dosovitskiy et al., arXiv 2010.11929; Touvron et al., arXiv 2012.12877).

use std::ops::Range;

use lacuna_core::Matrix;
use lacuna_format::{Checkpoint, Result};
use rayon::prelude::*;

use crate::batch::{RUN_TOKENS, runs};
use crate::block::{Block, Positions};
use crate::buffers::{give, take};
use crate::config::VisionConfig;
use crate::linear::{Execution, Linear};
use crate::norm::Norm;
use crate::ops::select_columns;

/// From pixels to what the first block sees.
pub(crate) struct VisionStem {
    config: VisionConfig,
    patches: Linear,
    /// `[H, tokens]`: the tokens that come before the patches, and places
    places: Matrix,
}

impl VisionStem {
    pub(crate) fn load(checkpoint: &Checkpoint, config: &VisionConfig, execution: Execution) -> Result<Self> {
        let (hidden, tokens) = (config.blocks.hidden_size, config.tokens());
        let spec = config.patches();
        let shape = [hidden, config.channels, config.patch[0], config.patch[1]];
        let patches = Linear::dense(checkpoint, spec.clone(), checkpoint.values(&spec.weight(), &shape)?, execution)?;
        let mut places = checkpoint.floats(&config.names.positions, &[1, tokens, hidden])?;
        for (name, place) in config.names.tokens.iter().zip(places.chunks_exact_mut(hidden)) {
            let token = checkpoint.floats(name, &[1, 1, hidden])?;
            place.iter_mut().zip(token).for_each(|(place, token)| *place += token);
        }
        let places = Matrix::new(tokens, hidden, places).expect("as many values as the shape has").transposed();
        Ok(Self { config: config.clone(), patches, places })
    }

    /// `[H, images · tokens]` from images of `[channels, height, width]` each.
    ///
    /// # Panics
    /// If an image has another number of pixels.
    pub(crate) fn apply(&self, images: &[&[f32]]) -> Matrix {
        let VisionConfig { channels, image: [height, width], patch: [tall, wide], .. } = self.config;
        let (across, down) = (width / wide, height / tall);
        let per_image = across * down;
        // x[channel, row, column of a patch][image, patch]
        let mut x = take(channels * tall * wide, images.len() * per_image);
        for (i, pixels) in images.iter().enumerate() {
            assert_eq!(pixels.len(), self.config.pixels(), "an image of another size");
            for feature in 0..x.rows() {
                let (channel, row, column) = (feature / (tall * wide), feature / wide % tall, feature % wide);
                let out = &mut x.row_mut(feature)[i * per_image..(i + 1) * per_image];
                for (patch, out) in out.iter_mut().enumerate() {
                    let (y, x) = (patch / across * tall + row, patch % across * wide + column);
                    *out = pixels[(channel * height + y) * width + x];
                }
            }
        }
        let projected = self.patches.forward(&x);
        give(x);
        let (tokens, first) = (self.config.tokens(), self.config.names.tokens.len());
        let mut hidden = take(projected.rows(), images.len() * tokens);
        for k in 0..hidden.rows() {
            let images = hidden.row_mut(k).chunks_exact_mut(tokens).zip(projected.row(k).chunks_exact(per_image));
            for (out, projected) in images {
                out.copy_from_slice(self.places.row(k));
                out[first..].iter_mut().zip(projected).for_each(|(out, projected)| *out += projected);
            }
        }
        give(projected);
        hidden
    }
}

/// Behind the last block: the last norm, then of each classifier's token the vectors of all images, `[H, images]`.
pub(crate) fn head_inputs(config: &VisionConfig, norm: &Norm, hidden: &Matrix) -> Vec<Matrix> {
    let tokens = config.tokens();
    let pick = |token: usize| {
        let columns: Vec<usize> = (0..hidden.cols() / tokens).map(|image| image * tokens + token).collect();
        norm.apply(&select_columns(hidden, &columns))
    };
    (0..config.names.heads.len()).map(pick).collect()
}

/// The last norm.
pub(crate) fn final_norm(checkpoint: &Checkpoint, config: &VisionConfig) -> Result<Norm> {
    Norm::load(checkpoint, &config.blocks, &config.names.norm)
}

/// A whole image classifier in memory.
pub struct VisionEncoder {
    stem: VisionStem,
    blocks: Vec<Block>,
    norm: Norm,
    heads: Vec<Linear>,
}

impl VisionEncoder {
    /// Reads all weights.
    pub fn load(checkpoint: &Checkpoint, config: &VisionConfig, execution: Execution) -> Result<Self> {
        let block = |layer| Block::load(checkpoint, &config.blocks, layer, execution);
        let head = |spec| Linear::load(checkpoint, spec, execution);
        Ok(Self {
            stem: VisionStem::load(checkpoint, config, execution)?,
            blocks: (0..config.blocks.layers).map(block).collect::<Result<_>>()?,
            norm: final_norm(checkpoint, config)?,
            heads: config.heads().into_iter().map(head).collect::<Result<_>>()?,
        })
    }

    /// Sizes and switches.
    pub fn config(&self) -> &VisionConfig {
        &self.stem.config
    }

    /// The blocks, so that layers can be replaced.
    pub fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// The vectors of all tokens behind the last norm, `[H, images · tokens]`, of images of `[channels, height, width]`
    /// each.
    ///
    /// # Panics
    /// If an image has another number of pixels.
    pub fn forward(&self, images: &[&[f32]]) -> Matrix {
        self.norm.apply(&self.through_blocks(images))
    }

    /// Logits `[classes, images]` of images of `[channels, height, width]` each: the mean over the classifiers.
    ///
    /// # Panics
    /// If an image has another number of pixels.
    pub fn logits(&self, images: &[&[f32]]) -> Matrix {
        let config = self.config();
        let share = (self.heads.len() as f32).recip();
        let mut logits = Matrix::zeros(config.labels.len(), images.len());
        let logits_of = |run: Range<usize>| {
            let hidden = self.through_blocks(&images[run.clone()]);
            let inputs = head_inputs(config, &self.norm, &hidden);
            give(hidden);
            let parts = self.heads.iter().zip(inputs).map(|(head, x)| head.forward(&x));
            (run, parts.collect::<Vec<Matrix>>())
        };
        let runs = runs(&vec![config.tokens(); images.len()], RUN_TOKENS).into_par_iter();
        for (run, parts) in runs.map(logits_of).collect::<Vec<_>>() {
            for part in parts {
                for class in 0..part.rows() {
                    let sums = logits.row_mut(class)[run.clone()].iter_mut();
                    sums.zip(part.row(class)).for_each(|(sum, logit)| *sum += share * logit);
                }
            }
        }
        logits
    }

    fn through_blocks(&self, images: &[&[f32]]) -> Matrix {
        // One thread of the pool leads through all layers, as in the decoder.
        rayon::scope(|_| {
            let config = self.config();
            let mut hidden = self.stem.apply(images);
            let positions = Positions::whole(&config.blocks, &vec![config.tokens(); images.len()]);
            for block in &self.blocks {
                block.forward(&mut hidden, &positions, None, &mut |_, _| {});
            }
            hidden
        })
    }
}
