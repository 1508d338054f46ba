//! The types of one to two bits and of 4-bit floats, in plain Rust that compilers turn into vectors.
//!
//! Blocks with infinities or NaNs, or whose scale leaves the range where the short cuts hold, go to the scalar code.

use super::stream::largest_magnitude;
use crate::float::write_f16;
use crate::reference::{fp4, low_bits, plain};
use mlpack_tensor::GgmlType;

/// Blocks of Q1_0 that are summed side by side: each sum is one chain of additions.
const CHAINS: usize = 8;

/// Encodes; `false`, with `dst` untouched, where there is nothing for the type here.
#[inline(always)]
pub(super) fn encode(ty: GgmlType, src: &[f32], dst: &mut [u8]) -> bool {
    macro_rules! each {
        ($f:ident) => {
            for (x, out) in src.as_chunks().0.iter().zip(dst.as_chunks_mut().0) {
                $f(x, out);
            }
        };
    }
    match ty {
        GgmlType::Q1_0 => encode_q1_0(src, dst),
        GgmlType::Q2_0 => each!(encode_q2_0),
        GgmlType::TQ1_0 => each!(encode_tq1_0),
        GgmlType::TQ2_0 => each!(encode_tq2_0),
        GgmlType::MXFP4 => each!(encode_mxfp4),
        GgmlType::NVFP4 => each!(encode_nvfp4),
        _ => return false,
    }
    true
}

#[inline(always)]
fn encode_q1_0(src: &[f32], dst: &mut [u8]) {
    let parts = src.as_chunks::<128>().0.chunks(CHAINS).zip(dst.as_chunks_mut::<18>().0.chunks_mut(CHAINS));
    for (blocks, out) in parts {
        let mut sums = [0.0f32; CHAINS];
        if let Some(blocks) = blocks.first_chunk::<CHAINS>() {
            for i in 0..128 {
                for (sum, x) in sums.iter_mut().zip(blocks) {
                    *sum += x[i].abs();
                }
            }
        } else {
            for (sum, x) in sums.iter_mut().zip(blocks) {
                for &v in x {
                    *sum += v.abs();
                }
            }
        }
        for ((x, out), sum) in blocks.iter().zip(out).zip(sums) {
            write_f16(sum / 128.0, &mut out[..2]);
            for (bits, values) in out[2..].iter_mut().zip(x.as_chunks::<8>().0) {
                *bits = low_bits_of(values.map(|v| u8::from(v >= 0.0)));
            }
        }
    }
}

/// Bit 0 of each of eight bytes: a product moves each to its place in the top byte.
#[inline(always)]
fn low_bits_of(bytes: [u8; 8]) -> u8 {
    (u64::from_le_bytes(bytes).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
}

/// The digits of values whose largest magnitude becomes 1, halves going away from zero; `None` for the scalar code. Nothing is
/// larger than that magnitude times its inverse, so comparisons with the two halves are all the rounding there is.
#[inline(always)]
fn digits<const N: usize>(x: &[f32; N]) -> Option<(f32, [u8; N])> {
    let d = largest_magnitude(x);
    let id = plain::inverse(d);
    if !(d.is_finite() && id.is_finite()) {
        return None;
    }
    let mut digits = [0; N];
    for (digit, &v) in digits.iter_mut().zip(x) {
        let scaled = v * id;
        *digit = u8::from(scaled > -0.5) + u8::from(scaled >= 0.5);
    }
    Some((d, digits))
}

#[inline(always)]
fn encode_q2_0(x: &[f32; 64], out: &mut [u8; 18]) {
    let Some((d, digits)) = digits(x) else { return low_bits::encode_q2_0(x, out) };
    write_f16(d, &mut out[..2]);
    for (bits, digits) in out[2..].iter_mut().zip(digits.as_chunks::<4>().0) {
        let each = u32::from_le_bytes(*digits);
        *bits = (each | each >> 6 | each >> 12 | each >> 18) as u8;
    }
}

#[inline(always)]
fn encode_tq1_0(x: &[f32; 256], out: &mut [u8; 54]) {
    let Some((d, digits)) = digits(x) else { return low_bits::encode_tq1_0(x, out) };
    pack_ternary::<32, 5>(&digits[..160], &mut out[..32]);
    pack_ternary::<16, 5>(&digits[160..240], &mut out[32..48]);
    pack_ternary::<4, 4>(&digits[240..], &mut out[48..52]);
    write_f16(d, &mut out[52..]);
}

/// `DIGITS` digits of a number of five, those of byte `m` being `STRIDE` apart, as a fraction of 256.
#[inline(always)]
fn pack_ternary<const STRIDE: usize, const DIGITS: usize>(digits: &[u8], out: &mut [u8]) {
    let mut numbers = [0u16; STRIDE];
    for row in digits.as_chunks::<STRIDE>().0 {
        for (number, &digit) in numbers.iter_mut().zip(row) {
            *number = 3 * *number + u16::from(digit);
        }
    }
    for (out, number) in out.iter_mut().zip(numbers) {
        let number = if DIGITS == 4 { 3 * number } else { number };
        *out = (256 * number).div_ceil(243) as u8;
    }
}

#[inline(always)]
fn encode_tq2_0(x: &[f32; 256], out: &mut [u8; 66]) {
    let Some((d, digits)) = digits(x) else { return low_bits::encode_tq2_0(x, out) };
    for (digits, qs) in digits.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for m in 0..32 {
            qs[m] = digits[m] | digits[m + 32] << 2 | digits[m + 64] << 4 | digits[m + 96] << 6;
        }
    }
    write_f16(d, &mut out[64..]);
}

/// Above this a scale could overflow (MXFP4), or values could be so far beyond it that their distances to all codes round
/// to the same (NVFP4).
const MXFP4_LIMIT: f32 = 1e36;
const NVFP4_LIMIT: f32 = 4000.0;

/// Codes of the nearest values for a scale, the smaller of two that are equally near.
///
/// The scale is so small a multiple of a power of two that its products with codes and with midpoints are exact, and so is
/// the difference of a value and a neighbouring product: ggml's comparison of distances is one with the midpoint.
#[inline(always)]
fn nearest_codes<const N: usize>(x: &[f32; N], d: f32) -> [u8; N] {
    let mut codes = [0; N];
    if d == 0.0 {
        return codes;
    }
    let midpoints = fp4::MIDPOINTS.map(|m| m * d);
    for (code, &v) in codes.iter_mut().zip(x) {
        let mut above = 0u32;
        for midpoint in midpoints {
            above += u32::from(v.abs() > midpoint);
        }
        let negative = u32::from(v < -midpoints[0]);
        *code = (above | negative << 3) as u8;
    }
    codes
}

#[inline(always)]
fn encode_mxfp4(x: &[f32; 32], out: &mut [u8; 17]) {
    let amax = largest_magnitude(x);
    if amax.is_nan() || amax >= MXFP4_LIMIT {
        return fp4::encode_mxfp4(x, out);
    }
    let e = fp4::mxfp4_scale(amax);
    let codes = nearest_codes(x, fp4::half_power(e));
    out[0] = e;
    plain::pack_nibbles(&codes, &mut out[1..]);
}

#[inline(always)]
fn encode_nvfp4(x: &[f32; 64], out: &mut [u8; 36]) {
    let amax = largest_magnitude(x);
    if amax.is_nan() || amax >= NVFP4_LIMIT {
        return fp4::encode_nvfp4(x, out);
    }
    let (scales, packed) = out.split_at_mut(4);
    let groups = x.as_chunks::<16>().0.iter().zip(packed.as_chunks_mut::<8>().0);
    for ((group, packed), scale) in groups.zip(scales) {
        *scale = fp4::e4m3_from(largest_magnitude(group) / 6.0);
        let codes = nearest_codes(group, fp4::half_e4m3(*scale));
        for (j, q) in packed.iter_mut().enumerate() {
            *q = codes[j] | codes[j + 8] << 4;
        }
    }
}
