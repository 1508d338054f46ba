//! Diff: every tensor of a file against the tensor that it was made from.
//!
//! Tensors are paired by their GGUF name: a checkpoint is seen as the GGUF file that it would become, with its adapters'
//! deltas added. Both sides are decoded in slabs of rows on all cores; the figures are the same on any number of them.

mod side;

use crate::quantize_plan::without_outer_ones;
use crate::{Error, ErrorSums, Resources, SlabSums, Source, Stored, TensorError, open_model};
use mlpack_arch::Families;
use mlpack_tensor::Shape;
use side::{Room, Side, SideTensor};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Two models, tensor by tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Diff {
    /// The tensors of both, in the order of B.
    pub tensors: Vec<TensorDiff>,
    /// Tensors that B does not have, in the order of A.
    pub only_in_a: Vec<Unpaired>,
    /// Tensors that A does not have, in the order of B.
    pub only_in_b: Vec<Unpaired>,
    /// Tensors of the same name but not the same shape, in the order of B.
    pub reshaped: Vec<Reshaped>,
}

/// A tensor of both.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDiff {
    /// Its GGUF name.
    pub name: String,
    /// Its shape in B, outermost dimension first.
    pub shape: Shape,
    /// How A stores it.
    pub a: Stored,
    /// How B stores it.
    pub b: Stored,
    /// Its bytes in B.
    pub byte_len: u64,
    /// How far B is from A.
    pub error: TensorError,
}

impl TensorDiff {
    /// Bits of B for each element.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.byte_len, self.error.elements)
    }
}

/// Bits for each of so many elements; 0 for none.
pub fn bits_per_weight(byte_len: u64, elements: u64) -> f64 {
    if elements == 0 { 0.0 } else { byte_len as f64 * 8.0 / elements as f64 }
}

/// A tensor of one side only.
#[derive(Clone, Debug, PartialEq)]
pub struct Unpaired {
    /// Its GGUF name.
    pub name: String,
    /// How it is stored.
    pub stored: Stored,
    /// Its shape.
    pub shape: Shape,
}

/// A tensor whose shapes differ, so that its values cannot be compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Reshaped {
    /// Its GGUF name.
    pub name: String,
    /// Its shape in A.
    pub a: Shape,
    /// Its shape in B.
    pub b: Shape,
}

/// Elements of a slab, where a row is not longer: both sides of it stay in the caches.
const SLAB_ELEMENTS: u64 = 1 << 17;

/// Bytes that a slab needs for each element: float64 sum and product, gathered and merged bytes of A, and float32 of both.
const BYTES_PER_ELEMENT: u64 = 8 + 8 + 4 + 4 + 4 + 4;

/// Measures how far every tensor of `b` is from that of `a`. `progress` is told the number of bytes of B done, from any
/// thread.
///
/// # Errors
/// A checkpoint whose architecture is not known, a tensor whose values cannot be read, a row that the memory has no room
/// for.
pub fn diff(
    a: &Source,
    b: &Source,
    families: &Families,
    resources: &Resources,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Diff, Error> {
    let side = |source| match Source::checkpoint(source) {
        Some(_) => Side::of_model(source, &open_model(source, None, families)?),
        None => Ok(Side::of_gguf(source)),
    };
    let (a, b) = (side(a)?, side(b)?);
    let (pairs, mut diff) = pair(&a, &b);
    let errors = measure(&a, &b, &pairs, resources, progress)?;
    for (pair, error) in pairs.iter().zip(errors) {
        diff.tensors.push(TensorDiff {
            name: pair.b.name.clone(),
            shape: pair.b.shape.clone(),
            a: pair.a.stored,
            b: pair.b.stored,
            byte_len: pair.rows().saturating_mul(pair.b.stored.row_byte_len(pair.b.shape.row_len())),
            error,
        });
    }
    Ok(diff)
}

/// The same tensor of both sides.
#[derive(Clone, Copy)]
struct Pair<'a> {
    a: &'a SideTensor,
    b: &'a SideTensor,
}

impl Pair<'_> {
    fn rows(&self) -> u64 {
        self.b.shape.row_count().unwrap_or(0)
    }
}

/// Pairs the tensors by name; the rest is in the diff.
fn pair<'a>(a: &'a Side<'_>, b: &'a Side<'_>) -> (Vec<Pair<'a>>, Diff) {
    let mut diff = Diff::default();
    let mut pairs = Vec::new();
    let of_a: BTreeMap<&str, &SideTensor> = a.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let unpaired = |t: &SideTensor| Unpaired { name: t.name.clone(), stored: t.stored, shape: t.shape.clone() };
    for tensor in &b.tensors {
        match of_a.get(tensor.name.as_str()) {
            None => diff.only_in_b.push(unpaired(tensor)),
            Some(other) if without_outer_ones(&other.shape) == without_outer_ones(&tensor.shape) => {
                pairs.push(Pair { a: other, b: tensor });
            }
            Some(other) => {
                let (name, a, b) = (tensor.name.clone(), other.shape.clone(), tensor.shape.clone());
                diff.reshaped.push(Reshaped { name, a, b });
            }
        }
    }
    let of_b: BTreeSet<&str> = b.tensors.iter().map(|t| t.name.as_str()).collect();
    diff.only_in_a = a.tensors.iter().filter(|t| !of_b.contains(t.name.as_str())).map(unpaired).collect();
    (pairs, diff)
}

/// Rows of a pair.
struct Slab {
    pair: usize,
    rows: Range<u64>,
}

/// Cuts the pairs into slabs, in the order of B, and counts the workers that the budget allows.
fn cut(a: &Side<'_>, pairs: &[Pair<'_>], memory: u64, threads: usize) -> Result<(Vec<Slab>, usize), Error> {
    let mut slabs = Vec::new();
    let mut largest = 0;
    for (i, pair) in pairs.iter().enumerate() {
        let row_len = pair.b.shape.row_len();
        let per_row = row_len.saturating_mul(BYTES_PER_ELEMENT);
        let fixed = a.delta_byte_len(pair.a);
        let needed = fixed.saturating_add(per_row);
        if needed > memory {
            return Err(Error::Budget { tensor: pair.b.name.clone(), needed, budget: memory });
        }
        let by_budget = (memory / threads.max(1) as u64).saturating_sub(fixed) / per_row.max(1);
        let rows = by_budget.min(SLAB_ELEMENTS / row_len.max(1)).max(1);
        largest = largest.max(fixed + rows * per_row);
        // A tensor of rows without elements has none to compare.
        let count = if row_len == 0 { 0 } else { pair.rows() };
        let mut start = 0;
        while start < count {
            let end = count.min(start + rows);
            slabs.push(Slab { pair: i, rows: start..end });
            start = end;
        }
    }
    Ok((slabs, threads.min((memory / largest.max(1)) as usize).max(1)))
}

/// The error of every pair.
fn measure(
    a: &Side<'_>,
    b: &Side<'_>,
    pairs: &[Pair<'_>],
    resources: &Resources,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<TensorError>, Error> {
    let threads = if resources.threads == 0 { rayon::current_num_threads() } else { resources.threads };
    let (slabs, workers) = cut(a, pairs, resources.memory, threads)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(workers)
        .thread_name(|i| format!("mlpack-{i}"))
        .build()
        .map_err(|e| Error::Threads { threads: workers, reason: e.to_string() })?;
    let sums: Vec<Mutex<ErrorSums>> = pairs.iter().map(|_| Mutex::default()).collect();
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    pool.broadcast(|_| {
        let (mut room, mut source, mut stored) = (Room::default(), Vec::new(), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(Slab { pair, rows }) = slabs.get(i) else { break };
            let Pair { a: of_a, b: of_b } = pairs[*pair];
            let read =
                a.read(of_a, rows, &mut room, &mut source).and_then(|()| b.read(of_b, rows, &mut room, &mut stored));
            if let Err(error) = read {
                stop.store(true, Ordering::Relaxed);
                let mut failed = failed.lock().expect("no thread panics holding the lock");
                if failed.as_ref().is_none_or(|(earliest, _)| i < *earliest) {
                    *failed = Some((i, error));
                }
                continue;
            }
            let mut slab = SlabSums::new(rows.start);
            slab.add_rows(of_b.shape.row_len() as usize, &source, &stored);
            sums[*pair].lock().expect("no thread panics holding the lock").add(slab);
            a.release(of_a, rows);
            progress(b.release(of_b, rows));
        }
    });
    match failed.into_inner().expect("no thread panics holding the lock") {
        Some((_, error)) => Err(error),
        None => Ok(sums
            .into_iter()
            .map(|sums| sums.into_inner().expect("no thread panics holding the lock").finish())
            .collect()),
    }
}

#[cfg(test)]
mod tests;
