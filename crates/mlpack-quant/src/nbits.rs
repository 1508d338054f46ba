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
use crate::kernels::Backend;
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

    /// Encodes one part of whole rows, on the fastest implementation that this machine can run.
    ///
    /// # Panics
    /// When `dst` has not exactly the bytes of that part.
    pub fn encode(&self, part: NBitsPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
        self.encode_on(Backend::best(), part, src, row_len, dst);
    }

    /// The same on a given implementation.
    ///
    /// # Panics
    /// As [`NBits::encode`].
    pub fn encode_on(&self, backend: Backend, part: NBitsPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
        let row_byte_len = self.row_byte_len(part, row_len as u64) as usize;
        assert_eq!(src.len() / row_len.max(1) * row_byte_len, dst.len(), "rows of {row_len} values");
        backend.encode_nbits(self, part, src, row_len, dst);
    }

    /// Encodes rows whose lengths fit.
    #[inline(always)]
    pub(crate) fn encode_rows<S: Sixteen>(&self, part: NBitsPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
        let row_byte_len = self.row_byte_len(part, row_len as u64) as usize;
        for (row, out) in src.chunks_exact(row_len.max(1)).zip(dst.chunks_exact_mut(row_byte_len.max(1))) {
            self.encode_row::<S>(part, row, out);
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
                let (scale, zero) = self.scale_and_zero(Scalar::extremes(block));
                for (v, out) in block.iter().zip(out) {
                    *out = (f32::from(code(*v, inverse(scale), zero, self.top())) - zero) * scale;
                }
            }
        }
    }

    #[inline(always)]
    fn encode_row<S: Sixteen>(&self, part: NBitsPart, row: &[f32], out: &mut [u8]) {
        let blocks = row.chunks(self.block as usize);
        match part {
            NBitsPart::Codes => {
                for (block, out) in blocks.zip(out.chunks_exact_mut(self.block_byte_len() as usize)) {
                    self.encode_block::<S>(block, out);
                }
            }
            NBitsPart::Scales => {
                for (block, out) in blocks.zip(out.chunks_exact_mut(self.scale.byte_size() as usize)) {
                    let (scale, _) = self.scale_and_zero(S::extremes(block));
                    match self.scale {
                        Dtype::F16 => out.copy_from_slice(&f16_from_f32(scale).to_le_bytes()),
                        Dtype::BF16 => out.copy_from_slice(&bf16_from_f32(scale).to_le_bytes()),
                        _ => out.copy_from_slice(&scale.to_le_bytes()),
                    }
                }
            }
            NBitsPart::ZeroPoints => {
                out.fill(0);
                let count = blocks.len();
                for (i, block) in blocks.enumerate() {
                    let zero = self.scale_and_zero(S::extremes(block)).1 as u8;
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

    /// The codes of a block, which may be short.
    #[inline(always)]
    fn encode_block<S: Sixteen>(&self, block: &[f32], out: &mut [u8]) {
        let (scale, zero) = self.scale_and_zero(S::extremes(block));
        let (inverse, top) = (inverse(scale), self.top());
        let (groups, rest) = block.as_chunks::<16>();
        let group_byte_len = 2 * self.bits as usize;
        let (full, left) = out.split_at_mut(groups.len() * group_byte_len);
        for (group, out) in groups.iter().zip(full.chunks_exact_mut(group_byte_len)) {
            let codes = S::codes(group, inverse, zero, top);
            if self.bits == 4 {
                out.copy_from_slice(&S::pairs(codes));
            } else {
                out.copy_from_slice(&codes);
            }
        }
        if left.is_empty() {
            return;
        }
        // What fills up a block has the code 0.
        left.fill(0);
        for (i, &v) in rest.iter().enumerate() {
            let code = code(v, inverse, zero, top);
            if self.bits == 4 {
                left[i / 2] |= code << (i % 2 * 4);
            } else {
                left[i] = code;
            }
        }
    }

    /// The largest code.
    fn top(&self) -> f32 {
        if self.bits == 4 { 15.0 } else { 255.0 }
    }

    /// The scale of a block with these extremes, as it is stored, and its zero point.
    #[inline(always)]
    fn scale_and_zero(&self, (min, max): (f32, f32)) -> (f32, f32) {
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

/// How blocks are measured and coded. Every implementation gives the bits of [`Scalar`].
pub(crate) trait Sixteen {
    /// The least and the largest value that is a number, the first of those that are equal.
    fn extremes(values: &[f32]) -> (f32, f32);
    /// Codes from 0 to `top`.
    fn codes(values: &[f32; 16], inverse: f32, zero: f32, top: f32) -> [u8; 16];
    /// Codes of four bits, two in a byte.
    fn pairs(codes: [u8; 16]) -> [u8; 8];
}

/// The definition.
pub(crate) struct Scalar;

impl Sixteen for Scalar {
    fn extremes(values: &[f32]) -> (f32, f32) {
        let mut extremes = (f32::MAX, f32::MIN);
        for &v in values {
            extremes.0 = if v < extremes.0 { v } else { extremes.0 };
            extremes.1 = if v > extremes.1 { v } else { extremes.1 };
        }
        extremes
    }

    fn codes(values: &[f32; 16], inverse: f32, zero: f32, top: f32) -> [u8; 16] {
        values.map(|v| code(v, inverse, zero, top))
    }

    fn pairs(codes: [u8; 16]) -> [u8; 8] {
        std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4)
    }
}

/// The code of a value; 0 for what is no number.
fn code(v: f32, inverse: f32, zero: f32, top: f32) -> u8 {
    (v * inverse + zero).round().clamp(0.0, top) as u8
}

/// What values are multiplied by.
#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
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
