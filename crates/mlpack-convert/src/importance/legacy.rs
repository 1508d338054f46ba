//! The format before GGUF, usually named `imatrix.dat`.
//!
//! ```text
//! | entries: i32 |
//! | length: i32 | name | calls: i32 | values: i32 | sum: f32 … |    once per entry
//! | chunks: i32 | length: i32 | dataset |                         may be missing, whole or from the length on
//! ```
//! Everything is little-endian. A sum is the mean square times the calls. Source: llama.cpp b11434,
//! `common/imatrix-loader.cpp`, which takes as much of the last line as there is and does not look for bytes after it; here a
//! text that is cut off, or bytes after the end, are an error.

use super::{Entry, ImportanceProblem, Mean, Parsed};
use mlpack_fs::{BoundedReader, ReadError};
use mlpack_tensor::Escaped;

/// The longest name of a weight. ggml's own limit is 63; files of other tools may have longer ones.
const MAX_NAME: usize = 1024;

/// The longest dataset path.
const MAX_DATASET: usize = 65_536;

/// The smallest entry: a length, a byte, the calls, a count and a value.
const MIN_ENTRY_LEN: u64 = 4 + 1 + 4 + 4 + 4;

/// `None` when the file does not begin as one of this format does.
pub(super) fn parse(bytes: &[u8]) -> Option<Parsed> {
    let mut r = BoundedReader::new(bytes);
    let count = u64::try_from(r.i32().ok()?).ok().filter(|n| *n > 0)?;
    r.count(count, MIN_ENTRY_LEN).ok()?;
    let first_name = BoundedReader::i32(&mut r.clone()).ok()?;
    if !(1..=MAX_NAME as i32).contains(&first_name) {
        return None;
    }
    let mut parsed = Parsed::default();
    if let Err(problem) = read(&mut r, count, &mut parsed) {
        parsed.problems.push(problem);
    }
    Some(parsed)
}

fn read(r: &mut BoundedReader<'_>, count: u64, parsed: &mut Parsed) -> Result<(), ImportanceProblem> {
    for i in 1..=count {
        let entry = read_entry(r, || format!("entry {i} of {count}"))?;
        parsed.entries.push(entry);
    }
    if r.remaining() == 0 {
        return Ok(());
    }
    parsed.chunks = i64::from(r.i32().map_err(wrong(|| "chunk count".to_owned()))?);
    if r.remaining() == 0 {
        return Ok(());
    }
    let field = || "dataset".to_owned();
    let len = r.i32().map_err(wrong(field))?;
    if len != 0 {
        parsed.datasets.push(read_text(r, len, MAX_DATASET, field)?);
    }
    match r.remaining() {
        0 => Ok(()),
        count => Err(ImportanceProblem::TrailingBytes { offset: r.offset(), count }),
    }
}

fn read_entry(r: &mut BoundedReader<'_>, field: impl Fn() -> String) -> Result<Entry, ImportanceProblem> {
    let len = r.i32().map_err(wrong(&field))?;
    let name = read_text(r, len, MAX_NAME, &field)?;
    let field = || format!("entry `{}`", Escaped(&name));
    let calls = r.i32().map_err(wrong(field))?;
    let value_count = r.i32().map_err(wrong(field))?;
    if value_count < 1 {
        return Err(ImportanceProblem::ValueCount { entry: name, found: i64::from(value_count) });
    }
    let byte_len = value_count as u64 * 4;
    let start = r.offset() as usize;
    r.take(byte_len).map_err(wrong(field))?;
    let mean = if calls > 0 { Mean::Divide(calls as f32) } else { Mean::Sums };
    Ok(Entry { name, unvisited: Vec::new(), means: vec![mean], sums: start..start + byte_len as usize })
}

fn read_text(
    r: &mut BoundedReader<'_>,
    len: i32,
    limit: usize,
    field: impl Fn() -> String,
) -> Result<String, ImportanceProblem> {
    let Some(byte_len) = usize::try_from(len).ok().filter(|n| (1..=limit).contains(n)) else {
        return Err(ImportanceProblem::TextLength { field: field(), limit, found: len });
    };
    let bytes = r.take(byte_len as u64).map_err(wrong(&field))?;
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(ImportanceProblem::Text { field: field() }),
    }
}

fn wrong(field: impl Fn() -> String) -> impl Fn(ReadError) -> ImportanceProblem {
    move |problem| ImportanceProblem::Read { field: field(), problem }
}
