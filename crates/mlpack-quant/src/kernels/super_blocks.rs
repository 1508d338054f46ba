//! K-quants with sixteen groups at a time: one super-block of sixteen groups, or two of eight.
//!
//! The search runs in lanes; headers, final codes and packing are the reference's own functions, inlined here so that they
//! are compiled for the wider vectors.

use super::lanes::{Columns, Lanes, Pair};
use super::search::{
    Lines, cells, columns, fit_line, fit_line_guarded, fit_symmetric, fit_symmetric_by_moves, fit_uneven,
};
use crate::blocks::field;
use crate::float::read_f16;
use crate::reference::search::{Grid, Loss, nearest_int};
use crate::reference::{iq4, k2_k3, k4_k5, k6};

const LANES: usize = 16;
const LEN: usize = 256;

/// What differs between the two types of eight groups.
trait EightGroups<const B: usize> {
    const TOP: i32;
    const GRID: Grid;
    /// The limit of fitted 6-bit values.
    const LIMIT: u8;
    fn pack(codes: &[u8; LEN], out: &mut [u8]);
    fn scalar(x: &[f32; LEN], out: &mut [u8; B]);
    fn scalar_weighted(x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; B]);
}

struct Q4;
struct Q5;

impl EightGroups<144> for Q4 {
    const TOP: i32 = 15;
    const GRID: Grid = k4_k5::Q4_GRID;
    const LIMIT: u8 = u8::MAX;
    #[inline(always)]
    fn pack(codes: &[u8; LEN], out: &mut [u8]) {
        k4_k5::pack_q4(codes, out);
    }
    fn scalar(x: &[f32; LEN], out: &mut [u8; 144]) {
        k4_k5::encode_q4_k(x, out);
    }
    fn scalar_weighted(x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 144]) {
        k4_k5::encode_q4_k_weighted(x, importance, out);
    }
}

impl EightGroups<176> for Q5 {
    const TOP: i32 = 31;
    const GRID: Grid = k4_k5::Q5_GRID;
    const LIMIT: u8 = 63;
    #[inline(always)]
    fn pack(codes: &[u8; LEN], out: &mut [u8]) {
        k4_k5::pack_q5(codes, out.first_chunk_mut().expect("160 bytes follow the header"));
    }
    fn scalar(x: &[f32; LEN], out: &mut [u8; 176]) {
        k4_k5::encode_q5_k(x, out);
    }
    fn scalar_weighted(x: &[f32; LEN], importance: &[f32; LEN], out: &mut [u8; 176]) {
        k4_k5::encode_q5_k_weighted(x, importance, out);
    }
}

#[inline(always)]
pub(super) fn q4_k<V: Lanes>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    match importance {
        Some(importance) => eight_groups_weighted::<V, Q4, 144>(src, importance, dst),
        None => eight_groups::<V, Q4, 144>(src, dst),
    }
}

#[inline(always)]
pub(super) fn q5_k<V: Lanes>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    match importance {
        Some(importance) => eight_groups_weighted::<V, Q5, 176>(src, importance, dst),
        None => eight_groups::<V, Q5, 176>(src, dst),
    }
}

/// The weights of the values of each group where there is no importance: their root mean square plus their magnitude.
#[inline(always)]
fn plain_weights<V: Lanes>(x: &[V; 32]) -> [V; 32] {
    let mut sum = V::splat(0.0);
    for v in x {
        sum = sum.add(v.mul(*v));
    }
    let rms = sum.div(V::splat(32.0)).sqrt();
    let mut weights = *x;
    for v in &mut weights {
        *v = rms.add(v.abs());
    }
    weights
}

/// Two super-blocks at a time.
#[inline(always)]
fn eight_groups<V: Lanes, T: EightGroups<B>, const B: usize>(src: &[f32], dst: &mut [u8]) {
    let mut rows = [[0.0f32; LEN]; 2];
    for (blocks, out) in src.as_chunks::<LEN>().0.chunks(2).zip(dst.as_chunks_mut::<B>().0.chunks_mut(2)) {
        rows[..blocks.len()].copy_from_slice(blocks);
        let x: [V; 32] = columns(rows.as_flattened());
        let mut cells = cells(&x, &plain_weights(&x));
        let found = Found::of(&fit_line(T::TOP as f32, &mut cells, T::GRID, Loss::Square));
        for (k, (x, out)) in blocks.iter().zip(out).enumerate() {
            let mut fit = k4_k5::Fit { scales: found.scales[k], mins: found.mins[k], codes: [0; LEN] };
            let (head, _) = out.split_first_chunk_mut().expect("the block is longer than its header");
            if !found.strays[k] {
                k4_k5::plain_header(&fit, head);
            }
            if found.strays[k] || lost_codes(found.flat[k], head) {
                T::scalar(x, out);
                continue;
            }
            k4_k5::requantize(T::TOP, x, head, &mut fit.codes);
            T::pack(&fit.codes, &mut out[16..]);
        }
    }
}

/// What the searches found for each of two super-blocks.
struct Found {
    scales: [[f32; 8]; 2],
    mins: [[f32; 8]; 2],
    flat: [u32; 2],
    strays: [bool; 2],
}

impl Found {
    #[inline(always)]
    fn of<V: Lanes>(lines: &Lines<V>) -> Found {
        let (mut scales, mut mins) = ([[0.0; 8]; 2], [[0.0; 8]; 2]);
        lines.scale.store(scales.as_flattened_mut());
        lines.min.store(mins.as_flattened_mut());
        let (flat, strays) = (lines.flat, lines.strays);
        Found { scales, mins, flat: [flat & 0xff, flat >> 8], strays: [strays & 0xff != 0, strays >> 8 != 0] }
    }
}

#[inline(always)]
fn half(values: &[f32; LANES], k: usize) -> &[f32; 8] {
    values[8 * k..].first_chunk().expect("sixteen lanes are two super-blocks")
}

/// Whether a group that is not flat has no scale in the header: its codes are those of the search, which lanes do not
/// keep.
#[inline(always)]
fn lost_codes(flat: u32, head: &[u8; 16]) -> bool {
    let effective = k4_k5::effective_scales(head);
    let mut lost = false;
    for (j, (d, _)) in effective.into_iter().enumerate() {
        lost |= d == 0.0 && flat >> j & 1 == 0;
    }
    lost
}

#[inline(always)]
fn eight_groups_weighted<V: Lanes, T: EightGroups<B>, const B: usize>(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    let mut columns_of = Columns { importance, at: 0 };
    let mut rows = [[0.0f32; LEN]; 2];
    let mut weights = [[0.0f32; LEN]; 2];
    let mut column: [&[f32; LEN]; 2] = [&[0.0; LEN]; 2];
    for (blocks, out) in src.as_chunks::<LEN>().0.chunks(2).zip(dst.as_chunks_mut::<B>().0.chunks_mut(2)) {
        rows[..blocks.len()].copy_from_slice(blocks);
        for (k, x) in blocks.iter().enumerate() {
            column[k] = columns_of.next();
            weights[k] = k4_k5::importance_weights(x, column[k]);
        }
        let mut cells = cells::<V, 32>(&columns(rows.as_flattened()), &columns(weights.as_flattened()));
        let found = Found::of(&fit_line_guarded(T::TOP as f32, &mut cells).0);
        for (k, (x, out)) in blocks.iter().zip(out).enumerate() {
            let mut fit = k4_k5::Fit { scales: found.scales[k], mins: found.mins[k], codes: [0; LEN] };
            let (head, _) = out.split_first_chunk_mut().expect("the block is longer than its header");
            if !found.strays[k] {
                k4_k5::weighted_header(&fit, &weights[k], T::LIMIT, head);
            }
            if found.strays[k] || lost_codes(found.flat[k], head) {
                T::scalar_weighted(x, column[k], out);
                continue;
            }
            k4_k5::requantize(T::TOP, x, head, &mut fit.codes);
            T::pack(&fit.codes, &mut out[16..]);
        }
    }
}

#[inline(always)]
pub(super) fn q2_k<V: Lanes>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let mut columns_of = Columns { importance: importance.unwrap_or_default(), at: 0 };
    for (block, out) in src.as_chunks::<LEN>().0.iter().zip(dst.as_chunks_mut::<84>().0) {
        let column = if importance.is_some() { Some(columns_of.next()) } else { None };
        q2_k_block::<V>(block, column, out);
    }
}

#[inline(always)]
fn q2_k_block<V: Lanes>(block: &[f32; LEN], column: Option<&[f32; LEN]>, out: &mut [u8; 84]) {
    let x: [V; 16] = columns(block);
    let mut weights = [0.0f32; LEN];
    let lines = if let Some(column) = column {
        weights = k2_k3::importance_weights(1.0, block, column);
        fit_line_guarded(3.0, &mut cells(&x, &columns(&weights))).0
    } else {
        let mut magnitudes = x;
        for v in &mut magnitudes {
            *v = v.abs();
        }
        fit_line(3.0, &mut cells(&x, &magnitudes), k2_k3::Q2_GRID, Loss::Absolute)
    };
    let (mut scales, mut mins) = ([0.0f32; LANES], [0.0f32; LANES]);
    lines.scale.store(&mut scales);
    lines.min.store(&mut mins);
    let mut lost = lines.strays != 0;
    if !lost {
        match column {
            Some(_) => k2_k3::q2_header_weighted(&scales, &mins, &weights, out),
            None => k2_k3::q2_header(&scales, &mins, out),
        }
        let d = read_f16(field(out, 80));
        for (j, &stored) in out[..16].iter().enumerate() {
            lost |= d * f32::from(stored & 0xf) == 0.0 && lines.flat >> j & 1 == 0;
        }
    }
    match column {
        _ if !lost => k2_k3::q2_finish(block, &mut [0; LEN], out),
        Some(column) => k2_k3::encode_q2_k_weighted(block, column, out),
        None => k2_k3::encode_q2_k(block, out),
    }
}

/// Two super-blocks at a time: the moves are one long chain of dependent operations, and two chains hide each other.
#[inline(always)]
pub(super) fn q3_k<V: Lanes>(src: &[f32], dst: &mut [u8]) {
    let mut rows = [[0.0f32; LEN]; 2];
    for (blocks, out) in src.as_chunks::<LEN>().0.chunks(2).zip(dst.as_chunks_mut::<110>().0.chunks_mut(2)) {
        rows[..blocks.len()].copy_from_slice(blocks);
        let fit = fit_symmetric_by_moves::<Pair<V>>(4.0, &columns(rows.as_flattened()));
        let mut scales = [[0.0f32; LANES]; 2];
        fit.scale.store(scales.as_flattened_mut());
        for (k, (x, out)) in blocks.iter().zip(out).enumerate() {
            if fit.strays >> (16 * k) & 0xffff != 0 {
                k2_k3::encode_q3_k(x, out);
                continue;
            }
            k2_k3::q3_header(&scales[k], out);
            let d = read_f16(field(out, 108));
            let mut codes = [0i8; LEN];
            for j in 0..16 {
                if d * f32::from(k2_k3::unpack_q3_scale(j, field(out, 96))) == 0.0 {
                    for (i, lanes) in fit.codes.iter().enumerate() {
                        let mut code = [[0.0f32; LANES]; 2];
                        lanes.store(code.as_flattened_mut());
                        codes[16 * j + i] = code[k][j] as i8;
                    }
                }
            }
            k2_k3::q3_finish(x, &mut codes, out);
        }
    }
}

#[inline(always)]
pub(super) fn q3_k_weighted<V: Lanes>(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    let mut columns_of = Columns { importance, at: 0 };
    for (block, out) in src.as_chunks::<LEN>().0.iter().zip(dst.as_chunks_mut::<110>().0) {
        let column = columns_of.next();
        let weights = k2_k3::importance_weights(2.0, block, column);
        let x: [V; 16] = columns(block);
        let fit = fit_symmetric(4.0, &x, Some(&columns(&weights)));
        if fit.strays != 0 {
            k2_k3::encode_q3_k_weighted(block, column, out);
            continue;
        }
        let (mut scales, mut iscales) = ([0.0f32; LANES], [0.0f32; LANES]);
        fit.scale.store(&mut scales);
        fit.iscale.store(&mut iscales);
        k2_k3::q3_header_weighted(&scales, &weights, out);
        let d = read_f16(field(out, 108));
        let mut codes = [0i8; LEN];
        for j in 0..16 {
            if d * f32::from(k2_k3::unpack_q3_scale(j, field(out, 96))) == 0.0 {
                search_codes(4, iscales[j], &block[16 * j..][..16], &mut codes[16 * j..][..16]);
            }
        }
        k2_k3::q3_finish(block, &mut codes, out);
    }
}

/// The codes of `fit_symmetric` for the inverse scale that won.
fn search_codes(nmax: i32, iscale: f32, x: &[f32], codes: &mut [i8]) {
    if iscale != 0.0 {
        for (code, &v) in codes.iter_mut().zip(x) {
            *code = (nmax + nearest_int(iscale * v).clamp(-nmax, nmax - 1)) as i8;
        }
    }
}

#[inline(always)]
pub(super) fn q6_k<V: Lanes>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let mut columns_of = Columns { importance: importance.unwrap_or_default(), at: 0 };
    for (block, out) in src.as_chunks::<LEN>().0.iter().zip(dst.as_chunks_mut::<210>().0) {
        let column = if importance.is_some() { Some(columns_of.next()) } else { None };
        q6_k_block::<V>(block, column, out);
    }
}

#[inline(always)]
fn q6_k_block<V: Lanes>(block: &[f32; LEN], column: Option<&[f32; LEN]>, out: &mut [u8; 210]) {
    let x: [V; 16] = columns(block);
    let fit = match column {
        Some(column) => fit_symmetric(32.0, &x, Some(&columns(column))),
        None => fit_symmetric(32.0, &x, None),
    };
    if fit.strays != 0 {
        match column {
            Some(column) => k6::encode_q6_k_weighted(block, column, out),
            None => k6::encode_q6_k(block, out),
        }
        return;
    }
    let (mut scales, mut iscales) = ([0.0f32; LANES], [0.0f32; LANES]);
    fit.scale.store(&mut scales);
    fit.iscale.store(&mut iscales);
    let Some(d) = k6::write_scales(&scales, out) else { return };
    let mut codes = [0i8; LEN];
    for j in 0..16 {
        let at = 16 * j..16 * j + 16;
        let d = d * f32::from(out[192 + j] as i8);
        if d == 0.0 {
            search_codes(32, iscales[j], &block[at.clone()], &mut codes[at]);
        } else {
            k6::requantize_group(d, &block[at.clone()], &mut codes[at]);
        }
    }
    k6::pack(&codes, out);
}

#[inline(always)]
pub(super) fn iq4_xs<V: Lanes>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    let mut columns_of = Columns { importance: importance.unwrap_or_default(), at: 0 };
    let mut rows = [[0.0f32; LEN]; 2];
    let mut weights = [[0.0f32; LEN]; 2];
    for (blocks, out) in src.as_chunks::<LEN>().0.chunks(2).zip(dst.as_chunks_mut::<136>().0.chunks_mut(2)) {
        rows[..blocks.len()].copy_from_slice(blocks);
        let mut column = [None; 2];
        for (k, x) in blocks.iter().enumerate() {
            column[k] = if importance.is_some() { Some(columns_of.next()) } else { None };
            weights[k] = iq4::weights(x, column[k]);
        }
        let mut scales = [0.0f32; LANES];
        let (scale, strays) = fit_uneven::<V>(&columns(rows.as_flattened()), &columns(weights.as_flattened()));
        scale.store(&mut scales);
        for (k, (x, out)) in blocks.iter().zip(out).enumerate() {
            if strays >> (8 * k) & 0xff == 0 {
                iq4::finish_iq4_xs(x, half(&scales, k), out);
            } else {
                iq4::encode_iq4_xs(x, column[k], out);
            }
        }
    }
}
