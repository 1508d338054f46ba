//! Four-bit codes of a fixed, uneven scale (ggml b11434, `ggml-quants.c`).
//!
//! ```text
//!          values  0     2     4     8           18      136
//! IQ4_NL   32      d     qs[16]                  end             d * value[q]
//! IQ4_XS   256     d     sh    sl[4] qs[128]             end     d * (scale[g] - 32) * value[q], eight groups of 32
//!
//! qs       in each group of 32: low nibbles the first 16 values, high nibbles the second 16
//! scale    low four bits: nibble g of sl; high two bits: bits 2g and 2g + 1 of sh
//! ```

use super::plain::pack_nibbles;
use super::search::{GROUP_MAX_EPS, nearest_int, signed_max};
use crate::blocks::field;
use crate::float::{read_f16, write_f16};

pub(crate) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// How many scales are tried on either side of the first.
pub(crate) const TRIES: i32 = 7;

/// Halfway between neighbouring values. A difference of floats this close to a midpoint is exact, so ggml's comparison of
/// two distances is a comparison with the midpoint.
pub(crate) const MIDPOINTS: [f32; 15] = {
    let mut midpoints = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        midpoints[i] = (VALUES[i] as f32 + VALUES[i + 1] as f32) / 2.0;
        i += 1;
    }
    midpoints
};

/// The code of the nearest value, the higher one of two that are equally near; the highest for a NaN.
#[inline(always)]
pub(crate) fn nearest_code(x: f32) -> u8 {
    let mut code = 0;
    for midpoint in MIDPOINTS {
        code += if x < midpoint { 0 } else { 1 };
    }
    code
}

/// The scale of a group of 32, from 16 candidates; 0 for a group of zeros.
fn fit_group(x: &[f32; 32], weights: &[f32; 32]) -> f32 {
    let (max, amax) = signed_max(x);
    if amax < GROUP_MAX_EPS {
        return 0.0;
    }
    let sums = |id: f32| {
        let (mut sumqx, mut sumq2) = (0.0f32, 0.0f32);
        for (&v, &w) in x.iter().zip(weights) {
            let q = f32::from(VALUES[usize::from(nearest_code(id * v))]);
            sumqx += w * q * v;
            sumq2 += w * q * q;
        }
        (sumqx, sumq2)
    };
    let first = -max / f32::from(VALUES[0]);
    let (sumqx, sumq2) = sums(1.0 / first);
    let mut d = if sumq2 > 0.0 { sumqx / sumq2 } else { 0.0 };
    let mut best = d * sumqx;
    for step in -TRIES..=TRIES {
        let id = (step + i32::from(VALUES[0])) as f32 / max;
        let (sumqx, sumq2) = sums(id);
        if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
            d = sumqx / sumq2;
            best = d * sumqx;
        }
    }
    d
}

/// Weights of the values of a block: their squares, or `importance * sqrt(sigma2 + x^2)` with sigma2 twice the mean square
/// of the block.
#[inline(always)]
pub(crate) fn weights<const N: usize>(x: &[f32; N], importance: Option<&[f32; N]>) -> [f32; N] {
    let mut sigma2 = 0.0f32;
    for &v in x {
        sigma2 += v * v;
    }
    sigma2 *= 2.0 / N as f32;
    let mut out = [0.0; N];
    match importance {
        Some(importance) => {
            for i in 0..N {
                out[i] = importance[i] * (sigma2 + x[i] * x[i]).sqrt();
            }
        }
        None => {
            for i in 0..N {
                out[i] = x[i] * x[i];
            }
        }
    }
    out
}

pub(crate) fn encode_iq4_nl(x: &[f32; 32], importance: Option<&[f32; 32]>, out: &mut [u8; 18]) {
    let d = fit_group(x, &weights(x, importance));
    finish_iq4_nl(x, d, out);
}

#[inline(always)]
pub(crate) fn finish_iq4_nl(x: &[f32; 32], d: f32, out: &mut [u8; 18]) {
    write_f16(d, &mut out[..2]);
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    let mut codes = [0; 32];
    for i in 0..32 {
        codes[i] = nearest_code(id * x[i]);
    }
    pack_nibbles(&codes, &mut out[2..]);
}

pub(crate) fn decode_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = read_f16(field(block, 0));
    for (j, &q) in block[2..].iter().enumerate() {
        out[j] = d * f32::from(VALUES[usize::from(q & 0xf)]);
        out[j + 16] = d * f32::from(VALUES[usize::from(q >> 4)]);
    }
}

pub(crate) fn encode_iq4_xs(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 136]) {
    let weights = weights(x, importance);
    let mut scales = [0.0; 8];
    let groups = x.as_chunks::<32>().0.iter().zip(weights.as_chunks::<32>().0);
    for ((x, weights), scale) in groups.zip(&mut scales) {
        *scale = fit_group(x, weights);
    }
    finish_iq4_xs(x, &scales, out);
}

/// Scales relative to the one of the largest magnitude, and the codes for them.
#[inline(always)]
pub(crate) fn finish_iq4_xs(x: &[f32; 256], scales: &[f32; 8], out: &mut [u8; 136]) {
    let (mut max, mut amax) = (0.0f32, 0.0f32);
    for &scale in scales {
        if scale.abs() > amax {
            (amax, max) = (scale.abs(), scale);
        }
    }
    let d = -max / 32.0;
    write_f16(d, &mut out[..2]);
    let id = if d != 0.0 { 1.0 / d } else { 0.0 };
    let mut high_bits = 0u16;
    out[4..8].fill(0);
    for (g, &scale) in scales.iter().enumerate() {
        let l = nearest_int(id * scale).clamp(-32, 31);
        let dl = d * l as f32;
        let idl = if dl != 0.0 { 1.0 / dl } else { 0.0 };
        let mut codes = [0; 32];
        for i in 0..32 {
            codes[i] = nearest_code(idl * x[32 * g + i]);
        }
        pack_nibbles(&codes, &mut out[8 + 16 * g..][..16]);
        let stored = (l + 32) as u16;
        out[4 + g / 2] |= (stored as u8 & 0xf) << (4 * (g % 2));
        high_bits |= stored >> 4 << (2 * g);
    }
    out[2..4].copy_from_slice(&high_bits.to_le_bytes());
}

pub(crate) fn decode_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = read_f16(field(block, 0));
    let high_bits = u16::from_le_bytes(*field(block, 2));
    for (g, group) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = i32::from(block[4 + g / 2] >> (4 * (g % 2)) & 0xf);
        let high = i32::from(high_bits >> (2 * g) & 3);
        let dl = d * ((low | high << 4) - 32) as f32;
        for (j, &q) in block[8 + 16 * g..][..16].iter().enumerate() {
            group[j] = dl * f32::from(VALUES[usize::from(q & 0xf)]);
            group[j + 16] = dl * f32::from(VALUES[usize::from(q >> 4)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The two nearest values, then the nearer by the distances that f32 computes: ggml's `best_index_int8`.
    fn by_distances(x: f32) -> u8 {
        let value = |code: usize| f32::from(VALUES[code]);
        match VALUES.iter().position(|&v| x <= f32::from(v)) {
            Some(0) => 0,
            None => 15,
            Some(above) if x == value(above) => above as u8,
            Some(above) => (above - usize::from(x - value(above - 1) < value(above) - x)) as u8,
        }
    }

    #[test]
    fn midpoints_decide_as_distances_do() {
        for midpoint in MIDPOINTS {
            let mut x = midpoint;
            (0..1000).for_each(|_| x = x.next_down());
            for _ in 0..2000 {
                assert_eq!(nearest_code(x), by_distances(x), "{x}");
                x = x.next_up();
            }
        }
        for i in -260_000..260_000 {
            let x = i as f32 / 2000.0;
            assert_eq!(nearest_code(x), by_distances(x), "{x}");
        }
        assert_eq!(nearest_code(f32::NAN), 15);
    }
}
