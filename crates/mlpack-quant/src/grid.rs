//! The grids of the IQ types as tables, for encoders that run elsewhere.

use crate::reference::lattice::{IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS, Lattice};
use mlpack_tensor::GgmlType;

/// What an encoder needs to know of a grid. Codes are packed as in ggml's tables: the first lowest, eight of two bits or four
/// of three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GridTable {
    /// For every combination of codes, by its number: the first code is the lowest digit, to the base 3 or 8.
    pub combinations: Vec<Combination>,
    /// Packed codes of neighbours.
    pub list: Vec<u16>,
}

/// A combination of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combination {
    /// Where its neighbours begin in the list.
    pub start: u32,
    /// How many points there are that codes without an index are replaced by, nearest first; none for a point.
    pub neighbours: u16,
    /// How many of them come again behind them: those that can be best where every value is nearest to its code.
    pub contenders: u16,
    /// The index of a point; of the first neighbour where it is none.
    pub index: u16,
}

/// Whether values of a type are codes of points of a grid.
pub fn has_grid(ty: GgmlType) -> bool {
    grid_of(ty).is_some()
}

/// The grid of a type; `None` for types without one.
pub fn grid_table(ty: GgmlType) -> Option<GridTable> {
    grid_of(ty).map(|table| table())
}

fn grid_of(ty: GgmlType) -> Option<fn() -> GridTable> {
    Some(match ty {
        GgmlType::IQ2_XXS => || IQ2_XXS.table(),
        GgmlType::IQ2_XS => || IQ2_XS.table(),
        GgmlType::IQ2_S => || IQ2_S.table(),
        GgmlType::IQ3_XXS => || IQ3_XXS.table(),
        GgmlType::IQ3_S => || IQ3_S.table(),
        GgmlType::IQ1_S | GgmlType::IQ1_M => || IQ1.table(),
        _ => return None,
    })
}

impl<const N: usize> Lattice<N> {
    fn table(&self) -> GridTable {
        let mut list = Vec::new();
        let combinations = (0..usize::from(Self::LEVELS).pow(N as u32)).map(|number| {
            let cell = self.cell(number);
            let start = list.len() as u32;
            let mut append = |(chunks, count): (&[[u16; 8]], usize)| {
                list.extend_from_slice(&chunks.as_flattened()[..count]);
                count as u16
            };
            let (neighbours, contenders) = (append(self.neighbours(cell)), append(self.contenders(cell)));
            Combination { start, neighbours, contenders, index: cell.index }
        });
        let combinations = combinations.collect();
        GridTable { combinations, list }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_hold_every_point_and_its_neighbours() {
        for (ty, points) in [
            (GgmlType::IQ2_XXS, 256),
            (GgmlType::IQ2_XS, 512),
            (GgmlType::IQ2_S, 1024),
            (GgmlType::IQ1_S, 2048),
            (GgmlType::IQ1_M, 2048),
            (GgmlType::IQ3_XXS, 256),
            (GgmlType::IQ3_S, 512),
        ] {
            let table = grid_table(ty).unwrap();
            let eights = table.combinations.len() == 6561;
            let number = |packed: u16| {
                let digits = (0..8u32).map(|i| usize::from(packed >> (2 * i) & 3) * 3usize.pow(i));
                if eights { digits.sum() } else { usize::from(packed) }
            };
            let mut indices: Vec<u16> =
                table.combinations.iter().filter(|c| c.neighbours == 0).map(|c| c.index).collect();
            indices.sort_unstable();
            assert_eq!(indices, (0..points).collect::<Vec<u16>>(), "{ty}");
            for c in table.combinations.iter().filter(|c| c.neighbours > 0) {
                let list = &table.list[c.start as usize..][..usize::from(c.neighbours + c.contenders)];
                let (neighbours, contenders) = list.split_at(usize::from(c.neighbours));
                assert!(list.iter().all(|packed| table.combinations[number(*packed)].neighbours == 0), "{ty}");
                assert_eq!((contenders[0], table.combinations[number(neighbours[0])].index), (neighbours[0], c.index));
            }
        }
        assert_eq!(grid_table(GgmlType::Q4_K), None);
    }
}
