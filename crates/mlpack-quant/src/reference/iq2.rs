//! Two-bit cells of eight values on a grid (ggml b11434, `ggml-quants.c`).
//!
//! ```text
//!            0     2            34       66      74      82
//! IQ2_XXS    d     qs[64]                end                     groups of 32: four index bytes, then u32: four times
//!                                                                seven signs, scale in the top four bits
//! IQ2_XS     d     qs[32] u16            sc[8]   end             groups of 16: nine index bits, then seven signs
//! IQ2_S      d     qs[32]       signs[32] qh[8]  sc[8]   end     groups of 16: ten index bits, eight signs
//!
//! value      d * (scale + 1/2) / 4 * m * sign    m: 8, 25 or 43 for code 0, 1 or 2
//! sc         byte b: low nibble group 2b, high nibble group 2b + 1
//! qh         byte b, bits 2k and 2k + 1: top bits of the index of cell 4b + k
//! ```
//!
//! With seven signs the eighth makes the number of negative ones even.

use super::cells::{
    Fitter, Group, Refit, Scalar, Search, even_signs, highest, largest, roots, scale_code, split_even_signs,
    split_signs, weights,
};
use super::lattice::{IQ2_S, IQ2_XS, IQ2_XXS, Lattice};
use super::search::GROUP_MAX_EPS;
use crate::blocks::field;
use crate::float::{read_f16, write_f16};

const MAGNITUDES: [f32; 3] = [8.0, 25.0, 43.0];
const SEARCH: Search<3> = Search { tries: 9, step: 0.1, refit: Refit::Unindexed };

pub(crate) fn encode_iq2_xxs(x: &[f32; 256], importance: &[f32; 256], out: &mut [u8; 66]) {
    fit_iq2_xxs::<Scalar>(x, importance, out);
}

pub(crate) fn encode_iq2_xs(x: &[f32; 256], importance: &[f32; 256], out: &mut [u8; 74]) {
    fit_iq2_xs::<Scalar>(x, importance, out);
}

pub(crate) fn encode_iq2_s(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 82]) {
    fit_iq2_s::<Scalar>(x, importance, out);
}

#[inline(always)]
pub(crate) fn fit_iq2_xxs<F: Fitter>(x: &[f32; 256], importance: &[f32; 256], out: &mut [u8; 66]) {
    const SEARCH: Search<2> = Search { tries: 6, step: 0.1, refit: Refit::Always };
    let lattice: &Lattice<8> = &IQ2_XXS;
    let weights = weights(1.0, x, Some(importance), 0.0);
    let mut magnitudes = [0.0f32; 256];
    let mut signs = [[0u8; 4]; 8];
    let groups = x.as_chunks::<32>().0.iter().zip(weights.as_chunks().0);
    for (g, (magnitudes, (x, weights))) in magnitudes.as_chunks_mut().0.iter_mut().zip(groups).enumerate() {
        (*magnitudes, signs[g]) = split_even_signs(x, weights);
    }
    // The search is around the scale of a fit to all codes, and one more.
    let first = F::fit_positive(i32::from(Lattice::<8>::LEVELS) + 1, &magnitudes, &weights);
    let mut scales = [0.0f32; 8];
    let mut words = [[0u32; 2]; 8];
    let groups = magnitudes.as_chunks::<32>().0.iter().zip(weights.as_chunks().0);
    for (g, (magnitudes, weights)) in groups.enumerate() {
        let max = first[g] * f32::from(Lattice::<8>::LEVELS);
        if max <= 0.0 {
            continue;
        }
        let group = Group { magnitudes, weights, roots: &roots(weights) };
        let fitted = F::fit(&group, lattice, SEARCH, max, first[g]);
        for k in 0..4 {
            let signs = if fitted.scale < 0.0 { !signs[g][k] & 127 } else { signs[g][k] };
            words[g][0] |= u32::from(fitted.indices[k]) << (8 * k);
            words[g][1] |= u32::from(signs) << (7 * k);
        }
        scales[g] = if fitted.scale < 0.0 { -fitted.scale } else { fitted.scale };
    }
    out.fill(0);
    let Some(id) = write_scale(&scales, 1.0, out) else { return };
    for (g, words) in words.iter_mut().enumerate() {
        words[1] |= u32::from(scale_code(id, scales[g])) << 28;
        for (word, bytes) in words.iter().zip(out[2 + 8 * g..].as_chunks_mut::<4>().0) {
            *bytes = word.to_le_bytes();
        }
    }
}

/// Writes the super-block's scale for the largest of its groups and returns its inverse; `None` where all are zero.
#[inline(always)]
pub(crate) fn write_scale<const G: usize>(scales: &[f32; G], fudge: f32, out: &mut [u8]) -> Option<f32> {
    let mut max = 0.0f32;
    for &v in scales {
        max = if max > v { max } else { v };
    }
    if max == 0.0 {
        return None;
    }
    let d = max / 31.0;
    write_f16(d * fudge, &mut out[..2]);
    Some(1.0 / d)
}

#[inline(always)]
pub(crate) fn fit_iq2_xs<F: Fitter>(x: &[f32; 256], importance: &[f32; 256], out: &mut [u8; 74]) {
    let lattice: &Lattice<8> = &IQ2_XS;
    let weights = weights(1.0, x, Some(importance), 0.0);
    let mut scales = [0.0f32; 16];
    let mut cells = [0u16; 32];
    out.fill(0);
    let groups = x.as_chunks::<16>().0.iter().zip(weights.as_chunks::<16>().0);
    for (g, (x, weights)) in groups.enumerate() {
        let (magnitudes, signs) = split_even_signs(x, weights);
        let max = largest(&magnitudes);
        if max < GROUP_MAX_EPS {
            continue;
        }
        let group = Group { magnitudes: &magnitudes, weights, roots: &roots(weights) };
        let fitted = F::fit(&group, lattice, SEARCH, max, max / highest::<8>());
        for k in 0..2 {
            let signs = if fitted.scale < 0.0 { !signs[k] & 127 } else { signs[k] };
            cells[2 * g + k] = fitted.indices[k] | u16::from(signs) << 9;
        }
        scales[g] = if fitted.scale < 0.0 { -fitted.scale } else { fitted.scale };
    }
    let Some(id) = write_scale(&scales, 1.0, out) else { return };
    for (cell, bytes) in cells.iter().zip(out[2..66].as_chunks_mut::<2>().0) {
        *bytes = cell.to_le_bytes();
    }
    for (g, &scale) in scales.iter().enumerate() {
        out[66 + g / 2] |= scale_code(id, scale) << (4 * (g % 2));
    }
}

#[inline(always)]
pub(crate) fn fit_iq2_s<F: Fitter>(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 82]) {
    const EPS: f32 = 1e-8;
    let lattice: &Lattice<8> = &IQ2_S;
    let weights = weights(2.0, x, importance, 0.25);
    let mut scales = [0.0f32; 16];
    out.fill(0);
    let groups = x.as_chunks::<16>().0.iter().zip(weights.as_chunks::<16>().0);
    for (g, (x, weights)) in groups.enumerate() {
        let (magnitudes, signs) = split_signs(x);
        let max = largest(&magnitudes);
        if max < EPS {
            continue;
        }
        let group = Group { magnitudes: &magnitudes, weights, roots: &roots(weights) };
        let fitted = F::fit(&group, lattice, SEARCH, max, max / highest::<8>());
        for (k, signs) in signs.into_iter().enumerate().take(2) {
            let (cell, index) = (2 * g + k, fitted.indices[k]);
            out[2 + cell] = index as u8;
            out[34 + cell] = if fitted.scale < 0.0 { !signs } else { signs };
            out[66 + cell / 4] |= ((index >> 8) as u8) << (2 * (cell % 4));
        }
        scales[g] = if fitted.scale < 0.0 { -fitted.scale } else { fitted.scale };
    }
    let Some(id) = write_scale(&scales, 0.9875, out) else { return };
    for (g, &scale) in scales.iter().enumerate() {
        out[74 + g / 2] |= scale_code(id, scale) << (4 * (g % 2));
    }
}

fn decode_cell(codes: &[u8; 8], scale: f32, signs: u8, out: &mut [f32]) {
    for (i, v) in out.iter_mut().enumerate() {
        let sign = if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
        *v = scale * MAGNITUDES[usize::from(codes[i])] * sign;
    }
}

fn cell_scale(d: f32, code: u8) -> f32 {
    d * (0.5 + f32::from(code)) * 0.25
}

pub(crate) fn decode_iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 0));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let indices: &[u8; 4] = field(block, 2 + 8 * g);
        let word = u32::from_le_bytes(*field(block, 6 + 8 * g));
        let scale = cell_scale(d, (word >> 28) as u8);
        for (k, out) in group.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let signs = even_signs((word >> (7 * k)) as u8);
            decode_cell(&IQ2_XXS.points[usize::from(indices[k])], scale, signs, out);
        }
    }
}

pub(crate) fn decode_iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 0));
    for (cell, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = u16::from_le_bytes(*field(block, 2 + 2 * cell));
        let scale = cell_scale(d, block[66 + cell / 4] >> (4 * (cell / 2 % 2)) & 0xf);
        decode_cell(&IQ2_XS.points[usize::from(word & 511)], scale, even_signs((word >> 9) as u8), out);
    }
}

pub(crate) fn decode_iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 0));
    for (cell, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = usize::from(block[66 + cell / 4] >> (2 * (cell % 4)) & 3);
        let scale = cell_scale(d, block[74 + cell / 4] >> (4 * (cell / 2 % 2)) & 0xf);
        decode_cell(&IQ2_S.points[usize::from(block[2 + cell]) | high << 8], scale, block[34 + cell], out);
    }
}
