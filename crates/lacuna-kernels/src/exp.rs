//! `eˣ` for loops that are compiled for the CPU's vectors.

/// `ln 2` in two parts, of which the first has few bits.
const HIGH: f32 = 0.693_359_4;
const LOW: f32 = -2.121_944_4e-4;

/// Of the Taylor polynomial, behind the first.
const COEFFICIENTS: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// `eˣ`, off by at most 2 units in the last place, 0 below −87.3 and infinite above 88.7. Without calls and branches, so
/// that loops over it are vectorised.
///
/// `x = n·ln 2 + r`, `|r| ≤ ln 2 / 2`: `eʳ` by its Taylor polynomial of degree 7, `2ⁿ` by its bits. `ln 2` is split in two so
/// that `n·ln 2` loses nothing (Cody & Waite, Software Manual for the Elementary Functions, ch. 6).
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-88.0, 89.0);
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    let shifted = clamped * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = clamped - n * HIGH - n * LOW;
    let polynomial = COEFFICIENTS.iter().fold(1.0 / 5040.0, |sum, c| sum * r + c);
    // Its last bits are n: no conversion, which would have to look for NaN and overflow.
    let n = shifted.to_bits().cast_signed().wrapping_sub(12_582_912.0_f32.to_bits().cast_signed());
    // Two factors: 2ⁿ alone overflows a little before eˣ does.
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23).cast_unsigned());
    let result = polynomial * power(half) * power(n.wrapping_sub(half));
    // Not a clamp's answer: NaN stays NaN, -inf is 0.
    if x < -87.33 {
        0.0
    } else if x.is_nan() {
        x
    } else {
        result
    }
}

/// `eˣ` for `x ≤ 0` alone, off by at most 2 units in the last place, and no less than `e⁻⁸⁷`: half of the work of [`exp`].
#[inline(always)]
#[must_use]
pub fn exp_of_negative(x: f32) -> f32 {
    // NaN stays NaN, and so does what follows: the last bits of the usual ones are 0.
    let clamped = if x < -87.0 { -87.0 } else { x };
    let shifted = clamped * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = clamped - n * HIGH - n * LOW;
    let polynomial = COEFFICIENTS.iter().fold(1.0 / 5040.0, |sum, c| sum * r + c);
    // n stands in the last bits of `shifted`; added to the exponent it multiplies by 2ⁿ, which stays a normal number.
    f32::from_bits(polynomial.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::{exp, exp_of_negative};

    #[test]
    fn the_exponential_of_negative_numbers_is_close_to_the_library() {
        for i in 0..=8_700 {
            let x = -i as f32 / 100.0;
            let (got, want) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
            assert!((got - want).abs() / want < 2.5e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp_of_negative(0.0).to_bits(), 1.0_f32.to_bits());
        assert!(exp_of_negative(f32::NEG_INFINITY) < 1e-37);
        assert!(exp_of_negative(f32::NAN).is_nan() && exp_of_negative(-f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_close_to_the_library() {
        for i in -8_730..=8_870 {
            let x = i as f32 / 100.0 + 0.003;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            let off = (got - want).abs() / want;
            assert!(off < 2.5e-7 || want > f64::from(f32::MAX) || x < -87.33, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert!(exp(f32::INFINITY).is_infinite());
        assert!(exp(f32::NAN).is_nan());
    }
}
