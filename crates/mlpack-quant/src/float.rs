//! Half-precision floats as ggml converts them (b11434, `ggml-impl.h`): round to nearest, ties to even.
//!
//! ```text
//! f32   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm
//! bf16  s eeeeeeee mmmmmmm                    the upper half of an f32
//! f16   s    eeeee mmmmmmmmmm                 bias 15: 65504 is the largest, 2^-24 the smallest above zero
//! ```

/// Rounds to binary16. Magnitudes from 65520 on become infinite, every NaN becomes 0x7E00 with its sign.
#[inline(always)]
pub(crate) fn f16_from_f32(value: f32) -> u16 {
    const FIRST_INFINITE: u32 = 0x477f_f000; // 65520
    const FIRST_NORMAL: u32 = 0x3880_0000; // 2^-14
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.to_bits() & 0x7fff_ffff;
    let bits = if magnitude > f32::INFINITY.to_bits() {
        0x7e00
    } else if magnitude >= FIRST_INFINITE {
        0x7c00
    } else if magnitude >= FIRST_NORMAL {
        let to_even = 0xfff + (magnitude >> 13 & 1);
        ((magnitude - (112 << 23) + to_even) >> 13) as u16
    } else {
        // One unit in the last place of 0.5 is 2^-24, the step of subnormal f16: the addition rounds.
        ((f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()) as u16
    };
    sign | bits
}

/// Widens binary16, exactly. A signalling NaN becomes quiet, as the arithmetic of ggml makes it.
#[inline(always)]
pub(crate) fn f32_from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let mantissa = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        0 => (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits(), // 2^-24
        31 if mantissa != 0 => 0x7fc0_0000 | mantissa << 13,
        31 => f32::INFINITY.to_bits(),
        _ => (exponent + 112) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// Rounds to bfloat16. NaNs keep their upper bits and become quiet.
#[inline(always)]
pub(crate) fn bf16_from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > f32::INFINITY.to_bits() {
        return (bits >> 16) as u16 | 0x40;
    }
    let to_even = 0x7fff + (bits >> 16 & 1);
    ((bits + to_even) >> 16) as u16
}

/// Widens bfloat16, exactly, payload and all.
#[inline(always)]
pub(crate) fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Reads the binary16 scale of a block.
#[inline(always)]
pub(crate) fn read_f16(bytes: &[u8; 2]) -> f32 {
    f32_from_f16(u16::from_le_bytes(*bytes))
}

/// The binary16 form of a scale. One that is not a number, which only values that overflow give, is always written as the
/// NaN that x86 arithmetic makes: the sign of a NaN otherwise depends on the order of operands.
#[inline(always)]
pub(crate) fn scale_bits(value: f32) -> u16 {
    if value.is_nan() { 0xfe00 } else { f16_from_f32(value) }
}

/// Writes the binary16 scale of a block and returns the value that a reader will see.
#[inline(always)]
pub(crate) fn write_f16(value: f32, bytes: &mut [u8]) -> f32 {
    let half = scale_bits(value);
    bytes.copy_from_slice(&half.to_le_bytes());
    f32_from_f16(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let nan = bits & 0x7fff > 0x7c00;
            let expected = if nan { bits & 0x8000 | 0x7e00 } else { bits };
            assert_eq!(f16_from_f32(f32_from_f16(bits)), expected, "{bits:04x}");
        }
    }

    #[test]
    fn f16_rounds_ties_to_even_at_every_boundary() {
        // Halfway between two neighbours is exact in f32: the even one wins, one ulp to either side decides.
        for bits in 0..0x7bffu16 {
            let (low, high) = (f32_from_f16(bits), f32_from_f16(bits + 1));
            let middle = low + (high - low) / 2.0;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(f16_from_f32(middle), even, "{bits:04x}");
            assert_eq!(f16_from_f32(middle.next_down()), bits);
            assert_eq!(f16_from_f32(middle.next_up()), bits + 1);
            assert_eq!(f16_from_f32(-middle), 0x8000 | even);
        }
        assert_eq!(f16_from_f32(65519.996), 0x7bff);
        assert_eq!(f16_from_f32(65520.0), 0x7c00, "overflow is infinite; the caller checks");
    }

    #[test]
    fn bf16_rounds_ties_to_even_and_quiets_nans() {
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(bf16_from_f32(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(bf16_from_f32(f32::MAX), 0x7f80);
        assert_eq!(bf16_from_f32(-0.0), 0x8000);
        assert_eq!(bf16_from_f32(f32::from_bits(0xff80_0001)), 0xffc0);
        for bits in 0..=u16::MAX {
            let quiet = if bits & 0x7fff > 0x7f80 { bits | 0x40 } else { bits };
            assert_eq!(bf16_from_f32(f32_from_bf16(bits)), quiet);
        }
    }
}
