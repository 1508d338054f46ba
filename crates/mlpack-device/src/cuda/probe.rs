//! What a device can do, for whoever measures it: copies alone, and kernels on values that are there already.

use super::Device;
use super::kernels::{Encode, Launch, kernel};
use super::memory::{Buffer, Channel};
use super::panels::Grid;
use crate::Error;
use mlpack_tensor::GgmlType;

/// Memory on both sides, with float32 values on the device.
pub struct Probe<'a> {
    device: &'a Device,
    channel: Channel,
    x: Buffer,
    importance: Buffer,
    out: Buffer,
    len: usize,
    row_len: usize,
}

impl Device {
    /// Copies rows of values to the device, with room for what they are encoded to.
    ///
    /// # Errors
    /// When the device has too little memory, or fails.
    pub fn probe(&self, values: &[f32], row_len: usize) -> Result<Probe<'_>, Error> {
        let len = values.len() * 4;
        let mut channel = Channel::new(&self.context)?;
        let (x, out) = (Buffer::new(&self.context, len)?, Buffer::new(&self.context, len)?);
        let importance = Buffer::new(&self.context, len.min(row_len * 4))?;
        let fill = |memory: &mut [u8], values: &mut dyn Iterator<Item = f32>| {
            memory.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(to, v)| *to = v.to_le_bytes());
        };
        fill(channel.memory(len)?, &mut values.iter().map(|v| v.abs() + 0.01));
        channel.copy_in(&importance, 0, importance.len())?;
        fill(channel.memory(len)?, &mut values.iter().copied());
        channel.copy_in(&x, 0, len)?;
        channel.wait()?;
        Ok(Probe { device: self, channel, x, importance, out, len, row_len })
    }
}

impl Probe<'_> {
    /// Copies all bytes to the device, and waits.
    ///
    /// # Errors
    /// When the device fails.
    pub fn copy_in(&mut self) -> Result<(), Error> {
        self.channel.copy_in(&self.x, 0, self.len)?;
        self.channel.wait()
    }

    /// Copies all bytes back, and waits.
    ///
    /// # Errors
    /// When the device fails.
    pub fn copy_out(&mut self) -> Result<(), Error> {
        self.channel.copy_out(&self.x, 0, 0, self.len)?;
        self.channel.wait()
    }

    /// Encodes all values, some times, and waits.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the type has no kernel.
    pub fn encode(&mut self, ty: GgmlType, importance: bool, times: u32) -> Result<(), Error> {
        let encoder = kernel(ty, importance).expect("the caller asks for types with a kernel");
        let mut panels = self.device.panels.lock().expect("no thread panics holding the lock");
        let grid = encoder.grid.then(|| panels.grid(ty)).transpose()?;
        drop(panels);
        let encode = Encode {
            x: self.x.at(0, self.len),
            importance: self.importance.at(0, 0),
            // Any value does: how long it takes does not depend on it.
            mean_squares: if encoder.mean_squares { self.x.at(0, 0) } else { 0 },
            out: self.out.at(0, 0),
            combinations: grid.as_ref().map_or(0, Grid::combinations),
            list: grid.as_ref().map_or(0, Grid::list),
            blocks: self.len as u64 / 4 / ty.block_len(),
            blocks_per_row: self.row_len as u64 / ty.block_len(),
        };
        for _ in 0..times {
            self.device.kernels.launch(&mut self.channel, &Launch::Encode(encoder, encode))?;
        }
        self.channel.wait()
    }
}
