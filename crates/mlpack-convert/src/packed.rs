//! Reading sources that are quantized already: float8 with scales for blocks, and the MXFP4 of gpt-oss.
//!
//! ```text
//!   float8   a byte an element; element (row, column) times scale (row / block rows, column / block columns), in float32
//!   MXFP4    blocks   16 bytes for 32 elements: 0 and 1 in the first, 2 and 3 in the second, …; the even one in the low half
//!            scales   a byte for each block: the exponent of two, biased by 127
//!   ggml     the scale, then 16 bytes: elements 0 and 16 in the first, 1 and 17 in the second, …; the lower in the low half
//! ```
//! Sources: llama.cpp b11434, `conversion/base.py`, `conversion/gpt_oss.py`; OCP float8 (E4M3, E5M2).

use mlpack_tensor::Dtype;
use std::ops::Range;

/// Bytes of a block of MXFP4 without its scale.
pub(crate) const MXFP4_BYTES: usize = 16;

/// A matrix of float8, or several one after another, with the scales of its blocks.
pub(crate) struct Scaled<'a> {
    /// How elements are stored: one of the float8 types, or a plain one.
    pub dtype: Dtype,
    /// Elements of a row.
    pub row_len: u64,
    /// Rows of each matrix.
    pub rows: u64,
    /// Rows and columns of a block.
    pub block: [u64; 2],
    /// How scales are stored.
    pub scale_dtype: Dtype,
    /// The scales, row by row and matrix by matrix.
    pub scales: &'a [u8],
}

impl Scaled<'_> {
    /// Appends the values of elements, as little-endian float32. `bytes` holds those elements alone.
    pub fn append(&self, elements: Range<u64>, bytes: &[u8], out: &mut Vec<u8>) {
        let [block_rows, block_columns] = self.block;
        let per_row = self.row_len.div_ceil(block_columns);
        let per_matrix = self.rows.div_ceil(block_rows) * per_row;
        let mut at = elements.start;
        while at < elements.end {
            let (row, column) = (at / self.row_len, at % self.row_len);
            let end = elements.end.min(at - column + self.row_len.min((column / block_columns + 1) * block_columns));
            let block = row / self.rows * per_matrix + row % self.rows / block_rows * per_row + column / block_columns;
            let scale = number(self.scale_dtype, self.scales, block as usize);
            for i in at - elements.start..end - elements.start {
                out.extend_from_slice(&(number(self.dtype, bytes, i as usize) * scale).to_le_bytes());
            }
            at = end;
        }
    }
}

/// Whether [`Scaled`] knows the type.
pub(crate) fn is_scalable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F32 | Dtype::BF16 | Dtype::F16)
}

fn number(dtype: Dtype, bytes: &[u8], index: usize) -> f32 {
    let two = || [bytes[2 * index], bytes[2 * index + 1]];
    match dtype {
        Dtype::F8_E4M3 => float8(bytes[index], 3, 7),
        Dtype::F8_E5M2 => float8(bytes[index], 2, 15),
        Dtype::BF16 => half::bf16::from_le_bytes(two()).to_f32(),
        Dtype::F16 => half::f16::from_le_bytes(two()).to_f32(),
        Dtype::F32 => f32::from_le_bytes(bytes[4 * index..4 * index + 4].try_into().expect("it is four bytes long")),
        other => unreachable!("{other} was refused"),
    }
}

/// A float8 with so many bits of fraction, and that bias. E4M3 has no infinity, and NaN only where all bits are set.
fn float8(byte: u8, fraction_bits: u32, bias: i32) -> f32 {
    let sign = if byte & 0x80 != 0 { -1.0 } else { 1.0 };
    let exponent = i32::from((byte & 0x7f) >> fraction_bits);
    let fraction = f32::from(byte & ((1 << fraction_bits) - 1));
    let largest = (1 << (7 - fraction_bits)) - 1;
    if fraction_bits == 3 && byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    if fraction_bits == 2 && exponent == largest {
        return if fraction == 0.0 { sign * f32::INFINITY } else { f32::NAN };
    }
    let steps = (1 << fraction_bits) as f32;
    // Powers of two from -16 on, and products of them with four bits, are exact.
    match exponent {
        0 => sign * fraction / steps * f32::powi(2.0, 1 - bias),
        _ => sign * (1.0 + fraction / steps) * f32::powi(2.0, exponent - bias),
    }
}

/// Appends a row of MXFP4 as ggml stores it.
pub(crate) fn append_mxfp4(blocks: &[u8], scales: &[u8], out: &mut Vec<u8>) {
    for (block, scale) in blocks.as_chunks::<MXFP4_BYTES>().0.iter().zip(scales) {
        let element = |i: usize| block[i / 2] >> (4 * (i % 2)) & 0x0f;
        out.push(*scale);
        out.extend((0..MXFP4_BYTES).map(|i| element(i) | element(i + MXFP4_BYTES) << 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn float8_has_the_values_of_its_definition() {
        let e4m3 = |byte| float8(byte, 3, 7);
        assert_eq!(
            [e4m3(0x00), e4m3(0x01), e4m3(0x08), e4m3(0x38), e4m3(0x7e)],
            [0.0, 1.0 / 512.0, 1.0 / 64.0, 1.0, 448.0]
        );
        assert_eq!((e4m3(0xb9), e4m3(0x80).to_bits()), (-1.125, 0x8000_0000));
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        let e5m2 = |byte| float8(byte, 2, 15);
        assert_eq!([e5m2(0x01), e5m2(0x3c), e5m2(0x7b), e5m2(0xfc)], [1.0 / 65536.0, 1.0, 57344.0, f32::NEG_INFINITY]);
        assert!(e5m2(0x7d).is_nan());
    }

    #[test]
    fn every_block_has_its_scale() {
        // Two matrices of 3 x 5 ones, blocks of 2 x 3: scales 2 x 2 for each.
        let scales: Vec<u8> = (1..=8u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let scaled = Scaled {
            dtype: Dtype::F8_E4M3,
            row_len: 5,
            rows: 3,
            block: [2, 3],
            scale_dtype: Dtype::F32,
            scales: &scales,
        };
        let values = |elements: Range<u64>| {
            let mut out = Vec::new();
            scaled.append(elements.clone(), &vec![0x38; (elements.end - elements.start) as usize], &mut out);
            out.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<_>>()
        };
        let row = |a: f32, b: f32| [a, a, a, b, b];
        let expected =
            [row(1.0, 2.0), row(1.0, 2.0), row(3.0, 4.0), row(5.0, 6.0), row(5.0, 6.0), row(7.0, 8.0)].concat();
        assert_eq!(values(0..30), expected);
        assert_eq!(values(13..22), expected[13..22]);
    }

    #[test]
    fn elements_of_a_block_change_places() {
        let block: Vec<u8> = (0..16u8).map(|i| (2 * i % 16) | ((2 * i + 1) % 16) << 4).collect();
        let mut out = Vec::new();
        append_mxfp4(&block, &[0x7f], &mut out);
        let expected: Vec<u8> = [0x7f].into_iter().chain((0..16u8).map(|i| i | i << 4)).collect();
        assert_eq!(out, expected);
    }
}
