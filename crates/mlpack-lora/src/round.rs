//! One correct rounding from float64 to a checkpoint's dtype, ties to even (IEEE 754-2019, section 4.3.1).
//!
//! Rounding float64 to bfloat16 or float16 through float32 rounds twice: a value just above a tie can become the tie and
//! then go down. Here the first step rounds to odd, which keeps the information that something was cut off.

use crate::simd::simd;
use mlpack_tensor::Dtype;
use pulp::NullaryFnOnce;
use std::ops::Range;

/// A sum that is NaN or infinite, or rounds to infinity in the dtype.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    /// The index of the element.
    pub index: usize,
    /// The sum.
    pub value: f64,
}

/// Rounds `values` to `dtype`, little-endian, into `out` (of `values.len() * dtype.byte_size()` bytes).
///
/// # Errors
/// The first element whose rounded value is not finite.
///
/// # Panics
/// When `dtype` is not a float dtype or `out` has another length: both are checked when an overlay is made.
pub fn round_to(dtype: Dtype, values: &[f64], out: &mut [u8]) -> Result<(), NotFinite> {
    match dtype {
        Dtype::F64 => each(values, out, |v| v.to_le_bytes(), f64::is_finite),
        Dtype::F32 => each(values, out, |v| (v as f32).to_le_bytes(), |v| (v as f32).is_finite()),
        Dtype::F16 => each(values, out, |v| to_f16(v).to_le_bytes(), |v| half::f16::from_bits(to_f16(v)).is_finite()),
        Dtype::BF16 => round_to_bf16(values, out),
        Dtype::F8_E4M3 => each(values, out, |v| [to_f8(v, E4M3)], f64::is_finite),
        Dtype::F8_E5M2 => each(values, out, |v| [to_f8(v, E5M2)], f64::is_finite),
        other => panic!("{other} is not a float dtype"),
    }
}

/// The same for values that are stored divided by a scale: `scale` gives that of an element.
///
/// # Errors
/// The first element whose value is not finite.
///
/// # Panics
/// As [`round_to`].
pub fn round_scaled(
    dtype: Dtype,
    values: &[f64],
    out: &mut [u8],
    scale: impl Fn(usize) -> f64,
) -> Result<(), NotFinite> {
    let scaled: Vec<f64> = values.iter().enumerate().map(|(i, v)| v / scale(i)).collect();
    round_to(dtype, &scaled, out).map_err(|wrong| NotFinite { value: values[wrong.index], ..wrong })
}

/// A format of eight bits: mantissa bits, exponent bias, and the largest finite value's bits.
#[derive(Clone, Copy)]
struct Small {
    mantissa: u32,
    bias: i32,
    largest: u8,
}

/// OCP FP8, revision 1.0.
const E4M3: Small = Small { mantissa: 3, bias: 7, largest: 0x7e };
const E5M2: Small = Small { mantissa: 2, bias: 15, largest: 0x7b };

/// The nearest, ties to even; what lies beyond the largest finite value becomes that value, as PEFT has it.
fn to_f8(v: f64, format: Small) -> u8 {
    let sign = if v.is_sign_negative() { 0x80 } else { 0 };
    // The exponent of the last bit: that of the value's own binade, but not below the subnormals'.
    let exponent = ((v.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(1 - format.bias);
    let unit = exponent - format.mantissa as i32;
    // Exact: a power of two, and what is too small for float64 is far below half a unit.
    let units = (v.abs() * 2f64.powi(-unit)).round_ties_even();
    // A carry into the next binade is the right bits too, because exponent and mantissa are one number.
    let binade = ((exponent + format.bias - 1) as u64) << format.mantissa;
    let bits = binade as f64 + units;
    sign | if bits > f64::from(format.largest) { format.largest } else { bits as u8 }
}

/// Values that are rounded together: a compiler turns them into vectors.
const GROUP: usize = 32;

/// Groups without branches; a group with a value outside the normal range of bfloat16 is done one by one.
fn round_to_bf16(values: &[f64], out: &mut [u8]) -> Result<(), NotFinite> {
    assert_eq!(out.len(), values.len() * 2, "the output has the length of the dtype");
    let mut done = 0;
    while values.len() - done >= GROUP {
        let (groups, _) = values[done..].as_chunks::<GROUP>();
        let (out_groups, _) = out[done * 2..].as_chunks_mut::<{ GROUP * 2 }>();
        done += simd(NormalGroups { groups, out: out_groups }) * GROUP;
        if values.len() - done >= GROUP {
            one_by_one_to_bf16(values, out, done..done + GROUP)?;
            done += GROUP;
        }
    }
    one_by_one_to_bf16(values, out, done..values.len())
}

/// Groups of values, as far as all of them are in the normal range of bfloat16.
struct NormalGroups<'a> {
    groups: &'a [[f64; GROUP]],
    out: &'a mut [[u8; GROUP * 2]],
}

impl NullaryFnOnce for NormalGroups<'_> {
    type Output = usize;

    /// Returns the number of groups that are done.
    #[inline(always)]
    fn call(self) -> usize {
        // float64 has 45 mantissa bits more than bfloat16, and its exponent is biased by 896 more than float32's.
        const EXTRA_BITS: u32 = 45;
        const REBIAS: u64 = 896 << 7;
        const NORMAL: std::ops::Range<u64> = 897 << 7..(896 + 255) << 7;
        let count = self.groups.len();
        for (i, (group, out)) in self.groups.iter().zip(self.out).enumerate() {
            let mut all_normal = true;
            let mut rounded = [0u16; GROUP];
            for (r, v) in rounded.iter_mut().zip(group) {
                let bits = v.to_bits();
                let magnitude = bits & (u64::MAX >> 1);
                let even = (magnitude >> EXTRA_BITS) & 1;
                let short = (magnitude + ((1 << (EXTRA_BITS - 1)) - 1) + even) >> EXTRA_BITS;
                all_normal &= NORMAL.contains(&short);
                *r = ((bits >> 63) << 15) as u16 | short.wrapping_sub(REBIAS) as u16;
            }
            if !all_normal {
                return i;
            }
            for (o, r) in out.as_chunks_mut::<2>().0.iter_mut().zip(rounded) {
                *o = r.to_le_bytes();
            }
        }
        count
    }
}

fn one_by_one_to_bf16(values: &[f64], out: &mut [u8], range: Range<usize>) -> Result<(), NotFinite> {
    let out = &mut out[range.start * 2..range.end * 2];
    each(&values[range.clone()], out, |v| to_bf16(v).to_le_bytes(), |v| half::bf16::from_bits(to_bf16(v)).is_finite())
        .map_err(|wrong| NotFinite { index: wrong.index + range.start, ..wrong })
}

fn each<const N: usize>(
    values: &[f64],
    out: &mut [u8],
    round: impl Fn(f64) -> [u8; N],
    is_finite: impl Fn(f64) -> bool,
) -> Result<(), NotFinite> {
    assert_eq!(out.len(), values.len() * N, "the output has the length of the dtype");
    let mut all_finite = true;
    let (chunks, _) = out.as_chunks_mut::<N>();
    for (o, &v) in chunks.iter_mut().zip(values) {
        *o = round(v);
        all_finite &= is_finite(v);
    }
    if all_finite {
        return Ok(());
    }
    let (index, &value) =
        values.iter().enumerate().find(|(_, v)| !is_finite(**v)).expect("the loop above saw such a value");
    Err(NotFinite { index, value })
}

/// float64 to float32, rounding to odd: truncate, and when anything was cut off set the last bit.
#[inline(always)]
fn to_f32_odd(v: f64) -> u32 {
    let nearest = v as f32;
    let bits = nearest.to_bits();
    let back = f64::from(nearest);
    // One step towards zero when the nearest lies beyond the value; the bits of a float are ordered by magnitude.
    let truncated = bits - u32::from(back.abs() > v.abs());
    if back == v || v.is_nan() { bits } else { truncated | 1 }
}

#[inline(always)]
fn to_bf16(v: f64) -> u16 {
    let bits = to_f32_odd(v);
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return ((bits >> 16) | 0x40) as u16;
    }
    let even = (bits >> 16) & 1;
    ((bits + 0x7fff + even) >> 16) as u16
}

#[inline(always)]
fn to_f16(v: f64) -> u16 {
    half::f16::from_f32(f32::from_bits(to_f32_odd(v))).to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest bfloat16 or float16 by comparing distances in float64, which are exact here.
    fn nearest(v: f64, decode: impl Fn(u16) -> f64) -> u16 {
        let sign = if v.is_sign_negative() { 0x8000 } else { 0 };
        let (mut low, mut high) = (0u16, 0x7fff);
        while high - low > 1 {
            let mid = low + (high - low) / 2;
            if decode(mid) <= v.abs() { low = mid } else { high = mid }
        }
        let (below, above) = (v.abs() - decode(low), decode(high) - v.abs());
        let up = above < below || (above == below && low & 1 == 1);
        sign | if up { high } else { low }
    }

    fn values() -> Vec<f64> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state >> 11
        };
        let mut values = Vec::new();
        for _ in 0..20_000 {
            let exponent = (next() % 60) as i32 - 40;
            let mantissa = 1.0 + next() as f64 / (1u64 << 53) as f64;
            let v = mantissa * 2f64.powi(exponent);
            // On, just above and just below the ties of both formats.
            let tie_bf16 = f64::from_bits(v.to_bits() & !((1 << 45) - 1) | 1 << 44);
            let tie_f16 = f64::from_bits(v.to_bits() & !((1 << 42) - 1) | 1 << 41);
            for t in [v, tie_bf16, tie_f16] {
                values.extend([t, -t, f64::from_bits(t.to_bits() + 1), f64::from_bits(t.to_bits() - 1)]);
            }
        }
        values
    }

    #[test]
    fn bf16_is_the_nearest_with_ties_to_even() {
        for v in values() {
            assert_eq!(to_bf16(v), nearest(v, |b| f64::from(f32::from_bits(u32::from(b) << 16))), "{v:e}");
        }
    }

    #[test]
    fn groups_of_bf16_give_the_same_as_single_values() {
        let mut values = values();
        // The edges of the normal range, subnormals and zeros, each among normal values.
        for (i, v) in
            [0.0, -0.0, 1e-39, 2f64.powi(-126), 2f64.powi(-126) * 0.999, 3.38e38, 1e-300].into_iter().enumerate()
        {
            values[i * 100 + 7] = v;
        }
        values.truncate(50_007);
        let mut rounded = vec![0; values.len() * 2];
        round_to(Dtype::BF16, &values, &mut rounded).unwrap();
        for (v, bytes) in values.iter().zip(rounded.as_chunks::<2>().0) {
            assert_eq!(u16::from_le_bytes(*bytes), to_bf16(*v), "{v:e}");
        }
        values[40_000] = f64::INFINITY;
        assert_eq!(round_to(Dtype::BF16, &values, &mut rounded).unwrap_err().index, 40_000);
    }

    #[test]
    fn f16_is_the_nearest_with_ties_to_even() {
        for v in values().into_iter().filter(|v| v.abs() < 65_504.0) {
            assert_eq!(to_f16(v), nearest(v, |b| half::f16::from_bits(b).to_f64()), "{v:e}");
        }
    }

    #[test]
    fn fp8_is_the_nearest_with_ties_to_even_and_saturates() {
        for (dtype, format) in [(Dtype::F8_E4M3, E4M3), (Dtype::F8_E5M2, E5M2)] {
            let decode = |bits: u8| {
                let mut out = [0.0];
                crate::matrix::to_f64(dtype, &[bits], &mut out);
                out[0]
            };
            for v in values() {
                let rounded = to_f8(v, format);
                let distance = |bits: u8| (decode(bits) - v.abs()).abs();
                let best = (0..=format.largest)
                    .min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1))))
                    .unwrap();
                assert_eq!(rounded & 0x7f, best, "{v:e}");
                assert_eq!(rounded & 0x80 != 0, v.is_sign_negative());
            }
            assert_eq!(to_f8(1e9, format), format.largest);
        }
    }

    #[test]
    fn just_above_a_tie_goes_up_although_float32_says_tie() {
        // 1 + 2^-8 is the tie between two bfloat16; 2^-40 more is lost in float32.
        let v = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(to_bf16(v), 0x3f81);
        assert_eq!(half::bf16::from_f32(v as f32).to_bits(), 0x3f80, "the double rounding that is avoided");
    }

    #[test]
    fn names_the_first_value_that_is_not_finite() {
        let mut out = [0; 6];
        let wrong = round_to(Dtype::F16, &[1.0, 65_520.0, f64::NAN], &mut out).unwrap_err();
        assert_eq!((wrong.index, wrong.value), (1, 65_520.0));
        assert!(round_to(Dtype::F16, &[1.0, 65_519.9, -65_504.0], &mut out).is_ok());
        assert!(round_to(Dtype::BF16, &[f64::MAX, 0.0, 0.0], &mut out).is_err());
    }
}
