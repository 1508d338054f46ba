//! One safetensors file.
//!
//! ```text
//! 0        8                8+N                                  EOF
//! | N: u64 | JSON header, N | data: tensors back to back, no gaps |
//! ```
//! Format: safetensors 0.8 README, "Format". `data_offsets` count from the start of the data.

use crate::{Error, TensorProblem};
use mlpack_fs::MappedFile;
use mlpack_tensor::{Dtype, Shape};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

/// The longest header that the safetensors crate accepts.
const MAX_HEADER_LEN: u64 = 100_000_000;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Shape,
    /// Its bytes, as offsets into the file.
    pub range: Range<u64>,
}

/// A safetensors file whose header is checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    map: MappedFile,
    data_start: u64,
    entries: Vec<Entry>,
}

impl SafetensorsFile {
    /// Opens a file and checks its header; no tensor data is read.
    pub fn open(path: &Path) -> Result<SafetensorsFile, Error> {
        let map = MappedFile::open(path)?;
        let file_len = map.byte_len();
        let past_end = |expected: u128| Error::HeaderPastEnd { path: path.to_owned(), expected, found: file_len };
        let Some(prefix) = map.bytes().first_chunk::<8>() else { return Err(past_end(8)) };
        let header_len = u64::from_le_bytes(*prefix);
        if u128::from(header_len) + 8 > u128::from(file_len) {
            return Err(past_end(u128::from(header_len) + 8));
        }
        if header_len > MAX_HEADER_LEN {
            return Err(Error::HeaderTooLong { path: path.to_owned(), limit: MAX_HEADER_LEN, found: header_len });
        }
        let data_start = 8 + header_len;
        let header = &map.bytes()[8..data_start as usize];
        let RawHeader(raw) = serde_json::from_slice(header)
            .map_err(|e| Error::HeaderJson { path: path.to_owned(), reason: e.to_string() })?;
        let entries = check(path, raw, data_start, file_len)?;
        // The format's own crate has the last word on what a valid header is.
        safetensors::SafeTensors::read_metadata(map.bytes())
            .map_err(|e| Error::Refused { path: path.to_owned(), reason: e.to_string() })?;
        Ok(SafetensorsFile { map, data_start, entries })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// The tensors, sorted by name: the order in which the reference tools read them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The length prefix and the header, as they are in the file. A file whose tensors keep dtype and shape is
    /// rewritten under the same preamble.
    pub fn preamble(&self) -> &[u8] {
        &self.map.bytes()[..self.data_start as usize]
    }

    /// The length of the file in bytes.
    pub fn byte_len(&self) -> u64 {
        self.map.byte_len()
    }

    /// The bytes of one of [`SafetensorsFile::entries`].
    pub fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.map.bytes()[entry.range.start as usize..entry.range.end as usize]
    }

    /// The mapped file, for hashing it while its tensors are used.
    pub fn map(&self) -> &MappedFile {
        &self.map
    }
}

/// Checks the tensors of a header against each other and the file, and makes offsets absolute.
fn check(path: &Path, raw: Vec<(String, RawEntry)>, data_start: u64, file_len: u64) -> Result<Vec<Entry>, Error> {
    let available = file_len - data_start;
    let mut names = HashSet::with_capacity(raw.len());
    let mut entries = Vec::with_capacity(raw.len());
    for (name, raw) in &raw {
        let fail = |problem| Error::Tensor { path: path.to_owned(), tensor: name.clone(), problem };
        if name.is_empty() {
            return Err(fail(TensorProblem::EmptyName));
        }
        if !names.insert(name.as_str()) {
            return Err(fail(TensorProblem::Duplicate));
        }
        let entry = raw.check(name, available).map_err(fail)?;
        entries.push(entry);
    }
    entries.sort_by(|a, b| (a.range.start, a.range.end, &a.name).cmp(&(b.range.start, b.range.end, &b.name)));
    let mut end = 0;
    let mut before = "";
    for entry in &entries {
        let (start, this_end) = (entry.range.start, entry.range.end);
        let problem = if start < end {
            TensorProblem::Overlap { other: before.to_owned(), other_end: end, start, end: this_end }
        } else if start > end {
            TensorProblem::Hole { expected: end, start, end: this_end }
        } else {
            (end, before) = (this_end, &entry.name);
            continue;
        };
        return Err(Error::Tensor { path: path.to_owned(), tensor: entry.name.clone(), problem });
    }
    if end != available {
        return Err(Error::TrailingBytes { path: path.to_owned(), expected: data_start + end, found: file_len });
    }
    for entry in &mut entries {
        entry.range = entry.range.start + data_start..entry.range.end + data_start;
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// A header as parsed: tensors in the order of the JSON, duplicates included.
struct RawHeader(Vec<(String, RawEntry)>);

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawEntry {
    /// Checks one tensor by itself. The range of the entry counts from the start of the data.
    fn check(&self, name: &str, available: u64) -> Result<Entry, TensorProblem> {
        let dtype =
            Dtype::from_name(&self.dtype).ok_or_else(|| TensorProblem::UnknownDtype { found: self.dtype.clone() })?;
        let shape = Shape::new(self.shape.clone());
        let (start, end) = self.data_offsets;
        if end < start {
            return Err(TensorProblem::OffsetsReversed { start, end });
        }
        if end > available {
            return Err(TensorProblem::OutOfRange { start, end, available });
        }
        let Some(expected) = dtype.byte_len(&shape) else { return Err(TensorProblem::TooLarge { shape, dtype }) };
        if end - start != expected {
            return Err(TensorProblem::LengthMismatch { expected, dtype, shape, start, end });
        }
        Ok(Entry { name: name.to_owned(), dtype, shape, range: start..end })
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawHeader, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(RawHeader(entries))
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(header: &str, data_len: usize) -> Result<SafetensorsFile, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data_len, 7);
        std::fs::write(&path, bytes).unwrap();
        SafetensorsFile::open(&path)
    }

    fn problem(header: &str, data_len: usize) -> TensorProblem {
        match open(header, data_len) {
            Err(Error::Tensor { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_tensors_sorted_by_name_with_absolute_ranges() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}"#;
        let file = open(header, 14).unwrap();
        let names: Vec<_> = file.entries().iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let start = 8 + header.len() as u64;
        assert_eq!(file.entries()[0].range, start + 8..start + 14);
        assert_eq!(file.bytes(&file.entries()[1]), [7; 8]);
        assert_eq!(file.preamble().len() as u64, start);
    }

    #[test]
    fn rejects_wrong_offsets_with_the_numbers() {
        let one = |offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
        assert_eq!(problem(&one("[8,0]"), 8), TensorProblem::OffsetsReversed { start: 8, end: 0 });
        assert_eq!(problem(&one("[0,8]"), 4), TensorProblem::OutOfRange { start: 0, end: 8, available: 4 });
        assert!(matches!(problem(&one("[0,6]"), 6), TensorProblem::LengthMismatch { expected: 8, .. }));
        assert_eq!(problem(&one("[4,12]"), 12), TensorProblem::Hole { expected: 0, start: 4, end: 12 });
        assert!(matches!(open(&one("[0,8]"), 9), Err(Error::TrailingBytes { .. })));
    }

    #[test]
    fn rejects_overlaps_duplicates_and_overflowing_shapes() {
        let two = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#;
        assert!(matches!(problem(two, 6), TensorProblem::Overlap { other_end: 4, start: 2, .. }));
        let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        assert_eq!(problem(twice, 2), TensorProblem::Duplicate);
        let huge = r#"{"a":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,4]}}"#;
        assert!(matches!(problem(huge, 4), TensorProblem::TooLarge { .. }));
        let dtype = r#"{"a":{"dtype":"Q4","shape":[4],"data_offsets":[0,4]}}"#;
        assert!(matches!(problem(dtype, 4), TensorProblem::UnknownDtype { .. }));
    }

    #[test]
    fn rejects_headers_that_do_not_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        std::fs::write(&path, [1, 2, 3]).unwrap();
        assert!(matches!(SafetensorsFile::open(&path), Err(Error::HeaderPastEnd { expected: 8, found: 3, .. })));
        std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(matches!(SafetensorsFile::open(&path), Err(Error::HeaderPastEnd { found: 8, .. })));
        assert!(matches!(open("[]", 0), Err(Error::HeaderJson { .. })));
        assert!(matches!(open(r#"{"a":{"dtype":"F32"}}"#, 0), Err(Error::HeaderJson { .. })));
    }
}
