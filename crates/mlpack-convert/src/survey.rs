//! The extremes of each row of tensors, with what adapters change: what has to be known of a whole matrix before its first
//! row is encoded. It is a read of its own.

use crate::execute::{SLAB_ELEMENTS, cut, each};
use crate::gather::{Reader, share};
use crate::slab::{Scratch, apply};
use crate::{Error, Input, Plan, Resources, Source, Step, Stored};
use mlpack_arch::ValueChange;
use mlpack_quant::Extremes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Measures tensors, by position, each with what is done to its values.
///
/// # Errors
/// When a value is not finite, or the budget is too small.
pub(crate) fn survey(
    source: &Source,
    wanted: &BTreeMap<usize, ValueChange>,
    resources: &Resources,
) -> Result<BTreeMap<usize, Arc<[Extremes]>>, Error> {
    let mut plan = Plan::default();
    for (&position, &values) in wanted {
        let mut step = Step::copy(position, &source.tensors()[position].shape);
        if let Input::Tensors(gather) = &mut step.input {
            gather.values = values;
        }
        plan.steps.push(step);
    }
    let threads = if resources.threads == 0 { rayon::current_num_threads() } else { resources.threads };
    let (slabs, workers) = cut(source, &plan, resources.memory, threads, SLAB_ELEMENTS)?;
    let files = source.files();
    let unknown = Extremes { min: f32::MAX, max: f32::MIN };
    let found: Vec<Mutex<Vec<Extremes>>> =
        plan.steps.iter().map(|step| Mutex::new(vec![unknown; step.rows as usize])).collect();
    each(&slabs, workers, None, |slab, scratch: &mut Scratch| {
        let step = &plan.steps[slab.step];
        let Input::Tensors(gather) = &step.input else { return Ok(()) };
        let reader = Reader::new(source, gather, step.row_len, true, None);
        let bytes = reader.read(&slab.rows, &mut scratch.room)?.unwrap_or(&scratch.room.gathered);
        let floats = &mut scratch.floats;
        floats.resize(((slab.rows.end - slab.rows.start) * step.row_len) as usize, 0.0);
        let Stored::Safetensors(dtype) = reader.stored() else { unreachable!("the plan takes floats alone") };
        mlpack_quant::widen(dtype, bytes, floats)?;
        apply(gather.values, Some(dtype), floats);
        let rows: Vec<Extremes> = floats.chunks_exact(step.row_len.max(1) as usize).map(Extremes::of).collect();
        let at = slab.rows.start as usize..slab.rows.end as usize;
        found[slab.step].lock().expect("no thread panics holding the lock")[at].copy_from_slice(&rows);
        for (file, range) in share(source, gather, slab.rows.start * step.row_len..slab.rows.end * step.row_len) {
            files[file].release(range.start as usize..range.end as usize);
        }
        Ok(())
    })?;
    let found = found.into_iter().map(|rows| rows.into_inner().expect("no thread panics holding the lock").into());
    Ok(wanted.keys().copied().zip(found).collect())
}
