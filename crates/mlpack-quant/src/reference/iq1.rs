//! Cells of eight values from three levels on a grid, shifted up or down by an eighth (ggml b11434, `ggml-quants.c`).
//!
//! ```text
//!          0     2         34          50           0         32        48        56
//! IQ1_S    d     qs[32]    qh[8] u16   end  IQ1_M   qs[32]    qh[16]    sc[4] u16 end
//!
//! IQ1_S    groups of 32: qh: three times four top index bits, three bits of scale, then the shift (set: down)
//! IQ1_M    groups of 16, two cells each: a nibble of qh: three top index bits, then the shift
//!          sc: four times three bits of scale, then four bits of d, lowest first
//! value    d * (2 * scale + 1) * (code - 1 + shift), shift 1/8 or -1/8
//! ```
//!
//! With three levels the best split of the sorted values into three runs is found by trying all of them. Equal values are
//! sorted as they come: glibc's `qsort` is a merge sort.

use super::cells::{largest, weights};
use super::lattice::{IQ1, Lattice};
use super::search::nearest_int;
use crate::blocks::field;
use crate::float::{f32_from_f16, read_f16, scale_bits, write_f16};

/// Groups of smaller values are zeros.
pub(crate) const IQ1_S_EPS: f32 = 1e-12;
pub(crate) const IQ1_M_EPS: f32 = 1e-7;

/// The three levels, shifted up and down.
pub(crate) const LEVELS: [[f32; 3]; 2] = [[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]];

/// The order of values from the smallest, equal ones as they come.
fn sorted<const M: usize>(x: &[f32; M]) -> [usize; M] {
    let mut order = std::array::from_fn(|i| i);
    for end in 1..M {
        let mut at = end;
        while at > 0 && x[order[at]] < x[order[at - 1]] {
            order.swap(at, at - 1);
            at -= 1;
        }
    }
    order
}

/// The codes of a split: 0 up to the first boundary, then 1, then 2 from the second; mirrored where the scale came out
/// negative.
fn codes_of<const M: usize>(order: &[usize; M], split: (usize, usize), mirrored: bool) -> [u8; M] {
    let mut codes = [0u8; M];
    for (rank, &i) in order.iter().enumerate() {
        let code = u8::from(rank >= split.0) + u8::from(rank >= split.1);
        codes[i] = if mirrored { 2 - code } else { code };
    }
    codes
}

/// Adds the sums of a cell to `sums`: weighted products with the values, and weighted squares.
#[inline(always)]
fn add_sums(sums: &mut (f32, f32), point: &[u8; 8], x: &[f32], weights: &[f32], levels: [f32; 3]) {
    for i in 0..8 {
        let q = levels[usize::from(point[i])];
        sums.0 += weights[i] * q * x[i];
        sums.1 += weights[i] * q * q;
    }
}

/// Indices of the cells of a group, and the scale for them. `levels` gives the levels of each cell.
fn snap_group<const M: usize, const C: usize>(
    x: &[f32; M],
    weights: &[f32; M],
    codes: &[u8; M],
    scale: &mut f32,
    levels: [&[f32; 3]; C],
) -> [u16; C] {
    let lattice: &Lattice<8> = &IQ1;
    let mut indices = [0u16; C];
    let mut all_indexed = true;
    for (k, cell) in codes.as_chunks::<8>().0.iter().enumerate() {
        let x = x[8 * k..].first_chunk().expect("cells tile the group");
        let weights = weights[8 * k..].first_chunk().expect("cells tile the group");
        let mut cell = *cell;
        all_indexed &= lattice.snap(&mut cell, x, weights, *scale, levels[k]);
        indices[k] = lattice.index_of(&cell);
    }
    if !all_indexed {
        let mut sums = (0.0f32, 0.0f32);
        for (k, &index) in indices.iter().enumerate() {
            let at = 8 * k..8 * k + 8;
            add_sums(&mut sums, &lattice.points[usize::from(index)], &x[at.clone()], &weights[at], *levels[k]);
        }
        if sums.0 > 0.0 && sums.1 > 0.0 {
            *scale = sums.0 / sums.1;
        }
    }
    indices
}

/// A scale, the boundaries of the split and which shifts it is for.
struct Split {
    scale: f32,
    at: (usize, usize),
    shifts: usize,
}

/// The best split of 32 sorted values, all shifted alike; `None` where all weights are zero.
fn split_alike(x: &[f32; 32], weights: &[f32; 32], order: &[usize; 32]) -> Option<Split> {
    let (mut sumx, mut sumw) = ([0.0f32; 33], [0.0f32; 33]);
    for (j, &i) in order.iter().enumerate() {
        sumx[j + 1] = sumx[j] + weights[i] * x[i];
        sumw[j + 1] = sumw[j] + weights[i];
    }
    let mut best = None;
    let mut best_score = -f32::MAX;
    for i1 in 0..=32 {
        for i2 in i1..=32 {
            for (shifts, v) in LEVELS.iter().enumerate() {
                let sumqx = (sumx[i1] - sumx[0]) * v[0] + (sumx[i2] - sumx[i1]) * v[1] + (sumx[32] - sumx[i2]) * v[2];
                let sumq2 = (sumw[i1] - sumw[0]) * v[0] * v[0]
                    + (sumw[i2] - sumw[i1]) * v[1] * v[1]
                    + (sumw[32] - sumw[i2]) * v[2] * v[2];
                if sumq2 > 0.0 && sumqx * sumqx > best_score * sumq2 {
                    let scale = sumqx / sumq2;
                    best_score = scale * sumqx;
                    best = Some(Split { scale, at: (i1, i2), shifts });
                }
            }
        }
    }
    best
}

/// What the search finds for the `G` groups of a super-block; zeros for groups of zeros.
pub(crate) struct Found<const G: usize, const C: usize> {
    pub scales: [f32; G],
    /// IQ1_S: 1 for down. IQ1_M: bit 1 shifts the first cell down, bit 0 the second.
    pub shifts: [usize; G],
    /// Of the cells of each group.
    pub indices: [[u16; C]; G],
}

impl<const G: usize, const C: usize> Found<G, C> {
    pub fn zeros() -> Self {
        Found { scales: [0.0; G], shifts: [0; G], indices: [[0; C]; G] }
    }
}

pub(crate) fn encode_iq1_s(x: &[f32; 256], importance: &[f32; 256], out: &mut [u8; 50]) {
    let weights = weights(2.0, x, Some(importance), 0.0);
    write_iq1_s(&find_iq1_s(x, &weights), out);
}

pub(crate) fn find_iq1_s(x: &[f32; 256], weights: &[f32; 256]) -> Found<8, 4> {
    let mut found = Found::zeros();
    let groups = x.as_chunks::<32>().0.iter().zip(weights.as_chunks::<32>().0);
    for (g, (x, weights)) in groups.enumerate() {
        if largest(&x.map(f32::abs)) < IQ1_S_EPS {
            continue;
        }
        let order = sorted(x);
        let Some(mut split) = split_alike(x, weights, &order) else { continue };
        let mirrored = split.scale < 0.0;
        let codes = codes_of(&order, split.at, mirrored);
        if mirrored {
            split.scale = -split.scale;
            split.shifts = 1 - split.shifts;
        }
        found.indices[g] = snap_group(x, weights, &codes, &mut split.scale, [&LEVELS[split.shifts]; 4]);
        (found.scales[g], found.shifts[g]) = (split.scale, split.shifts);
    }
    found
}

#[inline(always)]
pub(crate) fn write_iq1_s(found: &Found<8, 4>, out: &mut [u8; 50]) {
    out.fill(0);
    let d = block_scale(&found.scales);
    if let Some(d) = d {
        write_f16(d * 1.125, &mut out[..2]);
    }
    for (g, indices) in found.indices.iter().enumerate() {
        let mut high = 0u16;
        for (k, index) in indices.iter().enumerate() {
            out[2 + 4 * g + k] = *index as u8;
            high |= index >> 8 << (3 * k);
        }
        if let Some(d) = d {
            high |= u16::from(scale_code(1.0 / d, found.scales[g])) << 12 | (found.shifts[g] as u16) << 15;
        }
        out[34 + 2 * g..][..2].copy_from_slice(&high.to_le_bytes());
    }
}

/// A fifteenth of the largest scale; `None` where all are zero.
#[inline(always)]
fn block_scale<const G: usize>(scales: &[f32; G]) -> Option<f32> {
    let max = scales.iter().fold(0.0f32, |max, &v| if max > v { max } else { v });
    if max == 0.0 { None } else { Some(max / 15.0) }
}

/// Three bits of a group's scale relative to the super-block's.
#[inline(always)]
fn scale_code(id: f32, scale: f32) -> u8 {
    nearest_int(0.5 * (id * scale - 1.0)).clamp(0, 7) as u8
}

/// The levels of the two cells of a group of IQ1_M: bit 1 shifts the first down, bit 0 the second.
#[inline(always)]
pub(crate) fn levels_of(shifts: usize) -> [&'static [f32; 3]; 2] {
    [&LEVELS[shifts >> 1], &LEVELS[shifts & 1]]
}

/// The best split of 16 sorted values whose halves are shifted up or down each for itself. As neighbouring levels are one
/// apart, the sum over the three runs is the total at the top level less the sums up to either boundary.
fn split_halves(x: &[f32; 16], weights: &[f32; 16], order: &[usize; 16]) -> Option<Split> {
    let (mut px, mut pw) = ([[0.0f32; 17]; 2], [[0.0f32; 17]; 2]);
    for (j, &i) in order.iter().enumerate() {
        for h in 0..2 {
            (px[h][j + 1], pw[h][j + 1]) = (px[h][j], pw[h][j]);
        }
        px[i / 8][j + 1] += weights[i] * x[i];
        pw[i / 8][j + 1] += weights[i];
    }
    let square_step = |v: &[f32; 3]| (v[0] * v[0] - v[1] * v[1], v[1] * v[1] - v[2] * v[2]);
    let steps = LEVELS.each_ref().map(square_step);
    let mut best = None;
    let mut best_score = -f32::MAX;
    for i1 in 0..=16 {
        for i2 in i1..=16 {
            // By shift, then by half.
            let (mut qx, mut q2) = ([[0.0f32; 2]; 2], [[0.0f32; 2]; 2]);
            for h in 0..2 {
                let sx = px[h][i1] + px[h][i2];
                for (s, v) in LEVELS.iter().enumerate() {
                    qx[s][h] = px[h][16] * v[2] - sx;
                    q2[s][h] = pw[h][16] * v[2] * v[2] + pw[h][i1] * steps[s].0 + pw[h][i2] * steps[s].1;
                }
            }
            for shifts in 0..4 {
                let sumqx = qx[shifts >> 1][0] + qx[shifts & 1][1];
                let sumq2 = q2[shifts >> 1][0] + q2[shifts & 1][1];
                if sumq2 > 0.0 && sumqx * sumqx > best_score * sumq2 {
                    let scale = sumqx / sumq2;
                    best_score = scale * sumqx;
                    best = Some(Split { scale, at: (i1, i2), shifts });
                }
            }
        }
    }
    best
}

pub(crate) fn encode_iq1_m(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 56]) {
    let weights = weights(2.0, x, importance, 0.0);
    write_iq1_m(x, &weights, &find_iq1_m(x, &weights), out);
}

pub(crate) fn find_iq1_m(x: &[f32; 256], weights: &[f32; 256]) -> Found<16, 2> {
    let mut found = Found::zeros();
    let groups = x.as_chunks::<16>().0.iter().zip(weights.as_chunks::<16>().0);
    for (g, (x, weights)) in groups.enumerate() {
        if largest(&x.map(f32::abs)) < IQ1_M_EPS {
            continue;
        }
        let order = sorted(x);
        let Some(mut split) = split_halves(x, weights, &order) else { continue };
        let mirrored = split.scale < 0.0;
        let codes = codes_of(&order, split.at, mirrored);
        if mirrored {
            split.scale = -split.scale;
            split.shifts = 3 - split.shifts;
        }
        found.indices[g] = snap_group(x, weights, &codes, &mut split.scale, levels_of(split.shifts));
        (found.scales[g], found.shifts[g]) = (split.scale, split.shifts);
    }
    found
}

#[inline(always)]
pub(crate) fn write_iq1_m(x: &[f32; 256], weights: &[f32; 256], found: &Found<16, 2>, out: &mut [u8; 56]) {
    out.fill(0);
    for (g, indices) in found.indices.iter().enumerate() {
        out[2 * g] = indices[0] as u8;
        out[2 * g + 1] = indices[1] as u8;
        out[32 + g] = (indices[0] >> 8 | indices[1] >> 8 << 4) as u8;
    }
    let Some(mut d) = block_scale(&found.scales) else { return };
    let id = 1.0 / d;
    let mut packed = [0u16; 4];
    let mut sums = (0.0f32, 0.0f32);
    for g in 0..16 {
        let code = scale_code(id, found.scales[g]);
        packed[g / 4] |= u16::from(code) << (3 * (g % 4));
        out[32 + g] |= [0x00, 0x80, 0x08, 0x88][found.shifts[g]];
        for (k, levels) in levels_of(found.shifts[g]).into_iter().enumerate() {
            let scaled = levels.map(|v| v * f32::from(2 * code + 1));
            let at = 16 * g + 8 * k..16 * g + 8 * k + 8;
            let point = &IQ1.points[usize::from(found.indices[g][k])];
            add_sums(&mut sums, point, &x[at.clone()], &weights[at], scaled);
        }
    }
    if sums.1 > 0.0 {
        d = sums.0 / sums.1;
    }
    let half = scale_bits(d * 1.1125);
    for (k, bytes) in out[48..].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *bytes = (packed[k] | (half >> (4 * k) & 0xf) << 12).to_le_bytes();
    }
}

fn decode_cell(index: usize, scale: f32, shift: f32, out: &mut [f32]) {
    for (v, &code) in out.iter_mut().zip(&IQ1.points[index]) {
        *v = scale * (f32::from(code) - 1.0 + shift);
    }
}

fn shift(down: bool) -> f32 {
    if down { -0.125 } else { 0.125 }
}

pub(crate) fn decode_iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 0));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let high = u16::from_le_bytes(*field(block, 34 + 2 * g));
        let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
        for (k, out) in group.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let index = usize::from(block[2 + 4 * g + k]) | usize::from(high >> (3 * k) & 7) << 8;
            decode_cell(index, scale, shift(high & 0x8000 != 0), out);
        }
    }
}

pub(crate) fn decode_iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let packed: [u16; 4] = std::array::from_fn(|k| u16::from_le_bytes(*field(block, 48 + 2 * k)));
    let d = f32_from_f16((0..4).fold(0, |half, k| half | packed[k] >> 12 << (4 * k)));
    for (cell, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let group = cell / 2;
        let scale = d * f32::from(2 * (packed[group / 4] >> (3 * (group % 4)) & 7) + 1);
        let nibble = block[32 + group] >> (4 * (cell % 2)) & 0xf;
        let index = usize::from(block[cell]) | usize::from(nibble & 7) << 8;
        decode_cell(index, scale, shift(nibble & 8 != 0), out);
    }
}
