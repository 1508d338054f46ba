//! Decoding in plain Rust that compilers turn into vectors: loops over whole rows of a block, without a condition inside.
//!
//! Every value is computed by the expression of the scalar code. Only the look-up of sixteen small values needs an instruction
//! that compilers do not find by themselves.

use crate::blocks::field;
use crate::float::read_f16;
use crate::reference::{fp4, iq4, k2_k3, k4_k5};
use mlpack_tensor::GgmlType;

/// A table of sixteen bytes.
pub(super) trait Lookup {
    /// The entry of each code, codes being below 16.
    fn entries(table: &[i8; 16], codes: [u8; 16]) -> [i8; 16];
}

/// One entry after the other.
pub(super) struct Each;

impl Lookup for Each {
    #[inline(always)]
    fn entries(table: &[i8; 16], codes: [u8; 16]) -> [i8; 16] {
        let mut out = [0; 16];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = table[usize::from(code & 0xf)];
        }
        out
    }
}

/// Decodes; `false`, with `dst` untouched, where there is nothing for the type here.
#[inline(always)]
pub(super) fn decode<L: Lookup>(ty: GgmlType, src: &[u8], dst: &mut [f32]) -> bool {
    macro_rules! each {
        ($f:expr) => {
            for (block, out) in src.as_chunks().0.iter().zip(dst.as_chunks_mut().0) {
                $f(block, out);
            }
        };
    }
    match ty {
        GgmlType::Q4_0 => each!(q4_0),
        GgmlType::Q4_1 => each!(q4_1),
        GgmlType::Q5_0 => each!(q5_0),
        GgmlType::Q5_1 => each!(q5_1),
        GgmlType::Q8_0 => each!(q8_0),
        GgmlType::Q2_K => each!(q2_k),
        GgmlType::Q3_K => each!(q3_k),
        GgmlType::Q4_K => each!(q4_k),
        GgmlType::Q5_K => each!(q5_k),
        GgmlType::Q6_K => each!(q6_k),
        GgmlType::IQ4_NL => each!(iq4_nl::<L>),
        GgmlType::IQ4_XS => each!(iq4_xs::<L>),
        GgmlType::Q1_0 => each!(q1_0),
        GgmlType::Q2_0 => each!(q2_0),
        GgmlType::TQ1_0 => each!(tq1_0),
        GgmlType::TQ2_0 => each!(tq2_0),
        GgmlType::MXFP4 => each!(mxfp4::<L>),
        GgmlType::NVFP4 => each!(nvfp4::<L>),
        _ => return false,
    }
    true
}

/// The low nibbles, then the high ones.
#[inline(always)]
fn nibbles<const N: usize>(qs: &[u8; N]) -> [[u8; N]; 2] {
    [qs.map(|q| q & 0xf), qs.map(|q| q >> 4)]
}

/// Nibbles with a fifth bit from `qh`.
#[inline(always)]
fn five_bits(qs: &[u8; 16], qh: u32) -> [[u8; 16]; 2] {
    let mut codes = nibbles(qs);
    for (half, codes) in codes.iter_mut().enumerate() {
        for (j, code) in codes.iter_mut().enumerate() {
            *code |= (qh >> (16 * half + j) << 4 & 0x10) as u8;
        }
    }
    codes
}

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = read_f16(field(block, 0));
    for (v, code) in out.iter_mut().zip(nibbles::<16>(field(block, 2)).as_flattened()) {
        *v = (f32::from(*code) - 8.0) * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (read_f16(field(block, 0)), read_f16(field(block, 2)));
    for (v, code) in out.iter_mut().zip(nibbles::<16>(field(block, 4)).as_flattened()) {
        *v = f32::from(*code) * d + m;
    }
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = read_f16(field(block, 0));
    let codes = five_bits(field(block, 6), u32::from_le_bytes(*field(block, 2)));
    for (v, code) in out.iter_mut().zip(codes.as_flattened()) {
        *v = (f32::from(*code) - 16.0) * d;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (read_f16(field(block, 0)), read_f16(field(block, 2)));
    let codes = five_bits(field(block, 8), u32::from_le_bytes(*field(block, 4)));
    for (v, code) in out.iter_mut().zip(codes.as_flattened()) {
        *v = f32::from(*code) * d + m;
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = read_f16(field(block, 0));
    for (v, &q) in out.iter_mut().zip(&block[2..]) {
        *v = f32::from(q as i8) * d;
    }
}

/// Two bits of each byte, from bit `at` on.
#[inline(always)]
fn pairs<const N: usize>(qs: &[u8; N], at: usize) -> [u8; N] {
    qs.map(|q| q >> at & 3)
}

#[inline(always)]
fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (read_f16(field(block, 80)), read_f16(field(block, 82)));
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let qs: &[u8; 32] = field(block, 16 + 32 * half);
        let codes = [pairs(qs, 0), pairs(qs, 2), pairs(qs, 4), pairs(qs, 6)];
        let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_flattened().as_chunks::<16>().0);
        for ((group, codes), stored) in groups.zip(&block[8 * half..]) {
            let (scale, min) = (d * f32::from(stored & 0xf), dmin * f32::from(stored >> 4));
            for (v, code) in group.iter_mut().zip(codes) {
                *v = scale * f32::from(*code) - min;
            }
        }
    }
}

#[inline(always)]
fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 108));
    for (g, group) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = d * f32::from(k2_k3::unpack_q3_scale(g, field(block, 96)));
        let low = pairs::<16>(field(block, 32 + 32 * (g / 8) + 16 * (g % 2)), 2 * (g % 8 / 2));
        let high: &[u8; 16] = field(block, 16 * (g % 2));
        for l in 0..16 {
            let code = low[l] | (high[l] >> (g / 2) & 1) << 2;
            group[l] = scale * f32::from(code as i8 - 4);
        }
    }
}

#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let scales = k4_k5::effective_scales(field(block, 0));
    for (p, pair) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        line(scales[2 * p], scales[2 * p + 1], &nibbles::<32>(field(block, 16 + 32 * p)), pair);
    }
}

/// Two groups of 32 codes, each with a scale and a minimum.
#[inline(always)]
fn line((d0, m0): (f32, f32), (d1, m1): (f32, f32), codes: &[[u8; 32]; 2], out: &mut [f32; 64]) {
    for l in 0..32 {
        out[l] = d0 * f32::from(codes[0][l]) - m0;
    }
    for l in 0..32 {
        out[32 + l] = d1 * f32::from(codes[1][l]) - m1;
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let scales = k4_k5::effective_scales(field(block, 0));
    let high: &[u8; 32] = field(block, 16);
    for (p, pair) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let mut codes = nibbles::<32>(field(block, 48 + 32 * p));
        for l in 0..32 {
            let high = high[l] >> (2 * p);
            codes[0][l] |= (high & 1) << 4;
            codes[1][l] |= (high & 2) << 3;
        }
        line(scales[2 * p], scales[2 * p + 1], &codes, pair);
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 208));
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let (first, second): (&[u8; 32], &[u8; 32]) = (field(block, 64 * half), field(block, 64 * half + 32));
        let high: &[u8; 32] = field(block, 128 + 32 * half);
        let mut codes = [[0u8; 32]; 4];
        for l in 0..32 {
            codes[0][l] = first[l] & 0xf | high[l] << 4 & 0x30;
            codes[1][l] = second[l] & 0xf | high[l] << 2 & 0x30;
            codes[2][l] = first[l] >> 4 | high[l] & 0x30;
            codes[3][l] = second[l] >> 4 | high[l] >> 2 & 0x30;
        }
        let groups = out.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_flattened().as_chunks::<16>().0);
        for ((group, codes), stored) in groups.zip(&block[192 + 8 * half..]) {
            let scale = d * f32::from(*stored as i8);
            for (v, code) in group.iter_mut().zip(codes) {
                *v = scale * f32::from(*code as i8 - 32);
            }
        }
    }
}

/// Sixteen bytes of codes: the values of the low nibbles, then of the high ones.
#[inline(always)]
fn values<L: Lookup>(table: &[i8; 16], qs: &[u8; 16]) -> [[i8; 16]; 2] {
    let [low, high] = nibbles(qs);
    [L::entries(table, low), L::entries(table, high)]
}

#[inline(always)]
fn iq4_nl<L: Lookup>(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = read_f16(field(block, 0));
    for (v, value) in out.iter_mut().zip(values::<L>(&iq4::VALUES, field(block, 2)).as_flattened()) {
        *v = d * f32::from(*value);
    }
}

#[inline(always)]
fn iq4_xs<L: Lookup>(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 0));
    let high_bits = u16::from_le_bytes(*field(block, 2));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = i32::from(block[4 + g / 2] >> (4 * (g % 2)) & 0xf);
        let high = i32::from(high_bits >> (2 * g) & 3);
        let dl = d * ((low | high << 4) - 32) as f32;
        for (v, value) in group.iter_mut().zip(values::<L>(&iq4::VALUES, field(block, 8 + 16 * g)).as_flattened()) {
            *v = dl * f32::from(*value);
        }
    }
}

#[inline(always)]
fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = read_f16(field(block, 0)).to_bits();
    for (word, values) in block[2..].as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let negative = !u32::from_le_bytes(*word);
        for (j, v) in values.iter_mut().enumerate() {
            *v = f32::from_bits(d ^ negative >> j << 31);
        }
    }
}

#[inline(always)]
fn q2_0(block: &[u8; 18], out: &mut [f32; 64]) {
    let d = read_f16(field(block, 0));
    for (word, values) in block[2..].as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<16>().0) {
        let codes = u32::from_le_bytes(*word);
        for (j, v) in values.iter_mut().enumerate() {
            *v = ((codes >> (2 * j) & 3) as i32 as f32 - 1.0) * d;
        }
    }
}

#[inline(always)]
fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 52));
    let (first, rest) = out.split_at_mut(160);
    let (second, last) = rest.split_at_mut(80);
    ternary::<32>(d, field(block, 0), first);
    ternary::<16>(d, field(block, 32), second);
    ternary::<4>(d, field(block, 48), last);
}

/// Digits of fractions of 256, the first digits of all bytes, then the second ones.
#[inline(always)]
fn ternary<const N: usize>(d: f32, fractions: &[u8; N], out: &mut [f32]) {
    let mut fractions = *fractions;
    for row in out.as_chunks_mut::<N>().0 {
        for (v, fraction) in row.iter_mut().zip(&mut fractions) {
            let tripled = 3 * u16::from(*fraction);
            *v = f32::from((tripled >> 8) as i8 - 1) * d;
            *fraction = tripled as u8;
        }
    }
}

#[inline(always)]
fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 64));
    for (r, row) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let codes = pairs::<32>(field(block, 32 * (r / 4)), 2 * (r % 4));
        for (v, code) in row.iter_mut().zip(codes) {
            *v = f32::from(code as i8 - 1) * d;
        }
    }
}

#[inline(always)]
fn mxfp4<L: Lookup>(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = fp4::half_power(block[0]);
    for (v, value) in out.iter_mut().zip(values::<L>(&fp4::VALUES, field(block, 1)).as_flattened()) {
        *v = f32::from(*value) * d;
    }
}

#[inline(always)]
fn nvfp4<L: Lookup>(block: &[u8; 36], out: &mut [f32; 64]) {
    for (g, group) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = fp4::half_e4m3(block[g]);
        let [low, high] = nibbles::<8>(field(block, 4 + 8 * g));
        let mut codes = [0; 16];
        codes[..8].copy_from_slice(&low);
        codes[8..].copy_from_slice(&high);
        for (v, value) in group.iter_mut().zip(L::entries(&fp4::VALUES, codes)) {
            *v = f32::from(value) * d;
        }
    }
}
