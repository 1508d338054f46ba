//! A model: one file, or the parts of a split one.
//!
//! ```text
//! NAME-00001-of-00003.gguf    all metadata, and    split.no = 0    split.count = 3    split.tensors.count = 29
//! NAME-00002-of-00003.gguf                         split.no = 1    split.count = 3    split.tensors.count = 29
//! NAME-00003-of-00003.gguf                         split.no = 2    split.count = 3    split.tensors.count = 29
//! ```
//! Names and checks: llama.cpp b11434, `src/llama.cpp` (`llama_split_path`) and `src/llama-model-loader.cpp`. Written are
//! u16, u16 and i32 (`gguf-py/gguf/gguf_writer.py`); read is any integer.

use crate::{Error, GgufFile, SplitProblem, Tensor};
use mlpack_tensor::Metadata;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The keys of a split.
const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSOR_COUNT: &str = "split.tensors.count";

/// The most parts (`split.count` is a u16).
const MAX_PARTS: u64 = u16::MAX as u64;

/// A GGUF model: a single file, or all parts of a split one, opened and compared.
#[derive(Debug)]
pub struct GgufModel {
    files: Vec<GgufFile>,
}

impl GgufModel {
    /// Opens a file, and when it is the first of a split model, the other parts beside it. Headers alone are read.
    ///
    /// # Errors
    /// What [`GgufFile::open`] finds in a part; a later part given; a name that does not follow the pattern; missing
    /// parts; parts that say different things, that hold the same tensor, or that do not hold as many as they say.
    pub fn open(path: &Path) -> Result<GgufModel, Error> {
        let first = GgufFile::open(path)?;
        let wrong = |problems| Error::Split { path: path.to_owned(), problems };
        let count = match first.metadata().find(COUNT) {
            None => 1,
            Some(value) => match value.as_u64() {
                Some(count @ ..=MAX_PARTS) => count,
                _ => {
                    let expected = format!("0 to {MAX_PARTS}");
                    return Err(wrong(vec![key_problem(&first, COUNT, expected)]));
                }
            },
        };
        if count <= 1 {
            return Ok(GgufModel { files: vec![first] });
        }
        match first.metadata().find(NO).and_then(|v| v.as_u64()) {
            Some(0) => {}
            Some(no) if no < count => {
                let name = stem(path, no, count).map(|stem| part_name(stem, 0, count));
                return Err(wrong(vec![SplitProblem::LaterPart { no, count, first: name }]));
            }
            _ => return Err(wrong(vec![key_problem(&first, NO, "0".to_owned())])),
        }
        let Some(stem) = stem(path, 0, count) else {
            return Err(wrong(vec![SplitProblem::FileName { expected: part_name("NAME", 0, count) }]));
        };
        let files = open_parts(path, first, stem, count)?;
        let problems = compare(&files, count);
        if problems.is_empty() { Ok(GgufModel { files }) } else { Err(wrong(problems)) }
    }

    /// The files, in the order of their numbers; one when the model is not split.
    pub fn files(&self) -> &[GgufFile] {
        &self.files
    }

    /// The metadata of the first file. Of the others it is the numbers of the split alone.
    pub fn metadata(&self) -> &Metadata {
        self.files[0].metadata()
    }

    /// The tensors, file by file and in file order, each with its file's index.
    pub fn tensors(&self) -> impl Iterator<Item = (usize, &Tensor)> {
        self.files.iter().enumerate().flat_map(|(i, file)| file.tensors().iter().map(move |t| (i, t)))
    }
}

/// The file name of part `no`, counted from 0, of `count`.
pub fn part_name(stem: &str, no: u64, count: u64) -> String {
    format!("{stem}{}", ending(no, count))
}

fn ending(no: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", no + 1)
}

/// What a part's file name has before its number; `None` when it is not named as a part.
fn stem(path: &Path, no: u64, count: u64) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(&ending(no, count)).filter(|stem| !stem.is_empty())
}

/// Opens the other parts. When some are not there, all of those are named.
fn open_parts(path: &Path, first: GgufFile, stem: &str, count: u64) -> Result<Vec<GgufFile>, Error> {
    let (mut files, mut missing) = (vec![first], Vec::new());
    for no in 1..count {
        let name = part_name(stem, no, count);
        match GgufFile::open(&path.with_file_name(&name)) {
            Ok(file) => files.push(file),
            Err(Error::Fs(e)) if e.is_not_found() => missing.push(name),
            Err(e) => return Err(e),
        }
    }
    if missing.is_empty() {
        return Ok(files);
    }
    Err(Error::Split { path: path.to_owned(), problems: vec![SplitProblem::Missing { count, parts: missing }] })
}

/// Everything in which the parts disagree.
fn compare(files: &[GgufFile], count: u64) -> Vec<SplitProblem> {
    let mut problems = Vec::new();
    let stated = |file: &GgufFile, key| file.metadata().find(key).and_then(|v| v.as_u64());
    let total = stated(&files[0], TENSOR_COUNT);
    if total.is_none() {
        problems.push(key_problem(&files[0], TENSOR_COUNT, "an integer".to_owned()));
    }
    for (no, file) in (0u64..).zip(files).skip(1) {
        for (key, expected) in [(NO, Some(no)), (COUNT, Some(count)), (TENSOR_COUNT, total)] {
            if let Some(expected) = expected
                && stated(file, key) != Some(expected)
            {
                problems.push(key_problem(file, key, expected.to_string()));
            }
        }
    }
    let mut seen: HashMap<&str, &GgufFile> = HashMap::new();
    let mut found = 0;
    for file in files {
        for tensor in file.tensors() {
            found += 1;
            if let Some(other) = seen.insert(&tensor.name, file) {
                let (path, other) = (file_name(file), file_name(other));
                problems.push(SplitProblem::Duplicate { tensor: tensor.name.clone(), path, other });
            }
        }
    }
    if let Some(expected) = total.filter(|n| *n != found) {
        problems.push(SplitProblem::TensorCount { expected, found });
    }
    problems
}

fn key_problem(file: &GgufFile, key: &'static str, expected: String) -> SplitProblem {
    SplitProblem::Key { path: file_name(file), key, expected, found: file.metadata().find(key).cloned() }
}

fn file_name(file: &GgufFile) -> PathBuf {
    file.path().file_name().map(PathBuf::from).unwrap_or_default()
}

#[cfg(test)]
mod tests;
