//! Execute and seal: run a plan in row slabs on all cores.
//!
//! Every worker takes the next slab of one list, so the memory in use is at most one slab for each worker, and reads and
//! writes go through the files from front to back. Offsets are fixed by the plan, so the order in which slabs finish does not matter.

use crate::gather::{MERGED_BYTES, share};
use crate::offload::{self, Offload, OnDevice, Place};
use crate::resume::Resume;
use crate::slab::{Fidelity, Scratch, Slab, Work};
use crate::{Error, Input, Output, Plan, Source, Step, Stored, TensorError, TooFar};
use mlpack_fs::{AtomicFile, InputHasher, Sha256};
use mlpack_lora::{ChangeTally, ProductDevice, TensorChange};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a run may use.
#[derive(Clone, Debug)]
pub struct Resources {
    /// Bytes for slabs of all workers together.
    pub memory: u64,
    /// Worker threads; 0 for one for each core.
    pub threads: usize,
    /// Whether inputs are hashed whose digest the plan knows.
    pub rehash: bool,
    /// A GPU that slabs may go to, or products of adapters' factors.
    pub device: Option<OnDevice>,
}

impl Default for Resources {
    fn default() -> Resources {
        Resources { memory: 256 << 20, threads: 0, rehash: false, device: None }
    }
}

/// A file that has its final name, or one that was read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its digest.
    pub sha256: Sha256,
    /// Its length.
    pub byte_len: u64,
}

/// What a run did.
#[derive(Clone, Debug)]
pub struct Done {
    /// The outputs, in the plan's order.
    pub outputs: Vec<SealedFile>,
    /// The source's files, hashed while they were read, but for those whose digest the plan knows.
    pub inputs: Vec<SealedFile>,
    /// How far each tensor of each output is from its source, in the plan's order, where the plan has limits.
    pub fidelity: Vec<Vec<TensorError>>,
    /// How much each target of the overlay changed, where the plan asks for it.
    pub changes: Vec<TensorChange>,
    /// Bytes of the outputs that an interrupted run had left.
    pub kept: u64,
    /// Slabs that a GPU did, or products that one computed which only multiplies.
    pub on_device: u64,
    /// What a person should know about how it went.
    pub warnings: Vec<String>,
}

/// Elements of a slab, if a row is not longer and the budget allows it: large enough that a task is worth its overhead,
/// small enough that a slab stays in the caches.
pub(crate) const SLAB_ELEMENTS: u64 = 1 << 17;

/// Bytes that a slab needs for each element on its way, at most: what adapters change in float64, and where several are
/// combined the values and changes of a slab too; float32, merged and gathered bytes, and float32 decoded again.
const BYTES_PER_ELEMENT: u64 = 8 + 8 + 8 + 4 + 4 + 4 + 4;

/// Encoded bytes that each target needs for each element, at most.
const BYTES_PER_ENCODED: u64 = 4;

/// Bytes that a slab needs for each run of elements that a view keeps together: its place, and its turn.
const BYTES_PER_PIECE: u64 = 8 + 4;

/// Elements of the largest group of rows that slabs do not divide.
const GROUP_ELEMENTS: u64 = 8 * SLAB_ELEMENTS;

/// Runs a plan: writes every output into `dir` and gives all of them their final names at the end. `progress` is told the
/// number of source bytes done, from any thread.
///
/// # Errors
/// The problem of the earliest slab that had one; no output is left under its final name.
pub fn execute(
    source: &Source,
    plan: &Plan,
    dir: &Path,
    resources: &Resources,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Done, Error> {
    execute_from(source, plan, &plan.paths(dir), resources, None, progress)
}

/// The same with a path for each output, where an interrupted run may have left something.
pub(crate) fn execute_from(
    source: &Source,
    plan: &Plan,
    paths: &[PathBuf],
    resources: &Resources,
    resume: Option<&Resume>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Done, Error> {
    let threads = if resources.threads == 0 { rayon::current_num_threads() } else { resources.threads };
    let (offload, products) = match resources.place(source, plan) {
        Some(Place::Device(device)) => (Some(Offload::new(device)), None),
        Some(Place::Products(device)) => (None, Some(device.for_run())),
        _ => (None, None),
    };
    let on_gpu = offload.is_some() || products.is_some();
    let elements = if on_gpu { offload::SLAB_ELEMENTS } else { SLAB_ELEMENTS };
    let (slabs, workers) = cut(source, plan, resources.memory, threads, elements)?;
    let files = create(plan, paths, resume)?;
    let hashers = hashers(source, plan, resources.rehash)?;
    let sums = |output: &Output| output.tensors.iter().map(|_| Mutex::default()).collect();
    let fidelity: Option<Fidelity> = plan.limits.any().then(|| plan.outputs.iter().map(sums).collect());
    let tally = source.overlay().filter(|_| plan.measures_changes).map(ChangeTally::new);
    let (fidelity_sums, tally_sums) = (fidelity.as_ref(), tally.as_ref());
    let work = Work {
        source,
        plan,
        files: &files,
        hashers: &hashers,
        fidelity: fidelity_sums,
        tally: tally_sums,
        resume,
        offload: offload.as_ref(),
    };
    run(&work, &slabs, workers, products.as_ref(), progress)?;
    let fidelity = fidelity.map(|sums| judge(plan, sums)).transpose()?.unwrap_or_default();
    let changes = tally.map(|tally| tally.finish()).unwrap_or_default();
    let mut done = seal(source, files, hashers, fidelity, changes, resume)?;
    if let Some(offload) = offload {
        (done.on_device, done.warnings) = offload.finish(slabs.len());
    } else if let Some(products) = products {
        (done.on_device, done.warnings) = offload::finish_products(&products);
    }
    Ok(done)
}

/// The error of every tensor, if all of them are within the plan's limits.
fn judge(plan: &Plan, sums: Fidelity) -> Result<Vec<Vec<TensorError>>, Error> {
    let mut errors = Vec::with_capacity(sums.len());
    let mut too_far = Vec::new();
    for (output, sums) in plan.outputs.iter().zip(sums) {
        let sums = sums.into_iter().map(|sums| sums.into_inner().expect("no thread panics holding the lock").finish());
        let of_output: Vec<TensorError> = sums.collect();
        for (tensor, error) in output.tensors.iter().zip(&of_output) {
            for exceeded in plan.limits.exceeded(error) {
                too_far.push(TooFar { file: output.file_name.clone(), tensor: tensor.name.clone(), exceeded });
            }
        }
        errors.push(of_output);
    }
    if too_far.is_empty() { Ok(errors) } else { Err(Error::TooFar { tensors: too_far }) }
}

/// Elements that a tensor's place in an output may lie behind its place in the source and still decide its turn.
const LATE_ELEMENTS: u64 = 1 << 28;

/// The steps in the order of work: that of the outputs, each beginning where its first tensor lies in the source. So an
/// output is hashed from the bytes that are written, and only the source is looked at again where it has another order. A
/// tensor that lies far ahead in the source has its turn before, so that the rest of its file does not wait for it.
fn turns(source: &Source, plan: &Plan) -> Vec<usize> {
    let elements = |step: usize| plan.steps[step].rows * plan.steps[step].row_len;
    let sorted = |mut places: Vec<((usize, u64), usize)>| {
        places.sort_unstable();
        places
    };
    let mut in_source = vec![0; plan.steps.len()];
    let mut turns = vec![u64::MAX; plan.steps.len()];
    let place = |(i, step): (usize, &Step)| {
        let Input::Tensors(gather) = &step.input else { return None };
        let tensor = &source.tensors()[*gather.positions.first()?];
        Some(((tensor.file, tensor.range.start), i))
    };
    let mut at = 0;
    for (_, step) in sorted(plan.steps.iter().enumerate().filter_map(place).collect()) {
        in_source[step] = at;
        turns[step] = at + LATE_ELEMENTS;
        at += elements(step);
    }
    for (o, output) in plan.outputs.iter().enumerate() {
        let places = plan.steps.iter().enumerate().flat_map(|(i, step)| {
            let of_output = step.targets.iter().filter(move |target| target.output == o);
            of_output.map(move |target| ((0, output.tensors[target.tensor].range.start), i))
        });
        let places = sorted(places.collect());
        let read = |i: &usize| matches!(plan.steps[*i].input, Input::Tensors(_));
        let mut at = places.iter().map(|(_, i)| *i).filter(read).map(|i| in_source[i]).min().unwrap_or(0);
        for (_, step) in places {
            turns[step] = turns[step].min(at);
            at += elements(step);
        }
    }
    let mut order: Vec<usize> = (0..plan.steps.len()).collect();
    order.sort_by_key(|step| turns[*step]);
    order
}

/// Cuts the steps into slabs of so many elements, in the order of work, and counts the workers that the budget allows.
pub(crate) fn cut(
    source: &Source,
    plan: &Plan,
    memory: u64,
    threads: usize,
    elements: u64,
) -> Result<(Vec<Slab>, usize), Error> {
    let mut slabs = Vec::new();
    let mut largest = 0;
    for i in turns(source, plan) {
        let step = &plan.steps[i];
        let per_element =
            BYTES_PER_ELEMENT + BYTES_PER_ENCODED * step.targets.len() as u64 + source.bytes_per_element();
        let per_row = step.row_len.saturating_mul(per_element) + pieces_of_row(step) * BYTES_PER_PIECE;
        let fixed = delta_byte_len(source, step);
        let block = column_block(plan, step);
        let mut group = row_group(step).max(block);
        if fixed.saturating_add(per_row.saturating_mul(group)) > memory {
            // A group is together only to be read once.
            group = block;
        }
        let needed = fixed.saturating_add(per_row.saturating_mul(group));
        if needed > memory {
            return Err(Error::Budget { tensor: name(source, step), needed, budget: memory });
        }
        let budget = memory / threads.max(1) as u64;
        let by_budget = budget.saturating_sub(fixed) / per_row.max(1);
        // Every slab of merged columns costs the merging of all rows.
        let by_size = if merges_columns(source, step) { step.rows } else { elements / step.row_len.max(1) };
        let rows = (by_budget.min(by_size) / group * group).max(group);
        largest = largest.max(fixed + rows * per_row);
        let mut start = 0;
        while start < step.rows {
            let end = step.rows.min(start + rows);
            slabs.push(Slab { step: i, rows: start..end });
            start = end;
        }
    }
    let workers = threads.min((memory / largest.max(1)) as usize).max(1);
    Ok((slabs, workers))
}

/// Rows that a slab should not divide, because they are made of the same part of the source; 1 when they are too many.
fn row_group(step: &Step) -> u64 {
    let Input::Tensors(gather) = &step.input else { return 1 };
    if gather.view.as_transposed().is_some() {
        // Its tiles are read by themselves.
        return 1;
    }
    let rows = gather.view.group().div_ceil(pieces_of_row(step).max(1)).max(1);
    if rows.saturating_mul(step.row_len) <= GROUP_ELEMENTS { rows } else { 1 }
}

/// Rows that are encoded together, because they have their scales in common.
pub(crate) fn column_block(plan: &Plan, step: &Step) -> u64 {
    let stored = step.targets.iter().map(|target| plan.outputs[target.output].tensors[target.tensor].stored);
    let blocks = stored.map(|stored| if let Stored::ColumnBlocks(b, _) = stored { b.block.into() } else { 1 });
    blocks.max().unwrap_or(1)
}

/// Whether the rows of a step are columns of a tensor that adapters change.
fn merges_columns(source: &Source, step: &Step) -> bool {
    let Input::Tensors(gather) = &step.input else { return false };
    gather.view.as_transposed().is_some()
        && gather.positions.iter().any(|position| source.tensors()[*position].target.is_some())
}

fn pieces_of_row(step: &Step) -> u64 {
    match &step.input {
        Input::Tensors(gather) => step.row_len.checked_div(gather.view.piece_len()).unwrap_or(0),
        Input::Computed(_) => 0,
    }
}

/// Bytes that a slab needs for the factors of its deltas, whatever its rows. Where it uses parts of rows,
/// it also merges some rows whole.
pub(crate) fn delta_byte_len(source: &Source, step: &Step) -> u64 {
    let Input::Tensors(gather) = &step.input else { return 0 };
    let changed = gather.positions.iter().filter(|position| source.tensors()[**position].target.is_some());
    let factors = changed.map(|position| {
        let row_len = source.tensors()[*position].shape.row_len();
        let parts = if gather.view.piece_len() < row_len { MERGED_BYTES.max(row_len.saturating_mul(32)) } else { 0 };
        source.fixed_byte_len(*position).saturating_add(parts)
    });
    factors.max().unwrap_or(0)
}

fn name(source: &Source, step: &Step) -> String {
    match &step.input {
        Input::Tensors(gather) => source.tensors()[gather.positions[0]].name.clone(),
        Input::Computed(_) => String::new(),
    }
}

/// Reserves every output and writes what does not come from a tensor: preambles and the zeros between tensors.
fn create(plan: &Plan, paths: &[PathBuf], resume: Option<&Resume>) -> Result<Vec<AtomicFile>, Error> {
    let mut files = Vec::with_capacity(plan.outputs.len());
    for (i, (output, path)) in plan.outputs.iter().zip(paths).enumerate() {
        let file = match resume.and_then(|resume| resume.found(i)) {
            Some(found) => AtomicFile::take_up(path, output.byte_len, found)?,
            None => AtomicFile::create(path, output.byte_len)?,
        };
        file.write_at(0, &output.preamble)?;
        for tensor in &output.tensors {
            file.write_at(tensor.range.end, &vec![0; (tensor.padded_end - tensor.range.end) as usize])?;
        }
        files.push(file);
    }
    Ok(files)
}

/// Hashers of the source's files, which know already what no slab will read: headers, padding, and tensors that are in no
/// step.
fn hashers<'a>(source: &'a Source, plan: &Plan, rehash: bool) -> Result<Vec<InputHasher<'a>>, Error> {
    let files = source.files();
    let mut read: Vec<Vec<Range<u64>>> = vec![Vec::new(); files.len()];
    for step in &plan.steps {
        if let Input::Tensors(gather) = &step.input {
            for (file, range) in share(source, gather, 0..step.rows * step.row_len) {
                read[file].push(range);
            }
        }
    }
    let mut hashers = Vec::with_capacity(files.len());
    for (file, mut read) in files.into_iter().zip(read) {
        let hasher = match plan.known.get(file.path()).filter(|_| !rehash) {
            Some(sha256) => InputHasher::with_digest(file, *sha256),
            None => InputHasher::new(file),
        };
        read.sort_by_key(|range| range.start);
        let mut at = 0;
        for range in read.iter().chain([&(file.byte_len()..file.byte_len())]) {
            if at < range.start {
                hasher.used(at..range.start, None)?;
            }
            at = range.end;
        }
        hashers.push(hasher);
    }
    Ok(hashers)
}

fn run(
    work: &Work<'_>,
    slabs: &[Slab],
    workers: usize,
    products: Option<&ProductDevice>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), Error> {
    each(slabs, workers, products, |slab, scratch| {
        progress(work.run(slab, scratch)?);
        Ok(())
    })
}

/// Does something with every slab; of the problems that come up, that of the earliest slab counts. What is merged for it may use a
/// GPU's products.
pub(crate) fn each(
    slabs: &[Slab],
    workers: usize,
    products: Option<&ProductDevice>,
    job: impl Fn(&Slab, &mut Scratch) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(workers)
        .thread_name(|i| format!("mlpack-{i}"))
        .build()
        .map_err(|e| Error::Threads { threads: workers, reason: e.to_string() })?;
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    // A worker takes slabs in a loop rather than from the pool's queue: it never starts a second one while it waits
    // within the first, so the number of slabs in memory is the number of workers.
    pool.broadcast(|_| {
        let mut scratch = Scratch::new(products);
        while !stop.load(Ordering::Relaxed) {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(slab) = slabs.get(i) else { break };
            if let Err(error) = job(slab, &mut scratch) {
                stop.store(true, Ordering::Relaxed);
                let mut failed = failed.lock().expect("no thread panics holding the lock");
                if failed.as_ref().is_none_or(|(earliest, _)| i < *earliest) {
                    *failed = Some((i, error));
                }
            }
        }
    });
    match failed.into_inner().expect("no thread panics holding the lock") {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Finishes the digests, and gives the outputs their final names.
fn seal(
    source: &Source,
    files: Vec<AtomicFile>,
    hashers: Vec<InputHasher<'_>>,
    fidelity: Vec<Vec<TensorError>>,
    changes: Vec<TensorChange>,
    resume: Option<&Resume>,
) -> Result<Done, Error> {
    let mut inputs = Vec::with_capacity(hashers.len());
    for (hasher, file) in hashers.into_iter().zip(source.files()) {
        let (path, byte_len) = (file.path().to_owned(), file.byte_len());
        inputs.push(SealedFile { path, sha256: hasher.finish()?, byte_len });
    }
    // All of them are on the disk before the first has its final name.
    for (i, file) in files.iter().enumerate() {
        file.flush()?;
        resume.map_or(Ok(()), |resume| resume.note(i, file))?;
    }
    let kept = files.iter().map(AtomicFile::kept).sum();
    let mut outputs = Vec::with_capacity(files.len());
    for file in files {
        let (path, byte_len) = (file.path().to_owned(), file.byte_len());
        outputs.push(SealedFile { path, sha256: file.seal()?, byte_len });
    }
    Ok(Done { outputs, inputs, fidelity, changes, kept, on_device: 0, warnings: Vec::new() })
}
