//! Images as training sees them: another crop each time, mirrored or not, and, where the dense model says what they show,
//! half of the time blended or cut together with another one (Beyer et al., arXiv 2106.05237: a patient teacher answers to the same view that the student gets).

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use lacuna_format::{ImageProcessor, RgbImage};
use lacuna_model::{Sample, VisionConfig};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::images::{self, Split, class_of};

/// Least share of an image's area that a crop has.
const LEAST_AREA: f64 = 0.08;

/// Images of the calibration split, each decoded when it is asked for: a folder of them may be larger than memory.
pub(super) struct Pictures {
    processor: ImageProcessor,
    files: Vec<PathBuf>,
    /// `[height, width]` of a view
    size: [usize; 2],
    /// classes, where they are trained on
    classes: Option<Vec<u32>>,
}

impl Pictures {
    pub(super) fn open(model: &Path, config: &VisionConfig, folder: &Path, classes: bool) -> Result<Self> {
        let files = images::files(folder, Split::Calibration)?;
        let class = |file: &PathBuf| Ok(class_of(file, &config.labels)? as u32);
        let classes = classes.then(|| files.iter().map(class).collect::<Result<Vec<u32>>>()).transpose()?;
        // One that cannot be read is better found now than hours later.
        files.par_iter().try_for_each(|file| RgbImage::open(file).map(|_| ()))?;
        Ok(Self { processor: images::processor(model, config)?, files, size: config.image, classes })
    }

    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// A view of an image, and its class.
    pub(super) fn sample(&self, i: usize, random: &mut ChaCha8Rng) -> Result<(Sample, Vec<u32>)> {
        let mut pixels = self.view(i, random)?;
        if let Some(classes) = &self.classes {
            return Ok((Sample::Pixels(pixels), vec![classes[i]]));
        }
        if random.random_bool(0.5) {
            let other = self.view(random.random_range(0..self.files.len()), random)?;
            let share = random.random_range(0.0..1.0_f32);
            if random.random_bool(0.5) {
                pixels.iter_mut().zip(other).for_each(|(a, b)| *a += share * (b - *a));
            } else {
                self.paste(&mut pixels, &other, share, random);
            }
        }
        Ok((Sample::Pixels(pixels), vec![]))
    }

    /// Puts a rectangle of another view, which is a share of the area, in its place (CutMix, Yun et al., arXiv 1905.04899).
    fn paste(&self, pixels: &mut [f32], other: &[f32], share: f32, random: &mut ChaCha8Rng) {
        let [height, width] = self.size;
        let side = share.sqrt();
        let [tall, wide] = self.size.map(|whole| (side * whole as f32) as usize);
        let (top, left) = (random.random_range(0..=height - tall), random.random_range(0..=width - wide));
        let rows = pixels.chunks_exact_mut(width).zip(other.chunks_exact(width)).enumerate();
        for (_, (row, other)) in rows.filter(|(y, _)| (top..top + tall).contains(&(y % height))) {
            row[left..left + wide].copy_from_slice(&other[left..left + wide]);
        }
    }

    /// A random crop, mirrored or not, through the model's own processor.
    fn view(&self, i: usize, random: &mut ChaCha8Rng) -> Result<Vec<f32>> {
        let image = RgbImage::open(&self.files[i])?;
        let [height, width] = image.size();
        let area = random.random_range(LEAST_AREA..1.0) * (height * width) as f64;
        let aspect = random.random_range(-0.29..0.29_f64).exp();
        let tall = ((area / aspect).sqrt() as usize).clamp(1, height);
        let wide = ((area * aspect).sqrt() as usize).clamp(1, width);
        let (top, left) = (random.random_range(0..=height - tall), random.random_range(0..=width - wide));
        let mirrored = random.random_bool(0.5);
        let mut levels = Vec::with_capacity(tall * wide * 3);
        for y in top..top + tall {
            let row = &image.levels()[(y * width + left) * 3..(y * width + left + wide) * 3];
            let pixels = row.as_chunks::<3>().0;
            if mirrored {
                levels.extend(pixels.iter().rev().flatten());
            } else {
                levels.extend(pixels.iter().flatten());
            }
        }
        let crop = RgbImage::new([tall, wide], levels).map_err(|e| anyhow!(e))?;
        self.processor.pixels_of(crop).map_err(|e| anyhow!(e))
    }
}
