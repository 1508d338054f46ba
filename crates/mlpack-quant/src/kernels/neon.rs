//! NEON: the lane type of 64-bit Arm.
//!
//! `unsafe` is here for two reasons only. Intrinsics need NEON, which the targets that this file is compiled for always
//! have. And vector loads and stores go through pointers, made from array references of exactly the vector's size.
//!
//! Nothing here fuses a multiplication with an addition, and Rust never does it by itself: the reference rounds after every
//! operation. Floats below the normal range are kept, as `FPCR` has it from the start of a process.

#![allow(unsafe_code, reason = "intrinsics; see the header of this file")]

use super::decode::Lookup;
use super::lanes::{Lanes, Pair};
use std::arch::aarch64::*;

/// Sixteen lanes in four registers, of 32.
pub(super) type F16 = Pair<Pair<F4>>;

/// Four lanes in one register.
#[derive(Clone, Copy)]
pub(super) struct F4(float32x4_t);

/// Wraps one intrinsic. SAFETY: every CPU of the target has NEON.
macro_rules! op {
    ($e:expr) => {
        F4(unsafe { $e })
    };
}

#[inline(always)]
fn load4(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: the reference is to four floats.
    unsafe { vld1q_f32(values.as_ptr()) }
}

/// The 4 x 4 transpose: pairs of rows, then halves.
#[inline(always)]
fn transpose(r: [float32x4_t; 4]) -> [F4; 4] {
    // SAFETY: as for `op`.
    unsafe {
        let (a, b) = (vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]));
        let (c, d) = (vtrn1q_f32(r[2], r[3]), vtrn2q_f32(r[2], r[3]));
        [
            F4(vcombine_f32(vget_low_f32(a), vget_low_f32(c))),
            F4(vcombine_f32(vget_low_f32(b), vget_low_f32(d))),
            F4(vcombine_f32(vget_high_f32(a), vget_high_f32(c))),
            F4(vcombine_f32(vget_high_f32(b), vget_high_f32(d))),
        ]
    }
}

impl Lanes for F4 {
    const N: usize = 4;
    type Mask = uint32x4_t;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        op!(vdupq_n_f32(value))
    }
    #[inline(always)]
    fn tile(rows: &[f32], stride: usize, at: usize) -> [Self; 8] {
        let (mut left, mut right) = ([Self::splat(0.0).0; 4], [Self::splat(0.0).0; 4]);
        for lane in 0..4 {
            let row: &[f32; 8] = rows[lane * stride + at..].first_chunk().expect("a row holds the tile");
            let halves = row.as_chunks::<4>().0;
            (left[lane], right[lane]) = (load4(&halves[0]), load4(&halves[1]));
        }
        let ([a, b, c, d], [e, f, g, h]) = (transpose(left), transpose(right));
        [a, b, c, d, e, f, g, h]
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        let out: &mut [f32; 4] = out.first_chunk_mut().expect("four lanes fit");
        // SAFETY: the reference is to four floats.
        unsafe { vst1q_f32(out.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        op!(vaddq_f32(self.0, other.0))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        op!(vsubq_f32(self.0, other.0))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        op!(vmulq_f32(self.0, other.0))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        op!(vdivq_f32(self.0, other.0))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        op!(vsqrtq_f32(self.0))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        op!(vabsq_f32(self.0))
    }
    #[inline(always)]
    fn neg(self) -> Self {
        op!(vnegq_f32(self.0))
    }
    #[inline(always)]
    fn round(self) -> Self {
        op!(vrndnq_f32(self.0))
    }
    // The minimum of Arm has its own rules for NaNs and zeros of different sign, so these compare and select.
    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        Self::select(self.lt(other), self, other)
    }
    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        Self::select(other.lt(self), self, other)
    }
    // The "number" forms prefer the operand that is one; and where a cut value may be a zero, its sign does not matter
    // because codes are turned into integers or added to sums that started at plain zero.
    #[inline(always)]
    fn cut_positive(self, top: Self) -> Self {
        op!(vminnmq_f32(vmaxnmq_f32(self.0, vdupq_n_f32(0.0)), top.0))
    }
    #[inline(always)]
    fn cut_below(self) -> Self {
        op!(vmaxnmq_f32(self.0, vdupq_n_f32(0.0)))
    }
    #[inline(always)]
    fn cut_signed(self, bottom: Self, top: Self) -> Self {
        op!(vminnmq_f32(vmaxnmq_f32(self.0, bottom.0), top.0))
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        // SAFETY: as for `op`.
        unsafe { vcltq_f32(self.0, other.0) }
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Self::Mask {
        // SAFETY: as for `op`.
        unsafe { vceqq_f32(self.0, other.0) }
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        // SAFETY: as for `op`.
        unsafe { vandq_u32(a, b) }
    }
    #[inline(always)]
    fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        // SAFETY: as for `op`.
        unsafe { vorrq_u32(a, b) }
    }
    #[inline(always)]
    fn not(mask: Self::Mask) -> Self::Mask {
        // SAFETY: as for `op`.
        unsafe { vmvnq_u32(mask) }
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        op!(vbslq_f32(mask, yes.0, no.0))
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        // The lowest bit of each lane, at the lane's place.
        const PLACES: [i32; 4] = [0, 1, 2, 3];
        // SAFETY: as for `op`; the reference is to four words.
        unsafe { vaddvq_u32(vshlq_u32(vshrq_n_u32::<31>(mask), vld1q_s32(PLACES.as_ptr()))) }
    }
    #[inline(always)]
    fn step(self, edges: &[f32; 15], values: &[f32; 16]) -> Self {
        let mut value = Self::splat(values[0]);
        for (&edge, &above) in edges.iter().zip(&values[1..]) {
            value = Self::select(self.lt(Self::splat(edge)), value, Self::splat(above));
        }
        value
    }
}

pub(super) struct Table;

impl Lookup for Table {
    #[inline(always)]
    fn entries(table: &[i8; 16], codes: [u8; 16]) -> [i8; 16] {
        let mut out = [0; 16];
        // SAFETY: the loads and the store are of sixteen bytes.
        unsafe { vst1q_s8(out.as_mut_ptr(), vqtbl1q_s8(vld1q_s8(table.as_ptr()), vld1q_u8(codes.as_ptr()))) };
        out
    }
}
