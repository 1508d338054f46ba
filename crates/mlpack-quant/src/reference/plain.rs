//! Blocks of 32 values with one scale (ggml b11434, `ggml-quants.c`).
//!
//! ```text
//!          0     2     4     6     8                          24           34
//! Q4_0     d     qs[16]: value j low, value j + 16 high nibble   d * (q - 8)
//! Q4_1     d     m     qs[16]                                    d * q + m
//! Q5_0     d     qh (u32, bit j = bit 4 of q[j])   qs[16]        d * (q - 16)
//! Q5_1     d     m     qh          qs[16]                        d * q + m
//! Q8_0     d     qs[32], signed                                  d * q
//! ```

use super::search::{self, Weights, fit_line_guarded, fit_symmetric, truncate};
use crate::blocks::field;
use crate::float::{read_f16, write_f16};

const N: usize = 32;

/// The mean square of a row, summed left to right: what importance weights of these types are relative to.
pub(crate) fn mean_square(row: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for &v in row {
        sum += v * v;
    }
    sum / row.len() as f32
}

/// Importance of each value of a block: `importance * sqrt(sigma2 + x^2)`.
pub(crate) fn block_weights<const M: usize>(sigma2: f32, x: &[f32; M], importance: &[f32; M]) -> [f32; M] {
    std::array::from_fn(|j| importance[j] * (sigma2 + x[j] * x[j]).sqrt())
}

/// `1 / d`, and 0 for a block of zeros.
pub(crate) fn inverse(d: f32) -> f32 {
    if d != 0.0 { 1.0 / d } else { 0.0 }
}

/// Smallest and largest value.
fn range(x: &[f32; N]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &v in x {
        if v < min {
            min = v;
        }
        if v > max {
            max = v;
        }
    }
    (min, max)
}

#[inline(always)]
pub(crate) fn pack_nibbles(codes: &[u8; N], qs: &mut [u8]) {
    for (j, q) in qs.iter_mut().enumerate() {
        *q = codes[j] & 0xf | codes[j + 16] << 4;
    }
}

#[inline(always)]
pub(crate) fn pack_high_bits(codes: &[u8; N], qh: &mut [u8]) {
    let mut bits = 0u32;
    for (j, &code) in codes.iter().enumerate() {
        bits |= u32::from(code >> 4 & 1) << j;
    }
    qh.copy_from_slice(&bits.to_le_bytes());
}

/// Code of value `j` in a block of nibbles with optional fifth bits.
#[inline]
fn code(qs: &[u8; 16], qh: u32, j: usize) -> u8 {
    let low = if j < 16 { qs[j] & 0xf } else { qs[j - 16] >> 4 };
    low | ((qh >> j & 1) as u8) << 4
}

pub(crate) fn encode_q4_0(x: &[f32; N], out: &mut [u8; 18]) {
    let (max, _) = search::signed_max(x);
    let d = max / -8.0;
    let id = inverse(d);
    write_f16(d, &mut out[..2]);
    let codes = x.map(|v| (truncate(v * id + 8.5) as i8).min(15) as u8);
    pack_nibbles(&codes, &mut out[2..]);
}

pub(crate) fn encode_q4_0_weighted(sigma2: f32, x: &[f32; N], importance: &[f32; N], out: &mut [u8; 18]) {
    let mut codes = [0i8; N];
    let d = fit_symmetric(8, x, &mut codes, Weights::Given(&block_weights(sigma2, x, importance)));
    write_f16(d, &mut out[..2]);
    pack_nibbles(&codes.map(|c| c as u8), &mut out[2..]);
}

pub(crate) fn decode_q4_0(block: &[u8; 18], out: &mut [f32; N]) {
    let d = read_f16(field(block, 0));
    for (j, v) in out.iter_mut().enumerate() {
        *v = (f32::from(code(field(block, 2), 0, j)) - 8.0) * d;
    }
}

pub(crate) fn encode_q4_1(x: &[f32; N], out: &mut [u8; 20]) {
    let (min, max) = range(x);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    write_f16(d, &mut out[..2]);
    write_f16(min, &mut out[2..4]);
    let codes = x.map(|v| (truncate((v - min) * id + 0.5) as i8).min(15) as u8);
    pack_nibbles(&codes, &mut out[4..]);
}

pub(crate) fn encode_q4_1_weighted(sigma2: f32, x: &[f32; N], importance: &[f32; N], out: &mut [u8; 20]) {
    let mut codes = [0; N];
    let (d, min) = fit_line_guarded(15, x, &block_weights(sigma2, x, importance), &mut codes);
    write_f16(d, &mut out[..2]);
    write_f16(-min, &mut out[2..4]);
    pack_nibbles(&codes, &mut out[4..]);
}

pub(crate) fn decode_q4_1(block: &[u8; 20], out: &mut [f32; N]) {
    let (d, m) = (read_f16(field(block, 0)), read_f16(field(block, 2)));
    for (j, v) in out.iter_mut().enumerate() {
        *v = f32::from(code(field(block, 4), 0, j)) * d + m;
    }
}

pub(crate) fn encode_q5_0(x: &[f32; N], out: &mut [u8; 22]) {
    let (max, _) = search::signed_max(x);
    let d = max / -16.0;
    let id = inverse(d);
    write_f16(d, &mut out[..2]);
    let codes = x.map(|v| (truncate(v * id + 16.5) as i8).min(31) as u8);
    pack_high_bits(&codes, &mut out[2..6]);
    pack_nibbles(&codes, &mut out[6..]);
}

pub(crate) fn encode_q5_0_weighted(sigma2: f32, x: &[f32; N], importance: &[f32; N], out: &mut [u8; 22]) {
    let mut codes = [0i8; N];
    let d = fit_symmetric(16, x, &mut codes, Weights::Given(&block_weights(sigma2, x, importance)));
    let codes = codes.map(|c| c as u8);
    write_f16(d, &mut out[..2]);
    pack_high_bits(&codes, &mut out[2..6]);
    pack_nibbles(&codes, &mut out[6..]);
}

pub(crate) fn decode_q5_0(block: &[u8; 22], out: &mut [f32; N]) {
    let d = read_f16(field(block, 0));
    let qh = u32::from_le_bytes(*field(block, 2));
    for (j, v) in out.iter_mut().enumerate() {
        *v = (f32::from(code(field(block, 6), qh, j)) - 16.0) * d;
    }
}

pub(crate) fn encode_q5_1(x: &[f32; N], out: &mut [u8; 24]) {
    let (min, max) = range(x);
    let d = (max - min) / 31.0;
    let id = inverse(d);
    write_f16(d, &mut out[..2]);
    write_f16(min, &mut out[2..4]);
    let codes = x.map(|v| truncate((v - min) * id + 0.5) as u8);
    pack_high_bits(&codes, &mut out[4..8]);
    pack_nibbles(&codes, &mut out[8..]);
}

pub(crate) fn encode_q5_1_weighted(sigma2: f32, x: &[f32; N], importance: &[f32; N], out: &mut [u8; 24]) {
    let mut codes = [0; N];
    let (d, min) = fit_line_guarded(31, x, &block_weights(sigma2, x, importance), &mut codes);
    write_f16(d, &mut out[..2]);
    write_f16(-min, &mut out[2..4]);
    pack_high_bits(&codes, &mut out[4..8]);
    pack_nibbles(&codes, &mut out[8..]);
}

pub(crate) fn decode_q5_1(block: &[u8; 24], out: &mut [f32; N]) {
    let (d, m) = (read_f16(field(block, 0)), read_f16(field(block, 2)));
    let qh = u32::from_le_bytes(*field(block, 4));
    for (j, v) in out.iter_mut().enumerate() {
        *v = f32::from(code(field(block, 8), qh, j)) * d + m;
    }
}

pub(crate) fn encode_q8_0(x: &[f32; N], out: &mut [u8; 34]) {
    let mut amax = 0.0f32;
    for &v in x {
        amax = if amax > v.abs() { amax } else { v.abs() };
    }
    let d = amax / 127.0;
    let id = inverse(d);
    write_f16(d, &mut out[..2]);
    for (q, &v) in out[2..].iter_mut().zip(x) {
        *q = truncate((v * id).round()) as u8;
    }
}

pub(crate) fn decode_q8_0(block: &[u8; 34], out: &mut [f32; N]) {
    let d = read_f16(field(block, 0));
    for (v, &q) in out.iter_mut().zip(&block[2..]) {
        *v = f32::from(q as i8) * d;
    }
}
