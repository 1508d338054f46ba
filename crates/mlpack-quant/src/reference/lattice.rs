//! Finding the grid point for a cell of four or eight values (ggml b11434, `ggml-quants.c`, `iq2xs_init_impl` and
//! `iq3xs_init_impl`).
//!
//! Codes round to a combination that may have no index. For each of those the grid points in the nearest one, two or three
//! shells are listed once, nearest first and by index within a shell; the encoder takes the one whose weighted error is
//! smallest. The tables are built on first use (tens of milliseconds) and kept.

use super::grids;
use std::sync::LazyLock;

/// A grid of cells of `N` codes, each of `BITS` bits.
pub(crate) struct Lattice<const N: usize> {
    bits: u32,
    /// The codes of each point.
    pub points: Vec<[u8; N]>,
    /// For every combination of codes: the index of its point, or `-1 - start` of its neighbours.
    index: Vec<i32>,
    /// Lists of point indices, each after its length.
    neighbours: Vec<u16>,
}

/// What a combination of codes maps to.
pub(crate) enum Cell<'a> {
    /// It has an index.
    Point(u16),
    /// It has none: the indices of the points near it.
    Near(&'a [u16]),
}

pub(crate) static IQ2_XXS: LazyLock<Lattice<8>> = LazyLock::new(|| Lattice::new(&grids::IQ2_XXS, 2, 3, 2));
pub(crate) static IQ2_XS: LazyLock<Lattice<8>> = LazyLock::new(|| Lattice::new(&grids::IQ2_XS, 2, 3, 2));
pub(crate) static IQ2_S: LazyLock<Lattice<8>> = LazyLock::new(|| Lattice::new(&grids::IQ2_S, 2, 3, 1));
pub(crate) static IQ1: LazyLock<Lattice<8>> = LazyLock::new(|| Lattice::new(&grids::IQ1, 2, 3, 3));
pub(crate) static IQ3_XXS: LazyLock<Lattice<4>> = LazyLock::new(|| Lattice::new(&grids::IQ3_XXS, 3, 8, 2));
pub(crate) static IQ3_S: LazyLock<Lattice<4>> = LazyLock::new(|| Lattice::new(&grids::IQ3_S, 3, 8, 3));

impl<const N: usize> Lattice<N> {
    /// Codes run from 0 to `levels - 1`; neighbours are those in the nearest `shells` distances.
    fn new(packed: &[u16], bits: u32, levels: u8, shells: usize) -> Self {
        let unpack = |packed: u16| std::array::from_fn(|i| (packed >> (bits as usize * i)) as u8 & ((1 << bits) - 1));
        let points: Vec<[u8; N]> = packed.iter().map(|&p| unpack(p)).collect();
        let mut lattice =
            Lattice { bits, points, index: vec![i32::MIN; 1 << (bits as usize * N)], neighbours: Vec::new() };
        for (i, &p) in packed.iter().enumerate() {
            lattice.index[usize::from(p)] = i as i32;
        }
        for combination in 0..lattice.index.len() {
            let codes = unpack(combination as u16);
            if lattice.index[combination] < 0 && codes.iter().all(|&c| c < levels) {
                lattice.list_neighbours(combination, &codes, shells);
            }
        }
        lattice
    }

    fn list_neighbours(&mut self, combination: usize, codes: &[u8; N], shells: usize) {
        let distance =
            |point: &[u8; N]| -> u32 { point.iter().zip(codes).map(|(&a, &b)| u32::from(a.abs_diff(b)).pow(2)).sum() };
        // Squared distances of codes are at most 8 * 2^2 or 4 * 7^2.
        let mut counts = [0usize; 200];
        let distances: Vec<u32> = self.points.iter().map(distance).collect();
        for &d in &distances {
            counts[d as usize] += 1;
        }
        let near = (0..counts.len()).filter(|&d| counts[d] > 0).take(shells);
        let start = self.neighbours.len();
        self.neighbours.push(0);
        for shell in near {
            let in_shell = distances.iter().enumerate().filter(|(_, d)| **d as usize == shell);
            self.neighbours.extend(in_shell.map(|(i, _)| i as u16));
        }
        self.neighbours[start] = (self.neighbours.len() - start - 1) as u16;
        self.index[combination] = -1 - start as i32;
    }

    /// Looks a cell up. Codes are below the lattice's number of levels.
    #[inline(always)]
    pub fn find(&self, codes: &[u8; N]) -> Cell<'_> {
        let mut packed = 0usize;
        for (i, &code) in codes.iter().enumerate() {
            packed |= usize::from(code) << (self.bits as usize * i);
        }
        let found = self.index[packed];
        if found >= 0 {
            return Cell::Point(found as u16);
        }
        let start = (-1 - found) as usize;
        Cell::Near(&self.neighbours[start + 1..][..usize::from(self.neighbours[start])])
    }

    /// The neighbour whose values `scale * (2 * code + 1)` have the smallest weighted squared error. Where no error is a
    /// number below the largest float, which ggml does not survive, it is the first.
    #[inline(always)]
    pub fn best_neighbour(&self, near: &[u16], x: &[f32; N], weights: &[f32; N], scale: f32) -> u16 {
        let (mut best, mut best_error) = (near[0], f32::MAX);
        for &candidate in near {
            let point = &self.points[usize::from(candidate)];
            let mut error = 0.0f32;
            for i in 0..N {
                let diff = scale * f32::from(2 * point[i] + 1) - x[i];
                error += weights[i] * diff * diff;
            }
            if error < best_error {
                (best, best_error) = (candidate, error);
            }
        }
        best
    }

    /// Replaces codes that have no index by those of the best neighbour. Returns whether they had one.
    #[inline(always)]
    pub fn snap(&self, codes: &mut [u8; N], x: &[f32; N], weights: &[f32; N], scale: f32) -> bool {
        match self.find(codes) {
            Cell::Point(_) => true,
            Cell::Near(near) => {
                *codes = self.points[usize::from(self.best_neighbour(near, x, weights, scale))];
                false
            }
        }
    }

    /// The index of codes that have one.
    pub fn index_of(&self, codes: &[u8; N]) -> u16 {
        match self.find(codes) {
            Cell::Point(index) => index,
            Cell::Near(near) => near[0],
        }
    }
}
