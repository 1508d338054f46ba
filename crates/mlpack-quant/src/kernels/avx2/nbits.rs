//! Blocks of integers for ONNX Runtime.

use super::load8;
use crate::kernels::nbits::{ALMOST_HALF, joined, settled};
use crate::nbits::{NBits, NBitsPart, Sixteen};
use std::arch::x86_64::*;

struct Vectors;

impl Sixteen for Vectors {
    #[inline(always)]
    fn extremes(values: &[f32]) -> (f32, f32) {
        let (parts, rest) = values.as_chunks::<8>();
        // SAFETY: used only below `encode`, whose CPU has AVX2.
        unsafe {
            let (mut low, mut high) = (_mm256_set1_ps(f32::MAX), _mm256_set1_ps(f32::MIN));
            for part in parts {
                // A NaN leaves the second operand.
                let v = load8(part);
                low = _mm256_min_ps(v, low);
                high = _mm256_max_ps(v, high);
            }
            if !rest.is_empty() {
                let (mut lows, mut highs) = ([0.0; 8], [0.0; 8]);
                super::store8(low, &mut lows);
                super::store8(high, &mut highs);
                return joined(&lows, &highs, rest, values);
            }
            let low = _mm_min_ps(_mm256_castps256_ps128(low), _mm256_extractf128_ps::<1>(low));
            let high = _mm_max_ps(_mm256_castps256_ps128(high), _mm256_extractf128_ps::<1>(high));
            let (low, high) = (_mm_min_ps(low, _mm_movehl_ps(low, low)), _mm_max_ps(high, _mm_movehl_ps(high, high)));
            let min = _mm_cvtss_f32(_mm_min_ss(low, _mm_movehdup_ps(low)));
            let max = _mm_cvtss_f32(_mm_max_ss(high, _mm_movehdup_ps(high)));
            settled(min, max, values)
        }
    }

    #[inline(always)]
    fn codes(values: &[f32; 16], inverse: f32, zero: f32, top: f32) -> [u8; 16] {
        let parts = values.as_chunks::<8>().0;
        // SAFETY: as above; the store is of sixteen bytes.
        unsafe {
            let (inverse, zero) = (_mm256_set1_ps(inverse), _mm256_set1_ps(zero));
            let mut words = [_mm256_setzero_si256(); 2];
            for (words, part) in words.iter_mut().zip(parts) {
                let v = _mm256_add_ps(_mm256_mul_ps(load8(part), inverse), zero);
                let v = _mm256_max_ps(v, _mm256_setzero_ps());
                let v = _mm256_min_ps(v, _mm256_set1_ps(top));
                *words = _mm256_cvttps_epi32(_mm256_add_ps(v, _mm256_set1_ps(ALMOST_HALF)));
            }
            // The pack works within halves of the register: put the quarters back in order.
            let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(words[0], words[1]));
            let bytes = _mm_packus_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
            let mut out = [0; 16];
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            out
        }
    }

    #[inline(always)]
    fn pairs(codes: [u8; 16]) -> [u8; 8] {
        // SAFETY: as above; the load is of sixteen bytes and the store of eight.
        unsafe {
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            // The first of each two, and sixteen times the second.
            let pairs = _mm_maddubs_epi16(codes, _mm_set1_epi16(0x1001));
            let mut out = [0; 8];
            _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packus_epi16(pairs, pairs));
            out
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode(blocks: &NBits, part: NBitsPart, src: &[f32], row_len: usize, dst: &mut [u8]) {
    blocks.encode_rows::<Vectors>(part, src, row_len, dst);
}
