//! Finds blocks that hold no numbers: what ggml b11434 refuses to load (`ggml-quants.c`, `ggml_validate_row_data`).
//!
//! A float is infinite or not a number exactly where all bits of its exponent are set. That is asked of every scale, at its
//! fixed place in the block, and the answers of a run of blocks are or-ed together: nothing branches, so the compiler makes
//! vectors of it. Only a run with such a scale is looked at again.
//!
//! 2026-11-22, one core of an AMD EPYC, blocks in the cache: unblocked floats 43 to 46 GB/s, Q4_0 to Q8_0 24 to 79, MXFP4 40,
//! K-quants 78 to 336; so always faster than memory, and compiling it for AVX2 was not tried.

use crate::blocks::field;
use mlpack_tensor::GgmlType;

/// Blocks of a run.
const RUN: usize = 256;

/// The first block with a scale that is not finite; of the unblocked floats, the first element that is not.
///
/// `src` holds encoded blocks of the type. Bytes after the last whole block count as an invalid block. The integers have no
/// scale, and every scale byte of NVFP4 is a number, so only that can be wrong with them. Q8_1, which ggml never accepts in a
/// file, is judged by its two f16 fields.
pub fn first_invalid_block(ty: GgmlType, src: &[u8]) -> Option<usize> {
    match ty {
        GgmlType::F16 => first::<2>(src, |b| f16(b, 0)),
        GgmlType::BF16 => first::<2>(src, |b| all_set(u16::from_le_bytes(*b).into(), 0x7f80)),
        GgmlType::F32 => first::<4>(src, |b| f32(b, 0)),
        GgmlType::F64 => first::<8>(src, f64),
        GgmlType::Q1_0 | GgmlType::Q2_0 | GgmlType::Q4_0 | GgmlType::IQ4_NL => first::<18>(src, |b| f16(b, 0)),
        GgmlType::Q4_1 => first::<20>(src, |b| f16(b, 0) | f16(b, 2)),
        GgmlType::Q5_0 => first::<22>(src, |b| f16(b, 0)),
        GgmlType::Q5_1 => first::<24>(src, |b| f16(b, 0) | f16(b, 2)),
        GgmlType::Q8_0 => first::<34>(src, |b| f16(b, 0)),
        GgmlType::Q8_1 => first::<36>(src, |b| f16(b, 0) | f16(b, 2)),
        GgmlType::Q2_K => first::<84>(src, |b| f16(b, 80) | f16(b, 82)),
        GgmlType::Q3_K => first::<110>(src, |b| f16(b, 108)),
        GgmlType::Q4_K => first::<144>(src, |b| f16(b, 0) | f16(b, 2)),
        GgmlType::Q5_K => first::<176>(src, |b| f16(b, 0) | f16(b, 2)),
        GgmlType::Q6_K => first::<210>(src, |b| f16(b, 208)),
        GgmlType::Q8_K => first::<292>(src, |b| f32(b, 0)),
        GgmlType::IQ1_S => first::<50>(src, |b| f16(b, 0)),
        GgmlType::IQ1_M => first::<56>(src, split_f16),
        GgmlType::IQ2_XXS => first::<66>(src, |b| f16(b, 0)),
        GgmlType::IQ2_XS => first::<74>(src, |b| f16(b, 0)),
        GgmlType::IQ2_S => first::<82>(src, |b| f16(b, 0)),
        GgmlType::IQ3_XXS => first::<98>(src, |b| f16(b, 0)),
        GgmlType::IQ3_S => first::<110>(src, |b| f16(b, 0)),
        GgmlType::IQ4_XS => first::<136>(src, |b| f16(b, 0)),
        GgmlType::TQ1_0 => first::<54>(src, |b| f16(b, 52)),
        GgmlType::TQ2_0 => first::<66>(src, |b| f16(b, 64)),
        GgmlType::MXFP4 => first::<17>(src, |b| all_set(b[0].into(), 0xff)),
        GgmlType::NVFP4 => first::<36>(src, |_| false),
        GgmlType::I8 => None,
        GgmlType::I16 => first::<2>(src, |_| false),
        GgmlType::I32 => first::<4>(src, |_| false),
        GgmlType::I64 => first::<8>(src, |_| false),
    }
}

/// The first block of `B` bytes that is `bad`, or the one that is cut off.
#[inline(always)]
fn first<const B: usize>(src: &[u8], bad: impl Fn(&[u8; B]) -> bool) -> Option<usize> {
    let (blocks, rest) = src.as_chunks::<B>();
    let run = blocks.chunks(RUN).position(|run| run.iter().fold(false, |found, block| found | bad(block)));
    match run {
        Some(run) => (RUN * run..blocks.len()).find(|&at| bad(&blocks[at])),
        None if rest.is_empty() => None,
        None => Some(blocks.len()),
    }
}

/// Whether all bits of the exponent are set.
#[inline(always)]
fn all_set(bits: u32, exponent: u32) -> bool {
    bits & exponent == exponent
}

#[inline(always)]
fn f16(block: &[u8], at: usize) -> bool {
    all_set(u16::from_le_bytes(*field(block, at)).into(), 0x7c00)
}

#[inline(always)]
fn f32(block: &[u8], at: usize) -> bool {
    all_set(u32::from_le_bytes(*field(block, at)), 0x7f80_0000)
}

#[inline(always)]
fn f64(block: &[u8; 8]) -> bool {
    u64::from_le_bytes(*block) >> 52 & 0x7ff == 0x7ff
}

/// IQ1_M keeps four bits of its scale at the top of each of four words.
#[inline(always)]
fn split_f16(block: &[u8; 56]) -> bool {
    let top = |k: usize| u32::from(block[49 + 2 * k] >> 4);
    all_set(top(0) | top(1) << 4 | top(2) << 8 | top(3) << 12, 0x7c00)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{can_encode, encode, needs_importance, uses_importance};

    /// Where the floats of a block are: bytes, and the bits that make them infinite.
    fn floats(ty: GgmlType) -> Vec<Vec<(usize, u8)>> {
        let half = |at: usize| vec![(at, 0x00), (at + 1, 0x7c)];
        match ty {
            GgmlType::F32 | GgmlType::Q8_K => vec![vec![(2, 0x80), (3, 0x7f)]],
            GgmlType::F64 => vec![vec![(6, 0xf0), (7, 0x7f)]],
            GgmlType::BF16 => vec![vec![(0, 0x80), (1, 0x7f)]],
            GgmlType::MXFP4 => vec![vec![(0, 0xff)]],
            GgmlType::IQ1_M => vec![vec![(53, 0xc0), (55, 0x70)]],
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q8_1 | GgmlType::Q4_K | GgmlType::Q5_K => {
                vec![half(0), half(2)]
            }
            GgmlType::Q2_K => vec![half(80), half(82)],
            GgmlType::Q3_K => vec![half(108)],
            GgmlType::Q6_K => vec![half(208)],
            GgmlType::TQ1_0 => vec![half(52)],
            GgmlType::TQ2_0 => vec![half(64)],
            GgmlType::I8 | GgmlType::I16 | GgmlType::I32 | GgmlType::I64 | GgmlType::NVFP4 => vec![],
            _ => vec![half(0)],
        }
    }

    #[test]
    fn finds_the_first_block_whose_scale_is_not_finite() {
        const BLOCKS: usize = 3 * RUN + 5;
        for &ty in GgmlType::ALL {
            let size = ty.block_byte_len() as usize;
            let good = vec![0u8; BLOCKS * size];
            assert_eq!(first_invalid_block(ty, &good), None, "{ty}");
            for float in floats(ty) {
                for at in [0, 1, RUN - 1, RUN, BLOCKS / 2, BLOCKS - 1] {
                    let mut bad = good.clone();
                    for &(byte, bits) in &float {
                        bad[at * size + byte] |= bits;
                        *bad.last_mut().unwrap() |= 0x7f; // a code, or another one further on
                    }
                    assert_eq!(first_invalid_block(ty, &bad), Some(at), "{ty}");
                    // One exponent bit less is a large number, and all other bits of the block mean nothing.
                    let (byte, bits) = float[float.len() - 1];
                    bad[at * size + byte] &= !(bits & bits.wrapping_neg());
                    *bad.last_mut().unwrap() = 0;
                    assert_eq!(first_invalid_block(ty, &bad), None, "{ty}");
                }
            }
        }
    }

    #[test]
    fn codes_are_never_taken_for_scales() {
        for &ty in GgmlType::ALL {
            let size = ty.block_byte_len() as usize;
            let mut blocks = vec![0xffu8; 7 * size];
            for block in blocks.chunks_exact_mut(size) {
                for &(byte, bits) in floats(ty).iter().flatten() {
                    block[byte] &= !bits;
                }
            }
            assert_eq!(first_invalid_block(ty, &blocks), None, "{ty}");
        }
    }

    #[test]
    fn a_block_that_is_cut_off_is_invalid() {
        for &ty in GgmlType::ALL.iter().filter(|ty| ty.block_byte_len() > 1) {
            let size = ty.block_byte_len() as usize;
            assert_eq!(first_invalid_block(ty, &vec![0; 3 * size - 1]), Some(2), "{ty}");
        }
        assert_eq!(first_invalid_block(GgmlType::Q8_0, &[]), None);
    }

    #[test]
    fn what_is_encoded_is_valid_unless_it_overflows() {
        let weights = [1.0f32; 512];
        for &ty in GgmlType::ALL.iter().filter(|&&ty| can_encode(ty)) {
            let encoded = |scale: f32| {
                let x: Vec<f32> = (0..512).map(|i| ((i * 37 % 101) as f32 - 50.0) * scale).collect();
                let mut out = vec![0; ty.row_byte_len(512).unwrap() as usize];
                encode(ty, &x, 512, uses_importance(ty).then_some(&weights), &mut out).unwrap();
                out
            };
            assert_eq!(first_invalid_block(ty, &encoded(0.001)), None, "{ty}");
            let overflows = !matches!(ty, GgmlType::F32 | GgmlType::BF16 | GgmlType::MXFP4 | GgmlType::NVFP4);
            assert_eq!(first_invalid_block(ty, &encoded(2e7)).is_some(), overflows, "{ty}");
            assert!(!needs_importance(ty) || uses_importance(ty));
        }
    }

    #[test]
    fn finite_values_beyond_a_half_precision_scale_are_found() {
        let mut out = [0; 68];
        let mut x = [0.25f32; 64];
        x[40] = 1e38;
        encode(GgmlType::Q8_0, &x, 64, None, &mut out).unwrap();
        assert_eq!(first_invalid_block(GgmlType::Q8_0, &out), Some(1));
    }
}
