//! Three-bit cells of four values on a grid (ggml b11434, `ggml-quants.c`).
//!
//! ```text
//!            0     2          66        74           98         106     110
//! IQ3_XXS    d     qs[64]     sw[8] u32              end                        groups of 32, an index byte for each cell;
//!                                                                               sw: four times seven signs, scale on top
//! IQ3_S      d     qs[64]     qh[8]     signs[32]               sc[4]   end     groups of 32, nine index bits, eight signs
//!
//! IQ3_XXS    d * (scale + 1/2) / 2 * m * sign      m: 4, 12, 20, 28, 36, 44, 52 or 62 for codes 0 to 7
//! IQ3_S      d * (2 * scale + 1) * m * sign        m: 2 * code + 1
//! qh         byte g, bit k: top bit of the index of cell k of group g
//! ```

use super::cells::{
    Fitter, Group, Refit, Scalar, Search, even_signs, highest, largest, roots, scale_code, split_even_signs,
    split_signs, weights,
};
use super::iq2::write_scale;
use super::lattice::{IQ3_S, IQ3_XXS, Lattice};
use crate::blocks::field;
use crate::float::read_f16;

const MAGNITUDES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];

pub(crate) fn encode_iq3_xxs(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 98]) {
    fit_iq3_xxs::<Scalar>(x, importance, out);
}

pub(crate) fn encode_iq3_s(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 110]) {
    fit_iq3_s::<Scalar>(x, importance, out);
}

#[inline(always)]
pub(crate) fn fit_iq3_xxs<F: Fitter>(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 98]) {
    const EPS: f32 = 1e-8;
    const SEARCH: Search<4> = Search { tries: 15, step: 0.2, refit: Refit::Unindexed };
    let lattice: &Lattice<4> = &IQ3_XXS;
    let weights = weights(2.0, x, importance, 0.0);
    let mut scales = [0.0f32; 8];
    let mut indices = [0u8; 64];
    let mut words = [0u32; 8];
    let groups = x.as_chunks::<32>().0.iter().zip(weights.as_chunks::<32>().0);
    for (g, (x, weights)) in groups.enumerate() {
        let (magnitudes, signs) = split_even_signs(x, weights);
        let max = largest(&magnitudes);
        if max < EPS {
            continue;
        }
        let group = Group { magnitudes: &magnitudes, weights, roots: &roots(weights) };
        let fitted = F::fit(&group, lattice, SEARCH, max, max / highest::<4>());
        for (k, index) in fitted.indices.into_iter().enumerate() {
            indices[8 * g + k] = index as u8;
        }
        for (k, signs) in signs.into_iter().enumerate() {
            let signs = if fitted.scale < 0.0 { !signs & 127 } else { signs };
            words[g] |= u32::from(signs) << (7 * k);
        }
        scales[g] = if fitted.scale < 0.0 { -fitted.scale } else { fitted.scale };
    }
    out.fill(0);
    let Some(id) = write_scale(&scales, 1.0125, out) else { return };
    out[2..66].copy_from_slice(&indices);
    for ((bytes, word), scale) in out[66..].as_chunks_mut::<4>().0.iter_mut().zip(words).zip(scales) {
        *bytes = (word | u32::from(scale_code(id, scale)) << 28).to_le_bytes();
    }
}

#[inline(always)]
pub(crate) fn fit_iq3_s<F: Fitter>(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 110]) {
    const SEARCH: Search<3> = Search { tries: 9, step: 0.2, refit: Refit::Group };
    let lattice: &Lattice<4> = &IQ3_S;
    let weights = weights(2.0, x, importance, 0.0);
    let mut scales = [0.0f32; 8];
    out.fill(0);
    // ggml does not leave room for the index bytes and signs of a group of zeros, so those of later groups come too early,
    // while their scales and top bits are in place. It is what its files hold, so it is kept.
    let mut place = 0;
    let groups = x.as_chunks::<32>().0.iter().zip(weights.as_chunks::<32>().0);
    for (g, (x, weights)) in groups.enumerate() {
        let (magnitudes, signs) = split_signs(x);
        let max = largest(&magnitudes);
        if max == 0.0 {
            continue;
        }
        let group = Group { magnitudes: &magnitudes, weights, roots: &roots(weights) };
        let fitted = F::fit(&group, lattice, SEARCH, max, max / highest::<4>());
        for (k, index) in fitted.indices.into_iter().enumerate() {
            out[2 + 8 * place + k] = index as u8;
            out[66 + g] |= ((index >> 8) as u8) << k;
        }
        for (k, signs) in signs.into_iter().enumerate() {
            out[74 + 4 * place + k] = if fitted.scale < 0.0 { !signs } else { signs };
        }
        place += 1;
        scales[g] = if fitted.scale < 0.0 { -fitted.scale } else { fitted.scale };
    }
    let Some(id) = write_scale(&scales, 1.033, out) else { return };
    for (g, &scale) in scales.iter().enumerate() {
        out[106 + g / 2] |= scale_code(id, scale) << (4 * (g % 2));
    }
}

/// Four values of a cell, the signs lowest bit first.
fn decode_cell(codes: &[u8; 4], scale: f32, signs: u8, magnitude: impl Fn(u8) -> f32, out: &mut [f32]) {
    for (i, v) in out.iter_mut().enumerate() {
        let sign = if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
        *v = scale * magnitude(codes[i]) * sign;
    }
}

pub(crate) fn decode_iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 0));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let word = u32::from_le_bytes(*field(block, 66 + 4 * g));
        let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
        for (k, out) in group.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let signs = even_signs((word >> (7 * (k / 2))) as u8) >> (4 * (k % 2));
            let codes = &IQ3_XXS.points[usize::from(block[2 + 8 * g + k])];
            decode_cell(codes, scale, signs, |c| MAGNITUDES[usize::from(c)], out);
        }
    }
}

pub(crate) fn decode_iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 0));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let scale = d * f32::from(1 + 2 * (block[106 + g / 2] >> (4 * (g % 2)) & 0xf));
        for (k, out) in group.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let index = usize::from(block[2 + 8 * g + k]) | usize::from(block[66 + g] >> k & 1) << 8;
            let signs = block[74 + 4 * g + k / 2] >> (4 * (k % 2));
            decode_cell(&IQ3_S.points[index], scale, signs, |c| f32::from(2 * c + 1), out);
        }
    }
}
