//! What the encoders of the IQ2 and IQ3 types share: groups of cells that get grid points for a common scale (ggml b11434,
//! `ggml-quants.c`).

use super::lattice::Lattice;
use super::search::{fit_positive, nearest_int};

/// Odd numbers: what the codes of the IQ2 and IQ3 types stand for while their scale is searched.
pub(crate) const LEVELS: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];

/// Sums the squares of a super-block and gives the weight of each value: `importance * sqrt(sigma2 + x^2)`, sigma2 being
/// `factor` times the mean square; without importance `share * sigma2 + x^2`, which leaves sigma2 out where the share is 0.
#[inline(always)]
pub(crate) fn weights(factor: f32, x: &[f32; 256], importance: Option<&[f32; 256]>, share: f32) -> [f32; 256] {
    let mut sum = 0.0f32;
    for &v in x {
        sum += v * v;
    }
    let sigma2 = factor * sum / 256.0;
    let mut weights = [0.0; 256];
    match importance {
        Some(importance) => {
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = importance[i] * (sigma2 + x[i] * x[i]).sqrt();
            }
        }
        None => {
            for (weight, &v) in weights.iter_mut().zip(x) {
                *weight = if share > 0.0 { share * sigma2 + v * v } else { v * v };
            }
        }
    }
    weights
}

/// Square roots, value by value.
#[inline(always)]
pub(crate) fn roots<const M: usize>(weights: &[f32; M]) -> [f32; M] {
    let mut roots = *weights;
    for root in &mut roots {
        *root = root.sqrt();
    }
    roots
}

/// Splits off the signs: magnitudes, and a bit for each negative value of every eight.
#[inline(always)]
pub(crate) fn split_signs<const M: usize>(x: &[f32; M]) -> ([f32; M], [u8; 4]) {
    let mut signs = [0u8; 4];
    let mut magnitudes = *x;
    for (eight, signs) in magnitudes.as_chunks_mut::<8>().0.iter_mut().zip(&mut signs) {
        for (i, v) in eight.iter_mut().enumerate() {
            let kept = *v >= 0.0;
            *signs |= u8::from(!kept) << i;
            *v = if kept { *v } else { -*v };
        }
    }
    (magnitudes, signs)
}

/// [`split_signs`] where only seven signs of eight are stored, the eighth making their number even: where it is odd the
/// value that matters least changes its sign, and its magnitude becomes negative.
#[inline(always)]
pub(crate) fn split_even_signs<const M: usize>(x: &[f32; M], weights: &[f32; M]) -> ([f32; M], [u8; 4]) {
    let (mut magnitudes, mut signs) = split_signs(x);
    for (k, signs) in signs.iter_mut().enumerate().take(M / 8) {
        if signs.count_ones() % 2 == 1 {
            let mut losses = [0.0f32; 8];
            for (i, loss) in losses.iter_mut().enumerate() {
                *loss = weights[8 * k + i] * x[8 * k + i] * x[8 * k + i];
            }
            let mut least = 0;
            for i in 1..8 {
                least = if losses[i] < losses[least] { i } else { least };
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
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut max = x[0];
    for &v in &x[1..] {
        max = if max > v { max } else { v };
    }
    max
}

/// How a group of cells searches its scale: candidates around the one that gives `max` the highest level. There are at most
/// `C` times eight of them.
#[derive(Clone, Copy)]
pub(crate) struct Search<const C: usize> {
    /// Candidates on either side.
    pub tries: i32,
    pub step: f32,
    pub refit: Refit,
}

/// Which cells are rounded again for the scale that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refit {
    /// Those that had no index.
    Unindexed,
    /// All, where one had no index, or no candidate was found.
    Group,
    /// All.
    Always,
}

/// The scale of a group and the indices of its cells.
#[derive(Clone, Copy)]
pub(crate) struct Fitted {
    pub scale: f32,
    pub indices: [u16; 8],
}

/// An implementation of the searches. They all give the same bits.
pub(crate) trait Fitter {
    /// Fits a group. `max` is its largest magnitude or stands for it; `first` is the scale where no candidate explains
    /// anything, and then the codes are zeros.
    fn fit<const M: usize, const N: usize, const C: usize>(
        group: &Group<M>,
        lattice: &Lattice<N>,
        search: Search<C>,
        max: f32,
        first: f32,
    ) -> Fitted;

    /// [`fit_positive`] for each group of 32.
    fn fit_positive(nmax: i32, x: &[f32; 256], weights: &[f32; 256]) -> [f32; 8];
}

/// The definition.
pub(crate) struct Scalar;

impl Fitter for Scalar {
    fn fit<const M: usize, const N: usize, const C: usize>(
        group: &Group<M>,
        lattice: &Lattice<N>,
        search: Search<C>,
        max: f32,
        first: f32,
    ) -> Fitted {
        let (mut scale, mut codes, indexed) = group.search(lattice, search, max, first);
        let missing = indexed[..M / N].contains(&false);
        let chosen: [bool; 8] = std::array::from_fn(|k| match search.refit {
            Refit::Unindexed => !indexed[k],
            Refit::Group => missing,
            Refit::Always => true,
        });
        if scale > 0.0 && chosen.contains(&true) {
            group.refit(lattice, &mut scale, &mut codes, chosen);
        }
        let mut indices = [0; 8];
        for (index, cell) in indices.iter_mut().zip(codes.as_chunks::<N>().0) {
            *index = lattice.index_of(cell);
        }
        Fitted { scale, indices }
    }

    fn fit_positive(nmax: i32, x: &[f32; 256], weights: &[f32; 256]) -> [f32; 8] {
        std::array::from_fn(|g| {
            let at = 32 * g..32 * g + 32;
            fit_positive(nmax, &x[at.clone()], &mut [0; 32], &weights[at])
        })
    }
}

/// The values of a group.
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
            let q = LEVELS[usize::from(code)];
            sumqx += w * v * q;
            sumq2 += w * q * q;
        }
        (sumqx, sumq2)
    }

    /// Rounds cell `k` for an inverse scale and snaps it to the grid: its codes, and whether they had an index.
    fn snap<const N: usize>(&self, lattice: &Lattice<N>, k: usize, id: f32, scale: f32) -> ([u8; N], bool) {
        let x: &[f32; N] = self.magnitudes[N * k..].first_chunk().expect("cells tile the group");
        let roots: &[f32; N] = self.roots[N * k..].first_chunk().expect("cells tile the group");
        let top = i32::from(Lattice::<N>::LEVELS) - 1;
        let mut codes = x.map(|v| nearest_int(0.5 * (id * v - 1.0)).clamp(0, top) as u8);
        let indexed = lattice.snap(&mut codes, x, roots, scale, &LEVELS);
        (codes, indexed)
    }

    /// The best candidate: its scale, its codes, and which of its cells had an index before they were snapped.
    fn search<const N: usize, const C: usize>(
        &self,
        lattice: &Lattice<N>,
        search: Search<C>,
        max: f32,
        first: f32,
    ) -> (f32, [u8; M], [bool; 8]) {
        let top = highest::<N>();
        let (mut scale, mut best) = (first, 0.0f32);
        let mut codes = [0u8; M];
        let mut indexed = [search.refit != Refit::Group; 8];
        for step in -search.tries..=search.tries {
            let id = (top + step as f32 * search.step) / max;
            let mut trial = [0u8; M];
            let mut trial_indexed = [true; 8];
            for (k, cell) in trial.as_chunks_mut::<N>().0.iter_mut().enumerate() {
                (*cell, trial_indexed[k]) = self.snap(lattice, k, id, 1.0 / id);
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
    fn refit<const N: usize>(&self, lattice: &Lattice<N>, scale: &mut f32, codes: &mut [u8; M], chosen: [bool; 8]) {
        let id = 1.0 / *scale;
        for (k, cell) in codes.as_chunks_mut::<N>().0.iter_mut().enumerate() {
            if chosen[k] {
                (*cell, _) = self.snap(lattice, k, id, *scale);
            }
        }
        let (sumqx, sumq2) = self.sums(codes);
        if sumq2 > 0.0 {
            *scale = sumqx / sumq2;
        }
    }
}

/// The highest level of a cell of `N` codes.
#[inline(always)]
pub(crate) fn highest<const N: usize>() -> f32 {
    f32::from(2 * Lattice::<N>::LEVELS - 1)
}

/// Four bits of a group's scale relative to the super-block's.
#[inline(always)]
pub(crate) fn scale_code(id: f32, scale: f32) -> u8 {
    nearest_int(0.5 * (id * scale - 1.0)).clamp(0, 15) as u8
}
