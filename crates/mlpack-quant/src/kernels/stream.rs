//! Blocks of 32 values whose scale is an extreme of them, in plain Rust that compilers turn into vectors: what AVX2 has
//! code of its own for.
//!
//! Blocks with infinities or NaNs, or whose inverse scale is infinite, go to the scalar code.

use crate::blocks::encode_each;
use crate::float::write_f16;
use crate::reference::plain;
use mlpack_tensor::GgmlType;

const LEN: usize = 32;

/// Encodes; `false`, with `dst` untouched, where there is nothing for the type here.
pub(super) fn encode(ty: GgmlType, src: &[f32], dst: &mut [u8]) -> bool {
    match ty {
        GgmlType::Q4_0 => encode_each(src, dst, encode_q4_0),
        GgmlType::Q4_1 => encode_each(src, dst, encode_q4_1),
        GgmlType::Q5_0 => encode_each(src, dst, encode_q5_0),
        GgmlType::Q5_1 => encode_each(src, dst, encode_q5_1),
        GgmlType::Q8_0 => encode_each(src, dst, encode_q8_0),
        _ => return false,
    }
    true
}

fn encode_q8_0(x: &[f32; LEN], out: &mut [u8; 34]) {
    let amax = largest_magnitude(x);
    let d = amax / 127.0;
    let id = plain::inverse(d);
    if !(amax.is_finite() && id.is_finite()) {
        return plain::encode_q8_0(x, out);
    }
    write_f16(d, &mut out[..2]);
    for (q, &v) in out[2..].iter_mut().zip(x) {
        let scaled = v * id;
        // Halves away from zero: the largest float below one half is what makes truncation exact.
        *q = (scaled + 0.5f32.next_down().copysign(scaled)) as i32 as u8;
    }
}

fn encode_q4_0(x: &[f32; LEN], out: &mut [u8; 18]) {
    let max = first_largest(x);
    let d = max / -8.0;
    let id = plain::inverse(d);
    if !(max.is_finite() && id.is_finite()) {
        return plain::encode_q4_0(x, out);
    }
    write_f16(d, &mut out[..2]);
    plain::pack_nibbles(&codes(x, 0.0, id, 8.5, 15), &mut out[2..]);
}

fn encode_q5_0(x: &[f32; LEN], out: &mut [u8; 22]) {
    let max = first_largest(x);
    let d = max / -16.0;
    let id = plain::inverse(d);
    if !(max.is_finite() && id.is_finite()) {
        return plain::encode_q5_0(x, out);
    }
    let codes = codes(x, 0.0, id, 16.5, 31);
    write_f16(d, &mut out[..2]);
    out[2..6].copy_from_slice(&fifth_bits(&codes));
    plain::pack_nibbles(&codes, &mut out[6..]);
}

fn encode_q4_1(x: &[f32; LEN], out: &mut [u8; 20]) {
    let (min, max) = range(x);
    let d = (max - min) / 15.0;
    let id = plain::inverse(d);
    // A minimum of zero has the sign of the first zero, which only the scalar code knows.
    if min == 0.0 || !(d.is_finite() && id.is_finite() && largest_magnitude(x).is_finite()) {
        return plain::encode_q4_1(x, out);
    }
    write_f16(d, &mut out[..2]);
    write_f16(min, &mut out[2..4]);
    plain::pack_nibbles(&codes(x, min, id, 0.5, 15), &mut out[4..]);
}

fn encode_q5_1(x: &[f32; LEN], out: &mut [u8; 24]) {
    let (min, max) = range(x);
    let d = (max - min) / 31.0;
    let id = plain::inverse(d);
    if min == 0.0 || !(d.is_finite() && id.is_finite() && largest_magnitude(x).is_finite()) {
        return plain::encode_q5_1(x, out);
    }
    let codes = codes(x, min, id, 0.5, 31);
    write_f16(d, &mut out[..2]);
    write_f16(min, &mut out[2..4]);
    out[4..8].copy_from_slice(&fifth_bits(&codes));
    plain::pack_nibbles(&codes, &mut out[8..]);
}

/// `(x - min) * id + half` towards zero, which is not negative here.
#[inline(always)]
fn codes(x: &[f32; LEN], min: f32, id: f32, half: f32, top: i32) -> [u8; LEN] {
    let mut codes = [0; LEN];
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = (((v - min) * id + half) as i32).min(top) as u8;
    }
    codes
}

/// The largest magnitude; not finite where a value is not. Magnitudes are ordered like their bits, NaNs above all.
#[inline(always)]
pub(super) fn largest_magnitude<const N: usize>(x: &[f32; N]) -> f32 {
    let mut lanes = [0u32; 8];
    for part in x.as_chunks::<8>().0 {
        for (lane, v) in lanes.iter_mut().zip(part) {
            *lane = (*lane).max(v.to_bits() & 0x7fff_ffff);
        }
    }
    let mut max = 0;
    for lane in lanes {
        max = max.max(lane);
    }
    f32::from_bits(max)
}

/// The first value of the largest magnitude; plain zero for a block of zeros.
#[inline(always)]
fn first_largest(x: &[f32; LEN]) -> f32 {
    let amax = largest_magnitude(x).to_bits();
    let found = x.iter().find(|v| v.to_bits() & 0x7fff_ffff == amax);
    if amax == 0 { 0.0 } else { *found.expect("it is one of them") }
}

/// Smallest and largest value, where all are finite.
#[inline(always)]
fn range(x: &[f32; LEN]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::MAX; 8], [-f32::MAX; 8]);
    for part in x.as_chunks::<8>().0 {
        for i in 0..8 {
            low[i] = if part[i] < low[i] { part[i] } else { low[i] };
            high[i] = if part[i] > high[i] { part[i] } else { high[i] };
        }
    }
    let (mut min, mut max) = (low[0], high[0]);
    for i in 1..8 {
        min = if low[i] < min { low[i] } else { min };
        max = if high[i] > max { high[i] } else { max };
    }
    (min, max)
}

/// Bit 4 of every code: a product moves bit 0 of each of eight bytes to its place in the top byte.
#[inline(always)]
fn fifth_bits(codes: &[u8; LEN]) -> [u8; 4] {
    let mut bits = [0; 4];
    for (bits, codes) in bits.iter_mut().zip(codes.as_chunks::<8>().0) {
        let each = u64::from_le_bytes(*codes) >> 4 & 0x0101_0101_0101_0101;
        *bits = (each.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
    bits
}
