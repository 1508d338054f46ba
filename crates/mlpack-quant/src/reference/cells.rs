//! What the encoders of the IQ2 and IQ3 types share: groups of cells that get grid points for a common scale (ggml b11434,
//! `ggml-quants.c`).

use super::lattice::Lattice;
use super::search::nearest_int;

/// Sums the squares of a super-block and gives the weight of each value: `importance * sqrt(sigma2 + x^2)`, sigma2 being
/// `factor` times the mean square; without importance what `plain` says of sigma2 and the value.
pub(crate) fn weights(
    factor: f32,
    x: &[f32; 256],
    importance: Option<&[f32; 256]>,
    plain: impl Fn(f32, f32) -> f32,
) -> [f32; 256] {
    let mut sum = 0.0f32;
    for &v in x {
        sum += v * v;
    }
    let sigma2 = factor * sum / 256.0;
    match importance {
        Some(importance) => std::array::from_fn(|i| importance[i] * (sigma2 + x[i] * x[i]).sqrt()),
        None => std::array::from_fn(|i| plain(sigma2, x[i])),
    }
}

/// Splits off the signs: magnitudes, and a bit for each negative value of every eight.
pub(crate) fn split_signs<const M: usize>(x: &[f32; M]) -> ([f32; M], [u8; 4]) {
    let mut signs = [0u8; 4];
    let magnitudes = std::array::from_fn(|i| {
        if x[i] >= 0.0 {
            x[i]
        } else {
            signs[i / 8] |= 1 << (i % 8);
            -x[i]
        }
    });
    (magnitudes, signs)
}

/// [`split_signs`] where only seven signs of eight are stored, the eighth making their number even: where it is odd the
/// value that matters least changes its sign, and its magnitude becomes negative.
pub(crate) fn split_even_signs<const M: usize>(x: &[f32; M], weights: &[f32; M]) -> ([f32; M], [u8; 4]) {
    let (mut magnitudes, mut signs) = split_signs(x);
    for (k, signs) in signs.iter_mut().enumerate().take(M / 8) {
        if signs.count_ones() % 2 == 1 {
            let loss = |i: usize| weights[8 * k + i] * x[8 * k + i] * x[8 * k + i];
            let (mut least, mut smallest) = (0, loss(0));
            for i in 1..8 {
                if loss(i) < smallest {
                    (least, smallest) = (i, loss(i));
                }
            }
            magnitudes[8 * k + least] = -magnitudes[8 * k + least];
            *signs ^= 1 << least;
        }
        *signs &= 127;
    }
    (magnitudes, signs)
}

/// The eight signs of seven stored ones.
pub(crate) fn even_signs(seven: u8) -> u8 {
    seven & 127 | ((seven & 127).count_ones() as u8 & 1) << 7
}

/// The largest magnitude of a group (the first where it is NaN).
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut max = x[0];
    for &v in &x[1..] {
        max = if max > v { max } else { v };
    }
    max
}

/// How a group of cells searches its scale: around `max / (2 * levels - 1)`.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    /// Codes run from 0 to `levels - 1`.
    pub levels: i32,
    /// Candidates on either side.
    pub tries: i32,
    pub step: f32,
    /// Whether the last pass looks at every cell again, or only at those that had no index.
    pub refit_all: bool,
}

/// The codes of a group.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a, const M: usize> {
    pub magnitudes: &'a [f32; M],
    pub weights: &'a [f32; M],
    /// Square roots of the weights, which neighbours are judged by.
    pub roots: &'a [f32; M],
}

impl<const M: usize> Group<'_, M> {
    fn sums(&self, codes: &[u8; M]) -> (f32, f32) {
        let (mut sumqx, mut sumq2) = (0.0f32, 0.0f32);
        for ((&code, &v), &w) in codes.iter().zip(self.magnitudes).zip(self.weights) {
            let q = f32::from(2 * code + 1);
            sumqx += w * v * q;
            sumq2 += w * q * q;
        }
        (sumqx, sumq2)
    }

    /// Codes of cell `k` for an inverse scale, before they are snapped to the grid.
    fn round<const N: usize>(&self, k: usize, id: f32, levels: i32) -> [u8; N] {
        std::array::from_fn(|i| nearest_int(0.5 * (id * self.magnitudes[N * k + i] - 1.0)).clamp(0, levels - 1) as u8)
    }

    fn snap<const N: usize>(&self, lattice: &Lattice<N>, k: usize, scale: f32, codes: &mut [u8; N]) -> bool {
        let x = self.magnitudes[N * k..].first_chunk().expect("cells tile the group");
        let roots = self.roots[N * k..].first_chunk().expect("cells tile the group");
        lattice.snap(codes, x, roots, scale)
    }

    /// Scale and codes of the group, whose largest magnitude is `max`.
    pub fn fit<const N: usize>(&self, lattice: &Lattice<N>, search: Search, max: f32) -> (f32, [u8; M]) {
        let first = max / (2 * search.levels - 1) as f32;
        let (mut scale, mut codes, indexed) = self.search(lattice, search, max, first);
        if indexed[..M / N].contains(&false) && scale > 0.0 {
            self.refit(lattice, search.levels, &mut scale, &mut codes, |k| search.refit_all || !indexed[k]);
        }
        (scale, codes)
    }

    /// The best candidate: its scale, its codes, and which of its cells had an index before they were snapped. Where none
    /// explains anything the scale is `first` and the codes are zeros.
    pub fn search<const N: usize>(
        &self,
        lattice: &Lattice<N>,
        search: Search,
        max: f32,
        first: f32,
    ) -> (f32, [u8; M], [bool; 8]) {
        let top = (2 * search.levels - 1) as f32;
        let (mut scale, mut best) = (first, 0.0f32);
        let mut codes = [0u8; M];
        let mut indexed = [!search.refit_all; 8];
        for step in -search.tries..=search.tries {
            let id = (top + step as f32 * search.step) / max;
            let mut trial = [0u8; M];
            let mut trial_indexed = [true; 8];
            for (k, cell) in trial.as_chunks_mut::<N>().0.iter_mut().enumerate() {
                *cell = self.round(k, id, search.levels);
                trial_indexed[k] = self.snap(lattice, k, 1.0 / id, cell);
            }
            let (sumqx, sumq2) = self.sums(&trial);
            if sumq2 > 0.0 && sumqx * sumqx > best * sumq2 {
                scale = sumqx / sumq2;
                best = scale * sumqx;
                (codes, indexed) = (trial, trial_indexed);
            }
        }
        (scale, codes, indexed)
    }

    /// Rounds the chosen cells again for the scale found, then finds the scale for the codes.
    pub fn refit<const N: usize>(
        &self,
        lattice: &Lattice<N>,
        levels: i32,
        scale: &mut f32,
        codes: &mut [u8; M],
        chosen: impl Fn(usize) -> bool,
    ) {
        let id = 1.0 / *scale;
        for (k, cell) in codes.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            if chosen(k) {
                *cell = self.round(k, id, levels);
                self.snap(lattice, k, *scale, cell);
            }
        }
        let (sumqx, sumq2) = self.sums(codes);
        if sumq2 > 0.0 {
            *scale = sumqx / sumq2;
        }
    }
}

/// Four bits of a group's scale relative to the super-block's.
pub(crate) fn scale_code(id: f32, scale: f32) -> u8 {
    nearest_int(0.5 * (id * scale - 1.0)).clamp(0, 15) as u8
}
