//! The codecs that do little for each value: bound by memory, not by arithmetic.
//!
//! Blocks with a NaN, or whose scale or its inverse is not finite, go to the scalar code.

use super::{load8, store8};
use crate::float::{bf16_from_f32, f16_from_f32, f32_from_bf16, f32_from_f16};
use crate::reference::plain;
use std::arch::x86_64::*;

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_f16(src: &[f32], dst: &mut [u8]) {
    let (groups, rest) = src.as_chunks::<8>();
    let (out, out_rest) = dst.as_chunks_mut::<16>();
    for (x, out) in groups.iter().zip(out) {
        let v = load8(x);
        if _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v)) == 0 {
            store16(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v), out);
        } else {
            for (&v, out) in x.iter().zip(out.as_chunks_mut().0) {
                *out = f16_from_f32(v).to_le_bytes();
            }
        }
    }
    for (&v, out) in rest.iter().zip(out_rest.as_chunks_mut().0) {
        *out = f16_from_f32(v).to_le_bytes();
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_bf16(src: &[f32], dst: &mut [u8]) {
    let (groups, rest) = src.as_chunks::<16>();
    let (out, out_rest) = dst.as_chunks_mut::<32>();
    for (x, out) in groups.iter().zip(out) {
        let (low, high) = x.split_at(8);
        let low = bf16_bits(load8(low.first_chunk().expect("half of sixteen")));
        let high = bf16_bits(load8(high.first_chunk().expect("half of sixteen")));
        // The pack works within halves of the register: put the quarters back in order.
        store32(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high)), out);
    }
    for (&v, out) in rest.iter().zip(out_rest.as_chunks_mut().0) {
        *out = bf16_from_f32(v).to_le_bytes();
    }
}

#[target_feature(enable = "avx2,f16c")]
fn bf16_bits(v: __m256) -> __m256i {
    let bits = _mm256_castps_si256(v);
    let upper = _mm256_srli_epi32::<16>(bits);
    let to_even = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), _mm256_and_si256(upper, _mm256_set1_epi32(1)));
    let rounded = _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, to_even));
    let quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
    _mm256_blendv_epi8(rounded, quiet, nan)
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn widen_f16(src: &[u8], dst: &mut [f32]) {
    let (groups, rest) = src.as_chunks::<16>();
    let (out, out_rest) = dst.as_chunks_mut::<8>();
    for (bytes, out) in groups.iter().zip(out) {
        store8(_mm256_cvtph_ps(fetch16(bytes)), out);
    }
    for (bytes, out) in rest.as_chunks().0.iter().zip(out_rest) {
        *out = f32_from_f16(u16::from_le_bytes(*bytes));
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn widen_bf16(src: &[u8], dst: &mut [f32]) {
    let (groups, rest) = src.as_chunks::<16>();
    let (out, out_rest) = dst.as_chunks_mut::<8>();
    for (bytes, out) in groups.iter().zip(out) {
        let bits = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(fetch16(bytes)));
        store8(_mm256_castsi256_ps(bits), out);
    }
    for (bytes, out) in rest.as_chunks().0.iter().zip(out_rest) {
        *out = f32_from_bf16(u16::from_le_bytes(*bytes));
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_q8_0(src: &[f32], dst: &mut [u8]) {
    for (x, out) in src.as_chunks::<32>().0.iter().zip(dst.as_chunks_mut::<34>().0) {
        let v = load32(x);
        let amax = largest_magnitude(v);
        let d = amax / 127.0;
        let id = plain::inverse(d);
        if any_nan(v) || !(amax.is_finite() && id.is_finite()) {
            plain::encode_q8_0(x, out);
            continue;
        }
        let (head, qs) = out.split_first_chunk_mut::<2>().expect("the block is longer than its scale");
        *head = half_bytes(d);
        store32(pack_bytes(round_away(scale(v, id))), qs.first_chunk_mut().expect("32 codes follow the scale"));
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_q4_0(src: &[f32], dst: &mut [u8]) {
    for (x, out) in src.as_chunks::<32>().0.iter().zip(dst.as_chunks_mut::<18>().0) {
        let v = load32(x);
        let max = first_largest(x, v);
        let d = max / -8.0;
        let id = plain::inverse(d);
        if any_nan(v) || !(max.is_finite() && id.is_finite()) {
            plain::encode_q4_0(x, out);
            continue;
        }
        out[..2].copy_from_slice(&half_bytes(d));
        let codes = truncate(shift(scale(v, id), 8.5));
        store_nibbles(at_most(codes, 15), out.last_chunk_mut().expect("16 bytes of codes end the block"));
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_q5_0(src: &[f32], dst: &mut [u8]) {
    for (x, out) in src.as_chunks::<32>().0.iter().zip(dst.as_chunks_mut::<22>().0) {
        let v = load32(x);
        let max = first_largest(x, v);
        let d = max / -16.0;
        let id = plain::inverse(d);
        if any_nan(v) || !(max.is_finite() && id.is_finite()) {
            plain::encode_q5_0(x, out);
            continue;
        }
        out[..2].copy_from_slice(&half_bytes(d));
        let codes = at_most(truncate(shift(scale(v, id), 16.5)), 31);
        out[2..6].copy_from_slice(&fifth_bits(codes));
        store_nibbles(codes, out.last_chunk_mut().expect("16 bytes of codes end the block"));
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_q4_1(src: &[f32], dst: &mut [u8]) {
    for (x, out) in src.as_chunks::<32>().0.iter().zip(dst.as_chunks_mut::<20>().0) {
        let v = load32(x);
        let (min, max) = extent(v);
        let d = (max - min) / 15.0;
        let id = plain::inverse(d);
        // A minimum of zero has the sign of the first zero, which only the scalar code knows.
        if any_nan(v) || min == 0.0 || !(d.is_finite() && id.is_finite()) {
            plain::encode_q4_1(x, out);
            continue;
        }
        out[..2].copy_from_slice(&half_bytes(d));
        out[2..4].copy_from_slice(&half_bytes(min));
        let codes = truncate(shift(scale(shift(v, -min), id), 0.5));
        store_nibbles(at_most(codes, 15), out.last_chunk_mut().expect("16 bytes of codes end the block"));
    }
}

#[target_feature(enable = "avx2,f16c")]
pub(in super::super) fn encode_q5_1(src: &[f32], dst: &mut [u8]) {
    for (x, out) in src.as_chunks::<32>().0.iter().zip(dst.as_chunks_mut::<24>().0) {
        let v = load32(x);
        let (min, max) = extent(v);
        let d = (max - min) / 31.0;
        let id = plain::inverse(d);
        if any_nan(v) || min == 0.0 || !(d.is_finite() && id.is_finite()) {
            plain::encode_q5_1(x, out);
            continue;
        }
        out[..2].copy_from_slice(&half_bytes(d));
        out[2..4].copy_from_slice(&half_bytes(min));
        let codes = truncate(shift(scale(shift(v, -min), id), 0.5));
        out[4..8].copy_from_slice(&fifth_bits(codes));
        store_nibbles(codes, out.last_chunk_mut().expect("16 bytes of codes end the block"));
    }
}

/// A block of 32 values.
type Block = [__m256; 4];

#[target_feature(enable = "avx2,f16c")]
fn load32(x: &[f32; 32]) -> Block {
    let parts = x.as_chunks::<8>().0;
    [load8(&parts[0]), load8(&parts[1]), load8(&parts[2]), load8(&parts[3])]
}

#[target_feature(enable = "avx2,f16c")]
fn any_nan(v: Block) -> bool {
    let low = _mm256_cmp_ps::<_CMP_UNORD_Q>(v[0], v[1]);
    let high = _mm256_cmp_ps::<_CMP_UNORD_Q>(v[2], v[3]);
    _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
}

#[target_feature(enable = "avx2,f16c")]
fn magnitudes(v: Block) -> Block {
    let sign = _mm256_set1_ps(-0.0);
    let mut out = v;
    for v in &mut out {
        *v = _mm256_andnot_ps(sign, *v);
    }
    out
}

#[target_feature(enable = "avx2,f16c")]
fn fold_max(v: Block) -> f32 {
    let v = _mm256_max_ps(_mm256_max_ps(v[0], v[1]), _mm256_max_ps(v[2], v[3]));
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

#[target_feature(enable = "avx2,f16c")]
fn largest_magnitude(v: Block) -> f32 {
    fold_max(magnitudes(v))
}

/// The first value of the largest magnitude; plain zero for a block of zeros.
#[target_feature(enable = "avx2,f16c")]
fn first_largest(x: &[f32; 32], v: Block) -> f32 {
    let v = magnitudes(v);
    let amax = fold_max(v);
    if amax == 0.0 {
        return 0.0;
    }
    let wanted = _mm256_set1_ps(amax);
    let mut found = 0u32;
    for (k, &v) in v.iter().enumerate() {
        let equal = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(v, wanted));
        found |= (equal as u32) << (8 * k);
    }
    // Nothing is equal only where a NaN was folded in, and that block goes to the scalar code.
    x[found.trailing_zeros() as usize % 32]
}

/// Smallest and largest value.
#[target_feature(enable = "avx2,f16c")]
fn extent(v: Block) -> (f32, f32) {
    let sign = _mm256_set1_ps(-0.0);
    let mut negated = v;
    for v in &mut negated {
        *v = _mm256_xor_ps(*v, sign);
    }
    (-fold_max(negated), fold_max(v))
}

#[target_feature(enable = "avx2,f16c")]
fn scale(v: Block, by: f32) -> Block {
    let by = _mm256_set1_ps(by);
    let mut out = v;
    for v in &mut out {
        *v = _mm256_mul_ps(*v, by);
    }
    out
}

#[target_feature(enable = "avx2,f16c")]
fn shift(v: Block, by: f32) -> Block {
    let by = _mm256_set1_ps(by);
    let mut out = v;
    for v in &mut out {
        *v = _mm256_add_ps(*v, by);
    }
    out
}

/// The nearest integers, halves away from zero. Adding the largest float below one half is what makes truncation exact:
/// one half itself would carry 0.49999997 up to 1.
#[target_feature(enable = "avx2,f16c")]
fn round_away(v: Block) -> [__m256i; 4] {
    let sign = _mm256_set1_ps(-0.0);
    let almost_half = _mm256_set1_ps(0.5f32.next_down());
    let mut out = v;
    for v in &mut out {
        *v = _mm256_add_ps(*v, _mm256_or_ps(almost_half, _mm256_and_ps(*v, sign)));
    }
    truncate_words(out)
}

#[target_feature(enable = "avx2,f16c")]
fn truncate_words(v: Block) -> [__m256i; 4] {
    [_mm256_cvttps_epi32(v[0]), _mm256_cvttps_epi32(v[1]), _mm256_cvttps_epi32(v[2]), _mm256_cvttps_epi32(v[3])]
}

/// The codes of a block as bytes, towards zero.
#[target_feature(enable = "avx2,f16c")]
fn truncate(v: Block) -> __m256i {
    pack_bytes(truncate_words(v))
}

/// 32 words from -128 to 127 as bytes in order: the packs work within halves of the register, the permutation repairs it.
#[target_feature(enable = "avx2,f16c")]
fn pack_bytes(w: [__m256i; 4]) -> __m256i {
    let pairs = _mm256_packs_epi16(_mm256_packs_epi32(w[0], w[1]), _mm256_packs_epi32(w[2], w[3]));
    _mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

#[target_feature(enable = "avx2,f16c")]
fn at_most(codes: __m256i, top: i8) -> __m256i {
    _mm256_min_epi8(codes, _mm256_set1_epi8(top))
}

/// Code `j` in the low nibble, code `j + 16` in the high nibble of byte `j`.
#[target_feature(enable = "avx2,f16c")]
fn store_nibbles(codes: __m256i, out: &mut [u8; 16]) {
    let codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
    let high = _mm_slli_epi16::<4>(_mm256_extracti128_si256::<1>(codes));
    store16(_mm_or_si128(_mm256_castsi256_si128(codes), high), out);
}

/// Bit 4 of every code.
#[target_feature(enable = "avx2,f16c")]
fn fifth_bits(codes: __m256i) -> [u8; 4] {
    _mm256_movemask_epi8(_mm256_slli_epi16::<3>(codes)).to_le_bytes()
}

#[target_feature(enable = "avx2,f16c")]
fn half_bytes(value: f32) -> [u8; 2] {
    let bits = _mm_cvtsi128_si32(_mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ss(value)));
    (bits as u16).to_le_bytes()
}

#[target_feature(enable = "avx2,f16c")]
fn fetch16(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the reference is to sixteen bytes, and the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,f16c")]
fn store16(v: __m128i, out: &mut [u8; 16]) {
    // SAFETY: the reference is to sixteen bytes, and the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), v) }
}

#[target_feature(enable = "avx2,f16c")]
fn store32(v: __m256i, out: &mut [u8; 32]) {
    // SAFETY: the reference is to 32 bytes, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), v) }
}
