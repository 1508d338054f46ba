//! Importance matrices: for every weight, how much each of its columns matters.
//!
//! llama-imatrix runs a model over a text and sums the squares of what goes into each weight. Both of its file formats are
//! read: the GGUF one ([`gguf`]) and the `.dat` one before it ([`legacy`]). What comes out are the values that
//! llama-quantize of llama.cpp b11434 computes from them (`common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp`):
//!
//! ```text
//!                 GGUF                                        .dat
//! one expert      sum / count                                 sum / calls
//! never visited   1 for each of the expert's columns          not known
//! calls <= 0      -                                           sum
//! ```
//!
//! The values of a weight of shape `[experts, rows, columns]` are `experts * columns`: those of expert `e` are
//! `e * columns .. (e + 1) * columns`. They stay in the mapped file until somebody asks for some of them; everything that
//! can be wrong with them is found when the file is opened.

mod error;
mod gguf;
mod legacy;

pub use error::{ImportanceError, ImportanceProblem};

use mlpack_fs::{InputHasher, MappedFile, Sha256};
use mlpack_tensor::MetaValue;
use std::ops::Range;
use std::path::Path;

/// The longest text in a `quantize.imatrix.*` key: llama-quantize keeps them in 128 bytes, with a terminating zero.
const MAX_TEXT: usize = 127;

/// One importance matrix, mapped and checked.
#[derive(Debug)]
pub struct Importance {
    map: MappedFile,
    sha256: Sha256,
    entries: Vec<Entry>,
    datasets: Vec<String>,
    chunks: i64,
}

/// What is known about one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The name of the weight, as in a model's GGUF.
    pub name: String,
    /// Experts that no token reached. All their values are 1. Empty for a `.dat` file, which does not tell.
    pub unvisited: Vec<usize>,
    // What makes a value of a sum: for equal parts of the sums, one for each expert. A `.dat` file has one for all.
    means: Vec<Mean>,
    // Where the sums are in the file, in bytes.
    sums: Range<usize>,
}

/// How the values of one expert follow from its sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mean {
    Divide(f32),
    Ones,
    Sums,
}

/// What a reader of one of the formats found.
#[derive(Default)]
struct Parsed {
    entries: Vec<Entry>,
    datasets: Vec<String>,
    chunks: i64,
    problems: Vec<ImportanceProblem>,
}

impl Importance {
    /// Opens a file of either format, checks all of it, and hashes it.
    pub fn open(path: &Path) -> Result<Importance, ImportanceError> {
        let map = MappedFile::open(path)?;
        let (map, mut parsed) = if map.bytes().starts_with(b"GGUF") {
            gguf::parse(map)?
        } else {
            let parsed = legacy::parse(map.bytes()).ok_or_else(|| ImportanceError::neither(&map))?;
            (map, parsed)
        };
        parsed.entries.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in parsed.entries.windows(2) {
            if pair[0].name == pair[1].name {
                parsed.problems.push(ImportanceProblem::Duplicate { entry: pair[0].name.clone() });
            }
        }
        for entry in &parsed.entries {
            let not_finite = floats(&map.bytes()[entry.sums.clone()]).position(|v| !v.is_finite());
            if let Some(index) = not_finite {
                let found = entry.sum(&map, index);
                parsed.problems.push(ImportanceProblem::NotFinite { entry: entry.name.clone(), index, found });
            }
        }
        if !parsed.problems.is_empty() {
            return Err(ImportanceError::File { path: path.to_owned(), problems: parsed.problems });
        }
        let sha256 = InputHasher::new(&map).finish()?;
        let Parsed { entries, datasets, chunks, .. } = parsed;
        Ok(Importance { map, sha256, entries, datasets, chunks })
    }

    /// The path given to [`Importance::open`].
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// The digest of the file.
    pub fn sha256(&self) -> &Sha256 {
        &self.sha256
    }

    /// The length of the file in bytes.
    pub fn byte_len(&self) -> u64 {
        self.map.byte_len()
    }

    /// The texts that the model was run over, as llama-imatrix was given their paths.
    pub fn datasets(&self) -> &[String] {
        &self.datasets
    }

    /// The number of chunks that the model was run over; 0 when the file does not tell.
    pub fn chunks(&self) -> i64 {
        self.chunks
    }

    /// The entries, by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries, because none was kept. llama-quantize then works as if no file had been given.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Drops the entries with one of `exclude` anywhere in their names, and if `include` is not empty those with none of
    /// `include` (llama-quantize `--exclude-weights`, `--include-weights`).
    pub fn keep(&mut self, include: &[String], exclude: &[String]) {
        let named = |parts: &[String], name: &str| parts.iter().any(|part| name.contains(part.as_str()));
        self.entries.retain(|e| !named(exclude, &e.name) && (include.is_empty() || named(include, &e.name)));
    }

    /// The index of the entry of that name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok()
    }

    /// The entry of that index.
    ///
    /// # Panics
    ///
    /// When there is no such entry.
    pub fn entry(&self, index: usize) -> &Entry {
        &self.entries[index]
    }

    /// Replaces the content of `out` with the values of one expert of an entry, one for each of its `row_len` columns. They are
    /// finite. A weight without experts has expert 0 alone.
    ///
    /// # Panics
    ///
    /// When there is no such entry, or it has not as many values.
    pub fn read(&self, entry: usize, expert: usize, row_len: usize, out: &mut Vec<f32>) {
        let entry = &self.entries[entry];
        let bytes = &self.map.bytes()[entry.sums.clone()];
        let part_len = entry.value_count() / entry.means.len();
        out.clear();
        out.reserve(row_len);
        let values = expert * row_len..(expert + 1) * row_len;
        let mut start = values.start;
        while start < values.end {
            let part = start / part_len;
            let end = values.end.min((part + 1) * part_len);
            let sums = floats(&bytes[start * 4..end * 4]);
            match entry.means[part] {
                Mean::Divide(count) => out.extend(sums.map(|sum| sum / count)),
                Mean::Ones => out.resize(out.len() + (end - start), 1.0),
                Mean::Sums => out.extend(sums),
            }
            start = end;
        }
    }

    /// The keys that llama-quantize appends to a file it makes with this matrix, after the overrides of the command
    /// line; `file_text` is the path as it was given. None when there are no entries.
    ///
    /// Texts are cut to 127 bytes, as llama-quantize cuts them, but never inside a character: it would write bytes that
    /// are not UTF-8.
    pub fn metadata_entries(&self, file_text: &str) -> Vec<(&'static str, MetaValue)> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut entries = vec![("quantize.imatrix.file", cut(file_text).into())];
        if let Some(dataset) = self.datasets.first() {
            entries.push(("quantize.imatrix.dataset", cut(dataset).into()));
        }
        let entry_count = u32::try_from(self.len()).expect("a table of 2^32 entries would have been too large to read");
        entries.push(("quantize.imatrix.entries_count", entry_count.into()));
        if let Ok(chunks @ 1..) = u32::try_from(self.chunks) {
            entries.push(("quantize.imatrix.chunks_count", chunks.into()));
        }
        entries
    }
}

impl Entry {
    /// The number of values: columns times experts.
    pub fn value_count(&self) -> usize {
        self.sums.len() / 4
    }

    fn sum(&self, map: &MappedFile, index: usize) -> f32 {
        let bytes = &map.bytes()[self.sums.clone()];
        floats(&bytes[index * 4..]).next().expect("the index is one of the entry's")
    }
}

/// The numbers in little-endian bytes that need not be aligned.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("chunks of four")))
}

/// A C string of at most [`MAX_TEXT`] bytes.
fn cut(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

#[cfg(test)]
mod tests;
