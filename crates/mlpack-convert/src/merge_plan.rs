//! Planning a merged checkpoint: which tensor is in which file at which place, and the files beside them.
//!
//! A file whose tensors all keep dtype and shape keeps its header, so a merge that changes nothing gives the same bytes. Where
//! a tensor grows or is new, and where shards are asked for, the header is a new one.

use crate::carry::Carried;
use crate::execute::execute_from;
use crate::resume::Resume;
use crate::{Done, Error, Output, OutputTensor, Plan, Resources, SealedFile, Source, Step, Stored, Target};
use mlpack_fs::AtomicDir;
use mlpack_safetensors::{FileLayout, INDEX_NAME, NewTensor, index, lay_out, shard, shard_name};
use std::collections::BTreeMap;
use std::path::Path;

/// What is asked of a merged checkpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeRequest {
    /// The most bytes of data in a file; without it, files are the base's.
    pub max_shard_size: Option<u64>,
    /// Whether [`Done::changes`] are asked for: then an interrupted merge keeps what it wrote, but computes it again.
    pub measures_changes: bool,
}

/// A merged checkpoint before it is written.
#[derive(Clone, Debug)]
pub struct MergePlan {
    /// The weights.
    pub plan: Plan,
    /// The files beside them.
    pub carried: Vec<Carried>,
}

/// Plans the files of the merged checkpoint.
///
/// # Errors
/// [`Error::NoAdapter`] without adapters; what is wrong with the files beside the weights.
pub fn plan_merge(source: &Source, request: &MergeRequest) -> Result<MergePlan, Error> {
    let Some(checkpoint) = source.checkpoint().filter(|_| !source.adapters().is_empty()) else {
        return Err(Error::NoAdapter);
    };
    let (warnings, measures_changes) = (source.warnings.clone(), request.measures_changes);
    let mut plan = Plan { warnings, measures_changes, ..Plan::default() };
    let tensors: Vec<NewTensor> = source.tensors().iter().map(new_tensor).collect();
    let names = file_names(source, &tensors, request);
    let mut files: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (position, name) in names.iter().enumerate() {
        files.entry(name).or_default().push(position);
    }
    let mut targets = vec![Target { output: 0, tensor: 0 }; tensors.len()];
    let mut same_files = request.max_shard_size.is_none();
    for (output, (name, positions)) in files.iter().enumerate() {
        let (preamble, ranges, byte_len) = match unchanged(source, positions, request) {
            Some(shard) => {
                let ranges = positions.iter().map(|i| source.tensors()[*i].range.clone()).collect();
                (shard.preamble().to_vec(), ranges, shard.byte_len())
            }
            None => {
                same_files = false;
                let of_file: Vec<NewTensor> = positions.iter().map(|i| tensors[*i].clone()).collect();
                let FileLayout { preamble, ranges, byte_len } =
                    lay_out(&of_file).ok_or_else(|| Error::TooLarge { file: (*name).to_owned() })?;
                (preamble, ranges, byte_len)
            }
        };
        let of_output = positions.iter().zip(ranges).enumerate().map(|(tensor, (position, range))| {
            targets[*position] = Target { output, tensor };
            let NewTensor { name, dtype, shape } = tensors[*position].clone();
            OutputTensor {
                source: Some(name.clone()),
                name,
                stored: Stored::Safetensors(dtype),
                instead_of: None,
                importance: None,
                shape,
                padded_end: range.end,
                range,
            }
        });
        let tensors = of_output.collect();
        plan.outputs.push(Output { file_name: (*name).to_owned(), variant: None, preamble, tensors, byte_len });
    }
    for (position, tensor) in tensors.iter().enumerate() {
        plan.steps.push(Step { targets: vec![targets[position]], ..Step::copy(position, &tensor.shape) });
    }
    let new_index = (!same_files).then(|| (files.len() > 1).then(|| index(&tensors, &names)));
    let carried = Carried::beside(source, checkpoint, new_index)?;
    let described = carried.iter().filter(|file| file.name() != INDEX_NAME);
    plan.described_by = described.filter_map(|file| file.from().map(ToOwned::to_owned)).collect();
    Ok(MergePlan { plan, carried })
}

fn new_tensor(tensor: &crate::SourceTensor) -> NewTensor {
    let Stored::Safetensors(dtype) = tensor.stored else { unreachable!("a checkpoint's tensors are safetensors'") };
    NewTensor { name: tensor.name.clone(), dtype, shape: tensor.shape.clone() }
}

/// The file of each tensor.
fn file_names(source: &Source, tensors: &[NewTensor], request: &MergeRequest) -> Vec<String> {
    match request.max_shard_size {
        Some(max) => {
            let shards = shard(tensors, max);
            let count = shards.last().map_or(1, |last| last + 1);
            shards.into_iter().map(|i| shard_name(i, count)).collect()
        }
        None => {
            let name = |file: &mlpack_fs::MappedFile| {
                file.path().file_name().unwrap_or_default().to_string_lossy().into_owned()
            };
            source.tensors().iter().map(|tensor| name(source.file(tensor))).collect()
        }
    }
}

/// The base's file, where these are its tensors and all keep dtype and shape.
fn unchanged<'a>(
    source: &'a Source,
    positions: &[usize],
    request: &MergeRequest,
) -> Option<&'a mlpack_safetensors::SafetensorsFile> {
    let in_place = positions.iter().all(|i| source.tensors()[*i].in_place);
    let shard = source.tensors()[*positions.first()?].file;
    source.checkpoint()?.shards().get(shard).filter(|_| in_place && request.max_shard_size.is_none())
}

/// Executes a merge plan into a directory that appears when it is complete: shards, index, config and tokenizer files.
/// The carried files are among the outputs, after the shards. What an interrupted run of the same merge left in the
/// directory is not made again.
///
/// # Errors
/// As [`crate::execute`].
pub fn merge(
    source: &Source,
    plan: &MergePlan,
    out: AtomicDir,
    resources: &Resources,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Done, Error> {
    let resume = Resume::open(source, plan, &out)?;
    let paths = plan.plan.paths(out.contents());
    let done = execute_from(source, &plan.plan, &paths, resources, Some(&resume), progress)?;
    seal(plan, out, done)
}

/// The same, and in the same pass over the source another plan into a directory of its own: the merged checkpoint, and what is
/// made of it. Outputs of the other plan have their names before the merged checkpoint has.
///
/// # Errors
/// As [`crate::execute`]; then neither is there.
pub fn merge_with(
    source: &Source,
    (plan, out): (&MergePlan, AtomicDir),
    (other, dir): (&Plan, &Path),
    resources: &Resources,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Done, Done), Error> {
    let resume = Resume::open(source, plan, &out)?;
    let paths = [plan.plan.paths(out.contents()), other.paths(dir)].concat();
    let mut done = execute_from(source, &plan.plan.with(other), &paths, resources, Some(&resume), progress)?;
    let count = plan.plan.outputs.len();
    let of_other = Done {
        outputs: done.outputs.split_off(count),
        fidelity: if done.fidelity.is_empty() { Vec::new() } else { done.fidelity.split_off(count) },
        kept: 0,
        warnings: Vec::new(),
        ..done.clone()
    };
    Ok((seal(plan, out, done)?, of_other))
}

/// Writes the files beside the weights, and gives the directory its name.
fn seal(plan: &MergePlan, out: AtomicDir, mut done: Done) -> Result<Done, Error> {
    for file in &plan.carried {
        done.outputs.push(file.write(out.contents())?);
    }
    let dir = out.path().to_owned();
    out.seal()?;
    for SealedFile { path, .. } in &mut done.outputs {
        if let Some(name) = path.file_name() {
            *path = dir.join(name);
        }
    }
    Ok(done)
}
