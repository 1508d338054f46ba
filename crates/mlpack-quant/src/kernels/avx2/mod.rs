//! AVX2 and F16C: the lane type, the entry points, and the codecs that are bound by memory.
//!
//! `unsafe` is here for two reasons only. Intrinsics need a CPU feature: every entry point is a `target_feature` function
//! that `Backend` calls only after the CPU said that it has AVX2 and F16C, and [`F8`] is used nowhere else. And vector
//! loads and stores go through pointers: each is made from an array reference of exactly the vector's size, so it cannot
//! leave its slice; the unaligned forms are used throughout. No FMA: the reference rounds after every operation.

#![allow(unsafe_code, reason = "intrinsics; see the header of this file")]

pub(super) mod lattice;
pub(super) mod nbits;
pub(super) mod plain;
pub(super) mod stream;

use super::lanes::{Lanes, Pair};
use super::{blocks32, super_blocks};
use std::arch::x86_64::*;

/// Eight lanes in one register.
#[derive(Clone, Copy)]
pub(super) struct F8(__m256);

/// Wraps one intrinsic. SAFETY: the type is only used below the entry points of this file, which check the CPU.
macro_rules! op {
    ($e:expr) => {
        F8(unsafe { $e })
    };
}

#[inline(always)]
fn load8(values: &[f32; 8]) -> __m256 {
    // SAFETY: the reference is to eight floats; the CPU has AVX (see the header).
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline(always)]
fn store8(v: __m256, out: &mut [f32; 8]) {
    // SAFETY: the reference is to eight floats; the CPU has AVX (see the header).
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
}

impl Lanes for F8 {
    const N: usize = 8;
    type Mask = __m256;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        op!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn tile(rows: &[f32], stride: usize, at: usize) -> [Self; 8] {
        let mut r = [Self::splat(0.0).0; 8];
        for (lane, r) in r.iter_mut().enumerate() {
            *r = load8(rows[lane * stride + at..].first_chunk().expect("a row holds the tile"));
        }
        // The usual 8 x 8 transpose: pairs of rows, then quads, then halves. SAFETY: as for `op`.
        unsafe {
            let mut quads = [r[0]; 8];
            for k in [0, 4] {
                let (a0, a1) = (_mm256_unpacklo_ps(r[k], r[k + 1]), _mm256_unpackhi_ps(r[k], r[k + 1]));
                let (a2, a3) = (_mm256_unpacklo_ps(r[k + 2], r[k + 3]), _mm256_unpackhi_ps(r[k + 2], r[k + 3]));
                quads[k] = _mm256_shuffle_ps::<0x44>(a0, a2);
                quads[k + 1] = _mm256_shuffle_ps::<0xee>(a0, a2);
                quads[k + 2] = _mm256_shuffle_ps::<0x44>(a1, a3);
                quads[k + 3] = _mm256_shuffle_ps::<0xee>(a1, a3);
            }
            let mut out = [F8(r[0]); 8];
            for k in 0..4 {
                out[k] = F8(_mm256_permute2f128_ps::<0x20>(quads[k], quads[k + 4]));
                out[k + 4] = F8(_mm256_permute2f128_ps::<0x31>(quads[k], quads[k + 4]));
            }
            out
        }
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        store8(self.0, out.first_chunk_mut().expect("eight lanes fit"));
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        op!(_mm256_add_ps(self.0, other.0))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        op!(_mm256_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        op!(_mm256_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        op!(_mm256_div_ps(self.0, other.0))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        op!(_mm256_sqrt_ps(self.0))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        op!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0))
    }
    #[inline(always)]
    fn neg(self) -> Self {
        op!(_mm256_xor_ps(_mm256_set1_ps(-0.0), self.0))
    }
    #[inline(always)]
    fn round(self) -> Self {
        op!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0))
    }
    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        op!(_mm256_min_ps(self.0, other.0))
    }
    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        op!(_mm256_max_ps(self.0, other.0))
    }
    // Floating-point minima share two of the four vector pipes with additions; integer ones run in all of them. Positive
    // floats are ordered like their bits and negative ones below them as signed integers, which is what cutting to
    // `0..=top` needs: the NaN of 0 * infinity is negative on x86, so it gives 0. As unsigned integers negative floats are
    // above the positive ones and ordered the other way, so the lower bound of `cut_signed` is an unsigned minimum.
    #[inline(always)]
    fn cut_positive(self, top: Self) -> Self {
        op!({
            let above = _mm256_max_epi32(_mm256_castps_si256(self.0), _mm256_setzero_si256());
            _mm256_castsi256_ps(_mm256_min_epi32(above, _mm256_castps_si256(top.0)))
        })
    }
    #[inline(always)]
    fn cut_below(self) -> Self {
        op!(_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(self.0), _mm256_setzero_si256())))
    }
    #[inline(always)]
    fn cut_signed(self, bottom: Self, top: Self) -> Self {
        op!({
            let above = _mm256_min_epu32(_mm256_castps_si256(self.0), _mm256_castps_si256(bottom.0));
            _mm256_castsi256_ps(_mm256_min_epi32(above, _mm256_castps_si256(top.0)))
        })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        op!(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0)).0
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Self::Mask {
        op!(_mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0)).0
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        op!(_mm256_and_ps(a, b)).0
    }
    #[inline(always)]
    fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        op!(_mm256_or_ps(a, b)).0
    }
    #[inline(always)]
    fn not(mask: Self::Mask) -> Self::Mask {
        op!(_mm256_xor_ps(mask, _mm256_castsi256_ps(_mm256_set1_epi32(-1)))).0
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        op!(_mm256_blendv_ps(no.0, yes.0, mask))
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        // SAFETY: as for `op`.
        unsafe { _mm256_movemask_ps(mask) as u32 }
    }
    #[inline(always)]
    fn step(self, edges: &[f32; 15], values: &[f32; 16]) -> Self {
        // A binary search of four comparisons. Masks are minus one, so sums of masks count down, and a permutation looks at
        // the low three bits of its index: its tables are written backwards, entry 0 first.
        let e = edges;
        let quarters = load8(&[e[1], 0.0, 0.0, 0.0, 0.0, e[13], e[9], e[5]]);
        let eighths = load8(&[e[0], e[14], e[12], e[10], e[8], e[6], e[4], e[2]]);
        let v = values;
        let even = load8(&[v[0], v[14], v[12], v[10], v[8], v[6], v[4], v[2]]);
        let odd = load8(&[v[1], v[15], v[13], v[11], v[9], v[7], v[5], v[3]]);
        // SAFETY: as for `op`.
        unsafe {
            let x = self.0;
            let first = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_set1_ps(e[7]));
            let half = _mm256_blendv_ps(_mm256_set1_ps(e[3]), _mm256_set1_ps(e[11]), first);
            let second = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_NLT_UQ>(x, half));
            let first = _mm256_castps_si256(first);
            let index = _mm256_add_epi32(_mm256_add_epi32(first, first), second);
            let third = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_permutevar8x32_ps(quarters, index));
            let index = _mm256_add_epi32(_mm256_add_epi32(index, index), _mm256_castps_si256(third));
            let fourth = _mm256_cmp_ps::<_CMP_NLT_UQ>(x, _mm256_permutevar8x32_ps(eighths, index));
            let (even, odd) = (_mm256_permutevar8x32_ps(even, index), _mm256_permutevar8x32_ps(odd, index));
            F8(_mm256_blendv_ps(even, odd, fourth))
        }
    }
}

type F16 = Pair<F8>;

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q2_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    super_blocks::q2_k::<F16>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q3_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    match importance {
        Some(importance) => super_blocks::q3_k_weighted::<F16>(src, importance, dst),
        None => super_blocks::q3_k::<F16>(src, dst),
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q4_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    super_blocks::q4_k::<F16>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q5_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    super_blocks::q5_k::<F16>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q6_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    super_blocks::q6_k::<F16>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q4_0(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    blocks32::weighted::<F16, blocks32::Q4_0, 18>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q4_1(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    blocks32::weighted::<F16, blocks32::Q4_1, 20>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q5_0(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    blocks32::weighted::<F16, blocks32::Q5_0, 22>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_q5_1(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    blocks32::weighted::<F16, blocks32::Q5_1, 24>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_iq4_nl(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    blocks32::iq4_nl::<F16>(src, importance, dst);
}

#[target_feature(enable = "avx2,f16c")]
pub(super) fn encode_iq4_xs(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    super_blocks::iq4_xs::<F16>(src, importance, dst);
}
