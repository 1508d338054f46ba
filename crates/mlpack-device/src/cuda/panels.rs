//! Right factors on the device, kept from slab to slab for all lanes.

use super::driver::Context;
use super::memory::{Buffer, Channel};
use crate::{Delta, Error, PanelKey};
use std::sync::Arc;

/// A right factor and, behind it, the norms of its columns, rounded up.
pub(crate) struct Panels {
    channel: Channel,
    kept: Vec<(PanelKey, Arc<Buffer>)>,
    budget: usize,
}

impl Panels {
    /// Room for so many bytes.
    pub(crate) fn new(context: &Arc<Context>, budget: usize) -> Result<Panels, Error> {
        Ok(Panels { channel: Channel::new(context)?, kept: Vec::new(), budget })
    }

    /// The panel of a difference. Those that nobody uses make room for a new one, the longest unused first.
    pub(crate) fn panel(&mut self, delta: &Delta<'_>, row_len: usize) -> Result<Arc<Buffer>, Error> {
        if let Some(at) = self.kept.iter().position(|(key, _)| *key == delta.panel) {
            let found = self.kept.remove(at);
            let panel = Arc::clone(&found.1);
            self.kept.push(found);
            return Ok(panel);
        }
        let len = (delta.rank + 1) * row_len * 4;
        self.make_room(len)?;
        let right = (delta.right)();
        assert_eq!(right.len(), delta.rank * row_len, "a right factor of rank {}", delta.rank);
        let mut squares = vec![0.0; row_len];
        for row in right.chunks_exact(row_len) {
            squares.iter_mut().zip(row).for_each(|(square, v)| *square += f64::from(*v) * f64::from(*v));
        }
        let norms = squares.iter().map(|square| (square.sqrt() * (1.0 + 1e-6)) as f32);
        let memory = self.channel.memory(len)?;
        for (out, v) in memory.as_chunks_mut::<4>().0.iter_mut().zip(right.iter().copied().chain(norms)) {
            *out = v.to_le_bytes();
        }
        let panel = Arc::new(Buffer::new(self.channel.context(), len)?);
        self.channel.copy_in(&panel, 0, len)?;
        // Other streams use it from now on.
        self.channel.wait()?;
        self.kept.push((delta.panel, Arc::clone(&panel)));
        Ok(panel)
    }

    fn make_room(&mut self, len: usize) -> Result<(), Error> {
        let mut used: usize = self.kept.iter().map(|(_, panel)| panel.len()).sum();
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
