//! Matrices of integers as standard ONNX operators read them: `[inputs, outputs]`, so that what shares a scale is a column, or
//! a whole table.
//!
//! ```text
//!   columns, 8 bits   code = v / scale[n], -127 to 127;           scale = the largest magnitude of the column / 127
//!   table, 8 bits     code = v / scale + zero point, 0 to 255;     scale = (max - min) / 255, both with 0 between them
//!   column blocks     4 bits, a scale for each block of a column; two codes in a byte, the first in the low half
//! ```
//! The first two are those of ONNX Runtime 1.31.1's `quantize_dynamic` (`per_channel=True`, `QInt8`; tables that are looked up are
//! `QUInt8`), the third that of its `MatMulNBitsQuantizer` in QDQ form, bit for bit.

use crate::float::{bf16_from_f32, f16_from_f32};
use crate::nbits::as_stored;
use mlpack_tensor::Dtype;

/// The least and the largest of some values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extremes {
    /// The least.
    pub min: f32,
    /// The largest.
    pub max: f32,
}

impl Extremes {
    /// Those of a row.
    pub fn of(values: &[f32]) -> Extremes {
        let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(min, max), v| (min.min(*v), max.max(*v)));
        Extremes { min, max }
    }

    /// Those of both.
    pub fn and(self, other: Extremes) -> Extremes {
        Extremes { min: self.min.min(other.min), max: self.max.max(other.max) }
    }

    /// The largest magnitude.
    pub fn magnitude(self) -> f32 {
        self.min.abs().max(self.max.abs())
    }

    /// The scale of a column of signed bytes.
    pub fn column_scale(self) -> f32 {
        scale(2.0 * f64::from(self.magnitude()), 254.0).map_or(1.0, |scale| scale as f32)
    }

    /// The scale and the zero point of a table of bytes.
    pub fn table_scale(self) -> (f32, u8) {
        let (min, max) = (self.min.min(0.0), self.max.max(0.0));
        match scale(f64::from(max) - f64::from(min), 255.0) {
            None => (1.0, 0),
            Some(scale) => (scale as f32, (0.0 - f64::from(min) / scale).round_ties_even() as u8),
        }
    }
}

/// A range cut into steps, where they are not too small for float32.
fn scale(range: f64, steps: f64) -> Option<f64> {
    Some(range / steps).filter(|scale| *scale >= f64::from(f32::MIN_POSITIVE))
}

/// Encodes rows as signed bytes, each column with its scale.
///
/// # Panics
/// When the lengths do not fit.
pub fn encode_columns(src: &[f32], scales: &[f32], dst: &mut [u8]) {
    assert_eq!(src.len(), dst.len(), "a byte for each value");
    for (row, out) in src.chunks_exact(scales.len().max(1)).zip(dst.chunks_exact_mut(scales.len().max(1))) {
        for ((v, scale), out) in row.iter().zip(scales).zip(out) {
            *out = ((v / scale).round_ties_even().clamp(-128.0, 127.0) as i8) as u8;
        }
    }
}

/// What a reader makes of them.
pub fn decode_columns(src: &[u8], scales: &[f32], out: &mut [f32]) {
    for (row, out) in src.chunks_exact(scales.len().max(1)).zip(out.chunks_exact_mut(scales.len().max(1))) {
        for ((code, scale), out) in row.iter().zip(scales).zip(out) {
            *out = f32::from(*code as i8) * scale;
        }
    }
}

/// Encodes values of a table as bytes.
///
/// # Panics
/// When the lengths do not fit.
pub fn encode_table(src: &[f32], (scale, zero): (f32, u8), dst: &mut [u8]) {
    assert_eq!(src.len(), dst.len(), "a byte for each value");
    for (v, out) in src.iter().zip(dst) {
        *out = ((v / scale).round_ties_even() + f32::from(zero)).clamp(0.0, 255.0) as u8;
    }
}

/// What a reader makes of them.
pub fn decode_table(src: &[u8], (scale, zero): (f32, u8), out: &mut [f32]) {
    for (code, out) in src.iter().zip(out) {
        *out = (f32::from(*code) - f32::from(zero)) * scale;
    }
}

/// Blocks of columns, four bits for each value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ColumnBlocks {
    /// Values of a block, one below the other.
    pub block: u32,
    /// Codes are signed and there are no zero points.
    pub symmetric: bool,
    /// The type of scales: F32, F16 or BF16.
    pub scale: Dtype,
}

/// What of them is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ColumnPart {
    /// The integers, a row for each row.
    Codes,
    /// What they are multiplied by, a row for each block.
    Scales,
    /// What is subtracted from them before, a row for each block.
    ZeroPoints,
}

impl ColumnBlocks {
    /// Bytes of the first `rows` rows of a part.
    ///
    /// # Panics
    /// When a row has an odd length: codes of two rows would share a byte.
    pub fn byte_len(&self, part: ColumnPart, rows: u64, row_len: u64) -> u64 {
        assert!(row_len.is_multiple_of(2), "whole bytes");
        let blocks = rows.div_ceil(self.block.into());
        match part {
            ColumnPart::Codes => rows * row_len / 2,
            ColumnPart::Scales => blocks * row_len * self.scale.byte_size(),
            ColumnPart::ZeroPoints => blocks * row_len / 2,
        }
    }

    /// Encodes one part of rows that begin with a block.
    ///
    /// # Panics
    /// When `dst` has not exactly the bytes of that part.
    pub fn encode(&self, part: ColumnPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
        let rows = src.len() / row_len.max(1);
        assert_eq!(self.byte_len(part, rows as u64, row_len as u64), dst.len() as u64, "rows of {row_len} values");
        let block_len = self.block as usize * row_len;
        match part {
            ColumnPart::Codes => {
                for (block, out) in src.chunks(block_len.max(1)).zip(dst.chunks_mut((block_len / 2).max(1))) {
                    let columns = self.columns(block, row_len);
                    for (row, out) in block.chunks_exact(row_len).zip(out.chunks_exact_mut(row_len / 2)) {
                        for ((pair, columns), out) in row.chunks_exact(2).zip(columns.chunks_exact(2)).zip(out) {
                            *out = self.code(pair[0], columns[0]) | self.code(pair[1], columns[1]) << 4;
                        }
                    }
                }
            }
            ColumnPart::Scales => {
                let size = self.scale.byte_size() as usize;
                for (block, out) in src.chunks(block_len.max(1)).zip(dst.chunks_exact_mut((row_len * size).max(1))) {
                    for ((scale, _), out) in self.columns(block, row_len).iter().zip(out.chunks_exact_mut(size)) {
                        match self.scale {
                            Dtype::F16 => out.copy_from_slice(&f16_from_f32(*scale).to_le_bytes()),
                            Dtype::BF16 => out.copy_from_slice(&bf16_from_f32(*scale).to_le_bytes()),
                            _ => out.copy_from_slice(&scale.to_le_bytes()),
                        }
                    }
                }
            }
            ColumnPart::ZeroPoints => {
                for (block, out) in src.chunks(block_len.max(1)).zip(dst.chunks_exact_mut((row_len / 2).max(1))) {
                    for (pair, out) in self.columns(block, row_len).chunks_exact(2).zip(out) {
                        *out = pair[0].1 as u8 | (pair[1].1 as u8) << 4;
                    }
                }
            }
        }
    }

    /// What a reader makes of rows that begin with a block.
    pub fn round_trip(&self, src: &[f32], row_len: usize, out: &mut [f32]) {
        let block_len = (self.block as usize * row_len).max(1);
        for (block, out) in src.chunks(block_len).zip(out.chunks_mut(block_len)) {
            let columns = self.columns(block, row_len);
            for (row, out) in block.chunks_exact(row_len).zip(out.chunks_exact_mut(row_len)) {
                for ((v, column), out) in row.iter().zip(&columns).zip(out) {
                    *out = (self.rounded(*v, *column) - column.1) * column.0;
                }
            }
        }
    }

    /// The scale of each column of a block, as it is stored, and its zero point.
    fn columns(&self, block: &[f32], row_len: usize) -> Vec<(f32, f32)> {
        let mut extremes = vec![Extremes { min: f32::MAX, max: f32::MIN }; row_len];
        for row in block.chunks_exact(row_len) {
            for (e, v) in extremes.iter_mut().zip(row) {
                *e = Extremes { min: e.min.min(*v), max: e.max.max(*v) };
            }
        }
        let column = |Extremes { min, max }: &Extremes| {
            if self.symmetric {
                let largest = if max.abs() > min.abs() { *max } else { *min };
                return (as_stored(self.scale, -largest / 8.0), 0.0);
            }
            let (min, max) = (min.min(0.0), max.max(0.0));
            let scale = (max - min) / 15.0;
            let zero = if scale == 0.0 { min } else { 0.0 - min / scale };
            (as_stored(self.scale, scale), zero.round().clamp(0.0, 15.0))
        };
        extremes.iter().map(column).collect()
    }

    /// A value as a code, before it is packed. The zero point is added after rounding, unlike in blocks of rows.
    fn rounded(&self, v: f32, (scale, zero): (f32, f32)) -> f32 {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (low, high) = if self.symmetric { (-8.0, 7.0) } else { (0.0, 15.0) };
        ((v * inverse).round() + zero).clamp(low, high)
    }

    fn code(&self, v: f32, column: (f32, f32)) -> u8 {
        (self.rounded(v, column) as i8) as u8 & 0x0f
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_a_scale_each_and_halves_go_to_even() {
        let src = [127.0, 2.0, -2.5, -1.0, 1.5, 0.0];
        let scales =
            [Extremes::of(&[127.0, -2.5, 1.5]).column_scale(), Extremes { min: -1.0, max: 2.0 }.column_scale()];
        assert_eq!(scales, [1.0, 2.0 / 127.0]);
        let mut codes = [0; 6];
        encode_columns(&src, &scales, &mut codes);
        assert_eq!(codes.map(|c| c as i8), [127, 127, -2, -64, 2, 0]);
        let mut out = [0.0; 6];
        decode_columns(&codes, &scales, &mut out);
        assert_eq!(out[..3], [127.0, 2.0, -2.0]);
    }

    #[test]
    fn a_table_holds_zero_exactly() {
        let (scale, zero) = Extremes { min: -1.0, max: 1.55 }.table_scale();
        assert_eq!((scale, zero), (0.01, 100));
        let mut codes = [0; 4];
        encode_table(&[0.0, -1.0, 1.55, 0.25], (scale, zero), &mut codes);
        assert_eq!(codes, [100, 0, 255, 125]);
        let mut out = [9.0; 4];
        decode_table(&codes, (scale, zero), &mut out);
        assert_eq!(out[0], 0.0);
        assert_eq!(Extremes { min: 0.5, max: 5.1 }.table_scale(), (0.02, 0), "all above zero");
        assert_eq!(Extremes { min: 0.0, max: 0.0 }.table_scale(), (1.0, 0));
    }

    #[test]
    fn column_blocks_are_packed_along_rows() {
        let blocks = ColumnBlocks { block: 16, symmetric: true, scale: Dtype::F32 };
        let mut src = vec![0.0f32; 17 * 2];
        (src[0], src[1], src[2], src[33]) = (2.0, -1.0, -1.0, 0.5);
        let encoded = |part| {
            let mut dst = vec![0xff; blocks.byte_len(part, 17, 2) as usize];
            blocks.encode(part, &src, 2, &mut dst);
            dst
        };
        // Columns 2, -1, 0 … and -1, 0 …; in the second block 0 and 0.5.
        let scales: Vec<u8> = [-0.25f32, 0.125, -0.0, -0.0625].iter().flat_map(|s| s.to_le_bytes()).collect();
        assert_eq!(encoded(ColumnPart::Scales), scales);
        let codes = encoded(ColumnPart::Codes);
        assert_eq!((codes[0], codes[1], codes[16]), (0x88, 0x04, 0x80));
        let mut out = vec![9.0; 34];
        blocks.round_trip(&src, 2, &mut out);
        assert_eq!((out[0], out[1], out[2], out[33]), (2.0, -1.0, -1.0, 0.5));
    }

    #[test]
    fn column_blocks_with_zero_points_hold_zero() {
        let blocks = ColumnBlocks { block: 16, symmetric: false, scale: Dtype::F32 };
        let src = [1.5, -0.5, 0.0, 1.0];
        let encoded = |part| {
            let mut dst = vec![0xff; blocks.byte_len(part, 2, 2) as usize];
            blocks.encode(part, &src, 2, &mut dst);
            dst
        };
        assert_eq!(encoded(ColumnPart::ZeroPoints), [0x50]);
        assert_eq!(encoded(ColumnPart::Codes), [0x0f, 0xf0]);
    }
}
