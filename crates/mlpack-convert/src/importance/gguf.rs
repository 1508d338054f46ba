//! The GGUF format.
//!
//! ```text
//! imatrix.datasets                array of str         the texts
//! imatrix.chunk_count             u32
//! imatrix.chunk_size              u32                  tokens
//! <weight>.in_sum2                F32 [experts, n]     sums of squares
//! <weight>.counts                 F32 [experts, 1]     tokens that reached the expert
//! <weight>.in_sum                 F32 [experts, n]     may be missing; nothing here needs it
//! ```
//! Other keys and tensors are left alone. Source: llama.cpp b11434, `common/imatrix-loader.cpp`. It rounds counts to whole
//! numbers, halves away from zero, and takes an expert whose count is not positive as never visited. It drops the sums after the
//! last whole part when the counts do not divide them, and takes datasets of another type as none; here both are errors.

use super::{Entry, ImportanceError, ImportanceProblem, Mean, Parsed, floats};
use mlpack_fs::MappedFile;
use mlpack_gguf::{GgufFile, Tensor};
use mlpack_tensor::{GgmlType, MetaArray, MetaValue, Metadata};
use std::collections::BTreeMap;

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

const SQUARES: &str = ".in_sum2";
const SUMS: &str = ".in_sum";
const COUNTS: &str = ".counts";

/// The tensors of one weight.
#[derive(Default)]
struct Group<'a> {
    squares: Option<&'a Tensor>,
    sums: Option<&'a Tensor>,
    counts: Option<&'a Tensor>,
}

/// Reads keys and tensor table, and gives the map back.
pub(super) fn parse(map: MappedFile) -> Result<(MappedFile, Parsed), ImportanceError> {
    let file = GgufFile::from_map(map)?;
    let mut parsed = Parsed::default();
    read_keys(file.metadata(), &mut parsed);
    let mut groups: BTreeMap<&str, Group<'_>> = BTreeMap::new();
    for tensor in file.tensors() {
        if let Some(name) = tensor.name.strip_suffix(SQUARES) {
            groups.entry(name).or_default().squares = Some(tensor);
        } else if let Some(name) = tensor.name.strip_suffix(SUMS) {
            groups.entry(name).or_default().sums = Some(tensor);
        } else if let Some(name) = tensor.name.strip_suffix(COUNTS) {
            groups.entry(name).or_default().counts = Some(tensor);
        }
    }
    if groups.is_empty() {
        parsed.problems.push(ImportanceProblem::NoEntries { tensors: file.tensors().len() });
    }
    for (name, group) in &groups {
        match read_entry(&file, name, group) {
            Ok(entry) => parsed.entries.push(entry),
            Err(problem) => parsed.problems.push(problem),
        }
    }
    drop(groups);
    Ok((file.into_map(), parsed))
}

fn read_keys(metadata: &Metadata, parsed: &mut Parsed) {
    let problems = &mut parsed.problems;
    match wanted(metadata, DATASETS, "array of str", problems) {
        None => {}
        Some(MetaValue::Array(MetaArray::String(datasets))) => parsed.datasets.clone_from(datasets),
        Some(other) => problems.push(key_type(DATASETS, "array of str", other)),
    }
    match wanted(metadata, CHUNK_COUNT, "u32", problems) {
        None => {}
        // The reference keeps it in an int32_t.
        Some(MetaValue::U32(count)) => parsed.chunks = i64::from(*count as i32),
        Some(other) => problems.push(key_type(CHUNK_COUNT, "u32", other)),
    }
    match wanted(metadata, CHUNK_SIZE, "u32", problems) {
        None | Some(MetaValue::U32(_)) => {}
        Some(other) => problems.push(key_type(CHUNK_SIZE, "u32", other)),
    }
}

fn wanted<'a>(
    metadata: &'a Metadata,
    key: &'static str,
    expected: &'static str,
    problems: &mut Vec<ImportanceProblem>,
) -> Option<&'a MetaValue> {
    let value = metadata.find(key);
    if value.is_none() {
        problems.push(ImportanceProblem::MissingKey { key, expected });
    }
    value
}

fn key_type(key: &'static str, expected: &'static str, found: &MetaValue) -> ImportanceProblem {
    ImportanceProblem::KeyType { key, expected, found: found.type_name() }
}

fn read_entry(file: &GgufFile, name: &str, group: &Group<'_>) -> Result<Entry, ImportanceProblem> {
    let entry = || name.to_owned();
    let missing = |missing| ImportanceProblem::MissingTensor { entry: entry(), missing };
    let squares = group.squares.ok_or_else(|| missing(SQUARES))?;
    let counts = group.counts.ok_or_else(|| missing(COUNTS))?;
    for tensor in [squares, counts] {
        if tensor.ty != GgmlType::F32 {
            return Err(ImportanceProblem::TensorType { tensor: tensor.name.clone(), found: tensor.ty });
        }
    }
    let (value_count, count_count) = (element_count(squares), element_count(counts));
    if let Some(in_sum) = group.sums.map(element_count).filter(|n| *n != value_count) {
        return Err(ImportanceProblem::SumsMismatch { entry: entry(), in_sum2: value_count, in_sum });
    }
    if value_count == 0 {
        return Err(ImportanceProblem::ValueCount { entry: entry(), found: 0 });
    }
    if count_count == 0 || !value_count.is_multiple_of(count_count) {
        return Err(ImportanceProblem::CountsMismatch { entry: entry(), sums: value_count, counts: count_count });
    }
    let mut means = Vec::with_capacity(count_count as usize);
    let mut unvisited = Vec::new();
    for (expert, found) in floats(file.bytes(counts)).enumerate() {
        // f32::round takes halves away from zero, as lround does.
        let count = found.round();
        if !(count.is_finite() && count.abs() < i64::MAX as f32) {
            return Err(ImportanceProblem::Count { entry: entry(), expert, found });
        }
        if count > 0.0 {
            means.push(Mean::Divide(count));
        } else {
            means.push(Mean::Ones);
            unvisited.push(expert);
        }
    }
    let sums = squares.range.start as usize..squares.range.end as usize;
    Ok(Entry { name: entry(), unvisited, means, sums })
}

fn element_count(tensor: &Tensor) -> u64 {
    tensor.shape.element_count().expect("a tensor of a GgufFile lies inside its file")
}
