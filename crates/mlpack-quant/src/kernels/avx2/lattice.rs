//! The grid types: table look-ups in registers, and the entry points.

use super::{F8, load8};
use crate::kernels::lattice::{self, Picks};
use std::arch::x86_64::*;

impl Picks for F8 {
    type Codes = __m256i;

    #[inline(always)]
    fn load(values: &[f32; 8]) -> Self {
        F8(load8(values))
    }
    #[inline(always)]
    fn codes(packed: &[u16; 8]) -> __m256i {
        // SAFETY: the reference is to sixteen bytes; the CPU has AVX2 (see the header of the parent).
        unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(packed.as_ptr().cast())) }
    }
    #[inline(always)]
    fn pick<const N: usize>(self, codes: __m256i) -> Self {
        // Both look at the low bits of an index only. SAFETY: as for `op`.
        F8(unsafe {
            if N == 8 { _mm256_permutevar_ps(self.0, codes) } else { _mm256_permutevar8x32_ps(self.0, codes) }
        })
    }
    #[inline(always)]
    fn next<const N: usize>(codes: __m256i) -> __m256i {
        // SAFETY: as for `op`.
        unsafe { if N == 8 { _mm256_srli_epi32::<2>(codes) } else { _mm256_srli_epi32::<3>(codes) } }
    }
    #[inline(always)]
    fn integers(self, out: &mut [u32; 8]) {
        // SAFETY: the reference is to eight integers; the CPU has AVX2.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_cvtps_epi32(self.0)) }
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_iq2_xxs(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    lattice::iq2_xxs::<F8>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_iq2_xs(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    lattice::iq2_xs::<F8>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_iq2_s(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    lattice::iq2_s::<F8>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_iq3_xxs(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    lattice::iq3_xxs::<F8>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_iq3_s(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    lattice::iq3_s::<F8>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_iq1_s(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    lattice::iq1_s::<F8>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_iq1_m(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    lattice::iq1_m::<F8>(src, importance, dst);
}
