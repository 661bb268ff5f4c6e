//! Kept values as small integers under shared scales: what is stored, and how it is chosen.
//!
//! The `2G` kept values of a row, padding included, are cut into *blocks* of 32, 64 or 128, the last one as short as
//! it comes. A value is `code · scale` of its block. Both factors have so few bits that f32 holds the product exactly.

use half::f16;

use crate::{Error, Result, sum_of};

/// Kept values of a row that share one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ScaleGroup {
    /// 32
    #[default]
    Of32,
    /// 64
    Of64,
    /// 128
    Of128,
}

impl ScaleGroup {
    /// From a number of values.
    pub fn new(values: usize) -> Option<Self> {
        [Self::Of32, Self::Of64, Self::Of128].into_iter().find(|group| group.values() == values)
    }

    /// How many values.
    pub fn values(self) -> usize {
        match self {
            Self::Of32 => 32,
            Self::Of64 => 64,
            Self::Of128 => 128,
        }
    }

    /// Scales of a row with so many kept values.
    pub fn blocks(self, kept_per_row: usize) -> usize {
        kept_per_row.div_ceil(self.values())
    }
}

/// How wide the codes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IntType {
    /// -127 to 127
    Int8,
    /// -8 to 7
    Int4,
}

/// The code that int4 has on the negative side alone.
const INT4_MIN: i8 = -8;

impl IntType {
    /// Name as users write it: `int8`, `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Smallest and largest code. int8 leaves -128 unused, so that its scales need no sign.
    pub fn range(self) -> (i8, i8) {
        match self {
            Self::Int8 => (-127, 127),
            Self::Int4 => (INT4_MIN, 7),
        }
    }
}

/// What int4 tries: scales that divide the value of largest magnitude by one of these, negated. At 8 it becomes the code
/// -8, whatever its sign; beyond 8 it is cut off in favour of the others; at 7 the codes are those of a symmetric scheme.
/// The smallest squared error wins. On normally distributed weights that is a sixth less than at 7 alone, and finer or
/// wider sets gain less than a hundredth more.
const INT4_DIVISORS: [f32; 9] = [7.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 8.75, 9.0];

/// Integer codes `[R, 2G]` under scales `[R, ceil(2G / group)]`.
///
/// There is one way to write a block of zeros: scale +0 and codes 0, and no other block has only such codes. A scale is
/// negative only where the code -8 needs it: elsewhere the signs of scale and codes could be swapped.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    int: IntType,
    group: ScaleGroup,
    /// `2G`
    kept_per_row: usize,
    codes: Vec<i8>,
    scales: Vec<f16>,
}

impl Quantized {
    /// Takes codes and scales of rows of `kept_per_row` values. Refuses lengths that do not fit, codes out of range,
    /// scales that are not finite, and second ways of writing the same block.
    pub fn from_parts(
        int: IntType,
        group: ScaleGroup,
        kept_per_row: usize,
        codes: Vec<i8>,
        scales: Vec<f16>,
    ) -> Result<Self> {
        let rows = codes.len() / kept_per_row.max(1);
        let length = |what, want, got| if want == got { Ok(()) } else { Err(Error::Length { what, want, got }) };
        length("codes", rows * kept_per_row, codes.len())?;
        length("scales", rows * group.blocks(kept_per_row), scales.len())?;
        let quantized = Self { int, group, kept_per_row, codes, scales };
        let (low, high) = int.range();
        for (row, block, codes, scale) in quantized.iter_blocks() {
            if let Some(&code) = codes.iter().find(|&&code| code < low || code > high) {
                return Err(Error::BadCode { row, code, int: int.name() });
            }
            if let Some(why) = flaw(codes, scale) {
                return Err(Error::BadScale { row, block, value: scale.to_f32(), why });
            }
        }
        Ok(quantized)
    }

    /// Rounds rows of `kept_per_row` values. Refuses values, by row, that no finite scale reaches.
    pub(crate) fn quantize(values: &[f32], kept_per_row: usize, int: IntType, group: ScaleGroup) -> Result<Self> {
        let mut codes = vec![0; values.len()];
        let mut scales = Vec::with_capacity(values.len() / kept_per_row * group.blocks(kept_per_row));
        let rows = values.chunks_exact(kept_per_row).zip(codes.chunks_exact_mut(kept_per_row));
        for (row, (values, codes)) in rows.enumerate() {
            for (values, codes) in values.chunks(group.values()).zip(codes.chunks_mut(group.values())) {
                let scale = quantize_block(values, codes, int);
                scales.push(scale.map_err(|value| Error::Overflow { row, value, dtype: int.name() })?);
            }
        }
        Ok(Self { int, group, kept_per_row, codes, scales })
    }

    /// int8 or int4.
    pub fn int(&self) -> IntType {
        self.int
    }

    /// How many values share a scale.
    pub fn group(&self) -> ScaleGroup {
        self.group
    }

    /// `2G`: codes of a row.
    pub fn kept_per_row(&self) -> usize {
        self.kept_per_row
    }

    /// Scales of a row.
    pub fn blocks(&self) -> usize {
        self.group.blocks(self.kept_per_row)
    }

    /// The codes, `[R, 2G]`, one a byte for int4 too.
    pub fn codes(&self) -> &[i8] {
        &self.codes
    }

    /// The scales, `[R, ceil(2G / group)]`.
    pub fn scales(&self) -> &[f16] {
        &self.scales
    }

    /// One value, by its place in `[R, 2G]`.
    pub(crate) fn get(&self, i: usize) -> f32 {
        let (row, kept) = (i / self.kept_per_row, i % self.kept_per_row);
        dequantize(self.codes[i], self.scales[row * self.blocks() + kept / self.group.values()].to_f32())
    }

    /// The values of one row.
    pub(crate) fn widen_row(&self, row: usize, out: &mut [f32]) {
        let codes = &self.codes[row * self.kept_per_row..(row + 1) * self.kept_per_row];
        let scales = &self.scales[row * self.blocks()..(row + 1) * self.blocks()];
        let group = self.group.values();
        for ((out, codes), scale) in out.chunks_mut(group).zip(codes.chunks(group)).zip(scales) {
            let scale = scale.to_f32();
            out.iter_mut().zip(codes).for_each(|(out, &code)| *out = dequantize(code, scale));
        }
    }

    /// Makes room for so many more codes.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.codes.reserve_exact(more);
    }

    /// Appends rows of the same kind; gives them back if they are of another.
    pub(crate) fn append(&mut self, rows: Self) -> std::result::Result<(), Self> {
        if (self.int, self.group, self.kept_per_row) != (rows.int, rows.group, rows.kept_per_row) {
            return Err(rows);
        }
        self.codes.extend(rows.codes);
        self.scales.extend(rows.scales);
        Ok(())
    }

    /// Row, number in the row, codes and scale of every block.
    fn iter_blocks(&self) -> impl Iterator<Item = (usize, usize, &[i8], f16)> {
        let rows = self.codes.chunks_exact(self.kept_per_row.max(1)).enumerate();
        let blocks = rows.flat_map(|(row, codes)| {
            codes.chunks(self.group.values()).enumerate().map(move |(block, codes)| (row, block, codes))
        });
        blocks.zip(&self.scales).map(|((row, block, codes), &scale)| (row, block, codes, scale))
    }
}

/// What is wrong with the scale of a block.
fn flaw(codes: &[i8], scale: f16) -> Option<&'static str> {
    if !scale.is_finite() {
        return Some("scales must be finite");
    }
    if codes.iter().all(|&code| code == 0) {
        return (scale.to_bits() != 0).then_some("a block of zeros has scale +0");
    }
    if scale.to_f32() == 0.0 {
        return Some("only a block of zeros has scale 0");
    }
    let swapped = scale.is_sign_negative() && !codes.contains(&INT4_MIN);
    swapped.then_some("only a block with the int4 code -8 has a negative scale")
}

/// `code · scale`; +0 for the code 0 under a negative scale too.
fn dequantize(code: i8, scale: f32) -> f32 {
    f32::from(code) * scale + 0.0
}

/// Nearest integer, ties to even, for magnitudes below 2^22: from 2^23 on floats are the integers. Unlike `f32::round`
/// this is no call into a library on plain x86-64, and so vectorises.
fn round(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT) - SHIFT
}

/// Chooses the scale of a block and fills in its codes; the value at fault if there is no finite scale.
fn quantize_block(values: &[f32], codes: &mut [i8], int: IntType) -> std::result::Result<f16, f32> {
    if let Some(&value) = values.iter().find(|value| !value.is_finite()) {
        return Err(value);
    }
    let extreme = values.iter().fold(0.0_f32, |most, &w| if w.abs() > most.abs() { w } else { most });
    let scale = match int {
        IntType::Int8 => int8_scale(extreme.abs()),
        IntType::Int4 => int4_scale(values, extreme),
    };
    let scale = scale.ok_or(extreme)?;
    if scale.to_f32() == 0.0 {
        return Ok(f16::ZERO);
    }
    let (low, high) = int.range();
    for (code, &w) in codes.iter_mut().zip(values) {
        *code = round((w / scale.to_f32()).clamp(low.into(), high.into())) as i32 as i8;
    }
    if codes.iter().all(|&code| code == 0) {
        return Ok(f16::ZERO);
    }
    if int == IntType::Int4 && scale.is_sign_negative() && !codes.contains(&INT4_MIN) {
        for code in codes {
            *code = -*code;
        }
        return Ok(-scale);
    }
    Ok(scale)
}

/// The scale that maps the largest magnitude to 127, rounded to f16: to nearest, but up where that would lead beyond
/// 127, as it can among the coarse subnormal numbers.
fn int8_scale(largest: f32) -> Option<f16> {
    let nearest = f16::from_f32(largest / 127.0);
    let beyond = largest > 0.0 && largest >= 127.5 * nearest.to_f32();
    let scale = if beyond { f16::from_bits(nearest.to_bits() + 1) } else { nearest };
    scale.is_finite().then_some(scale)
}

/// The candidate with the smallest squared error; `None` if not even -8 reaches the extreme under a finite scale.
fn int4_scale(values: &[f32], extreme: f32) -> Option<f16> {
    if !f16::from_f32(extreme / f32::from(INT4_MIN)).is_finite() {
        return None;
    }
    // What no candidate improves on is a block of zeros.
    let mut best = (f16::ZERO, sum_of(values, |w| w * w));
    for candidate in INT4_DIVISORS.map(|divisor| f16::from_f32(-extreme / divisor)) {
        let scale = candidate.to_f32();
        if !scale.is_finite() || scale == 0.0 {
            continue;
        }
        let error = sum_of(values, |w| {
            let lost = w - round((w / scale).clamp(-8.0, 7.0)) * scale;
            lost * lost
        });
        if error < best.1 {
            best = (candidate, error);
        }
    }
    Some(best.0)
}
