//! The types whose codes are points of a grid: IQ1, IQ2 and IQ3.
//!
//! # What was tried
//!
//! 2026-11-22, one core of an AMD EPYC (Zen 3, AVX2), bell-shaped values in rows of 4096, nanoseconds for a value; ggml is
//! `ggml_quantize_chunk` of b11434, scalar the reference before this work.
//!
//! ```text
//!                        IQ2_XXS  IQ2_XS  IQ2_S  IQ3_XXS  IQ3_S  IQ1_S  IQ1_M
//! ggml, with importance      558     959    259      536    379    188    250
//! scalar                     400     833    200      417    303    149    132
//! lanes are neighbours        60      53     45       92     60     20     24
//! lanes are candidates        44      52     44       82     62
//! ```
//!
//! Nearly all the time of the scalar code goes into weighing neighbours, once for each cell and candidate scale: 30 of them
//! on average for IQ2_XXS, 57 for IQ2_XS, 8 to 11 for IQ2_S and IQ3.
//!
//! - Errors are looked up: for a given scale a value has no more than three or eight, so a neighbour costs one load and one
//!   addition for each value instead of three products, a difference and a sum. The sum keeps its order.
//! - Only contenders are weighed (`reference::lattice`): 14 instead of 57 for IQ2_XS, 5 to 7 for IQ3.
//! - Neighbours in the lanes, for one candidate at a time, need a smallest of eight lanes for each cell. Taken for eight
//!   cells at once, from a transposed tile, it costs little. This is how IQ1 and the last fit of the others work.
//! - Candidates in the lanes need no such thing. Those that round alike have the same neighbours: a cell sees 2.6
//!   combinations of 13 candidates (IQ2_XXS), 3.2 or 3.4 of 19 (IQ2_XS, IQ3_S), 4.8 of 31 (IQ3_XXS).
//! - The first scale of IQ2_XXS, with groups in the lanes, saves a tenth (49 to 44 ns).
//! - IQ1 tries all splits of sorted values: 561 pairs of boundaries with two shifts, or 153 with four. Groups are the
//!   lanes, what depends on one boundary is computed once, and a division waits until any lane has something better.
//!
//! The floor, counted and not measured: a value of IQ2_XS takes 30 vector operations for rounding, 27 for the table of
//! errors, 46 for contenders and 15 for sums, one of IQ3_XXS 40, 96, 40 and 23; at three in a cycle of a third of a
//! nanosecond that is 13 and 22 ns. Profiles show the rest of the time at loads of lists and cells that miss the first
//! cache, and after branches on list lengths and on whether a cell has an index, which are as good as random.

mod fit;
mod positive;
mod snap;
mod split;

use super::lanes::{Columns, Lanes, Portable};
use crate::reference::cells::weights;
use crate::reference::{iq1, iq2, iq3};
use fit::Searched;

/// Lanes that look up what packed codes stand for. There are eight of them.
pub(super) trait Picks: Lanes {
    /// A packed code in each lane.
    type Codes: Copy;

    fn load(values: &[f32; 8]) -> Self;
    fn codes(packed: &[u16; 8]) -> Self::Codes;
    /// What the first of `N` packed codes stands for. For four codes of three bits the table is all the lanes, for eight
    /// codes of two bits it is the first four lanes, and they come twice.
    fn pick<const N: usize>(self, codes: Self::Codes) -> Self;
    /// Drops the first code.
    fn next<const N: usize>(codes: Self::Codes) -> Self::Codes;
    /// The lanes, which hold integers from 0 on.
    fn integers(self, out: &mut [u32; 8]);
}

impl Picks for Portable {
    type Codes = [u32; 8];

    #[inline(always)]
    fn load(values: &[f32; 8]) -> Self {
        Portable(*values)
    }
    #[inline(always)]
    fn codes(packed: &[u16; 8]) -> [u32; 8] {
        packed.map(u32::from)
    }
    #[inline(always)]
    fn pick<const N: usize>(self, codes: [u32; 8]) -> Self {
        Portable(codes.map(|code| self.0[code as usize & (if N == 8 { 3 } else { 7 })]))
    }
    #[inline(always)]
    fn next<const N: usize>(codes: [u32; 8]) -> [u32; 8] {
        codes.map(|code| code >> (if N == 8 { 2 } else { 3 }))
    }
    #[inline(always)]
    fn integers(self, out: &mut [u32; 8]) {
        *out = self.0.map(|v| v as u32);
    }
}

/// Calls an encoder for every block with its column of importance values, if there are any.
macro_rules! each_block {
    ($src:ident, $importance:expr, $dst:ident, $bytes:literal, $x:ident, $column:ident, $out:ident => $encode:expr) => {
        let importance: Option<&[f32]> = $importance;
        let mut columns = Columns { importance: importance.unwrap_or_default(), at: 0 };
        for ($x, $out) in $src.as_chunks::<256>().0.iter().zip($dst.as_chunks_mut::<$bytes>().0) {
            let $column: Option<&[f32; 256]> = if importance.is_some() { Some(columns.next()) } else { None };
            $encode
        }
    };
}

#[inline(always)]
pub(super) fn iq2_xxs<V: Picks>(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    let mut columns = Columns { importance, at: 0 };
    for (x, out) in src.as_chunks::<256>().0.iter().zip(dst.as_chunks_mut::<66>().0) {
        iq2::fit_iq2_xxs::<Searched<V>>(x, columns.next(), out);
    }
}

#[inline(always)]
pub(super) fn iq2_xs<V: Picks>(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    let mut columns = Columns { importance, at: 0 };
    for (x, out) in src.as_chunks::<256>().0.iter().zip(dst.as_chunks_mut::<74>().0) {
        iq2::fit_iq2_xs::<Searched<V>>(x, columns.next(), out);
    }
}

#[inline(always)]
pub(super) fn iq2_s<V: Picks>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    each_block!(src, importance, dst, 82, x, column, out => iq2::fit_iq2_s::<Searched<V>>(x, column, out));
}

#[inline(always)]
pub(super) fn iq3_xxs<V: Picks>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    each_block!(src, importance, dst, 98, x, column, out => iq3::fit_iq3_xxs::<Searched<V>>(x, column, out));
}

#[inline(always)]
pub(super) fn iq3_s<V: Picks>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    each_block!(src, importance, dst, 110, x, column, out => iq3::fit_iq3_s::<Searched<V>>(x, column, out));
}

#[inline(always)]
pub(super) fn iq1_s<V: Picks>(src: &[f32], importance: &[f32], dst: &mut [u8]) {
    let mut columns = Columns { importance, at: 0 };
    for (x, out) in src.as_chunks::<256>().0.iter().zip(dst.as_chunks_mut::<50>().0) {
        let weights = weights(2.0, x, Some(columns.next()), 0.0);
        iq1::write_iq1_s(&split::find_iq1_s::<V>(x, &weights), out);
    }
}

#[inline(always)]
pub(super) fn iq1_m<V: Picks>(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) {
    each_block!(src, importance, dst, 56, x, column, out => {
        let weights = weights(2.0, x, column, 0.0);
        iq1::write_iq1_m(x, &weights, &split::find_iq1_m::<V>(x, &weights), out);
    });
}

/// The entry points in plain Rust. They are functions of their own, because a compiler takes far longer for one function
/// that holds them all.
pub(super) mod portable {
    use super::Portable;

    macro_rules! apart {
        ($($name:ident($importance:ty))*) => {$(
            #[inline(never)]
            pub fn $name(src: &[f32], importance: $importance, dst: &mut [u8]) {
                super::$name::<Portable>(src, importance, dst);
            }
        )*};
    }

    apart! {
        iq2_xxs(&[f32])
        iq2_xs(&[f32])
        iq2_s(Option<&[f32]>)
        iq3_xxs(Option<&[f32]>)
        iq3_s(Option<&[f32]>)
        iq1_s(&[f32])
        iq1_m(Option<&[f32]>)
    }
}
