//! Blocks of integers with a scale, as ONNX Runtime's `MatMulNBits` reads them (contrib operator, domain com.microsoft).
//!
//! ```text
//!   row of K values   | block 0 | block 1 | … | last block, filled up with code 0 |
//!   codes             4 bits: two in a byte, the first in the low half; 8 bits: one
//!   scales            one for each block, in the type of the activations
//!   zero points       one for each block, packed like codes; the half byte that fills up a row is 8
//! ```
//! The numbers are those of ONNX Runtime 1.31.1's default quantizer (`MatMulNBitsQuantizer`, MLAS), bit for bit. A symmetric
//! block's scale has the sign that puts the value of largest magnitude on the lowest code. The half byte after a row of odd length is 0
//! here; ONNX Runtime reads past its input there, so it has no defined value.

use crate::float::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16};
use mlpack_tensor::Dtype;

/// How rows are cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NBits {
    /// 4 or 8.
    pub bits: u32,
    /// Values of a block: a power of two from 16 to 256.
    pub block: u32,
    /// Codes are about the middle of their range; there are no zero points.
    pub symmetric: bool,
    /// The type of scales: F32, F16 or BF16.
    pub scale: Dtype,
}

/// What of it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NBitsPart {
    /// The integers.
    Codes,
    /// What they are multiplied by.
    Scales,
    /// What is subtracted from them before.
    ZeroPoints,
}

impl NBits {
    /// Blocks of a row.
    pub fn blocks(&self, row_len: u64) -> u64 {
        row_len.div_ceil(self.block.into())
    }

    /// Bytes of a block's codes.
    pub fn block_byte_len(&self) -> u64 {
        u64::from(self.block) * u64::from(self.bits) / 8
    }

    /// Bytes of a row of one part.
    pub fn row_byte_len(&self, part: NBitsPart, row_len: u64) -> u64 {
        let blocks = self.blocks(row_len);
        match part {
            NBitsPart::Codes => blocks * self.block_byte_len(),
            NBitsPart::Scales => blocks * self.scale.byte_size(),
            NBitsPart::ZeroPoints => (blocks * u64::from(self.bits)).div_ceil(8),
        }
    }

    /// Encodes one part of whole rows.
    ///
    /// # Panics
    /// When `dst` has not exactly the bytes of that part.
    pub fn encode(&self, part: NBitsPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
        let row_byte_len = self.row_byte_len(part, row_len as u64) as usize;
        assert_eq!(src.len() / row_len.max(1) * row_byte_len, dst.len(), "rows of {row_len} values");
        dst.fill(0);
        for (row, out) in src.chunks_exact(row_len.max(1)).zip(dst.chunks_exact_mut(row_byte_len)) {
            self.encode_row(part, row, out);
        }
    }

    /// What a reader makes of whole rows that were encoded.
    ///
    /// # Panics
    /// When `out` has not as many values as `src`.
    pub fn round_trip(&self, src: &[f32], row_len: usize, out: &mut [f32]) {
        assert_eq!(src.len(), out.len(), "one value for each");
        for (row, out) in src.chunks_exact(row_len.max(1)).zip(out.chunks_exact_mut(row_len.max(1))) {
            for (block, out) in row.chunks(self.block as usize).zip(out.chunks_mut(self.block as usize)) {
                let (scale, zero) = self.block(block);
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                for (v, out) in block.iter().zip(out) {
                    *out = ((v * inverse + zero).round().clamp(0.0, self.top()) - zero) * scale;
                }
            }
        }
    }

    fn encode_row(&self, part: NBitsPart, row: &[f32], out: &mut [u8]) {
        let blocks = row.chunks(self.block as usize);
        match part {
            NBitsPart::Codes => {
                for (block, out) in blocks.zip(out.chunks_exact_mut(self.block_byte_len() as usize)) {
                    let (scale, zero) = self.block(block);
                    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                    let code = |v: f32| (v * inverse + zero).round().clamp(0.0, self.top()) as u8;
                    if self.bits == 4 {
                        for (pair, out) in block.chunks(2).zip(out) {
                            *out = code(pair[0]) | pair.get(1).map_or(0, |v| code(*v) << 4);
                        }
                    } else {
                        block.iter().zip(out).for_each(|(v, out)| *out = code(*v));
                    }
                }
            }
            NBitsPart::Scales => {
                for (block, out) in blocks.zip(out.chunks_exact_mut(self.scale.byte_size() as usize)) {
                    let (scale, _) = self.block(block);
                    match self.scale {
                        Dtype::F16 => out.copy_from_slice(&f16_from_f32(scale).to_le_bytes()),
                        Dtype::BF16 => out.copy_from_slice(&bf16_from_f32(scale).to_le_bytes()),
                        _ => out.copy_from_slice(&scale.to_le_bytes()),
                    }
                }
            }
            NBitsPart::ZeroPoints => {
                let count = blocks.len();
                for (i, block) in blocks.enumerate() {
                    let zero = self.block(block).1 as u8;
                    if self.bits == 4 {
                        out[i / 2] |= zero << (i % 2 * 4);
                    } else {
                        out[i] = zero;
                    }
                }
                if self.bits == 4 && count % 2 == 1 {
                    out[count / 2] |= 8 << 4;
                }
            }
        }
    }

    /// The largest code.
    fn top(&self) -> f32 {
        if self.bits == 4 { 15.0 } else { 255.0 }
    }

    /// The scale of a block, as it is stored, and its zero point.
    fn block(&self, values: &[f32]) -> (f32, f32) {
        let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(min, max), v| (min.min(*v), max.max(*v)));
        let middle = if self.bits == 4 { 8.0 } else { 128.0 };
        if self.symmetric {
            let largest = if max.abs() > min.abs() { max } else { min };
            return (as_stored(self.scale, -largest / middle), middle);
        }
        let (min, max) = (min.min(0.0), max.max(0.0));
        let scale = (max - min) / self.top();
        let zero = if scale == 0.0 { min } else { 0.0 - min / scale };
        (as_stored(self.scale, scale), zero.round().clamp(0.0, self.top()))
    }
}

/// A scale as it is once it is stored.
pub(crate) fn as_stored(dtype: Dtype, scale: f32) -> f32 {
    match dtype {
        Dtype::F16 => f32_from_f16(f16_from_f32(scale)),
        Dtype::BF16 => f32_from_bf16(bf16_from_f32(scale)),
        _ => scale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bits: u32, symmetric: bool) -> NBits {
        NBits { bits, block: 16, symmetric, scale: Dtype::F32 }
    }

    fn encoded(n: NBits, part: NBitsPart, row: &[f32]) -> Vec<u8> {
        let mut out = vec![0xff; n.row_byte_len(part, row.len() as u64) as usize];
        n.encode(part, row, row.len(), &mut out);
        out
    }

    #[test]
    fn the_largest_magnitude_is_the_lowest_code_of_a_symmetric_block() {
        let row = [2.0, -1.0, 0.0, 0.25];
        assert_eq!(encoded(of(4, true), NBitsPart::Scales, &row), (-0.25f32).to_le_bytes());
        // 2 / -0.25 + 8 = 0, -1 / -0.25 + 8 = 12, 8, 7; what fills up the block is 0.
        assert_eq!(encoded(of(4, true), NBitsPart::Codes, &row), [0xc0, 0x78, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_asymmetric_block_holds_zero_and_an_odd_row_ends_with_eight() {
        let row = [1.0, 1.5, 0.5];
        assert_eq!(encoded(of(4, false), NBitsPart::Scales, &row), 0.1f32.to_le_bytes());
        assert_eq!(encoded(of(4, false), NBitsPart::ZeroPoints, &row), [0x80]);
        assert_eq!(encoded(of(4, false), NBitsPart::Codes, &row)[..2], [0xfa, 0x05]);
        assert_eq!(encoded(of(8, false), NBitsPart::ZeroPoints, &[-1.0, 1.0]), [127]);
    }

    #[test]
    fn what_is_read_back_is_codes_times_scales() {
        let mut out = [9.0; 4];
        of(4, true).round_trip(&[2.0, -1.0, 0.1, 0.25], 4, &mut out);
        assert_eq!(out, [2.0, -1.0, 0.0, 0.25]);
        of(4, false).round_trip(&[1.0, 1.5, 0.52, 0.0], 4, &mut out);
        assert_eq!(out, [10.0 * 0.1f32, 15.0 * 0.1f32, 5.0 * 0.1f32, 0.0]);
    }

    #[test]
    fn a_block_of_zeros_has_no_scale() {
        assert_eq!(encoded(of(4, true), NBitsPart::Codes, &[0.0; 4])[..2], [0x88, 0x88]);
        assert_eq!(encoded(of(4, false), NBitsPart::Codes, &[0.0; 4])[..2], [0, 0]);
    }
}
