//! Super-blocks of 256 values with eight groups of 32, each with a 6-bit scale and a 6-bit minimum (ggml b11434,
//! `ggml-quants.c`).
//!
//! ```text
//!          0     2       4            16                48              144         176
//! Q4_K     d     dmin    scales[12]   qs[128]                           end
//! Q5_K     d     dmin    scales[12]   qh[32]            qs[128]                     end
//!
//! scales   byte j, j < 4: low six bits scale[j], top two bits the high bits of scale[j + 4]
//!          byte j, 4..8:  low six bits min[j - 4], top two bits the high bits of min[j]
//!          byte j, 8..12: low nibble scale[j - 4], high nibble min[j - 4]
//! qs       byte 32 * p + l: group 2p value l in the low nibble, group 2p + 1 value l in the high nibble
//! qh       byte l, bit g: bit 4 of value l of group g
//! value    d * scale[g] * q - dmin * min[g]
//! ```

use super::search::{Grid, Loss, fit_line, fit_line_guarded, fit_positive, nearest_int};
use crate::blocks::field;
use crate::float::{read_f16, write_f16};

pub(crate) const LEN: usize = 256;
pub(crate) const GROUPS: usize = 8;

pub(crate) const Q4_GRID: Grid = Grid { start: -1.0, step: 0.1, steps: 20 };
pub(crate) const Q5_GRID: Grid = Grid { start: -0.5, step: 0.1, steps: 15 };

/// What the search finds for a super-block: scale, minimum and codes of each group.
pub(crate) struct Fit {
    pub scales: [f32; GROUPS],
    pub mins: [f32; GROUPS],
    pub codes: [u8; LEN],
}

/// The 12 bytes of eight scales and eight minima.
#[inline(always)]
pub(crate) fn pack_scales(scales: &[u8; GROUPS], mins: &[u8; GROUPS]) -> [u8; 12] {
    let mut packed = [0u8; 12];
    for j in 0..4 {
        packed[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6;
        packed[j + 8] = scales[j + 4] & 0xf | mins[j + 4] << 4;
    }
    packed
}

/// Scale and minimum of group `j`.
#[inline(always)]
pub(crate) fn unpack_scale(j: usize, packed: &[u8; 12]) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 0xf | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// The weight of a value where there is no importance matrix: the root mean square of its group plus its magnitude.
fn plain_weights(x: &[f32; 32]) -> [f32; 32] {
    let mut sum = 0.0f32;
    for &v in x {
        sum += v * v;
    }
    let rms = (sum / 32.0).sqrt();
    x.map(|v| rms + v.abs())
}

/// The search of both types without importance: only the largest code and the grid differ.
pub(crate) fn search_plain(nmax: i32, grid: Grid, x: &[f32; LEN]) -> Fit {
    let mut fit = Fit { scales: [0.0; GROUPS], mins: [0.0; GROUPS], codes: [0; LEN] };
    for (j, group) in x.as_chunks::<32>().0.iter().enumerate() {
        let weights = plain_weights(group);
        let codes = &mut fit.codes[32 * j..][..32];
        (fit.scales[j], fit.mins[j]) = fit_line(nmax, group, &weights, grid, Loss::Square, codes);
    }
    fit
}

/// Header bytes and the final codes, given the search's result: scales are relative to the largest one.
#[inline(always)]
pub(crate) fn plain_header(fit: &Fit, head: &mut [u8; 16]) {
    let largest = |values: &[f32; GROUPS]| values.iter().fold(0.0f32, |max, &v| if v > max { v } else { max });
    let (max_scale, max_min) = (largest(&fit.scales), largest(&fit.mins));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let quantize = |values: &[f32; GROUPS], inverse: f32| values.map(|v| (nearest_int(inverse * v) as u8).min(63));
    let scales = quantize(&fit.scales, inverse(max_scale));
    let mins = quantize(&fit.mins, inverse(max_min));
    write_f16(max_scale / 63.0, &mut head[..2]);
    write_f16(max_min / 63.0, &mut head[2..4]);
    head[4..].copy_from_slice(&pack_scales(&scales, &mins));
}

/// Sums of the importance weights of each group, and the weights: `importance * sqrt(sigma2 + x^2)` with sigma2 twice the
/// mean square of the super-block.
#[inline(always)]
pub(crate) fn importance_weights(x: &[f32; LEN], importance: &[f32; LEN]) -> [f32; LEN] {
    let mut sum = 0.0f32;
    for &v in x {
        sum += v * v;
    }
    let sigma2 = 2.0 * sum / 256.0;
    std::array::from_fn(|j| importance[j] * (sigma2 + x[j] * x[j]).sqrt())
}

/// The search of both types with importance, group by group; and the header, whose scales are fitted too.
pub(crate) fn search_weighted(nmax: i32, x: &[f32; LEN], weights: &[f32; LEN]) -> Fit {
    let mut fit = Fit { scales: [0.0; GROUPS], mins: [0.0; GROUPS], codes: [0; LEN] };
    for j in 0..GROUPS {
        let at = 32 * j..32 * j + 32;
        (fit.scales[j], fit.mins[j]) = fit_line_guarded(nmax, &x[at.clone()], &weights[at.clone()], &mut fit.codes[at]);
    }
    fit
}

/// Header bytes for a weighted search. Q5_K limits the fitted 6-bit values, Q4_K does not.
pub(crate) fn weighted_header(fit: &Fit, weights: &[f32; LEN], limit: u8, head: &mut [u8; 16]) {
    let mut sums = [0.0f32; GROUPS];
    for (sum, group) in sums.iter_mut().zip(weights.as_chunks::<32>().0) {
        for &w in group {
            *sum += w;
        }
    }
    let (mut scales, mut mins) = ([0u8; GROUPS], [0u8; GROUPS]);
    let d = fit_positive(63, &fit.scales, &mut scales, &sums);
    let dmin = fit_positive(63, &fit.mins, &mut mins, &sums);
    write_f16(d, &mut head[..2]);
    write_f16(dmin, &mut head[2..4]);
    head[4..].copy_from_slice(&pack_scales(&scales.map(|s| s.min(limit)), &mins.map(|m| m.min(limit))));
}

/// Scale and minimum of every group as a reader will see them.
#[inline(always)]
pub(crate) fn effective_scales(head: &[u8; 16]) -> [(f32, f32); GROUPS] {
    let (d, dmin) = (read_f16(field(head, 0)), read_f16(field(head, 2)));
    std::array::from_fn(|j| {
        let (scale, min) = unpack_scale(j, field(head, 4));
        (d * f32::from(scale), dmin * f32::from(min))
    })
}

/// Codes for the scales as stored. Groups whose scale came out as zero keep the codes of the search.
#[inline(always)]
pub(crate) fn requantize(nmax: i32, x: &[f32; LEN], head: &[u8; 16], codes: &mut [u8; LEN]) {
    for (j, (d, dm)) in effective_scales(head).into_iter().enumerate() {
        if d != 0.0 {
            for i in 32 * j..32 * j + 32 {
                codes[i] = nearest_int((x[i] + dm) / d).clamp(0, nmax) as u8;
            }
        }
    }
}

#[inline(always)]
pub(crate) fn pack_q4(codes: &[u8; LEN], qs: &mut [u8]) {
    for (pair, out) in codes.as_chunks::<64>().0.iter().zip(qs.as_chunks_mut::<32>().0) {
        for l in 0..32 {
            out[l] = pair[l] | pair[l + 32] << 4;
        }
    }
}

#[inline(always)]
pub(crate) fn pack_q5(codes: &[u8; LEN], out: &mut [u8; 160]) {
    let (qh, qs) = out.split_at_mut(32);
    for (l, bits) in qh.iter_mut().enumerate() {
        *bits = (0..GROUPS).fold(0, |bits, g| bits | (codes[32 * g + l] >> 4) << g);
    }
    for (pair, out) in codes.as_chunks::<64>().0.iter().zip(qs.as_chunks_mut::<32>().0) {
        for l in 0..32 {
            out[l] = pair[l] & 0xf | pair[l + 32] << 4;
        }
    }
}

pub(crate) fn encode_q4_k(x: &[f32; LEN], out: &mut [u8; 144]) {
    let mut fit = search_plain(15, Q4_GRID, x);
    let (head, qs) = out.split_first_chunk_mut().expect("the block is longer than its header");
    plain_header(&fit, head);
    requantize(15, x, head, &mut fit.codes);
    pack_q4(&fit.codes, qs);
}

pub(crate) fn encode_q4_k_weighted(x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 144]) {
    let weights = importance_weights(x, importance);
    let mut fit = search_weighted(15, x, &weights);
    let (head, qs) = out.split_first_chunk_mut().expect("the block is longer than its header");
    weighted_header(&fit, &weights, u8::MAX, head);
    requantize(15, x, head, &mut fit.codes);
    pack_q4(&fit.codes, qs);
}

pub(crate) fn decode_q4_k(block: &[u8; 144], out: &mut [f32; LEN]) {
    let scales = effective_scales(field(block, 0));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (d, m) = scales[g];
        for (l, v) in group.iter_mut().enumerate() {
            let q = block[16 + 32 * (g / 2) + l] >> (4 * (g % 2)) & 0xf;
            *v = d * f32::from(q) - m;
        }
    }
}

pub(crate) fn encode_q5_k(x: &[f32; LEN], out: &mut [u8; 176]) {
    let mut fit = search_plain(31, Q5_GRID, x);
    let (head, qs) = out.split_first_chunk_mut().expect("the block is longer than its header");
    plain_header(&fit, head);
    requantize(31, x, head, &mut fit.codes);
    pack_q5(&fit.codes, qs.first_chunk_mut().expect("160 bytes follow the header"));
}

pub(crate) fn encode_q5_k_weighted(x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 176]) {
    let weights = importance_weights(x, importance);
    let mut fit = search_weighted(31, x, &weights);
    let (head, qs) = out.split_first_chunk_mut().expect("the block is longer than its header");
    weighted_header(&fit, &weights, 63, head);
    requantize(31, x, head, &mut fit.codes);
    pack_q5(&fit.codes, qs.first_chunk_mut().expect("160 bytes follow the header"));
}

pub(crate) fn decode_q5_k(block: &[u8; 176], out: &mut [f32; LEN]) {
    let scales = effective_scales(field(block, 0));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (d, m) = scales[g];
        for (l, v) in group.iter_mut().enumerate() {
            let low = block[48 + 32 * (g / 2) + l] >> (4 * (g % 2)) & 0xf;
            let high = block[16 + l] >> g & 1;
            *v = d * f32::from(low | high << 4) - m;
        }
    }
}
