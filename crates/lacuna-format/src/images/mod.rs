//! Images as a vision model wants them: `[3, height, width]` floats, row-major, red first.
//!
//! The steps are those of Hugging Face's image processors on Pillow (`image_transforms.py` of transformers), or of timm's
//! evaluation on torchvision: decode to RGB8, resize, cut out the centre, then `(level × rescale_factor − mean) / std`.
//! Everything up to the last step is 8 bits a channel and equal to Pillow's, because a model was measured on those bits.

mod config;
mod decode;
mod resize;

use std::path::Path;

use crate::header::read_json;
use crate::{Error, Result};
use config::{Rounding, Steps, Target};
pub use decode::RgbImage;

/// Pixels of the largest image that is decoded or resized to: where Pillow begins to warn of decompression bombs.
const MAX_PIXELS: u64 = 89_478_485;

/// What a checkpoint says is done to an image.
pub struct ImageProcessor {
    steps: Steps,
    /// `[height, width]` that comes out
    size: [usize; 2],
    /// the float that stands for each level of each channel
    floats: [[f32; 256]; 3],
}

impl ImageProcessor {
    /// Reads preprocessor_config.json of a checkpoint, or, where there is none, `pretrained_cfg` in a timm checkpoint's
    /// config.json.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("preprocessor_config.json");
        let timm = dir.join("config.json");
        let (path, steps) = if path.exists() {
            let steps = config::huggingface(&read_json(&path)?);
            (path, steps)
        } else {
            let config = if timm.exists() { read_json(&timm)? } else { serde_json::Value::Null };
            if config["pretrained_cfg"].is_null() {
                return Err(Error::file(&path, "missing; copy the one of the original checkpoint here"));
            }
            (timm, config::timm(&config["pretrained_cfg"]))
        };
        steps.and_then(Self::new).map_err(|problem| Error::file(&path, problem))
    }

    fn new(steps: Steps) -> std::result::Result<Self, String> {
        let size = match (steps.crop, steps.resize) {
            (Some(crop), _) => crop,
            (None, Some((Target::Exact(size), _))) => size,
            _ => {
                let found = "images would come out in different sizes, for it has neither a crop nor a fixed size";
                return Err(format!("{found}; set do_center_crop and crop_size"));
            }
        };
        check_size(size)?;
        let floats = std::array::from_fn(|channel| {
            std::array::from_fn(|level| {
                // In the reference's types: the product in double precision, mean and deviation in single.
                let value = steps.rescale_factor.map_or(level as f32, |factor| (level as f64 * factor) as f32);
                steps.normalize.map_or(value, |[mean, std]| (value - mean[channel]) / std[channel])
            })
        });
        Ok(Self { steps, size, floats })
    }

    /// `[height, width]` that comes out.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// A JPEG or PNG file as `[3, height, width]`.
    pub fn pixels(&self, path: &Path) -> Result<Vec<f32>> {
        self.pixels_of(RgbImage::open(path)?).map_err(|problem| Error::file(path, problem))
    }

    /// A decoded image as `[3, height, width]`. The error is a sentence without the file's name.
    pub fn pixels_of(&self, image: RgbImage) -> std::result::Result<Vec<f32>, String> {
        let Some((target, filter)) = self.steps.resize else { return Ok(self.crop_and_normalize(&image)) };
        let size = target.size(image.size());
        check_size(size)?;
        Ok(self.crop_and_normalize(&resize::resize(image, size, filter)))
    }

    /// The centre of an image as floats, black where the image is smaller than the crop.
    fn crop_and_normalize(&self, image: &RgbImage) -> Vec<f32> {
        let [height, width] = self.size;
        let [from_height, from_width] = image.size();
        let vertical = Overlap::new(self.steps.rounding.offset(from_height, height), from_height, height);
        let horizontal = Overlap::new(self.steps.rounding.offset(from_width, width), from_width, width);
        let mut pixels = Vec::with_capacity(3 * height * width);
        for (channel, floats) in self.floats.iter().enumerate() {
            let plane = pixels.len();
            pixels.resize(plane + height * width, floats[0]);
            for y in 0..vertical.length {
                let source = image.row(vertical.from + y)[horizontal.from * 3..].chunks_exact(3);
                let row = &mut pixels[plane + (vertical.to + y) * width + horizontal.to..][..horizontal.length];
                row.iter_mut().zip(source).for_each(|(to, pixel)| *to = floats[usize::from(pixel[channel])]);
            }
        }
        pixels
    }
}

/// What an image and its centre have in common along one side.
struct Overlap {
    /// where it begins in the image
    from: usize,
    /// where it begins in the centre
    to: usize,
    length: usize,
}

impl Overlap {
    /// The centre is `to` long and begins at `offset` of the image, which is `from` long.
    fn new(offset: isize, from: usize, to: usize) -> Self {
        let (skipped, padding) = (offset.max(0).unsigned_abs(), offset.min(0).unsigned_abs());
        Self { from: skipped, to: padding, length: (from - skipped).min(to - padding) }
    }
}

impl Target {
    /// What an image of `[height, width]` is resized to.
    fn size(self, [height, width]: [usize; 2]) -> [usize; 2] {
        // In floating point and cut off, as both references do it.
        let longer = |shorter: usize, long: usize, short: usize| (shorter as f64 * long as f64 / short as f64) as usize;
        match self {
            Self::Exact(size) => size,
            Self::ShortestEdge(edge) if width <= height => [longer(edge, height, width), edge],
            Self::ShortestEdge(edge) => [edge, longer(edge, width, height)],
        }
    }
}

impl Rounding {
    /// Where a centred crop of length `to` begins in a side of length `from`; negative where the side is too short.
    fn offset(self, from: usize, to: usize) -> isize {
        let spare = from as isize - to as isize;
        match self {
            Self::Floor => spare.div_euclid(2),
            Self::HalfToEven if spare > 0 => (spare as f64 / 2.0).round_ties_even() as isize,
            Self::HalfToEven => spare / 2,
        }
    }
}

/// Refuses an image that is empty or too large to be held.
fn check_size([height, width]: [usize; 2]) -> std::result::Result<(), String> {
    let pixels = height as u64 * width as u64;
    if pixels == 0 {
        return Err(format!("{width} x {height} is an empty image; leave it out"));
    }
    if pixels > MAX_PIXELS {
        let found = format!("{width} x {height} pixels are too many (limit {MAX_PIXELS} in all)");
        return Err(format!("{found}; make the image smaller or more square"));
    }
    Ok(())
}
