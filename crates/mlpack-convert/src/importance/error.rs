//! Why an importance matrix cannot be used.

use mlpack_fs::{ErrorKind, MappedFile, ReadError};
use mlpack_tensor::{Escaped, GgmlType};
use std::path::PathBuf;

/// Problems of one file that are shown before they are cut with a count.
const SHOWN: usize = 10;

/// Why an importance matrix cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportanceError {
    /// The system refused.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// The file is a GGUF, and breaks that format.
    #[error(transparent)]
    Gguf(#[from] mlpack_gguf::Error),
    /// The file is in neither of the formats.
    #[error("cannot read importance matrix `{}`\n  expected: the output of llama-imatrix (GGUF, or .dat with a count of entries first)\n  found:    {byte_len} bytes that begin with {}", path.display(), hex(found))]
    Neither {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        found: Vec<u8>,
        /// Its length.
        byte_len: u64,
    },
    /// The file is in one of the formats, and wrong.
    #[error("cannot read importance matrix `{}`\n  {}{}", path.display(), problems.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("\n  "), more(problems.len()))]
    File {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it.
        problems: Vec<ImportanceProblem>,
    },
}

/// One thing that is wrong with an importance matrix.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImportanceProblem {
    /// The file ends too early, or a count is larger than the file.
    #[error("{field}: {problem}")]
    Read {
        /// The field.
        field: String,
        /// What is wrong with it.
        problem: ReadError,
    },
    /// A text that is empty or too long.
    #[error("{field}: a text of {found} bytes\n  expected: 1 to {limit}")]
    TextLength {
        /// The field.
        field: String,
        /// The limit.
        limit: usize,
        /// The length found.
        found: i32,
    },
    /// A text that is not UTF-8 or holds a zero byte.
    #[error("{field}: not text\n  expected: UTF-8 without zero bytes")]
    Text {
        /// The field.
        field: String,
    },
    /// An entry without values.
    #[error("entry `{}`: it has no values\n  expected: at least 1\n  found:    {found}", Escaped(entry))]
    ValueCount {
        /// The entry.
        entry: String,
        /// The count found.
        found: i64,
    },
    /// Bytes after the end.
    #[error("bytes after the end\n  expected: the end of the file at offset {offset}\n  found:    {count} more bytes")]
    TrailingBytes {
        /// Where the file should end.
        offset: u64,
        /// Bytes after that.
        count: u64,
    },
    /// Two entries of one name.
    #[error("entry `{}`: occurs twice", Escaped(entry))]
    Duplicate {
        /// The name.
        entry: String,
    },
    /// A sum that is NaN or infinite.
    #[error(
        "entry `{}`: a sum is not finite\n  expected: finite sums\n  found:    {found} at value {index}",
        Escaped(entry)
    )]
    NotFinite {
        /// The entry.
        entry: String,
        /// The first such value, counted from 0.
        index: usize,
        /// The sum.
        found: f32,
    },
    /// A GGUF without a single entry.
    #[error("no entries\n  expected: tensors named *.in_sum2 and *.counts\n  found:    none of {tensors} tensors")]
    NoEntries {
        /// Tensors in the file.
        tensors: usize,
    },
    /// A GGUF without one of the keys of an importance matrix.
    #[error("key `{key}`: missing\n  expected: {expected}")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// The type it should have.
        expected: &'static str,
    },
    /// A key of another type.
    #[error("key `{key}`: of the wrong type\n  expected: {expected}\n  found:    {found}")]
    KeyType {
        /// The key.
        key: &'static str,
        /// The type it should have.
        expected: &'static str,
        /// The type it has.
        found: &'static str,
    },
    /// An entry that lacks one of its two tensors.
    #[error(
        "entry `{}`: sums and counts do not go together\n  expected: a tensor `{}{missing}`\n  found:    none",
        Escaped(entry),
        Escaped(entry)
    )]
    MissingTensor {
        /// The entry.
        entry: String,
        /// The end of the name of the tensor that is not there.
        missing: &'static str,
    },
    /// Sums of squares and sums of different lengths.
    #[error(
        "entry `{}`: sums and sums of squares do not go together\n  expected: {in_sum2} sums\n  found:    {in_sum}",
        Escaped(entry)
    )]
    SumsMismatch {
        /// The entry.
        entry: String,
        /// The number of sums of squares.
        in_sum2: u64,
        /// The number of sums.
        in_sum: u64,
    },
    /// Counts of which there is not one for each of a number of equal parts of the sums.
    #[error(
        "entry `{}`: sums and counts do not go together\n  expected: a count for each of a number of equal parts of {sums} sums\n  found:    {counts} counts",
        Escaped(entry)
    )]
    CountsMismatch {
        /// The entry.
        entry: String,
        /// The number of sums.
        sums: u64,
        /// The number of counts.
        counts: u64,
    },
    /// A tensor that is not float32.
    #[error("tensor `{}`: of the wrong type\n  expected: F32\n  found:    {found}", Escaped(tensor))]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: GgmlType,
    },
    /// A count that is no count.
    #[error(
        "entry `{}`: not a count\n  expected: a finite number below 2^63\n  found:    {found} for expert {expert}",
        Escaped(entry)
    )]
    Count {
        /// The entry.
        entry: String,
        /// The first such expert, counted from 0.
        expert: usize,
        /// The count.
        found: f32,
    },
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
}

fn more(len: usize) -> String {
    if len > SHOWN { format!("\n  and {} more problems", len - SHOWN) } else { String::new() }
}

impl ImportanceError {
    pub(super) fn neither(map: &MappedFile) -> ImportanceError {
        let found = map.bytes().iter().take(8).copied().collect();
        ImportanceError::Neither { path: map.path().to_owned(), found, byte_len: map.byte_len() }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ImportanceError::Fs(e) => e.kind(),
            ImportanceError::Gguf(e) => e.kind(),
            ImportanceError::Neither { .. } | ImportanceError::File { .. } => ErrorKind::Malformed,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        use ImportanceProblem as P;
        let problems = match self {
            ImportanceError::Fs(e) => return e.hint().map(str::to_owned),
            ImportanceError::Gguf(e) => return e.hint(),
            ImportanceError::Neither { .. } => &[][..],
            ImportanceError::File { problems, .. } => problems,
        };
        let any = |is: fn(&P) -> bool| problems.iter().any(is);
        let hint = if problems.is_empty() || any(|p| matches!(p, P::NoEntries { .. } | P::MissingKey { .. })) {
            "give the file that llama-imatrix wrote for this model"
        } else if any(|p| matches!(p, P::Read { .. })) {
            "the file may be truncated; compare its sha256 with the published one"
        } else if any(|p| matches!(p, P::NotFinite { .. } | P::Count { .. })) {
            "make the importance matrix again; a model that computes NaN for its text gives such sums"
        } else {
            return None;
        };
        Some(hint.to_owned())
    }
}
