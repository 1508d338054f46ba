//! Finding the grid point for a cell of four or eight values (ggml b11434, `ggml-quants.c`, `iq2xs_init_impl` and
//! `iq3xs_init_impl`).
//!
//! Codes round to a combination that may have no index. For each of those the grid points in the nearest one, two or three
//! shells are listed once, nearest first and by index within a shell; the encoder takes the one whose weighted error is
//! smallest, the first of equals. The tables are built on first use (tens of milliseconds) and kept.
//!
//! Most neighbours cannot win where every value is at least as near to its code as to any other level. Going from the codes
//! to a neighbour crosses edges between levels. A neighbour that crosses all the edges of another one, and more, is then no
//! nearer in any value; its sum is not smaller, because rounded sums grow with their terms; and the other one, being in a
//! nearer shell, is listed before it. Those that are left are the contenders.

use super::grids;
use std::sync::LazyLock;

/// A grid of cells of `N` codes: eight codes of three levels, or four of eight.
pub(crate) struct Lattice<const N: usize> {
    /// The codes of each point.
    pub points: Vec<[u8; N]>,
    /// For every combination of codes, by its number.
    cells: Vec<Cell>,
    /// Packed codes of neighbours. A list fills whole chunks: after its end the first of its last chunk comes again.
    neighbours: Vec<[u16; 8]>,
    /// Those of contenders, apart because they are few enough to stay in the cache.
    contenders: Vec<[u16; 8]>,
}

/// Where the neighbours of a combination are; none for a point.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cell {
    /// The first chunks of neighbours and contenders.
    start: (u32, u16),
    /// How many neighbours and contenders there are.
    len: (u16, u16),
    /// The index of a point; of the first neighbour where it is none.
    pub index: u16,
}

impl Cell {
    #[inline(always)]
    pub fn is_point(self) -> bool {
        self.len.0 == 0
    }
}

pub(crate) static IQ2_XXS: LazyLock<Lattice<8>> = LazyLock::new(|| Lattice::new(&grids::IQ2_XXS, 2));
pub(crate) static IQ2_XS: LazyLock<Lattice<8>> = LazyLock::new(|| Lattice::new(&grids::IQ2_XS, 2));
pub(crate) static IQ2_S: LazyLock<Lattice<8>> = LazyLock::new(|| Lattice::new(&grids::IQ2_S, 1));
pub(crate) static IQ1: LazyLock<Lattice<8>> = LazyLock::new(|| Lattice::new(&grids::IQ1, 3));
pub(crate) static IQ3_XXS: LazyLock<Lattice<4>> = LazyLock::new(|| Lattice::new(&grids::IQ3_XXS, 2));
pub(crate) static IQ3_S: LazyLock<Lattice<4>> = LazyLock::new(|| Lattice::new(&grids::IQ3_S, 3));

impl<const N: usize> Lattice<N> {
    /// Codes run from 0 to `LEVELS - 1`.
    pub const LEVELS: u8 = if N == 8 { 3 } else { 8 };
    /// Of a packed code.
    const BITS: usize = if N == 8 { 2 } else { 3 };

    /// Neighbours are the points in the nearest `shells` distances.
    fn new(packed: &[u16], shells: usize) -> Self {
        let points: Vec<[u8; N]> = packed.iter().map(|&p| Self::unpack(p)).collect();
        let combinations = usize::from(Self::LEVELS).pow(N as u32);
        let mut lattice = Lattice {
            points,
            cells: vec![Cell::default(); combinations],
            neighbours: Vec::new(),
            contenders: Vec::new(),
        };
        let mut is_point = vec![false; combinations];
        for (i, point) in lattice.points.iter().enumerate() {
            lattice.cells[Self::number(point)].index = i as u16;
            is_point[Self::number(point)] = true;
        }
        for number in (0..combinations).filter(|&number| !is_point[number]) {
            lattice.cells[number] = lattice.list_neighbours(packed, number, shells);
        }
        lattice
    }

    fn list_neighbours(&mut self, packed: &[u16], number: usize, shells: usize) -> Cell {
        let levels = usize::from(Self::LEVELS);
        let codes: [u8; N] = std::array::from_fn(|i| (number / levels.pow(i as u32) % levels) as u8);
        let distance =
            |point: &[u8; N]| -> u32 { point.iter().zip(codes).map(|(&a, b)| u32::from(a.abs_diff(b)).pow(2)).sum() };
        // Squared distances of codes are at most 8 * 2^2 or 4 * 7^2.
        let mut counts = [0usize; 200];
        let distances: Vec<u32> = self.points.iter().map(distance).collect();
        for &d in &distances {
            counts[d as usize] += 1;
        }
        let mut neighbours = Vec::new();
        for shell in (0..counts.len()).filter(|&d| counts[d] > 0).take(shells) {
            neighbours.extend((0..distances.len()).filter(|&i| distances[i] as usize == shell));
        }
        let edges: u32 = Self::edges_below(&codes);
        let mut contenders: Vec<(usize, u32)> = Vec::new();
        for &i in &neighbours {
            let crossed = Self::edges_below(&self.points[i]) ^ edges;
            if contenders.iter().all(|&(_, fewer)| fewer & !crossed != 0) {
                contenders.push((i, crossed));
            }
        }
        Cell {
            start: (self.neighbours.len() as u32, self.contenders.len() as u16),
            len: (
                push_list(&mut self.neighbours, neighbours.iter().map(|&i| packed[i])),
                push_list(&mut self.contenders, contenders.iter().map(|&(i, _)| packed[i])),
            ),
            index: neighbours[0] as u16,
        }
    }

    /// A bit for each edge between two levels that is below the code.
    fn edges_below(codes: &[u8; N]) -> u32 {
        codes.iter().fold(0, |edges, &code| edges << (Self::LEVELS - 1) | ((1 << code) - 1))
    }

    /// The number of a combination of codes: its digits, the first code lowest.
    #[inline(always)]
    pub fn number(codes: &[u8; N]) -> usize {
        let mut number = 0;
        for &code in codes.iter().rev() {
            number = number * usize::from(Self::LEVELS) + usize::from(code);
        }
        number
    }

    #[inline(always)]
    pub fn unpack(packed: u16) -> [u8; N] {
        let mut codes = [0; N];
        for (i, code) in codes.iter_mut().enumerate() {
            *code = (packed >> (Self::BITS * i)) as u8 & ((1 << Self::BITS) - 1);
        }
        codes
    }

    #[inline(always)]
    pub fn pack(codes: &[u8; N]) -> u16 {
        let mut packed = 0;
        for &code in codes.iter().rev() {
            packed = packed << Self::BITS | u16::from(code);
        }
        packed
    }

    /// Looks a combination up by its number.
    #[inline(always)]
    pub fn cell(&self, number: usize) -> Cell {
        self.cells[number]
    }

    /// All neighbours of a cell that is no point, and how many there are in the chunks.
    #[inline(always)]
    pub fn neighbours(&self, cell: Cell) -> (&[[u16; 8]], usize) {
        let count = usize::from(cell.len.0);
        (&self.neighbours[cell.start.0 as usize..][..count.div_ceil(8)], count)
    }

    /// The neighbours that can win where every value is nearest to its code (see the header of this file), and how many
    /// there are in the chunks.
    #[inline(always)]
    pub fn contenders(&self, cell: Cell) -> (&[[u16; 8]], usize) {
        let count = usize::from(cell.len.1);
        (&self.contenders[usize::from(cell.start.1)..][..count.div_ceil(8)], count)
    }

    /// The neighbour of a list whose values `scale * levels[code]` have the smallest weighted squared error. Where no error
    /// is a number below the largest float, which ggml does not survive, it is the first.
    #[inline(always)]
    fn best_of(list: &[[u16; 8]], x: &[f32; N], weights: &[f32; N], scale: f32, levels: &[f32]) -> [u8; N] {
        let list = list.as_flattened();
        let (mut best, mut best_error) = (list[0], f32::MAX);
        for &candidate in list {
            let point = Self::unpack(candidate);
            let mut error = 0.0f32;
            for i in 0..N {
                let diff = scale * levels[usize::from(point[i])] - x[i];
                error += weights[i] * diff * diff;
            }
            if error < best_error {
                (best, best_error) = (candidate, error);
            }
        }
        Self::unpack(best)
    }

    /// Replaces codes that have no index by those of the best neighbour. Returns whether they had one.
    #[inline(always)]
    pub fn snap(&self, codes: &mut [u8; N], x: &[f32; N], weights: &[f32; N], scale: f32, levels: &[f32]) -> bool {
        let cell = self.cell(Self::number(codes));
        if !cell.is_point() {
            *codes = Self::best_of(self.neighbours(cell).0, x, weights, scale, levels);
        }
        cell.is_point()
    }

    /// The index of codes that have one.
    #[inline(always)]
    pub fn index_of(&self, codes: &[u8; N]) -> u16 {
        self.cell(Self::number(codes)).index
    }
}

/// Appends a list and returns its length.
fn push_list(chunks: &mut Vec<[u16; 8]>, list: impl Iterator<Item = u16>) -> u16 {
    let list: Vec<u16> = list.collect();
    for part in list.chunks(8) {
        let mut chunk = [part[0]; 8];
        chunk[..part.len()].copy_from_slice(part);
        chunks.push(chunk);
    }
    list.len() as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::cells::LEVELS;
    use proptest::prelude::*;

    /// Draws a combination without an index, values that are nearest to its codes, and weights.
    fn check<const N: usize>(lattice: &Lattice<N>, number: usize, places: &[f32], weights: &[f32]) {
        let base = usize::from(Lattice::<N>::LEVELS);
        let near = (0..lattice.cells.len()).map(|i| (number + i) % lattice.cells.len());
        let number = near.into_iter().find(|&n| !lattice.cell(n).is_point()).expect("no grid is full");
        let mut x = [0.0; N];
        for (i, v) in x.iter_mut().enumerate() {
            let code = number / base.pow(i as u32) % base;
            // Values beyond the first and the last level have no other level on one side.
            let reach = if code == 0 || code == base - 1 { 3.0 } else { 0.99 };
            let inward = if code == 0 { places[i].min(0.3) } else { places[i].max(-0.3) };
            let place = if reach > 1.0 { inward * reach } else { places[i] * reach };
            *v = LEVELS[code] + place;
        }
        let (cell, weights) = (lattice.cell(number), weights.first_chunk().expect("enough weights"));
        let of_all = Lattice::best_of(lattice.neighbours(cell).0, &x, weights, 1.0, &LEVELS);
        let of_contenders = Lattice::best_of(lattice.contenders(cell).0, &x, weights, 1.0, &LEVELS);
        assert_eq!(of_contenders, of_all, "combination {number}, values {x:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_best_neighbour_of_well_rounded_values_is_a_contender(
            number in 0usize..6561,
            places in prop::collection::vec(-1.0f32..1.0, 8),
            weights in prop::collection::vec(prop_oneof![3 => 0.0f32..1.0, 1 => Just(0.0), 1 => Just(1.0)], 8),
        ) {
            for lattice in [&IQ2_XXS, &IQ2_XS, &IQ2_S, &IQ1] {
                check(lattice, number, &places, &weights);
            }
            check(&IQ3_XXS, number, &places, &weights);
            check(&IQ3_S, number, &places, &weights);
        }
    }
}
