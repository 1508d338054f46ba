//! AVX-512: sixteen lanes in one register, for the types that are searched. The rest is left to AVX2, as memory bounds it.
//!
//! `unsafe` is here for the reasons of `avx2`: the entry points are `target_feature` functions that `Backend` calls only
//! after the CPU said that it has AVX-512 F, BW, DQ and VL, and [`F16`] is used nowhere else; loads and stores are made
//! from array references of exactly the vector's size. No FMA: the reference rounds after every operation.
//!
//! 2026-11-22, by disassembly, as no such CPU was at hand: the inner loops of Q4_K take 12 to 13 instructions on 512-bit
//! registers for sixteen values of a candidate's sums and 6 for its error, and no instruction fuses.

#![allow(unsafe_code, reason = "intrinsics; see the header of this file")]

use super::lanes::Lanes;
use super::{blocks32, super_blocks};
use mlpack_tensor::GgmlType;
use std::arch::x86_64::*;

/// Sixteen lanes in one register.
#[derive(Clone, Copy)]
pub(super) struct F16(__m512);

/// Wraps one intrinsic. SAFETY: the type is only used below the entry points of this file, which check the CPU.
macro_rules! op {
    ($e:expr) => {
        F16(unsafe { $e })
    };
}

#[inline(always)]
fn row(rows: &[f32], at: usize) -> &[f32; 8] {
    rows[at..].first_chunk().expect("a row holds the tile")
}

/// A row of eight in the lower half, another in the upper.
#[inline(always)]
fn load_rows(low: &[f32; 8], high: &[f32; 8]) -> __m512 {
    // SAFETY: the references are to eight floats each; the CPU has AVX-512 (see the header).
    unsafe {
        let low = _mm512_castps256_ps512(_mm256_loadu_ps(low.as_ptr()));
        _mm512_insertf32x8::<1>(low, _mm256_loadu_ps(high.as_ptr()))
    }
}

/// In each quarter of the registers the 4 x 4 transpose: pairs of rows, then quads.
#[inline(always)]
fn transpose_quarters(r: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: as for `op`.
    unsafe {
        let (a0, a1) = (_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
        let (a2, a3) = (_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
        [
            _mm512_shuffle_ps::<0x44>(a0, a2),
            _mm512_shuffle_ps::<0xee>(a0, a2),
            _mm512_shuffle_ps::<0x44>(a1, a3),
            _mm512_shuffle_ps::<0xee>(a1, a3),
        ]
    }
}

impl Lanes for F16 {
    const N: usize = 16;
    type Mask = __mmask16;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        op!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn tile(rows: &[f32], stride: usize, at: usize) -> [Self; 8] {
        // Rows k and k + 4 share a register, so that its quarters are: columns 0 to 3 and 4 to 7 of one, then of the other.
        let (mut upper, mut lower) = ([Self::splat(0.0).0; 4], [Self::splat(0.0).0; 4]);
        for k in 0..4 {
            upper[k] = load_rows(row(rows, k * stride + at), row(rows, (k + 4) * stride + at));
            lower[k] = load_rows(row(rows, (k + 8) * stride + at), row(rows, (k + 12) * stride + at));
        }
        let (upper, lower) = (transpose_quarters(upper), transpose_quarters(lower));
        let mut out = [Self::splat(0.0); 8];
        for k in 0..4 {
            out[k] = op!(_mm512_shuffle_f32x4::<0x88>(upper[k], lower[k]));
            out[k + 4] = op!(_mm512_shuffle_f32x4::<0xdd>(upper[k], lower[k]));
        }
        out
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        let out: &mut [f32; 16] = out.first_chunk_mut().expect("sixteen lanes fit");
        // SAFETY: the reference is to sixteen floats; the CPU has AVX-512 (see the header).
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        op!(_mm512_add_ps(self.0, other.0))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        op!(_mm512_sub_ps(self.0, other.0))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        op!(_mm512_mul_ps(self.0, other.0))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        op!(_mm512_div_ps(self.0, other.0))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        op!(_mm512_sqrt_ps(self.0))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        op!(_mm512_abs_ps(self.0))
    }
    #[inline(always)]
    fn neg(self) -> Self {
        op!(_mm512_xor_ps(_mm512_set1_ps(-0.0), self.0))
    }
    #[inline(always)]
    fn round(self) -> Self {
        op!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0))
    }
    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        op!(_mm512_min_ps(self.0, other.0))
    }
    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        op!(_mm512_max_ps(self.0, other.0))
    }
    // Cuts are made on the bits as integers; `avx2` says why that is right.
    #[inline(always)]
    fn cut_positive(self, top: Self) -> Self {
        op!({
            let above = _mm512_max_epi32(_mm512_castps_si512(self.0), _mm512_setzero_si512());
            _mm512_castsi512_ps(_mm512_min_epi32(above, _mm512_castps_si512(top.0)))
        })
    }
    #[inline(always)]
    fn cut_below(self) -> Self {
        op!(_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(self.0), _mm512_setzero_si512())))
    }
    #[inline(always)]
    fn cut_signed(self, bottom: Self, top: Self) -> Self {
        op!({
            let above = _mm512_min_epu32(_mm512_castps_si512(self.0), _mm512_castps_si512(bottom.0));
            _mm512_castsi512_ps(_mm512_min_epi32(above, _mm512_castps_si512(top.0)))
        })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        // SAFETY: as for `op`.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Self::Mask {
        // SAFETY: as for `op`.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        a & b
    }
    #[inline(always)]
    fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        a | b
    }
    #[inline(always)]
    fn not(mask: Self::Mask) -> Self::Mask {
        !mask
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        op!(_mm512_mask_blend_ps(mask, no.0, yes.0))
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        mask.into()
    }
    #[inline(always)]
    fn step(self, edges: &[f32; 15], values: &[f32; 16]) -> Self {
        // A binary search: the edge that a lane compares with next is looked up in a register that holds all of them.
        let mut padded = [f32::INFINITY; 16];
        padded[..15].copy_from_slice(edges);
        // SAFETY: as for `op`; the references are to sixteen floats.
        unsafe {
            let (edges, values) = (_mm512_loadu_ps(padded.as_ptr()), _mm512_loadu_ps(values.as_ptr()));
            let mut count = _mm512_setzero_si512();
            for half in [8, 4, 2, 1] {
                let next = _mm512_add_epi32(count, _mm512_set1_epi32(half - 1));
                let above = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(self.0, _mm512_permutexvar_ps(next, edges));
                count = _mm512_mask_add_epi32(count, above, count, _mm512_set1_epi32(half));
            }
            F16(_mm512_permutexvar_ps(count, values))
        }
    }
}

/// An entry point for each type, as one function of all would be too large for the compiler to keep values in registers.
macro_rules! entry_points {
    ($($name:ident($src:ident, $importance:ident: $ty:ty, $dst:ident) $body:expr;)*) => {
        $(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        #[inline(never)]
        fn $name($src: &[f32], $importance: $ty, $dst: &mut [u8]) {
            $body
        })*
    };
}

entry_points! {
    q2_k(src, importance: Option<&[f32]>, dst) super_blocks::q2_k::<F16>(src, importance, dst);
    q3_k(src, importance: Option<&[f32]>, dst) match importance {
        Some(importance) => super_blocks::q3_k_weighted::<F16>(src, importance, dst),
        None => super_blocks::q3_k::<F16>(src, dst),
    };
    q4_k(src, importance: Option<&[f32]>, dst) super_blocks::q4_k::<F16>(src, importance, dst);
    q5_k(src, importance: Option<&[f32]>, dst) super_blocks::q5_k::<F16>(src, importance, dst);
    q6_k(src, importance: Option<&[f32]>, dst) super_blocks::q6_k::<F16>(src, importance, dst);
    iq4_xs(src, importance: Option<&[f32]>, dst) super_blocks::iq4_xs::<F16>(src, importance, dst);
    iq4_nl(src, importance: Option<&[f32]>, dst) blocks32::iq4_nl::<F16>(src, importance, dst);
    q4_0(src, importance: &[f32], dst) blocks32::weighted::<F16, blocks32::Q4_0, 18>(src, importance, dst);
    q4_1(src, importance: &[f32], dst) blocks32::weighted::<F16, blocks32::Q4_1, 20>(src, importance, dst);
    q5_0(src, importance: &[f32], dst) blocks32::weighted::<F16, blocks32::Q5_0, 22>(src, importance, dst);
    q5_1(src, importance: &[f32], dst) blocks32::weighted::<F16, blocks32::Q5_1, 24>(src, importance, dst);
}

/// Encodes; `false`, with `dst` untouched, where AVX2 does as well.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn encode(ty: GgmlType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> bool {
    match (ty, importance) {
        (GgmlType::Q2_K, _) => q2_k(src, importance, dst),
        (GgmlType::Q3_K, _) => q3_k(src, importance, dst),
        (GgmlType::Q4_K, _) => q4_k(src, importance, dst),
        (GgmlType::Q5_K, _) => q5_k(src, importance, dst),
        (GgmlType::Q6_K, _) => q6_k(src, importance, dst),
        (GgmlType::IQ4_XS, _) => iq4_xs(src, importance, dst),
        (GgmlType::IQ4_NL, _) => iq4_nl(src, importance, dst),
        (GgmlType::Q4_0, Some(importance)) => q4_0(src, importance, dst),
        (GgmlType::Q4_1, Some(importance)) => q4_1(src, importance, dst),
        (GgmlType::Q5_0, Some(importance)) => q5_0(src, importance, dst),
        (GgmlType::Q5_1, Some(importance)) => q5_1(src, importance, dst),
        _ => return false,
    }
    true
}
