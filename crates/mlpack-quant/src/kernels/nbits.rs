//! Blocks of integers for ONNX Runtime in plain Rust that compilers turn into vectors.

use crate::nbits::{Scalar, Sixteen};

/// Eight lanes side by side.
pub(super) struct Plain;

impl Sixteen for Plain {
    #[inline(always)]
    fn extremes(values: &[f32]) -> (f32, f32) {
        let (parts, rest) = values.as_chunks::<8>();
        let (mut low, mut high) = ([f32::MAX; 8], [f32::MIN; 8]);
        for part in parts {
            for i in 0..8 {
                low[i] = if part[i] < low[i] { part[i] } else { low[i] };
                high[i] = if part[i] > high[i] { part[i] } else { high[i] };
            }
        }
        joined(&low, &high, rest, values)
    }

    #[inline(always)]
    fn codes(values: &[f32; 16], inverse: f32, zero: f32, top: f32) -> [u8; 16] {
        let mut codes = [0; 16];
        for (code, &v) in codes.iter_mut().zip(values) {
            let cut = v * inverse + zero;
            let cut = if cut > 0.0 { cut } else { 0.0 };
            let cut = if cut < top { cut } else { top };
            *code = (cut + ALMOST_HALF) as i32 as u8;
        }
        codes
    }

    #[inline(always)]
    fn pairs(codes: [u8; 16]) -> [u8; 8] {
        let mut out = [0; 8];
        for (out, pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
            *out = pair[0] | pair[1] << 4;
        }
        out
    }
}

/// Adding the largest float below one half is what makes truncation round halves away from zero.
pub(super) const ALMOST_HALF: f32 = 0.5f32.next_down();

/// The extremes of lanes and of what they leave over.
#[inline(always)]
pub(super) fn joined(low: &[f32; 8], high: &[f32; 8], rest: &[f32], all: &[f32]) -> (f32, f32) {
    let (mut min, mut max) = (low[0], high[0]);
    for i in 1..8 {
        min = if low[i] < min { low[i] } else { min };
        max = if high[i] > max { high[i] } else { max };
    }
    for &v in rest {
        min = if v < min { v } else { min };
        max = if v > max { v } else { max };
    }
    settled(min, max, all)
}

/// Which zero a block of zeros begins with, only the scalar code knows.
#[inline(always)]
pub(super) fn settled(min: f32, max: f32, all: &[f32]) -> (f32, f32) {
    if min == 0.0 && max == 0.0 { Scalar::extremes(all) } else { (min, max) }
}
