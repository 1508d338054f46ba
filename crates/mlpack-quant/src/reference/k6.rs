//! Q6_K: super-blocks of 256 values with sixteen groups of 16, each with a signed 8-bit scale (ggml b11434,
//! `ggml-quants.c`).
//!
//! ```text
//! 0           128         192            208   210
//! ql[128]     qh[64]      scales[16]     d     end
//!
//! in each half of 128 values, l in 0..32:
//! ql[l]       low nibble value l,        high nibble value l + 64
//! ql[l + 32]  low nibble value l + 32,   high nibble value l + 96
//! qh[l]       two bits each of the values l, l + 32, l + 64, l + 96, lowest first
//! value       d * scale[g] * (q - 32)
//! ```

use super::search::{GROUP_MAX_EPS, Weights, fit_symmetric, nearest_int};
use crate::blocks::field;
use crate::float::{read_f16, write_f16};

pub(crate) const LEN: usize = 256;
pub(crate) const GROUPS: usize = 16;

pub(crate) fn encode_q6_k(x: &[f32; LEN], out: &mut [u8; 210]) {
    let mut codes = [0i8; LEN];
    let mut scales = [0.0f32; GROUPS];
    let groups = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for ((values, codes), scale) in groups.zip(&mut scales) {
        *scale = fit_symmetric(32, values, codes, Weights::Square);
    }
    finish(x, &scales, &mut codes, out);
}

pub(crate) fn encode_q6_k_weighted(x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 210]) {
    let mut codes = [0i8; LEN];
    let mut scales = [0.0f32; GROUPS];
    let groups = x.as_chunks::<16>().0.iter().zip(importance.as_chunks::<16>().0);
    for (((values, weights), codes), scale) in groups.zip(codes.as_chunks_mut::<16>().0).zip(&mut scales) {
        *scale = fit_symmetric(32, values, codes, Weights::Given(weights));
    }
    finish(x, &scales, &mut codes, out);
}

/// Stores the scales relative to the largest magnitude, then the codes for the scales as stored. Groups whose scale came
/// out as zero keep the codes of the search.
pub(crate) fn finish(x: &[f32; LEN], scales: &[f32; GROUPS], codes: &mut [i8; LEN], out: &mut [u8; 210]) {
    let Some(d) = write_scales(scales, out) else { return };
    for j in 0..GROUPS {
        let d = d * f32::from(out[192 + j] as i8);
        if d != 0.0 {
            requantize_group(d, &x[16 * j..][..16], &mut codes[16 * j..][..16]);
        }
    }
    pack(codes, out);
}

/// The codes of a group for its scale as stored.
#[inline(always)]
pub(crate) fn requantize_group(d: f32, x: &[f32], codes: &mut [i8]) {
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = (nearest_int(v / d).clamp(-32, 31) + 32) as i8;
    }
}

/// Writes the scales and returns the super-block's scale as a reader sees it; `None` for a block of zeros, which is then
/// complete.
#[inline(always)]
pub(crate) fn write_scales(scales: &[f32; GROUPS], out: &mut [u8; 210]) -> Option<f32> {
    let (mut max, mut amax) = (0.0f32, 0.0f32);
    for &scale in scales {
        if scale.abs() > amax {
            (amax, max) = (scale.abs(), scale);
        }
    }
    if amax < GROUP_MAX_EPS {
        out.fill(0);
        return None;
    }
    let iscale = -128.0 / max;
    for (q, &scale) in out[192..208].iter_mut().zip(scales) {
        *q = nearest_int(iscale * scale).min(127) as u8;
    }
    Some(write_f16(1.0 / iscale, &mut out[208..]))
}

#[inline(always)]
pub(crate) fn pack(codes: &[i8; LEN], out: &mut [u8; 210]) {
    for (half, codes) in codes.as_chunks::<128>().0.iter().enumerate() {
        for l in 0..32 {
            let q = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]].map(|c| c as u8);
            out[64 * half + l] = q[0] & 0xf | q[2] << 4;
            out[64 * half + l + 32] = q[1] & 0xf | q[3] << 4;
            out[128 + 32 * half + l] = q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6;
        }
    }
}

pub(crate) fn decode_q6_k(block: &[u8; 210], out: &mut [f32; LEN]) {
    let d = read_f16(field(block, 208));
    for (i, v) in out.iter_mut().enumerate() {
        let (half, place) = (i / 128, i % 128);
        let low = block[64 * half + place % 64] >> (4 * (place / 64)) & 0xf;
        let high = block[128 + 32 * half + place % 32] >> (2 * (place / 32)) & 3;
        let scale = f32::from(block[192 + i / 16] as i8);
        *v = d * scale * f32::from((low | high << 4) as i8 - 32);
    }
}
