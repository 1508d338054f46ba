//! Whether a product is one that float32 arithmetic can have given, in any order of its sums.

use candle_core::{Device, Tensor};

/// The unit roundoff of float32, and a hundredth more for the roundings of the bounds themselves.
pub(crate) const ROUNDOFF: f64 = 1.01 / (1u64 << 24) as f64;

/// The least normal float32: what is smaller may be taken for zero.
pub(crate) const SMALLEST: f64 = f32::MIN_POSITIVE as f64;

/// What sums of so many terms may be off by where every value below float32's normal range may become zero: the factors', whose
/// absolute values have this sum, the products', and the sums' on the way, twice for sums of sums. Twice what it comes to.
pub(crate) fn underflow(rank: usize, factors: f64) -> f64 {
    2.0 * SMALLEST * (factors + (3 * rank + 1) as f64)
}

/// An element that float32 arithmetic cannot have given.
#[derive(Clone, Debug, PartialEq)]
pub struct WrongElement {
    /// Its row in the product.
    pub row: usize,
    /// Its column.
    pub col: usize,
    /// The product in float64.
    pub expected: f64,
    /// How far from it roundings of float32 can lead.
    pub within: f64,
    /// The product of the GPU.
    pub found: f32,
}

/// The first wrong element of some rows of a product. `left` has those rows of the left factor, which begin at `first`, and `product`
/// those of the product.
pub(crate) fn first_wrong(
    left: &[f32],
    right: &[f32],
    rank: usize,
    first: usize,
    product: &[f32],
) -> Option<WrongElement> {
    let cols = right.len() / rank.max(1);
    let (mut exact, mut sizes, mut of_right) = (vec![0.0; cols], vec![0.0; cols], vec![0.0; cols]);
    for right in right.chunks_exact(cols.max(1)) {
        of_right.iter_mut().zip(right).for_each(|(sum, r)| *sum += f64::from(r.abs()));
    }
    for (row, (left, product)) in left.chunks_exact(rank.max(1)).zip(product.chunks_exact(cols.max(1))).enumerate() {
        exact.fill(0.0);
        sizes.fill(0.0);
        for (l, right) in left.iter().zip(right.chunks_exact(cols.max(1))) {
            for ((exact, size), r) in exact.iter_mut().zip(&mut sizes).zip(right) {
                let term = f64::from(*l) * f64::from(*r);
                *exact += term;
                *size += term.abs();
            }
        }
        let of_left: f64 = left.iter().map(|l| f64::from(l.abs())).sum();
        for (col, found) in product.iter().enumerate() {
            let within = rank as f64 * ROUNDOFF * sizes[col] + underflow(rank, of_left + of_right[col]);
            let off = (f64::from(*found) - exact[col]).abs();
            if off > within || off.is_nan() {
                return Some(WrongElement { row: first + row, col, expected: exact[col], within, found: *found });
            }
        }
    }
    None
}

/// Two factors.
pub(crate) struct Case {
    pub left: Vec<f32>,
    pub right: Vec<f32>,
    pub rank: usize,
    pub cols: usize,
}

impl Case {
    pub(crate) fn tensors(&self) -> candle_core::Result<(Tensor, Tensor)> {
        let left = Tensor::from_slice(&self.left, (self.left.len() / self.rank, self.rank), &Device::Cpu)?;
        Ok((left, Tensor::from_slice(&self.right, (self.rank, self.cols), &Device::Cpu)?))
    }
}

/// Rows, rank and columns: single ones, sizes beside multiples of the tiles of GPUs, and two products that are large enough for
/// other kernels.
const DIMS: [[usize; 3]; 12] = [
    [1, 1, 7],
    [3, 2, 65],
    [15, 8, 33],
    [17, 7, 64],
    [33, 16, 130],
    [64, 32, 64],
    [65, 33, 129],
    [70, 64, 257],
    [31, 100, 100],
    [5, 256, 67],
    [1030, 5, 1030],
    [1024, 8, 1024],
];

/// Products that show how a GPU multiplies: with all bits of its factors, whatever their sizes, and without losing what is left where
/// terms cancel.
pub(crate) fn cases() -> impl Iterator<Item = Case> {
    (0..)
        .zip(DIMS)
        .flat_map(|(i, dims)| {
            [Values::Full, Values::Cancelling, Values::Tiny, Values::Large].map(|values| (i, dims, values))
        })
        // The large ones are there for their size.
        .filter(|(_, [rows, ..], values)| *rows < 1000 || *values == Values::Full)
        .map(|(i, dims, values)| values.case(i, dims))
}

#[derive(Clone, Copy, PartialEq)]
enum Values {
    /// Of sizes that differ by up to 2⁸, with bits in all places.
    Full,
    /// Every second term is the one before, negated, but for its last bits.
    Cancelling,
    /// Near the least float32 and below its normal range, times values that make up for it.
    Tiny,
    /// Whose products are large.
    Large,
}

impl Values {
    fn case(self, seed: u64, [rows, rank, cols]: [usize; 3]) -> Case {
        // Of the left factor and of the right one.
        let exponents = match self {
            Values::Full | Values::Cancelling => [119, 119],
            Values::Tiny => [0, 140],
            Values::Large => [172, 172],
        };
        let value = |i: usize| {
            let exponent = exponents[usize::from(i >= rows * rank)];
            let z = random(seed << 32 | self as u64, i);
            let exponent = exponent + (z >> 32) as u32 % 9;
            f32::from_bits(z as u32 & 0x807f_ffff | exponent << 23)
        };
        let mut left: Vec<f32> = (0..rows * rank).map(value).collect();
        let mut right: Vec<f32> = (0..rank * cols).map(|i| value(rows * rank + i)).collect();
        if self == Values::Cancelling {
            for row in left.chunks_exact_mut(rank) {
                row.as_chunks_mut::<2>().0.iter_mut().for_each(|[a, b]| *b = *a);
            }
            for pair in right.chunks_exact_mut(2 * cols) {
                let (a, b) = pair.split_at_mut(cols);
                b.iter_mut().zip(a).for_each(|(b, a)| *b = f32::from_bits((-*a).to_bits() ^ (b.to_bits() & 7)));
            }
        }
        Case { left, right, rank, cols }
    }
}

/// A number of a sequence: splitmix64.
pub(crate) fn random(seed: u64, i: usize) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(i as u64 + 1));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
