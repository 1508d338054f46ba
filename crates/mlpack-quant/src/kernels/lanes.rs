//! Vectors whose lanes are independent groups.
//!
//! A lane does for its group exactly what the scalar code does, in the same order, so no sum is ever split: speed comes
//! from fitting many groups at once.
//!
//! Everything here and in the modules built on it is inlined into entry points that turn CPU features on. Closures are
//! avoided on that path: one that the compiler leaves out of line is compiled without the features.

/// Several `f32`, one for each of `N` groups. Every operation is the IEEE one, lane by lane.
pub(super) trait Lanes: Copy {
    /// How many groups.
    const N: usize;
    /// One truth value for each lane.
    type Mask: Copy;

    fn splat(value: f32) -> Self;
    /// Eight consecutive columns of a matrix with one row of `stride` values for each lane, from column `at` on.
    fn tile(rows: &[f32], stride: usize, at: usize) -> [Self; 8];
    fn store(self, out: &mut [f32]);

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    fn neg(self) -> Self;
    /// The nearest integer, ties to even, of magnitudes below 2^22.
    fn round(self) -> Self;
    /// `self < other ? self : other`, so `other` where one is NaN.
    fn lesser(self, other: Self) -> Self;
    /// `self > other ? self : other`, so `other` where one is NaN.
    fn greater(self, other: Self) -> Self;

    /// Cut to `0..=top`, `top` being positive; 0 for the NaN of a product of zero and infinity, anything for other NaNs.
    fn cut_positive(self, top: Self) -> Self;
    /// Negative values and the NaN of a product of zero and infinity become 0; anything for other NaNs.
    fn cut_below(self) -> Self;
    /// Cut to `bottom..=top`, these being negative and positive; anything for a NaN.
    fn cut_signed(self, bottom: Self, top: Self) -> Self;

    /// False where one is NaN.
    fn lt(self, other: Self) -> Self::Mask;
    /// False where one is NaN.
    fn eq(self, other: Self) -> Self::Mask;
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn not(mask: Self::Mask) -> Self::Mask;
    /// `yes` where the mask is true, else `no`.
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// One bit for each lane.
    fn bits(mask: Self::Mask) -> u32;
    /// The value of the step that each lane is on: `values[n]`, n being how many of the ascending `edges` it is not below.
    /// A NaN is below none.
    fn step(self, edges: &[f32; 15], values: &[f32; 16]) -> Self;
}

/// Eight lanes of plain Rust, which the compiler turns into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable(pub(super) [f32; 8]);

macro_rules! lanewise {
    ($a:expr, $b:expr, $f:expr) => {{
        let (a, b) = ($a, $b);
        let mut out = [Default::default(); 8];
        for i in 0..8 {
            out[i] = $f(a[i], b[i]);
        }
        out
    }};
}

/// A truth value as a vector register holds it: all bits set or none. With arrays of `bool` for masks, rustc 1.95 gave wrong
/// lanes in this crate's test build (`opt-level = 3` with debug assertions), though not in a release build and not
/// unoptimised; the golden digests found it.
#[inline(always)]
fn all_ones(truth: bool) -> u32 {
    u32::from(truth).wrapping_neg()
}

impl Lanes for Portable {
    const N: usize = 8;
    type Mask = [u32; 8];

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Portable([value; 8])
    }
    #[inline(always)]
    fn tile(rows: &[f32], stride: usize, at: usize) -> [Self; 8] {
        let mut out = [Portable([0.0; 8]); 8];
        for lane in 0..8 {
            for (column, &v) in rows[lane * stride + at..][..8].iter().enumerate() {
                out[column].0[lane] = v;
            }
        }
        out
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        out[..8].copy_from_slice(&self.0);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Portable(lanewise!(self.0, other.0, |a, b| a + b))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Portable(lanewise!(self.0, other.0, |a, b| a - b))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Portable(lanewise!(self.0, other.0, |a, b| a * b))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Portable(lanewise!(self.0, other.0, |a, b| a / b))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Portable(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Portable(self.0.map(f32::abs))
    }
    #[inline(always)]
    fn neg(self) -> Self {
        Portable(self.0.map(|v| -v))
    }
    #[inline(always)]
    fn round(self) -> Self {
        Portable(self.0.map(|v| v + crate::reference::search::ROUND_MAGIC - crate::reference::search::ROUND_MAGIC))
    }
    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        Portable(lanewise!(self.0, other.0, |a, b| if a < b { a } else { b }))
    }
    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        Portable(lanewise!(self.0, other.0, |a, b| if a > b { a } else { b }))
    }
    #[inline(always)]
    fn cut_positive(self, top: Self) -> Self {
        self.greater(Self::splat(0.0)).lesser(top)
    }
    #[inline(always)]
    fn cut_below(self) -> Self {
        self.greater(Self::splat(0.0))
    }
    #[inline(always)]
    fn cut_signed(self, bottom: Self, top: Self) -> Self {
        self.greater(bottom).lesser(top)
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        lanewise!(self.0, other.0, |a, b| all_ones(a < b))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Self::Mask {
        lanewise!(self.0, other.0, |a, b| all_ones(a == b))
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        lanewise!(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        lanewise!(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn not(mask: Self::Mask) -> Self::Mask {
        mask.map(|set| !set)
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        let mut out = no;
        for (out, (yes, mask)) in out.0.iter_mut().zip(yes.0.into_iter().zip(mask)) {
            *out = f32::from_bits(yes.to_bits() & mask | out.to_bits() & !mask);
        }
        out
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        let mut bits = 0;
        for (i, &set) in mask.iter().enumerate() {
            bits |= (set & 1) << i;
        }
        bits
    }
    #[inline(always)]
    fn step(self, edges: &[f32; 15], values: &[f32; 16]) -> Self {
        let mut out = self;
        for v in &mut out.0 {
            let mut value = values[0];
            for (&edge, &above) in edges.iter().zip(&values[1..]) {
                value = if *v < edge { value } else { above };
            }
            *v = value;
        }
        out
    }
}

/// Twice the lanes: two chains of dependent additions run side by side and hide each other's latency.
#[derive(Clone, Copy)]
pub(super) struct Pair<V>(V, V);

impl<V: Lanes> Lanes for Pair<V> {
    const N: usize = 2 * V::N;
    type Mask = (V::Mask, V::Mask);

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Pair(V::splat(value), V::splat(value))
    }
    #[inline(always)]
    fn tile(rows: &[f32], stride: usize, at: usize) -> [Self; 8] {
        let (first, second) = rows.split_at(V::N * stride);
        let (a, b) = (V::tile(first, stride, at), V::tile(second, stride, at));
        let mut out = [Pair(a[0], b[0]); 8];
        for i in 1..8 {
            out[i] = Pair(a[i], b[i]);
        }
        out
    }
    #[inline(always)]
    fn store(self, out: &mut [f32]) {
        let (first, second) = out.split_at_mut(V::N);
        self.0.store(first);
        self.1.store(second);
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Pair(self.0.add(other.0), self.1.add(other.1))
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Pair(self.0.sub(other.0), self.1.sub(other.1))
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Pair(self.0.mul(other.0), self.1.mul(other.1))
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Pair(self.0.div(other.0), self.1.div(other.1))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Pair(self.0.sqrt(), self.1.sqrt())
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Pair(self.0.abs(), self.1.abs())
    }
    #[inline(always)]
    fn neg(self) -> Self {
        Pair(self.0.neg(), self.1.neg())
    }
    #[inline(always)]
    fn round(self) -> Self {
        Pair(self.0.round(), self.1.round())
    }
    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        Pair(self.0.lesser(other.0), self.1.lesser(other.1))
    }
    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        Pair(self.0.greater(other.0), self.1.greater(other.1))
    }
    #[inline(always)]
    fn cut_positive(self, top: Self) -> Self {
        Pair(self.0.cut_positive(top.0), self.1.cut_positive(top.1))
    }
    #[inline(always)]
    fn cut_below(self) -> Self {
        Pair(self.0.cut_below(), self.1.cut_below())
    }
    #[inline(always)]
    fn cut_signed(self, bottom: Self, top: Self) -> Self {
        Pair(self.0.cut_signed(bottom.0, top.0), self.1.cut_signed(bottom.1, top.1))
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Self::Mask {
        (self.0.lt(other.0), self.1.lt(other.1))
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Self::Mask {
        (self.0.eq(other.0), self.1.eq(other.1))
    }
    #[inline(always)]
    fn and(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (V::and(a.0, b.0), V::and(a.1, b.1))
    }
    #[inline(always)]
    fn or(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (V::or(a.0, b.0), V::or(a.1, b.1))
    }
    #[inline(always)]
    fn not(mask: Self::Mask) -> Self::Mask {
        (V::not(mask.0), V::not(mask.1))
    }
    #[inline(always)]
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Pair(V::select(mask.0, yes.0, no.0), V::select(mask.1, yes.1, no.1))
    }
    #[inline(always)]
    fn bits(mask: Self::Mask) -> u32 {
        V::bits(mask.0) | V::bits(mask.1) << V::N
    }
    #[inline(always)]
    fn step(self, edges: &[f32; 15], values: &[f32; 16]) -> Self {
        Pair(self.0.step(edges, values), self.1.step(edges, values))
    }
}

/// The importance values of consecutive blocks, over and over for every row.
pub(super) struct Columns<'a> {
    pub importance: &'a [f32],
    pub at: usize,
}

impl<'a> Columns<'a> {
    #[inline(always)]
    pub fn next<const N: usize>(&mut self) -> &'a [f32; N] {
        let values = self.importance[self.at..].first_chunk().expect("rows are whole blocks");
        self.at += N;
        if self.at == self.importance.len() {
            self.at = 0;
        }
        values
    }
}
