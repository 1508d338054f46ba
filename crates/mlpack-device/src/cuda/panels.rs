//! What all lanes share on the device and keep from slab to slab: right factors of adapters, and grids of types.

use super::driver::{Address, Context};
use super::memory::{Buffer, Channel};
use crate::{Delta, Error, PanelKey};
use mlpack_tensor::GgmlType;
use std::sync::Arc;

/// Bytes of a combination of codes there (`struct combination` of `kernels/grids.h`).
const COMBINATION_LEN: usize = 12;

/// Memory that is shared, and what is in it.
pub(crate) struct Panels {
    channel: Channel,
    /// Right factors, each with the norms of its columns behind it, rounded up.
    kept: Vec<(PanelKey, Arc<Buffer>)>,
    grids: Vec<(GgmlType, Grid)>,
    budget: usize,
}

/// A grid on the device: combinations of codes, and behind them the list of neighbours.
#[derive(Clone)]
pub(crate) struct Grid {
    buffer: Arc<Buffer>,
    combinations: usize,
}

impl Grid {
    pub(crate) fn combinations(&self) -> Address {
        self.buffer.at(0, self.combinations * COMBINATION_LEN)
    }

    pub(crate) fn list(&self) -> Address {
        self.buffer.at(self.combinations * COMBINATION_LEN, 2)
    }
}

impl Panels {
    /// Room for so many bytes.
    pub(crate) fn new(context: &Arc<Context>, budget: usize) -> Result<Panels, Error> {
        Ok(Panels { channel: Channel::new(context)?, kept: Vec::new(), grids: Vec::new(), budget })
    }

    /// The panel of a difference. Those that nobody uses make room for a new one, the longest unused first.
    pub(crate) fn panel(&mut self, delta: &Delta<'_>, row_len: usize) -> Result<Arc<Buffer>, Error> {
        if let Some(at) = self.kept.iter().position(|(key, _)| *key == delta.panel) {
            let found = self.kept.remove(at);
            let panel = Arc::clone(&found.1);
            self.kept.push(found);
            return Ok(panel);
        }
        let right = (delta.right)();
        assert_eq!(right.len(), delta.rank * row_len, "a right factor of rank {}", delta.rank);
        let mut squares = vec![0.0; row_len];
        for row in right.chunks_exact(row_len) {
            squares.iter_mut().zip(row).for_each(|(square, v)| *square += f64::from(*v) * f64::from(*v));
        }
        let norms = squares.iter().map(|square| (square.sqrt() * (1.0 + 1e-6)) as f32 + f32::MIN_POSITIVE);
        let values = right.iter().copied().chain(norms);
        let panel = self.upload((delta.rank + 1) * row_len * 4, |memory| {
            for (out, v) in memory.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *out = v.to_le_bytes();
            }
        })?;
        self.kept.push((delta.panel, Arc::clone(&panel)));
        Ok(panel)
    }

    /// The grid of a type that has one. It stays.
    pub(crate) fn grid(&mut self, ty: GgmlType) -> Result<Grid, Error> {
        // Both types of one bit have the same.
        let ty = if ty == GgmlType::IQ1_M { GgmlType::IQ1_S } else { ty };
        if let Some((_, grid)) = self.grids.iter().find(|(of, _)| *of == ty) {
            return Ok(grid.clone());
        }
        let table = mlpack_quant::grid_table(ty).expect("an encoder that needs a grid is of a type with one");
        let of_list = table.combinations.len() * COMBINATION_LEN;
        let buffer = self.upload(of_list + table.list.len() * 2, |memory| {
            let (combinations, list) = memory.split_at_mut(of_list);
            for (out, c) in combinations.as_chunks_mut::<COMBINATION_LEN>().0.iter_mut().zip(&table.combinations) {
                out[..4].copy_from_slice(&c.start.to_le_bytes());
                let counts = [c.neighbours, c.contenders, c.index];
                out[4..].as_chunks_mut::<2>().0.iter_mut().zip(counts).for_each(|(out, v)| *out = v.to_le_bytes());
            }
            list.as_chunks_mut::<2>().0.iter_mut().zip(&table.list).for_each(|(out, v)| *out = v.to_le_bytes());
        })?;
        let grid = Grid { buffer, combinations: table.combinations.len() };
        self.grids.push((ty, grid.clone()));
        Ok(grid)
    }

    /// Copies what is written into the memory to the device, for all streams.
    fn upload(&mut self, len: usize, write: impl FnOnce(&mut [u8])) -> Result<Arc<Buffer>, Error> {
        self.make_room(len)?;
        write(&mut self.channel.memory(len)?[..len]);
        let buffer = Arc::new(Buffer::new(self.channel.context(), len)?);
        self.channel.copy_in(&buffer, 0, len)?;
        // Other streams use it from now on.
        self.channel.wait()?;
        Ok(buffer)
    }

    fn make_room(&mut self, len: usize) -> Result<(), Error> {
        let grids = self.grids.iter().map(|(_, grid)| grid.buffer.len());
        let mut used: usize = self.kept.iter().map(|(_, panel)| panel.len()).chain(grids).sum();
        while used + len > self.budget {
            let Some(at) = self.kept.iter().position(|(_, panel)| Arc::strong_count(panel) == 1) else {
                return Err(Error::OutOfMemory {
                    name: self.channel.context().name.clone(),
                    needed: (used + len) as u64,
                    found: self.budget as u64,
                    limited: true,
                });
            };
            used -= self.kept.remove(at).1.len();
        }
        Ok(())
    }
}
