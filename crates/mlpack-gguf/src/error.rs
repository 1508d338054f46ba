//! What can be wrong with a GGUF file, read or to be written.

use mlpack_fs::{ErrorKind, ReadError};
use mlpack_tensor::{Escaped, GgmlType, MetaValue, Shape, join_limited};
use std::path::PathBuf;

/// Items of a list that are shown before it is cut with a count.
const SHOWN: usize = 10;

fn more(len: usize) -> String {
    if len > SHOWN { format!("\n  and {} more problems", len - SHOWN) } else { String::new() }
}

/// Why a GGUF file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// The file breaks the format.
    #[error("cannot read `{}`\n  {field}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The field, key or tensor.
        field: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The parts of a split model do not make a whole.
    #[error("cannot read split model `{}`\n  {}{}", path.display(), problems.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("\n  "), more(problems.len()))]
    Split {
        /// The file that was opened.
        path: PathBuf,
        /// Everything that is wrong.
        problems: Vec<SplitProblem>,
    },
}

/// One way in which the parts of a split model do not make a whole.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SplitProblem {
    /// A later part was opened.
    #[error("not the first part\n  expected: part 1 of {count}\n  found:    part {} of {count}", no + 1)]
    LaterPart {
        /// The number of the part that was opened, from 0.
        no: u64,
        /// The number of parts.
        count: u64,
        /// The name of the first part, if this part's name says it.
        first: Option<String>,
    },
    /// The names of the other parts cannot be told from this one's.
    #[error("the file name does not say which part it is\n  expected: a name like `{expected}`")]
    FileName {
        /// An example.
        expected: String,
    },
    /// Parts that are not there.
    #[error("parts are missing\n  expected: {count} files\n  found:    no {}", join_limited(parts.iter().map(String::as_str), SHOWN))]
    Missing {
        /// The number of parts.
        count: u64,
        /// The names of the parts that are not there.
        parts: Vec<String>,
    },
    /// A part that says something else than it must.
    #[error("key `{key}` of `{}`\n  expected: {expected}\n  found:    {}", path.display(), found.as_ref().map_or("no such key".to_owned(), MetaValue::to_string))]
    Key {
        /// The part's file name.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What it must be.
        expected: String,
        /// What it is, if it is there.
        found: Option<MetaValue>,
    },
    /// More or fewer tensors than the parts say.
    #[error(
        "the parts do not hold all tensors, or too many\n  expected: {expected} (split.tensors.count)\n  found:    {found}"
    )]
    TensorCount {
        /// The number that the first part states.
        expected: u64,
        /// The number in all parts.
        found: u64,
    },
    /// A tensor in two parts.
    #[error("tensor `{}` of `{}` is in `{}` too", Escaped(tensor), path.display(), other.display())]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// The file name of the later part.
        path: PathBuf,
        /// The file name of the earlier part.
        other: PathBuf,
    },
}

/// What is wrong with one field of a file.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file ends too early, or a count is larger than the file.
    #[error("{0}")]
    Read(#[from] ReadError),
    /// Not a GGUF file.
    #[error("not a GGUF file\n  expected: the bytes 47 47 55 46 (\"GGUF\") at offset 0\n  found:    {}", found.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "))]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// A version that is not read.
    #[error("unsupported version\n  expected: 2 or 3\n  found:    {found}{}", if found.swap_bytes() < 16 { " (a big-endian file)" } else { "" })]
    Version {
        /// The version found.
        found: u32,
    },
    /// Text that is not UTF-8.
    #[error("not UTF-8 at offset {offset}")]
    NotUtf8 {
        /// Where the text starts.
        offset: u64,
    },
    /// A number that is no value type.
    #[error("unknown value type\n  expected: 0 to 12\n  found:    {found} (offset {offset})")]
    ValueType {
        /// The number found.
        found: u32,
        /// Where it is.
        offset: u64,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("not a boolean\n  expected: 0 or 1\n  found:    {found} (offset {offset})")]
    Bool {
        /// The byte found.
        found: u8,
        /// Where it is.
        offset: u64,
    },
    /// Arrays of arrays, deeper than anyone writes them.
    #[error("arrays are nested more than {limit} deep (offset {offset})")]
    Nesting {
        /// The limit.
        limit: usize,
        /// Where the array starts.
        offset: u64,
    },
    /// A name or key that occurs twice.
    #[error("occurs twice")]
    Duplicate,
    /// A key or tensor name that is empty or too long.
    #[error("a name of {found} bytes\n  expected: 1 to {limit}")]
    NameLength {
        /// The length found.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// `general.alignment` is not a power of two that fits.
    #[error("expected a u32 power of two\n  found:    {found}")]
    Alignment {
        /// The value found.
        found: MetaValue,
    },
    /// More dimensions than ggml has.
    #[error("too many dimensions\n  expected: 1 to {limit}\n  found:    {found}")]
    Dimensions {
        /// The limit.
        limit: usize,
        /// The number found.
        found: u32,
    },
    /// A number that is no tensor type of b11434.
    #[error("unknown tensor type\n  expected: a type of llama.cpp b11434 (0 to 42)\n  found:    {found}")]
    TensorType {
        /// The number found.
        found: u32,
    },
    /// A size over 64 bits.
    #[error("its size does not fit in 64 bits\n  found:    {shape} as {ty}")]
    Size {
        /// The type found.
        ty: GgmlType,
        /// The shape found, outermost dimension first.
        shape: Shape,
    },
    /// Rows that are not whole blocks.
    #[error("its shape does not fit its type\n  expected: rows of a multiple of {} elements ({ty})\n  found:    {shape}", ty.block_len())]
    Shape {
        /// The type found.
        ty: GgmlType,
        /// The shape found, outermost dimension first.
        shape: Shape,
    },
    /// The offset is not a multiple of the alignment.
    #[error("its data is not aligned\n  expected: a multiple of {alignment}\n  found:    offset {found}")]
    Unaligned {
        /// The alignment.
        alignment: u64,
        /// The offset found, from the start of the data.
        found: u64,
    },
    /// The data lies outside the file.
    #[error(
        "its data lies outside the file\n  expected: at most {available} bytes of data\n  found:    {byte_len} bytes at offset {offset}"
    )]
    OutOfRange {
        /// Bytes of data in the file.
        available: u64,
        /// The offset found, from the start of the data.
        offset: u64,
        /// Bytes that the tensor needs.
        byte_len: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "its data overlaps `{}`\n  expected: an offset at or after {other_end}\n  found:    {offset}",
        Escaped(other)
    )]
    Overlap {
        /// The other tensor.
        other: String,
        /// Where the other one ends.
        other_end: u64,
        /// The offset found.
        offset: u64,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Fs(e) => e.kind(),
            Error::File { problem: Problem::Version { .. } | Problem::TensorType { .. }, .. } => ErrorKind::Unsupported,
            Error::File { problem: Problem::Nesting { .. }, .. } => ErrorKind::Limit,
            Error::File { .. } => ErrorKind::Malformed,
            Error::Split { problems, .. } => problems.first().map_or(ErrorKind::Malformed, SplitProblem::kind),
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint().map(str::to_owned),
            Error::File { problem: Problem::Read(_) | Problem::OutOfRange { .. }, .. } => {
                "the file may be truncated; compare its sha256 with the published one"
            }
            Error::File { problem: Problem::TensorType { .. }, .. } => {
                "the file may be from a newer llama.cpp than the one this version follows"
            }
            Error::File { .. } => return None,
            Error::Split { problems, .. } => return problems.iter().find_map(SplitProblem::hint),
        };
        Some(hint.to_owned())
    }
}

impl SplitProblem {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            SplitProblem::LaterPart { .. } => ErrorKind::Misuse,
            SplitProblem::Missing { .. } => ErrorKind::Io,
            SplitProblem::Key { .. } | SplitProblem::TensorCount { .. } | SplitProblem::Duplicate { .. } => {
                ErrorKind::Mismatch
            }
            SplitProblem::FileName { .. } => ErrorKind::Misuse,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            SplitProblem::LaterPart { first: Some(first), .. } => format!("open `{}`", Escaped(first)),
            SplitProblem::LaterPart { first: None, .. } => "open the first part".to_owned(),
            SplitProblem::FileName { .. } => "give the parts the names back that they were made with".to_owned(),
            SplitProblem::Missing { .. } => "put all parts into one folder".to_owned(),
            SplitProblem::Key { .. } | SplitProblem::TensorCount { .. } | SplitProblem::Duplicate { .. } => {
                "the parts may come from different models or versions; fetch all of them again".to_owned()
            }
        })
    }
}

/// Why a file cannot be laid out: names and shapes that GGUF cannot hold.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A tensor name that ggml would refuse.
    #[error("tensor name `{}` has {} bytes\n  expected: 1 to {limit} bytes", Escaped(name), name.len())]
    NameLength {
        /// The name.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// A tensor name that occurs twice.
    #[error("tensor name `{}` occurs twice", Escaped(name))]
    Duplicate {
        /// The name.
        name: String,
    },
    /// Rows that are not whole blocks, too many dimensions, or a size over 64 bits.
    #[error("tensor `{}` cannot be stored as {ty}\n  expected: 1 to 4 dimensions, rows of a multiple of {} elements\n  found:    {shape}", Escaped(name), ty.block_len())]
    Shape {
        /// The tensor.
        name: String,
        /// The type asked for.
        ty: GgmlType,
        /// Its shape, outermost dimension first.
        shape: Shape,
    },
    /// A `general.alignment` that a file cannot have.
    #[error("key `general.alignment`\n  expected: a u32 power of two, at most {limit}\n  found:    {found}")]
    Alignment {
        /// The limit.
        limit: u64,
        /// The value.
        found: MetaValue,
    },
}

impl LayoutError {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unsupported
    }
}
