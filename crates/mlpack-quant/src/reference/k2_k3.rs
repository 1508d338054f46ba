//! Super-blocks of 256 values with sixteen groups of 16 (ggml b11434, `ggml-quants.c`).
//!
//! ```text
//!          0             16          32          80        96            108      110
//! Q2_K     scales[16]    qs[64]                  d  dmin end (84)
//! Q3_K     hmask[32]                 qs[64]                scales[12]    d        end
//!
//! Q2_K scales  byte g: low nibble scale[g], high nibble min[g];  value d * scale * q - dmin * min
//! Q3_K scales  byte j, j < 8: low nibbles of scale[j] and scale[j + 8]
//!              byte 8 + j, j < 4: top two bits of scale[j], scale[j + 4], scale[j + 8], scale[j + 12]
//! qs           in each half of 128 values: byte l holds two bits each of the values l, l + 32, l + 64, l + 96
//! hmask        byte l, bit k: bit 2 of value l + 32 k;           value d * (scale - 32) * (q - 4)
//! ```

use super::search::{
    Grid, Loss, Weights, fit_line, fit_line_guarded, fit_positive, fit_symmetric, fit_symmetric_by_moves, nearest_int,
};
use crate::blocks::field;
use crate::float::{read_f16, write_f16};

pub(crate) const LEN: usize = 256;
pub(crate) const GROUPS: usize = 16;

pub(crate) const Q2_GRID: Grid = Grid { start: -0.5, step: 0.1, steps: 15 };

/// Two bits of each value.
#[inline(always)]
pub(crate) fn pack_pairs(codes: &[u8; LEN], qs: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<128>().0.iter().zip(qs.as_chunks_mut::<32>().0) {
        for l in 0..32 {
            out[l] = codes[l] | codes[l + 32] << 2 | codes[l + 64] << 4 | codes[l + 96] << 6;
        }
    }
}

#[inline]
fn unpack_pair(qs: &[u8; 64], i: usize) -> u8 {
    qs[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3
}

pub(crate) fn encode_q2_k(x: &[f32; LEN], out: &mut [u8; 84]) {
    let mut codes = [0u8; LEN];
    let (mut scales, mut mins) = ([0.0f32; GROUPS], [0.0f32; GROUPS]);
    for (j, group) in x.as_chunks::<16>().0.iter().enumerate() {
        let weights = group.map(f32::abs);
        let codes = &mut codes[16 * j..][..16];
        (scales[j], mins[j]) = fit_line(3, group, &weights, Q2_GRID, Loss::Absolute, codes);
    }
    q2_header(&scales, &mins, out);
    q2_finish(x, &mut codes, out);
}

/// Stores scales and minima relative to their largest.
#[inline(always)]
pub(crate) fn q2_header(scales: &[f32; GROUPS], mins: &[f32; GROUPS], out: &mut [u8; 84]) {
    let largest = |values: &[f32; GROUPS]| values.iter().fold(0.0f32, |max, &v| if v > max { v } else { max });
    let quantize = |values: &[f32; GROUPS]| {
        let max = largest(values);
        if max > 0.0 {
            let inverse = 15.0 / max;
            (values.map(|v| nearest_int(inverse * v)), max / 15.0)
        } else {
            ([0; GROUPS], 0.0)
        }
    };
    let ((scales, d), (mins, dmin)) = (quantize(scales), quantize(mins));
    for (out, (scale, min)) in out.iter_mut().zip(scales.into_iter().zip(mins)) {
        *out = (scale | min << 4) as u8;
    }
    write_f16(d, &mut out[80..82]);
    write_f16(dmin, &mut out[82..]);
}

/// Codes for the scales as stored, packed. Groups whose scale came out as zero keep the codes of the search.
#[inline(always)]
pub(crate) fn q2_finish(x: &[f32; LEN], codes: &mut [u8; LEN], out: &mut [u8; 84]) {
    let (d, dmin) = (read_f16(field(out, 80)), read_f16(field(out, 82)));
    for (j, &stored) in out[..GROUPS].iter().enumerate() {
        let d = d * f32::from(stored & 0xf);
        if d != 0.0 {
            let dm = dmin * f32::from(stored >> 4);
            for i in 16 * j..16 * j + 16 {
                codes[i] = nearest_int((x[i] + dm) / d).clamp(0, 3) as u8;
            }
        }
    }
    pack_pairs(codes, &mut out[16..80]);
}

/// Importance weights of a super-block: `importance * sqrt(sigma2 + x^2)`, sigma2 being `factor` times the mean square.
#[inline(always)]
pub(crate) fn importance_weights(factor: f32, x: &[f32; LEN], importance: &[f32; LEN]) -> [f32; LEN] {
    let mut sum = 0.0f32;
    for &v in x {
        sum += v * v;
    }
    let sigma2 = factor * sum / 256.0;
    std::array::from_fn(|j| importance[j] * (sigma2 + x[j] * x[j]).sqrt())
}

/// Sums of the weights of each group of 16.
#[inline(always)]
pub(crate) fn group_sums(weights: &[f32; LEN]) -> [f32; GROUPS] {
    let mut sums = [0.0f32; GROUPS];
    for (sum, group) in sums.iter_mut().zip(weights.as_chunks::<16>().0) {
        for &w in group {
            *sum += w;
        }
    }
    sums
}

pub(crate) fn encode_q2_k_weighted(x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 84]) {
    let weights = importance_weights(1.0, x, importance);
    let mut codes = [0u8; LEN];
    let (mut scales, mut mins) = ([0.0f32; GROUPS], [0.0f32; GROUPS]);
    for j in 0..GROUPS {
        let at = 16 * j..16 * j + 16;
        (scales[j], mins[j]) = fit_line_guarded(3, &x[at.clone()], &weights[at.clone()], &mut codes[at]);
    }
    q2_header_weighted(&scales, &mins, &weights, out);
    q2_finish(x, &mut codes, out);
}

/// Stores scales and minima as fitted to their own values.
pub(crate) fn q2_header_weighted(
    scales: &[f32; GROUPS],
    mins: &[f32; GROUPS],
    weights: &[f32; LEN],
    out: &mut [u8; 84],
) {
    let sums = group_sums(weights);
    let (mut ls, mut lm) = ([0u8; GROUPS], [0u8; GROUPS]);
    let d = fit_positive(15, scales, &mut ls, &sums);
    let dmin = fit_positive(15, mins, &mut lm, &sums);
    for j in 0..GROUPS {
        out[j] = ls[j] | lm[j] << 4;
    }
    write_f16(d, &mut out[80..82]);
    write_f16(dmin, &mut out[82..]);
}

pub(crate) fn decode_q2_k(block: &[u8; 84], out: &mut [f32; LEN]) {
    let (d, dmin) = (read_f16(field(block, 80)), read_f16(field(block, 82)));
    for (i, v) in out.iter_mut().enumerate() {
        let scale = block[i / 16];
        let q = unpack_pair(field(block, 16), i);
        *v = d * f32::from(scale & 0xf) * f32::from(q) - dmin * f32::from(scale >> 4);
    }
}

pub(crate) fn encode_q3_k(x: &[f32; LEN], out: &mut [u8; 110]) {
    let mut codes = [0i8; LEN];
    let mut scales = [0.0f32; GROUPS];
    let groups = x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0);
    for ((values, codes), scale) in groups.zip(&mut scales) {
        *scale = fit_symmetric_by_moves(4, values, codes);
    }
    q3_header(&scales, out);
    q3_finish(x, &mut codes, out);
}

/// Stores the scales relative to the largest magnitude.
#[inline(always)]
pub(crate) fn q3_header(scales: &[f32; GROUPS], out: &mut [u8; 110]) {
    let (mut max, mut amax) = (0.0f32, 0.0f32);
    for &scale in scales {
        if scale.abs() > amax {
            (amax, max) = (scale.abs(), scale);
        }
    }
    if max == 0.0 {
        out[96..].fill(0);
        return;
    }
    let iscale = -32.0 / max;
    let codes = scales.map(|s| ((nearest_int(iscale * s) as i8).clamp(-32, 31) + 32) as u8);
    pack_q3_scales(&codes, out);
    write_f16(1.0 / iscale, &mut out[108..]);
}

#[inline(always)]
fn pack_q3_scales(codes: &[u8; GROUPS], out: &mut [u8; 110]) {
    let packed = &mut out[96..108];
    packed.fill(0);
    for (j, &code) in codes.iter().enumerate() {
        packed[j % 8] |= (code & 0xf) << (4 * (j / 8));
        packed[8 + j % 4] |= code >> 4 << (2 * (j / 4));
    }
}

/// The signed scale of group `j`.
#[inline(always)]
pub(crate) fn unpack_q3_scale(j: usize, packed: &[u8; 12]) -> i8 {
    let low = packed[j % 8] >> (4 * (j / 8)) & 0xf;
    let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
    (low | high << 4) as i8 - 32
}

/// Codes for the scales as stored, packed. Groups whose scale came out as zero keep the codes of the search.
#[inline(always)]
pub(crate) fn q3_finish(x: &[f32; LEN], codes: &mut [i8; LEN], out: &mut [u8; 110]) {
    let d = read_f16(field(out, 108));
    for j in 0..GROUPS {
        let d = d * f32::from(unpack_q3_scale(j, field(out, 96)));
        if d != 0.0 {
            for i in 16 * j..16 * j + 16 {
                codes[i] = (nearest_int(x[i] / d).clamp(-4, 3) + 4) as i8;
            }
        }
    }
    for (l, mask) in out[..32].iter_mut().enumerate() {
        *mask = (0..8).fold(0, |mask, k| mask | (codes[l + 32 * k] as u8 >> 2 & 1) << k);
    }
    pack_pairs(&codes.map(|c| c as u8 & 3), &mut out[32..96]);
}

pub(crate) fn encode_q3_k_weighted(x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 110]) {
    let weights = importance_weights(2.0, x, importance);
    let mut codes = [0i8; LEN];
    let mut scales = [0.0f32; GROUPS];
    let groups = x.as_chunks::<16>().0.iter().zip(weights.as_chunks::<16>().0);
    for (((values, weights), codes), scale) in groups.zip(codes.as_chunks_mut::<16>().0).zip(&mut scales) {
        *scale = fit_symmetric(4, values, codes, Weights::Given(weights));
    }
    q3_header_weighted(&scales, &weights, out);
    q3_finish(x, &mut codes, out);
}

/// Stores the scales as fitted to their own values.
pub(crate) fn q3_header_weighted(scales: &[f32; GROUPS], weights: &[f32; LEN], out: &mut [u8; 110]) {
    let mut codes = [0i8; GROUPS];
    let d = fit_symmetric(32, scales, &mut codes, Weights::Given(&group_sums(weights)));
    pack_q3_scales(&codes.map(|c| c as u8), out);
    write_f16(d, &mut out[108..]);
}

pub(crate) fn decode_q3_k(block: &[u8; 110], out: &mut [f32; LEN]) {
    let d = read_f16(field(block, 108));
    for (i, v) in out.iter_mut().enumerate() {
        let scale = d * f32::from(unpack_q3_scale(i / 16, field(block, 96)));
        let high = block[i % 32] >> (i / 32) & 1;
        *v = scale * f32::from((unpack_pair(field(block, 32), i) | high << 2) as i8 - 4);
    }
}
