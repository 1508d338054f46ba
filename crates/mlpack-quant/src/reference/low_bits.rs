//! Blocks whose only scale is the mean or the largest magnitude, one or two bits for each value (ggml b11434,
//! `ggml-quants.c`).
//!
//! ```text
//!          values  0        2           18
//! Q1_0     128     d        qs[16]      bit j of qs: value j is not negative      d or -d, d the mean magnitude
//! Q2_0     64      d        qs[16]      two bits of each value, in order          d * (q - 1)
//!
//!                  0        48    52    54
//! TQ1_0    256     qs[48]   qh[4] d     base-3 digits, see below                  d * (digit - 1)
//!                  0        64    66
//! TQ2_0    256     qs[64]   d           in each half, byte m: values m, m + 32, m + 64, m + 96, lowest first
//! ```
//!
//! TQ1_0 puts five digits in a byte as a fraction of 256, first digit most significant: `ceil(256 * number / 243)`, so
//! that multiplying by 3 carries the next digit out of the byte. Bytes 0..32 hold values `m + 32 n`, bytes 32..48 values
//! `160 + m + 16 n`, and `qh` values `240 + j + 4 n` with four digits and a zero.

use super::plain::inverse;
use crate::blocks::field;
use crate::float::{read_f16, write_f16};

pub(crate) fn encode_q1_0(x: &[f32; 128], out: &mut [u8; 18]) {
    let mut sum = 0.0f32;
    for &v in x {
        sum += v.abs();
    }
    write_f16(sum / 128.0, &mut out[..2]);
    for (bits, values) in out[2..].iter_mut().zip(x.as_chunks::<8>().0) {
        *bits = (0..8).fold(0, |bits, j| bits | u8::from(values[j] >= 0.0) << j);
    }
}

pub(crate) fn decode_q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = read_f16(field(block, 0));
    for (j, v) in out.iter_mut().enumerate() {
        *v = if block[2 + j / 8] >> (j % 8) & 1 == 1 { d } else { -d };
    }
}

/// The largest magnitude, a NaN counting as larger than what came before it.
fn largest_magnitude(x: &[f32]) -> f32 {
    let mut amax = 0.0f32;
    for &v in x {
        amax = if amax > v.abs() { amax } else { v.abs() };
    }
    amax
}

pub(crate) fn encode_q2_0(x: &[f32; 64], out: &mut [u8; 18]) {
    let mut d = 0.0f32;
    for &v in x {
        if v.abs() > d {
            d = v.abs();
        }
    }
    let id = if d > 0.0 { 1.0 / d } else { 0.0 };
    write_f16(d, &mut out[..2]);
    for (bits, values) in out[2..].iter_mut().zip(x.as_chunks::<4>().0) {
        *bits = (0..4).fold(0, |bits, j| {
            let code = super::search::truncate((values[j] * id).round()).wrapping_add(1).clamp(0, 3);
            bits | (code as u8) << (2 * j)
        });
    }
}

pub(crate) fn decode_q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = read_f16(field(block, 0));
    for (j, v) in out.iter_mut().enumerate() {
        *v = (f32::from(block[2 + j / 4] >> (2 * (j % 4)) & 3) - 1.0) * d;
    }
}

/// `lroundf` as an `int`: halves away from zero; what does not fit in 64 bits (and NaN) has no low bits.
fn round_long(value: f32) -> i32 {
    if value.abs() < 9.0e18 { value.round() as i64 as i32 } else { 0 }
}

/// The ternary digit of a value: 0, 1 or 2 for -1, 0 or 1.
fn digit(v: f32, id: f32) -> u8 {
    round_long(v * id).wrapping_add(1) as u8
}

/// Where each byte of TQ1_0 finds its first value, how far apart its values are, and how many digits it holds.
fn tq1_place(byte: usize) -> (usize, usize, usize) {
    match byte {
        0..32 => (byte, 32, 5),
        32..48 => (160 + byte - 32, 16, 5),
        _ => (240 + byte - 48, 4, 4),
    }
}

pub(crate) fn encode_tq1_0(x: &[f32; 256], out: &mut [u8; 54]) {
    let d = largest_magnitude(x);
    let id = inverse(d);
    for (byte, packed) in out[..52].iter_mut().enumerate() {
        let (first, stride, digits) = tq1_place(byte);
        let mut number = 0u8;
        for n in 0..digits {
            number = number.wrapping_mul(3).wrapping_add(digit(x[first + n * stride], id));
        }
        if digits == 4 {
            number = number.wrapping_mul(3);
        }
        *packed = (u16::from(number) * 256).wrapping_add(242).wrapping_div(243) as u8;
    }
    write_f16(d, &mut out[52..]);
}

pub(crate) fn decode_tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 52));
    for (byte, &packed) in block[..52].iter().enumerate() {
        let (first, stride, digits) = tq1_place(byte);
        let mut fraction = packed;
        for n in 0..digits {
            let digit = ((u16::from(fraction) * 3) >> 8) as i8;
            out[first + n * stride] = f32::from(digit - 1) * d;
            fraction = fraction.wrapping_mul(3);
        }
    }
}

pub(crate) fn encode_tq2_0(x: &[f32; 256], out: &mut [u8; 66]) {
    let d = largest_magnitude(x);
    let id = inverse(d);
    for (values, qs) in x.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (m, q) in qs.iter_mut().enumerate() {
            *q = (0..4).fold(0, |q, n| q | (digit(values[m + 32 * n], id) & 3) << (2 * n));
        }
    }
    write_f16(d, &mut out[64..]);
}

pub(crate) fn decode_tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 64));
    for (i, v) in out.iter_mut().enumerate() {
        let q = block[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3;
        *v = f32::from(q as i8 - 1) * d;
    }
}
