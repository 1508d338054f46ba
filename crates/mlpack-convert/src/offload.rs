//! Slabs that a GPU does: what it is given, and what it leaves to the CPU. Of one that only multiplies nothing is here but whether
//! it is used: mlpack-lora asks it while it merges.
//!
//! A slab goes there as the source stores it, with the factors of what adapters add, and comes back merged and encoded for
//! every target. The CPU does the slab where the device has no kernel for something, where a value is not finite or leaves the
//! range of a type (it knows how to say where), and from then on where the device fails. The bytes are the same.

use crate::gather::Reader;
use crate::slab::{Slab, Work};
use crate::{Error, Plan, Resources, Source, Step, Stored};
use mlpack_arch::ValueChange;
use mlpack_device::{Delta, Device, Limits, Outcome, Output, can_encode, can_read, is_searched};
use mlpack_fs::{Buffer, Buffers};
use mlpack_lora::{LowRank, ProductDevice};
use mlpack_tensor::GgmlType;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Elements of a slab, if the budget allows it: several tiles of a device.
pub(crate) const SLAB_ELEMENTS: u64 = 1 << 22;

/// Elements that have to be searched for, where the CPU's time is worth opening a device and the way there.
pub const WORTH_ELEMENTS: u64 = 1 << 24;

/// A GPU, and when it is used.
#[derive(Clone, Debug)]
pub enum OnDevice {
    /// One that is open: every plan goes there.
    Opened(Arc<Device>),
    /// The first one, opened for the first plan that is worth it.
    IfWorth(Unopened),
    /// One that multiplies factors of adapters and does nothing else: every plan that asks for that goes there.
    Products(ProductDevice),
}

/// A GPU that is opened when it is asked for.
#[derive(Clone, Debug)]
pub struct Unopened {
    limits: Limits,
    opened: Arc<OnceLock<Result<Arc<Device>, mlpack_device::Error>>>,
}

impl OnDevice {
    /// One that is open: every plan goes there.
    pub fn opened(device: Device) -> OnDevice {
        OnDevice::Opened(Arc::new(device))
    }

    /// The first one, opened for the first plan that is worth it.
    pub fn if_worth(limits: Limits) -> OnDevice {
        OnDevice::IfWorth(Unopened { limits, opened: Arc::default() })
    }
}

impl Unopened {
    fn open(&self) -> Result<&Arc<Device>, &mlpack_device::Error> {
        self.opened.get_or_init(|| Device::open(0, self.limits).map(Arc::new)).as_ref()
    }
}

/// Where the slabs of a plan are done, and why.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// On a GPU.
    Device(&'a Arc<Device>),
    /// On the CPU, but for products of adapters' factors.
    Products(&'a ProductDevice),
    /// On the CPU, as that GPU only multiplies, and no tensor asks for that.
    NoProducts(&'a ProductDevice),
    /// On the CPU, which needs the values themselves: errors or changes are measured.
    Measured,
    /// On the CPU, as no more elements than these are to be searched for.
    NotWorth(u64),
    /// On the CPU, as the GPU that it would be worth cannot be opened.
    NotOpened(&'a mlpack_device::Error),
}

impl Resources {
    /// Where slabs of a plan go; `None` where no GPU may be used.
    pub fn place(&self, source: &Source, plan: &Plan) -> Option<Place<'_>> {
        let device = self.device.as_ref()?;
        if plan.measures_changes || plan.limits.any() && !matches!(device, OnDevice::Products(_)) {
            return Some(Place::Measured);
        }
        Some(match device {
            OnDevice::Opened(device) => Place::Device(device),
            OnDevice::Products(device) if asks_for_products(source, plan) => Place::Products(device),
            OnDevice::Products(device) => Place::NoProducts(device),
            OnDevice::IfWorth(device) => match searched_elements(plan) {
                searched if searched < WORTH_ELEMENTS => Place::NotWorth(searched),
                _ => device.open().map_or_else(Place::NotOpened, Place::Device),
            },
        })
    }
}

/// Whether rows of any tensor are merged with products that a GPU may compute.
fn asks_for_products(source: &Source, plan: &Plan) -> bool {
    let gathers = plan.steps.iter().filter_map(Step::gather);
    gathers.flat_map(|gather| &gather.positions).any(|position| source.asks_for_products(*position))
}

/// Elements of all outputs that are encoded to types that are searched.
fn searched_elements(plan: &Plan) -> u64 {
    let tensors = plan.outputs.iter().flat_map(|output| &output.tensors);
    let searched = tensors.filter(|tensor| match tensor.stored {
        Stored::Ggml(ty) => {
            let importance = tensor.importance.is_some();
            can_encode(ty, importance) && is_searched(ty, importance)
        }
        _ => false,
    });
    searched.map(|tensor| tensor.shape.element_count().unwrap_or(0)).fold(0, u64::saturating_add)
}

/// A GPU, until it fails.
pub(crate) struct Offload {
    device: Arc<Device>,
    done: AtomicU64,
    failed: OnceLock<mlpack_device::Error>,
}

impl Offload {
    pub(crate) fn new(device: &Arc<Device>) -> Offload {
        Offload { device: Arc::clone(device), done: AtomicU64::new(0), failed: OnceLock::new() }
    }

    /// Slabs that it did, and what a person should know.
    pub(crate) fn finish(self, slabs: usize) -> (u64, Vec<String>) {
        let done = self.done.into_inner();
        let warning = self.failed.into_inner().map(|error| {
            let error = error.in_one_line();
            format!("{error}; {done} of {slabs} slabs were done there and the others on the CPU, with the same bytes")
        });
        (done, warning.into_iter().collect())
    }
}

/// Products that a GPU computed in a run, and what a person should know.
pub(crate) fn finish_products(products: &ProductDevice) -> (u64, Vec<String>) {
    let (done, failed) = products.used();
    let warning = failed.map(|error| {
        let error = error.in_one_line();
        format!("{error}; {done} products were computed there and the others on the CPU, with the same bytes")
    });
    (done, warning.into_iter().collect())
}

/// Room that a worker keeps from slab to slab.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pieces: Vec<u64>,
    lefts: Vec<Vec<f32>>,
    importance: Vec<Vec<f32>>,
}

/// How a target is written.
#[derive(Clone, Copy)]
enum Way {
    /// As the source stores it.
    Stored,
    /// Encoded, with the importance of an expert.
    Encoded(GgmlType, Option<(usize, usize)>),
}

impl Work<'_> {
    /// Does a slab on the device: what every target is to hold. `None` where that is not possible.
    pub(crate) fn offload(
        &self,
        slab: &Slab,
        reader: &Reader<'_>,
        gathering: &mut crate::gather::Room,
        room: &mut Room,
        buffers: &mut Buffers,
    ) -> Result<Option<Vec<(usize, Buffer)>>, Error> {
        let Some(offload) = self.offload.filter(|offload| offload.failed.get().is_none()) else {
            return Ok(None);
        };
        let step = &self.plan.steps[slab.step];
        let Some(dtype) = reader.stored().dtype().filter(|dtype| can_read(*dtype)) else { return Ok(None) };
        if reader.change() != ValueChange::None || reader.factor() != 1.0 {
            return Ok(None);
        }
        let Some(ways) = (0..step.targets.len()).map(|i| self.way(slab, reader, i)).collect::<Option<Vec<Way>>>()
        else {
            return Ok(None);
        };
        let Room { pieces, lefts, importance } = room;
        let deltas = reader.low_rank(&slab.rows, pieces).unwrap_or_default();
        let encodes = ways.iter().any(|way| matches!(way, Way::Encoded(..)));
        if !encodes && deltas.is_empty() {
            return Ok(None);
        }
        // Rows that adapters change in another way are merged here.
        let changed_here = deltas.is_empty() && reader.is_changed();
        let sources = match reader.source_pieces(&slab.rows, pieces).filter(|_| !changed_here) {
            Some(sources) => sources,
            None => vec![reader.read(&slab.rows, gathering)?.unwrap_or(&gathering.gathered)],
        };
        lefts.resize_with(deltas.len(), Vec::new);
        for ((_, _, delta), left) in deltas.iter().zip(&mut *lefts) {
            left.clear();
            delta.left_rows(pieces, left);
        }
        let rights: Vec<_> = deltas.iter().map(|(_, _, delta)| || delta.right()).collect();
        let of_device = deltas.iter().zip(&*lefts).zip(&rights).map(|(((target, part, delta), left), right)| Delta {
            panel: (*target, *part),
            rank: delta.rank(),
            left,
            right,
            factor: delta.factor,
        });
        let of_device: Vec<Delta<'_>> = of_device.collect();
        let mut outputs = self.rooms(slab, buffers, |_| true);
        importance.resize_with(ways.len(), Vec::new);
        for (i, way) in ways.iter().enumerate() {
            if let Way::Encoded(_, Some((entry, expert))) = way {
                self.plan.importance(*entry, *expert, step.row_len as usize, &mut importance[i]);
            }
        }
        let asked = ways.iter().zip(&mut outputs).zip(&*importance).map(|((way, (_, room)), importance)| match way {
            Way::Stored => Output::Stored(room.bytes_mut()),
            Way::Encoded(ty, expert) => {
                Output::Encoded { ty: *ty, importance: expert.map(|_| importance.as_slice()), bytes: room.bytes_mut() }
            }
        });
        let mut asked: Vec<Output<'_>> = asked.collect();
        let given = mlpack_device::Slab { dtype, pieces: &sources, row_len: step.row_len as usize, deltas: &of_device };
        match offload.device.run(&given, &mut asked) {
            Ok(Outcome::Done) => {}
            Ok(Outcome::NotFinite) => return Ok(None),
            Err(error) => {
                // The first one is the one that counts.
                let _ = offload.failed.set(error);
                return Ok(None);
            }
        }
        drop(asked);
        let valid = |(way, (_, room)): (&Way, &mut (usize, Buffer))| match way {
            Way::Encoded(ty, _) if ty.is_quantized() || *ty == GgmlType::F16 => {
                mlpack_quant::first_invalid_block(*ty, room.bytes_mut()).is_none()
            }
            _ => true,
        };
        if !ways.iter().zip(&mut outputs).all(valid) {
            return Ok(None);
        }
        offload.done.fetch_add(1, Ordering::Relaxed);
        Ok(Some(outputs))
    }

    /// How a target is written by a device, where it can be.
    fn way(&self, slab: &Slab, reader: &Reader<'_>, target: usize) -> Option<Way> {
        let step = &self.plan.steps[slab.step];
        if self.is_as_is(step, target, reader) {
            return Some(Way::Stored);
        }
        let place = step.targets[target];
        let tensor = &self.plan.outputs[place.output].tensors[place.tensor];
        let Stored::Ggml(ty) = tensor.stored else { return None };
        if !can_encode(ty, tensor.importance.is_some()) {
            return None;
        }
        let Some(entry) = tensor.importance else { return Some(Way::Encoded(ty, None)) };
        // Each expert of a stack has values of its own; a slab with rows of two is rare.
        let dims = tensor.shape.dims();
        let rows_per_expert = dims[dims.len().saturating_sub(2)].max(1);
        let expert = slab.rows.start / rows_per_expert;
        (expert == (slab.rows.end - 1) / rows_per_expert).then_some(Way::Encoded(ty, Some((entry, expert as usize))))
    }
}

/// A difference with its target and its place among the target's.
pub(crate) type KeyedDelta<'a> = (usize, usize, LowRank<'a>);

#[cfg(test)]
mod tests;
