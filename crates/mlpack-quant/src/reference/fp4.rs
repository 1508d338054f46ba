//! Blocks of 4-bit floats (ggml b11434, `ggml-quants.c`, `ggml-impl.h`).
//!
//! ```text
//!          values  0     1           4           17          36
//! MXFP4    32      e     qs[16]                  end                 2^(e - 128) * value[q]
//! NVFP4    64      d[4]              qs[32]                  end     d[g] / 2 * value[q], d unsigned E4M3 (bias 7)
//!
//! code     0  1  2  3  4  5  6  7    8 and on: the same, negative
//! value    0  1  2  3  4  6  8  12   twice the E2M1 value, hence the halved scales
//! qs       in each group of 32 (MXFP4) or 16 (NVFP4): low nibbles the first half, high nibbles the second
//! ```

pub(crate) const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Halfway between neighbouring values that are not negative.
pub(crate) const MIDPOINTS: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];

/// The first code whose value is nearest.
fn nearest_code(x: f32, scale: f32) -> u8 {
    let error = |code: u8| (f32::from(VALUES[usize::from(code)]) * scale - x).abs();
    let (mut best, mut best_error) = (0, error(0));
    for code in 1..16 {
        let error = error(code);
        if error < best_error {
            (best, best_error) = (code, error);
        }
    }
    best
}

fn largest_magnitude(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |amax, v| if amax < v.abs() { v.abs() } else { amax })
}

/// `floorf(log2f(x))` of a positive float as glibc computes it: the logarithm is rounded to f32 before the floor, so
/// floats just below a power of two can already count as that power.
fn floor_log2(x: f32) -> i32 {
    let (exponent, mantissa) = (x.to_bits() >> 23, x.to_bits() & 0x007f_ffff);
    if (1..255).contains(&exponent) && mantissa < 0x007f_ff00 {
        return exponent as i32 - 127; // the logarithm is at least 2e-5 below the next power's; f32 tells that from it
    }
    let exact = f64::from(x);
    let exponent = (exact.to_bits() >> 52) as i32 - 1023;
    if exponent == 1024 {
        return i32::MAX; // infinite
    }
    let next = exponent + 1;
    // Half the distance between f32 neighbours on the side of `next` where the logarithm lies.
    let half_step = match next {
        0 => return exponent,
        1 => -25,
        2.. => (next - 1).ilog2() as i32 - 24,
        ..0 => next.unsigned_abs().ilog2() as i32 - 24,
    };
    let below = 1.0 - exact / 2f64.powi(next);
    if below * std::f64::consts::LOG2_E <= 2f64.powi(half_step) { next } else { exponent }
}

/// Half of the power of two that an E8M0 byte stands for.
pub(crate) fn half_power(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// The scale of a block of that largest magnitude.
pub(crate) fn mxfp4_scale(amax: f32) -> u8 {
    if amax > 0.0 { floor_log2(amax).wrapping_add(125) as u8 } else { 0 }
}

pub(crate) fn encode_mxfp4(x: &[f32; 32], out: &mut [u8; 17]) {
    let e = mxfp4_scale(largest_magnitude(x));
    let d = half_power(e);
    out[0] = e;
    for (j, q) in out[1..].iter_mut().enumerate() {
        *q = nearest_code(x[j], d) | nearest_code(x[j + 16], d) << 4;
    }
}

pub(crate) fn decode_mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = half_power(block[0]);
    for (j, &q) in block[1..].iter().enumerate() {
        out[j] = f32::from(VALUES[usize::from(q & 0xf)]) * d;
        out[j + 16] = f32::from(VALUES[usize::from(q >> 4)]) * d;
    }
}

/// Half the value of an unsigned E4M3 byte; ggml reads 0x7F as zero.
pub(crate) fn half_e4m3(byte: u8) -> f32 {
    if byte == 0 || byte == 0x7f {
        return 0.0;
    }
    let (exponent, mantissa) = (u32::from(byte >> 3 & 0xf), u32::from(byte & 7));
    if exponent == 0 {
        return mantissa as f32 * f32::from_bits((127 - 10) << 23);
    }
    f32::from_bits((exponent + 127 - 7 - 1) << 23 | mantissa << 20)
}

/// The nearest unsigned E4M3 byte, as ggml rounds: one bit below the mantissa decides.
pub(crate) fn e4m3_from(value: f32) -> u8 {
    if value.is_nan() || value <= 0.0 {
        return 0;
    }
    let value = value.min(448.0);
    let exponent = (value.to_bits() >> 23) as i32 - 127 + 7;
    if exponent <= 0 {
        return ((value * 512.0 + 0.5) as u8).min(7);
    }
    if exponent >= 15 {
        return 0x7e;
    }
    let rounded = (exponent as u32) << 3 | value.to_bits() >> 20 & 7;
    let rounded = rounded + (value.to_bits() >> 19 & 1);
    if rounded >> 3 >= 15 { 0x7e } else { rounded as u8 }
}

pub(crate) fn encode_nvfp4(x: &[f32; 64], out: &mut [u8; 36]) {
    let (scales, codes) = out.split_at_mut(4);
    let groups = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<8>().0);
    for ((group, codes), scale) in groups.zip(scales) {
        *scale = e4m3_from(largest_magnitude(group) / 6.0);
        let d = half_e4m3(*scale);
        for (j, q) in codes.iter_mut().enumerate() {
            *q = nearest_code(group[j], d) | nearest_code(group[j + 8], d) << 4;
        }
    }
}

pub(crate) fn decode_nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (g, group) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = half_e4m3(block[g]);
        for (j, &q) in block[4 + 8 * g..][..8].iter().enumerate() {
            group[j] = f32::from(VALUES[usize::from(q & 0xf)]) * d;
            group[j + 8] = f32::from(VALUES[usize::from(q >> 4)]) * d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many floats below 2^k have a logarithm that glibc 2.36's `log2f` rounds up to k, with the first k of each run.
    const ROUNDED_UP: [(i32, u32); 18] = [
        (-148, 0),
        (-131, 1),
        (-130, 2),
        (-129, 5),
        (-128, 11),
        (-126, 22),
        (-125, 44),
        (-63, 22),
        (-31, 11),
        (-15, 5),
        (-7, 2),
        (-3, 1),
        (-1, 0),
        (3, 1),
        (5, 2),
        (9, 5),
        (17, 11),
        (33, 22),
    ];

    #[test]
    fn e4m3_bytes_rise_and_all_but_the_last_binade_survive_a_round_trip() {
        assert_eq!(half_e4m3(0x38), 0.5);
        assert_eq!(half_e4m3(0x7e), 224.0);
        assert_eq!(half_e4m3(0x01), 2f32.powi(-10));
        assert_eq!(half_e4m3(0x7f), 0.0);
        for byte in 0..0x7f {
            assert_eq!(e4m3_from(2.0 * half_e4m3(byte)), if byte < 0x78 { byte } else { 0x7e });
            assert!(byte == 0 || half_e4m3(byte) > half_e4m3(byte - 1));
        }
    }

    #[test]
    fn midpoints_lie_between_values() {
        for (k, midpoint) in MIDPOINTS.into_iter().enumerate() {
            assert_eq!(midpoint, (f32::from(VALUES[k]) + f32::from(VALUES[k + 1])) / 2.0);
        }
    }

    #[test]
    fn midpoints_decide_as_distances_do() {
        for scale in [1.0f32, half_power(0), half_power(252), half_e4m3(0x7e), half_e4m3(1), half_e4m3(0x2b)] {
            for midpoint in MIDPOINTS.map(|m| m * scale) {
                for x in [midpoint.next_down(), midpoint, midpoint.next_up(), midpoint * 1.1, midpoint * 0.9] {
                    let above = MIDPOINTS.iter().filter(|&&m| x > m * scale).count() as u8;
                    assert_eq!(nearest_code(x, scale), above, "{x} {scale}");
                    assert_eq!(nearest_code(-x, scale), if above > 0 { above + 8 } else { 0 }, "-{x} {scale}");
                }
            }
        }
    }

    #[test]
    fn floor_log2_rounds_like_glibc_below_powers_of_two() {
        for power in -148..=64 {
            let expected = ROUNDED_UP.iter().rev().find(|(first, _)| *first <= power).unwrap().1;
            let mut x = 2f64.powi(power) as f32;
            assert_eq!(floor_log2(x), power);
            let mut count = 0;
            while floor_log2(x.next_down()) == power {
                x = x.next_down();
                count += 1;
            }
            assert_eq!(count, expected, "below 2^{power}");
        }
    }
}
