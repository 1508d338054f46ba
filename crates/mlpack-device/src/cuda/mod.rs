//! A GPU through the CUDA driver: opening it, and one slab after another.
//!
//! Every thread that runs a slab has a lane, and a lane has two halves, each with a stream, memory of the device and memory
//! of the host that the device copies by itself. A slab is cut into tiles that take turns on them: while one is computed,
//! the one before is on its way back and the next is being copied.

mod driver;
mod kernels;
mod memory;
#[cfg(feature = "host-model")]
pub(crate) mod model;
mod panels;
mod probe;
mod tile;

pub use kernels::MAX_DELTAS;
pub(crate) use kernels::{kernel, weighs_by_row};
pub use probe::Probe;

use crate::{Error, Outcome, Output, Slab};
use driver::Context;
use kernels::Kernels;
use memory::Channel;
use panels::Panels;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use tile::Half;

/// Bytes that begin where a driver can read words.
#[cfg(feature = "cuda")]
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

/// What nvcc made of the kernels.
#[cfg(feature = "cuda")]
static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("MLPACK_CUDA_IMAGE")));
#[cfg(feature = "cuda")]
const IMAGE: Option<&[u8]> = Some(&ALIGNED.0);
#[cfg(not(feature = "cuda"))]
const IMAGE: Option<&[u8]> = None;

const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// Elements of a tile: enough to keep a device busy, and few enough that a slab has several.
const TILE_ELEMENTS: usize = 1 << 20;

/// What may be used of a device.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of its memory; nine tenths of what is free where nothing is said.
    pub memory: Option<u64>,
    /// Threads that run slabs at a time.
    pub lanes: usize,
}

/// A GPU that is open.
pub struct Device {
    context: Arc<Context>,
    kernels: Kernels,
    lanes: Mutex<Lanes>,
    returned: Condvar,
    panels: Mutex<Panels>,
    /// Bytes of a half.
    half_budget: usize,
    /// Whether they come from a limit that was set.
    limited: bool,
}

struct Lanes {
    idle: Vec<[Half; 2]>,
    /// How many more may be made.
    left: usize,
}

impl Device {
    /// Whether the kernels are part of this build.
    pub const IS_BUILT: bool = IMAGE.is_some();

    /// Opens a GPU by its number.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], [`Error::NoDriver`], [`Error::DriverTooOld`], [`Error::NoDevice`], [`Error::NoSuchDevice`],
    /// [`Error::ComputeCapability`], or what the driver says.
    pub fn open(index: u32, limits: Limits) -> Result<Device, Error> {
        let Some(image) = IMAGE else { return Err(Error::NotBuilt) };
        Device::of(Path::new(LIBRARY), image, index, limits)
    }

    fn of(library: &Path, image: &[u8], index: u32, limits: Limits) -> Result<Device, Error> {
        let context = Context::open(library, index)?;
        let kernels = Kernels::load(&context, image)?;
        let free = context.free_memory()? / 10 * 9;
        let budget = limits.memory.unwrap_or(u64::MAX).min(free) as usize;
        let lanes = limits.lanes.max(1);
        // A quarter is for the right factors, which all lanes share.
        let panels = Mutex::new(Panels::new(&context, budget / 4)?);
        let half_budget = budget / 4 * 3 / lanes / 2;
        let limited = limits.memory.is_some_and(|memory| memory <= free);
        let lanes = Mutex::new(Lanes { idle: Vec::new(), left: lanes });
        Ok(Device { context, kernels, lanes, returned: Condvar::new(), panels, half_budget, limited })
    }

    /// What the driver calls it.
    pub fn name(&self) -> &str {
        &self.context.name
    }

    /// Merges and encodes rows. Any number of threads may call it; they wait where there are more of them than lanes.
    ///
    /// # Errors
    /// When the device fails or has too little memory; the outputs are not to be used then, and neither is the device.
    ///
    /// # Panics
    /// When an output has not the bytes of its rows, or something is asked for that [`crate::can_read`] or
    /// [`crate::can_encode`] denies.
    pub fn run(&self, slab: &Slab<'_>, outputs: &mut [Output<'_>]) -> Result<Outcome, Error> {
        let shared = {
            let mut panels = self.panels.lock().expect("no thread panics holding the lock");
            let deltas = slab.deltas.iter().map(|delta| panels.panel(delta, slab.row_len)).collect::<Result<_, _>>()?;
            let of_type = outputs.iter().map(|output| tile::needs_grid(output).map(|ty| panels.grid(ty)).transpose());
            tile::Shared { panels: deltas, grids: of_type.collect::<Result<_, _>>()? }
        };
        let (rows, tile) = (slab.rows(), self.tile_rows(slab, outputs)?);
        let mut lane = Lane { device: self, halves: Some(self.take_lane()?) };
        let halves = lane.halves.as_mut().expect("it was just taken");
        let mut finite = true;
        for (i, start) in (0..rows).step_by(tile).enumerate() {
            let half = &mut halves[i % 2];
            finite &= half.finish(slab, outputs)?;
            half.start(&self.kernels, slab, &shared, outputs, start..rows.min(start + tile))?;
        }
        for half in halves.iter_mut() {
            finite &= half.finish(slab, outputs)?;
        }
        lane.give_back();
        Ok(if finite { Outcome::Done } else { Outcome::NotFinite })
    }

    /// Rows of a tile: as many as are worth it, and as fit.
    fn tile_rows(&self, slab: &Slab<'_>, outputs: &[Output<'_>]) -> Result<usize, Error> {
        let fits = |rows: usize| tile::byte_len(slab, outputs, rows) <= self.half_budget;
        let mut rows = (TILE_ELEMENTS / slab.row_len.max(1)).clamp(1, slab.rows().max(1));
        while rows > 1 && !fits(rows) {
            rows /= 2;
        }
        if fits(rows) {
            return Ok(rows);
        }
        let (needed, found) = (tile::byte_len(slab, outputs, 1) as u64, self.half_budget as u64);
        Err(Error::OutOfMemory { name: self.name().to_owned(), needed, found, limited: self.limited })
    }

    fn take_lane(&self) -> Result<[Half; 2], Error> {
        let mut lanes = self.lanes.lock().expect("no thread panics holding the lock");
        loop {
            if let Some(lane) = lanes.idle.pop() {
                return Ok(lane);
            }
            if lanes.left > 0 {
                lanes.left -= 1;
                drop(lanes);
                let made = Channel::new(&self.context)
                    .and_then(|a| Ok([Half::new(a), Half::new(Channel::new(&self.context)?)]));
                return made.inspect_err(|_| self.lane_is_gone());
            }
            lanes = self.returned.wait(lanes).expect("no thread panics holding the lock");
        }
    }

    fn lane_is_gone(&self) {
        self.lanes.lock().expect("no thread panics holding the lock").left += 1;
        self.returned.notify_one();
    }
}

/// A lane in use. One that is not given back has failed, and another may be made in its place.
struct Lane<'a> {
    device: &'a Device,
    halves: Option<[Half; 2]>,
}

impl Lane<'_> {
    fn give_back(mut self) {
        let mut lanes = self.device.lanes.lock().expect("no thread panics holding the lock");
        lanes.idle.extend(self.halves.take());
        drop(lanes);
        self.device.returned.notify_one();
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        if self.halves.take().is_some() {
            self.device.lane_is_gone();
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("name", &self.context.name)
            .field("half_budget", &self.half_budget)
            .finish_non_exhaustive()
    }
}
