//! Resizing of RGB8 images, `[height, width, 3]`, to the level as Pillow does it.
//!
//! An output pixel is a weighted mean of input pixels; where the image shrinks, the filter widens by the same factor, so
//! that every input pixel counts. Columns first, then rows, as up to Pillow 12 (13 changes the order for some tall
//! images); weights are fixed-point numbers of 22 bits, and levels are rounded to 8 bits between the two passes.
//! `fast_image_resize` is the library for this, but 16 % of its levels differ from Pillow's on photographs, some by 5 or
//! more.

use super::RgbImage;

/// Bits of a weight behind the point.
const WEIGHT_BITS: u32 = 22;

/// How input pixels are weighted.
#[derive(Clone, Copy)]
pub(super) enum Filter {
    Nearest,
    Bilinear,
    Bicubic,
    Lanczos,
}

/// Weight of an input pixel at a distance, and the distance from which on it is 0.
struct Kernel {
    radius: f64,
    weight: fn(f64) -> f64,
}

impl Filter {
    /// `None` if a pixel is taken as it is.
    fn kernel(self) -> Option<Kernel> {
        match self {
            Self::Nearest => None,
            Self::Bilinear => Some(Kernel { radius: 1.0, weight: |x| 1.0 - x }),
            Self::Bicubic => Some(Kernel { radius: 2.0, weight: keys }),
            Self::Lanczos => Some(Kernel { radius: 3.0, weight: |x| sinc(x) * sinc(x / 3.0) }),
        }
    }
}

/// Keys' cubic convolution with a = -1/2.
fn keys(x: f64) -> f64 {
    if x < 1.0 { (1.5 * x - 2.5) * x * x + 1.0 } else { ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

/// The input pixels of one output pixel: the first of them, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

impl Taps {
    /// Those of every output pixel along a side that goes from length `from` to `to`.
    fn along(from: usize, to: usize, kernel: &Kernel) -> Vec<Self> {
        let scale = from as f64 / to as f64;
        let widening = scale.max(1.0);
        let radius = kernel.radius * widening;
        let at = |position: usize| {
            let centre = (position as f64 + 0.5) * scale;
            let first = (centre - radius + 0.5).max(0.0) as usize;
            let end = ((centre + radius + 0.5) as usize).min(from);
            let weight = |pixel| {
                let distance = ((pixel as f64 - centre + 0.5) * (1.0 / widening)).abs();
                if distance < kernel.radius { (kernel.weight)(distance) } else { 0.0 }
            };
            let weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: f64| (weight / sum * f64::from(1 << WEIGHT_BITS)).round() as i32;
            Self { first, weights: weights.into_iter().map(fixed).collect() }
        };
        (0..to).map(at).collect()
    }
}

/// What weighted sums begin with, so that `level` rounds.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// A weighted sum as a level.
fn level(sum: i32) -> u8 {
    (sum >> WEIGHT_BITS).clamp(0, 255) as u8
}

/// An image of `[height, width]`, which the caller has checked.
pub(super) fn resize(image: RgbImage, [height, width]: [usize; 2], filter: Filter) -> RgbImage {
    let Some(kernel) = filter.kernel() else { return nearest(&image, [height, width]) };
    let columns = |image| resize_columns(image, width, &kernel);
    let rows = |image| resize_rows(image, height, &kernel);
    // Rows first only for ribbons that get shorter.
    let [from_height, from_width] = image.size();
    if from_height > from_width * 100 && height < from_height { columns(rows(image)) } else { rows(columns(image)) }
}

fn resize_columns(image: RgbImage, width: usize, kernel: &Kernel) -> RgbImage {
    let [height, from] = image.size();
    if from == width {
        return image;
    }
    let taps = Taps::along(from, width, kernel);
    let mut levels = Vec::with_capacity(height * width * 3);
    for row in image.rows() {
        for Taps { first, weights } in &taps {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &value)| *sum += i32::from(value) * weight);
            }
            levels.extend(sums.map(level));
        }
    }
    RgbImage { size: [height, width], levels }
}

fn resize_rows(image: RgbImage, height: usize, kernel: &Kernel) -> RgbImage {
    let [from, width] = image.size();
    if from == height {
        return image;
    }
    let mut levels = Vec::with_capacity(height * width * 3);
    let mut sums = vec![HALF; width * 3];
    for Taps { first, weights } in Taps::along(from, height, kernel) {
        sums.fill(HALF);
        for (row, weight) in image.rows().skip(first).zip(weights) {
            sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += i32::from(value) * weight);
        }
        levels.extend(sums.iter().map(|&sum| level(sum)));
    }
    RgbImage { size: [height, width], levels }
}

fn nearest(image: &RgbImage, [height, width]: [usize; 2]) -> RgbImage {
    let [from_height, from_width] = image.size();
    let columns: Vec<usize> = nearest_along(from_width, width).collect();
    let mut levels = Vec::with_capacity(height * width * 3);
    for y in nearest_along(from_height, height) {
        let row = image.row(y);
        levels.extend(columns.iter().flat_map(|x| &row[x * 3..][..3]));
    }
    RgbImage { size: [height, width], levels }
}

/// The input pixel of every output pixel along a side that goes from length `from` to `to`.
fn nearest_along(from: usize, to: usize) -> impl Iterator<Item = usize> {
    // Steps are added up, as Pillow does it: a product can fall on the other side of a pixel's border.
    let step = from as f64 / to as f64;
    let positions = std::iter::successors(Some(step * 0.5), move |at| Some(at + step));
    positions.map(move |at| (at as usize).min(from - 1)).take(to)
}
