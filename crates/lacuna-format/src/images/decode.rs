//! JPEG and PNG files to RGB8, level for level as Pillow decodes them and `convert("RGB")` converts them.
//!
//! JPEG leaves the rounding of its inverse transform and the interpolation of colours to the decoder; libjpeg-turbo's
//! choices are Pillow's, so a port of it is used (without its SIMD code, which is most of its unsafe code). Orientation
//! tags, colour profiles and gamma are not applied, and transparency is dropped, as Pillow does unless told otherwise.

use std::io::Cursor;
use std::path::Path;

use libjpeg_turbo_rs::{DecodeLimits, Decoder, PixelFormat};
use png::{BitDepth, ColorType, Transformations};

use super::{MAX_PIXELS, check_size};
use crate::{Error, Result};

/// Scans of a progressive JPEG before it counts as an attack on our time; encoders write about ten.
const MAX_SCANS: usize = 500;

/// A decoded image, `[height, width, 3]`, 8 bits a channel.
pub struct RgbImage {
    pub(super) size: [usize; 2],
    pub(super) levels: Vec<u8>,
}

impl RgbImage {
    /// An image of `[height, width]`; `levels` are `[height, width, 3]`. The error is a sentence.
    pub fn new(size: [usize; 2], levels: Vec<u8>) -> std::result::Result<Self, String> {
        check_size(size)?;
        let [height, width] = size;
        if levels.len() != height * width * 3 {
            let found = format!("{width} x {height} pixels do not make {} bytes", levels.len());
            return Err(format!("{found}; give 3 bytes a pixel"));
        }
        Ok(Self { size, levels })
    }

    /// Decodes a JPEG or PNG file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::read(path).map_err(Error::io(path))?;
        let decoded = match file.as_slice() {
            [0xff, 0xd8, ..] => jpeg(&file),
            [0x89, b'P', b'N', b'G', ..] => png(&file),
            _ => Err("neither JPEG nor PNG; convert the image to one of them".to_owned()),
        };
        decoded.map_err(|problem| Error::file(path, problem))
    }

    /// `[height, width, 3]`.
    pub fn levels(&self) -> &[u8] {
        &self.levels
    }

    /// `[height, width]`.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// A row, `[width, 3]`.
    pub(super) fn row(&self, y: usize) -> &[u8] {
        &self.levels[y * self.size[1] * 3..][..self.size[1] * 3]
    }

    /// All rows, from the top.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.levels.chunks_exact(self.size[1] * 3)
    }
}

fn broken(problem: impl std::fmt::Display) -> String {
    format!("not a usable image: {problem}; replace the file or leave it out")
}

fn jpeg(file: &[u8]) -> std::result::Result<RgbImage, String> {
    let limits = DecodeLimits { max_pixels: MAX_PIXELS, max_scans: MAX_SCANS, ..DecodeLimits::default() };
    let mut decoder = Decoder::new_with_limits(file, limits).map_err(broken)?;
    let header = decoder.header();
    let size = [usize::from(header.height), usize::from(header.width)];
    check_size(size)?;
    if header.precision != 8 {
        return Err(format!("a JPEG of {} bits a channel; convert it to 8 bits", header.precision));
    }
    let four_inks = header.components.len() == 4;
    // Of four channels that are sampled differently the decoder makes wrong pixels, or it panics.
    let sampling = header.components.iter().map(|channel| (channel.horizontal_sampling, channel.vertical_sampling));
    if four_inks && !sampling.clone().zip(sampling.skip(1)).all(|(one, next)| one == next) {
        return Err("a CMYK JPEG with subsampled channels; save it as RGB".to_owned());
    }
    decoder.set_output_format(if four_inks { PixelFormat::Cmyk } else { PixelFormat::Rgb });
    let levels = decoder.decode_image().map_err(broken)?.data;
    RgbImage::new(size, if four_inks { levels.chunks_exact(4).flat_map(cmyk).collect() } else { levels })
}

/// Pillow's conversion of a pixel of a CMYK JPEG, where, by Adobe's convention, 255 is no ink.
fn cmyk(pixel: &[u8]) -> [u8; 3] {
    let light = i32::from(pixel[3]);
    std::array::from_fn(|channel| {
        // Ink times light over 255, rounded.
        let product = i32::from(255 - pixel[channel]) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}

fn png(file: &[u8]) -> std::result::Result<RgbImage, String> {
    // Memory beside the pixels that we hold ourselves: a few rows of up to 8 bytes a pixel, and compressed chunks.
    let limits = png::Limits { bytes: file.len().saturating_add(MAX_PIXELS as usize * 8) };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), limits);
    decoder.set_transformations(Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(broken)?;
    let size = [header.height as usize, header.width as usize];
    let grey = header.color_type == ColorType::Grayscale;
    check_size(size)?;
    let mut reader = decoder.read_info().map_err(broken)?;
    let (color, depth) = reader.output_color_type();
    let mut bytes = vec![0; reader.output_buffer_size().ok_or_else(|| broken("too large for this machine"))?];
    reader.next_frame(&mut bytes).map_err(broken)?;
    if depth == BitDepth::Sixteen {
        // Of 16-bit grey Pillow keeps the number and cuts it off at 255; of everything else it keeps the high byte.
        let cut_off = |level: &[u8]| if level[0] == 0 { level[1] } else { u8::MAX };
        bytes = bytes.chunks_exact(2).map(|level| if grey { cut_off(level) } else { level[0] }).collect();
    }
    let pixels = bytes.chunks_exact(color.samples());
    let levels = match color {
        ColorType::Rgb => bytes,
        ColorType::Rgba => pixels.flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect(),
        _ => pixels.flat_map(|pixel| [pixel[0]; 3]).collect(),
    };
    RgbImage::new(size, levels)
}
