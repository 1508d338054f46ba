//! `base ** exponents` for a number and a float32 tensor, to the bit as torch computes it on an x86-64 with AVX2.
//!
//! torch takes whole groups of sixteen elements through SLEEF's `powf` (at most 1.0 ulp off, float32 pairs with fused
//! multiply-add), and the elements after them through the C library's `powf`, which is correctly rounded in all but a
//! few cases in a thousand million. Rotations have 32 or 64 elements in the models that need this, so the second rule
//! is for odd head sizes only. (With AVX-512 groups are of thirty-two.) Formulas: SLEEF 3.6, "sleefsimdsp.c": exp of
//! the product of the exponent and the logarithm, all in unevaluated sums of two floats.

/// Elements per group.
const GROUP: usize = 16;

/// `base ** e` for each exponent. `base` is finite and positive in every sane config; else the C library's rules hold.
pub(crate) fn powers(base: f32, exponents: &[f32]) -> Vec<f32> {
    let grouped = exponents.len() / GROUP * GROUP;
    let ordinary = base.is_finite() && base >= f32::MIN_POSITIVE;
    let power = |(i, &exponent): (usize, &f32)| {
        if ordinary && i < grouped {
            exponential(logarithm(base).times(exponent))
        } else {
            // Rounding the double result once more differs from rounding the exact one about once in 2^28 cases.
            f64::from(base).powf(f64::from(exponent)) as f32
        }
    };
    exponents.iter().enumerate().map(power).collect()
}

/// An unevaluated sum of two floats: the second is the rounding error of the first.
#[derive(Clone, Copy)]
struct Pair {
    high: f32,
    low: f32,
}

impl Pair {
    /// The exact sum of two floats.
    fn sum(a: f32, b: f32) -> Pair {
        let high = a + b;
        let part = high - a;
        Pair { high, low: (a - (high - part)) + (b - part) }
    }

    /// The exact sum, when `a` is the larger.
    fn sum_ordered(a: f32, b: f32) -> Pair {
        let high = a + b;
        Pair { high, low: a - high + b }
    }

    fn normalized(self) -> Pair {
        let high = self.high + self.low;
        Pair { high, low: self.high - high + self.low }
    }

    /// This and a float, whatever their sizes.
    fn plus(self, b: f32) -> Pair {
        let sum = Pair::sum(self.high, b);
        Pair { high: sum.high, low: sum.low + self.low }
    }

    /// This and a smaller pair.
    fn plus_smaller(self, b: Pair) -> Pair {
        let high = self.high + b.high;
        Pair { high, low: self.high - high + b.high + self.low + b.low }
    }

    /// This and a pair of any size.
    fn plus_pair(self, b: Pair) -> Pair {
        let sum = Pair::sum(self.high, b.high);
        Pair { high: sum.high, low: sum.low + (self.low + b.low) }
    }

    fn times(self, b: f32) -> Pair {
        let high = self.high * b;
        Pair { high, low: self.low.mul_add(b, self.high.mul_add(b, -high)) }
    }

    fn times_pair(self, b: Pair) -> Pair {
        let high = self.high * b.high;
        let error = self.high.mul_add(b.high, -high);
        Pair { high, low: self.high.mul_add(b.low, self.low.mul_add(b.high, error)) }
    }

    fn squared(self) -> Pair {
        let high = self.high * self.high;
        let error = self.high.mul_add(self.high, -high);
        Pair { high, low: (self.high + self.high).mul_add(self.low, error) }
    }

    fn divided_by(self, divisor: Pair) -> Pair {
        let reciprocal = 1.0 / divisor.high;
        let high = self.high * reciprocal;
        let error = reciprocal.mul_add(self.high, -high);
        let correction = (-divisor.low).mul_add(reciprocal, (-divisor.high).mul_add(reciprocal, 1.0));
        Pair { high, low: high.mul_add(correction, self.low.mul_add(reciprocal, error)) }
    }
}

/// ln of a positive normal number.
fn logarithm(value: f32) -> Pair {
    const LN_2: Pair = Pair { high: std::f32::consts::LN_2, low: -1.904_654_2e-9 };
    const TWO_THIRDS: Pair = Pair { high: 0.666_666_6, low: 3.691_838_6e-9 };
    // value = mantissa * 2^exponent with the mantissa in [3/4, 3/2).
    let bits = (value * (1.0 / 0.75)).to_bits();
    let exponent = (bits >> 23) as i32 - 127;
    let mantissa = value * power_of_two(-exponent);
    let x = Pair::sum(-1.0, mantissa).divided_by(Pair::sum(1.0, mantissa));
    let squared = x.squared();
    let series = 0.240_320_35f32.mul_add(squared.high, 0.285_112_68).mul_add(squared.high, 0.400_008);
    let sum = LN_2.times(exponent as f32).plus_smaller(Pair { high: x.high * 2.0, low: x.low * 2.0 });
    sum.plus_smaller(squared.times_pair(x).times_pair(squared.times(series).plus_pair(TWO_THIRDS)))
}

/// e to the power of a number.
fn exponential(value: Pair) -> f32 {
    const LN_2_HIGH: f32 = 0.693_145_75;
    const LN_2_LOW: f32 = 1.428_606_8e-6;
    let exponent = ((value.high + value.low) * std::f32::consts::LOG2_E).round_ties_even();
    let rest = value.plus(exponent * -LN_2_HIGH).plus(exponent * -LN_2_LOW).normalized();
    let series = 0.001_363_246_5f32
        .mul_add(rest.high, 0.008_365_969)
        .mul_add(rest.high, 0.041_671_082)
        .mul_add(rest.high, 0.166_665_52)
        .mul_add(rest.high, 0.499_999_85);
    let sum = rest.plus_smaller(rest.squared().times(series));
    let result = Pair::sum_ordered(1.0, sum.high);
    let mantissa = result.high + (result.low + sum.low);
    if value.high < -104.0 {
        return 0.0;
    }
    if value.high > 104.0 {
        return f32::INFINITY;
    }
    // In two steps, so that the largest results do not overflow on the way.
    let exponent = exponent as i32;
    mantissa * power_of_two(exponent >> 1) * power_of_two(exponent - (exponent >> 1))
}

/// 2^exponent for exponents of normal floats.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127).clamp(0, 255) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_within_one_unit_in_the_last_place() {
        for base in [1.5f32, 10000.0, 500000.0, 1e6, 3.3e7, 0.25] {
            let exponents: Vec<f32> = (0..64).map(|i| i as f32 / 64.0).collect();
            for (e, p) in exponents.iter().zip(powers(base, &exponents)) {
                let exact = f64::from(base).powf(f64::from(*e));
                let ulp = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
                assert!((f64::from(p) - exact).abs() <= ulp, "{base} ** {e}: {p} for {exact}");
            }
        }
    }
}
