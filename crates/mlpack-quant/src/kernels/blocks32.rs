//! Blocks of 32 values, sixteen at a time: the types with one scale where importance makes them search, and IQ4_NL.

use super::lanes::{Columns, Lanes};
use super::search::{cells, columns, fit_line_guarded, fit_symmetric, fit_uneven};
use crate::float::write_f16;
use crate::reference::search::nearest_int;
use crate::reference::{iq4, plain};

const LANES: usize = 16;
const LEN: usize = 32;

/// What sixteen searches found.
#[derive(Default)]
pub(super) struct Found {
    scale: [f32; LANES],
    /// What a reader adds to the products; with it the minimum that codes are counted from.
    min: [f32; LANES],
    base: [f32; LANES],
    /// What values are multiplied by to get codes; 0 where all codes are 0.
    iscale: [f32; LANES],
    strays: u32,
}

/// A type of one scale, whose codes come straight from its search.
pub(super) trait Searched<const B: usize> {
    fn search<V: Lanes>(x: &[V; LEN], weights: &[V; LEN]) -> Found;
    /// Writes the block that lane `k` found.
    fn write(found: &Found, k: usize, x: &[f32; LEN], out: &mut [u8; B]);
    fn scalar(sigma2: f32, x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; B]);
}

#[inline(always)]
fn search_symmetric<V: Lanes>(nmax: f32, x: &[V; LEN], weights: &[V; LEN]) -> Found {
    let fit = fit_symmetric(nmax, x, Some(weights));
    let mut found = Found { strays: fit.strays, ..Found::default() };
    fit.scale.store(&mut found.scale);
    fit.iscale.store(&mut found.iscale);
    found
}

#[inline(always)]
fn search_line<V: Lanes>(nmax: f32, x: &[V; LEN], weights: &[V; LEN]) -> Found {
    let (lines, source) = fit_line_guarded(nmax, &mut cells(x, weights));
    let mut found = Found { strays: lines.strays, ..Found::default() };
    lines.scale.store(&mut found.scale);
    lines.min.neg().store(&mut found.min);
    source.min.store(&mut found.base);
    source.iscale.store(&mut found.iscale);
    for (k, iscale) in found.iscale.iter_mut().enumerate() {
        if lines.flat >> k & 1 == 1 {
            *iscale = 0.0;
        }
    }
    found
}

impl Found {
    #[inline(always)]
    fn symmetric_codes(&self, k: usize, nmax: i32, x: &[f32; LEN]) -> [u8; LEN] {
        let mut codes = [0u8; LEN];
        if self.iscale[k] != 0.0 {
            for (code, &v) in codes.iter_mut().zip(x) {
                *code = (nmax + nearest_int(self.iscale[k] * v).clamp(-nmax, nmax - 1)) as u8;
            }
        }
        codes
    }

    #[inline(always)]
    fn line_codes(&self, k: usize, nmax: i32, x: &[f32; LEN]) -> [u8; LEN] {
        let mut codes = [0u8; LEN];
        if self.iscale[k] != 0.0 {
            for (code, &v) in codes.iter_mut().zip(x) {
                let target = self.iscale[k] * (v - self.base[k]);
                let target = if target > 0.0 { target } else { 0.0 };
                let target = if target < nmax as f32 { target } else { nmax as f32 };
                *code = nearest_int(target) as u8;
            }
        }
        codes
    }
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;

impl Searched<18> for Q4_0 {
    #[inline(always)]
    fn search<V: Lanes>(x: &[V; LEN], weights: &[V; LEN]) -> Found {
        search_symmetric(8.0, x, weights)
    }
    #[inline(always)]
    fn write(found: &Found, k: usize, x: &[f32; LEN], out: &mut [u8; 18]) {
        write_f16(found.scale[k], &mut out[..2]);
        plain::pack_nibbles(&found.symmetric_codes(k, 8, x), &mut out[2..]);
    }
    fn scalar(sigma2: f32, x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 18]) {
        plain::encode_q4_0_weighted(sigma2, x, importance, out);
    }
}

impl Searched<20> for Q4_1 {
    #[inline(always)]
    fn search<V: Lanes>(x: &[V; LEN], weights: &[V; LEN]) -> Found {
        search_line(15.0, x, weights)
    }
    #[inline(always)]
    fn write(found: &Found, k: usize, x: &[f32; LEN], out: &mut [u8; 20]) {
        write_f16(found.scale[k], &mut out[..2]);
        write_f16(found.min[k], &mut out[2..4]);
        plain::pack_nibbles(&found.line_codes(k, 15, x), &mut out[4..]);
    }
    fn scalar(sigma2: f32, x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 20]) {
        plain::encode_q4_1_weighted(sigma2, x, importance, out);
    }
}

impl Searched<22> for Q5_0 {
    #[inline(always)]
    fn search<V: Lanes>(x: &[V; LEN], weights: &[V; LEN]) -> Found {
        search_symmetric(16.0, x, weights)
    }
    #[inline(always)]
    fn write(found: &Found, k: usize, x: &[f32; LEN], out: &mut [u8; 22]) {
        let codes = found.symmetric_codes(k, 16, x);
        write_f16(found.scale[k], &mut out[..2]);
        plain::pack_high_bits(&codes, &mut out[2..6]);
        plain::pack_nibbles(&codes, &mut out[6..]);
    }
    fn scalar(sigma2: f32, x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 22]) {
        plain::encode_q5_0_weighted(sigma2, x, importance, out);
    }
}

impl Searched<24> for Q5_1 {
    #[inline(always)]
    fn search<V: Lanes>(x: &[V; LEN], weights: &[V; LEN]) -> Found {
        search_line(31.0, x, weights)
    }
    #[inline(always)]
    fn write(found: &Found, k: usize, x: &[f32; LEN], out: &mut [u8; 24]) {
        let codes = found.line_codes(k, 31, x);
        write_f16(found.scale[k], &mut out[..2]);
        write_f16(found.min[k], &mut out[2..4]);
        plain::pack_high_bits(&codes, &mut out[4..8]);
        plain::pack_nibbles(&codes, &mut out[8..]);
    }
    fn scalar(sigma2: f32, x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 24]) {
        plain::encode_q5_1_weighted(sigma2, x, importance, out);
    }
}

/// Rows with importance. The tail of a row fills its sixteen lanes with zeros, which are dropped again.
#[inline(always)]
pub(super) fn weighted<V: Lanes, T: Searched<B>, const B: usize>(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    let row_len = importance.len();
    let columns_of = importance.as_chunks::<LEN>().0;
    for (row, out) in src.chunks_exact(row_len).zip(dst.chunks_exact_mut(row_len / LEN * B)) {
        let sigma2 = plain::mean_square(row);
        let parts = row.as_chunks::<LEN>().0.chunks(LANES).zip(columns_of.chunks(LANES));
        for ((blocks, importance), out) in parts.zip(out.as_chunks_mut::<B>().0.chunks_mut(LANES)) {
            let mut rows = [[0.0f32; LEN]; LANES];
            let mut weights = [[0.0f32; LEN]; LANES];
            rows[..blocks.len()].copy_from_slice(blocks);
            for (k, x) in blocks.iter().enumerate() {
                weights[k] = plain::block_weights(sigma2, x, &importance[k]);
            }
            let found = T::search::<V>(&columns(rows.as_flattened()), &columns(weights.as_flattened()));
            for (k, (x, out)) in blocks.iter().zip(out).enumerate() {
                if found.strays >> k & 1 == 1 {
                    T::scalar(sigma2, x, &importance[k], out);
                } else {
                    T::write(&found, k, x, out);
                }
            }
        }
    }
}

#[inline(always)]
pub(super) fn iq4_nl<V: Lanes>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let mut columns_of = Columns { importance: importance.unwrap_or_default(), at: 0 };
    let parts = src.as_chunks::<LEN>().0.chunks(LANES);
    for (blocks, out) in parts.zip(dst.as_chunks_mut::<18>().0.chunks_mut(LANES)) {
        let mut rows = [[0.0f32; LEN]; LANES];
        let mut weights = [[0.0f32; LEN]; LANES];
        rows[..blocks.len()].copy_from_slice(blocks);
        let mut column = [None; LANES];
        for (k, x) in blocks.iter().enumerate() {
            column[k] = if importance.is_some() { Some(columns_of.next()) } else { None };
            weights[k] = iq4::weights(x, column[k]);
        }
        let mut scales = [0.0f32; LANES];
        let (scale, strays) = fit_uneven::<V>(&columns(rows.as_flattened()), &columns(weights.as_flattened()));
        scale.store(&mut scales);
        for (k, (x, out)) in blocks.iter().zip(out).enumerate() {
            if strays >> k & 1 == 0 {
                iq4::finish_iq4_nl(x, scales[k], out);
            } else {
                iq4::encode_iq4_nl(x, column[k], out);
            }
        }
    }
}
