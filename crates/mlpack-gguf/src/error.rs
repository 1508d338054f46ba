//! What can be wrong with a GGUF file, read or to be written.

use mlpack_fs::{ErrorKind, ReadError};
use mlpack_tensor::{Escaped, GgmlType, Shape};
use std::path::PathBuf;

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
        found: String,
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
    /// Rows that are not whole blocks, or a size over 64 bits.
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
        };
        Some(hint.to_owned())
    }
}

/// Why a file cannot be laid out: names and shapes that GGUF cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
}

impl LayoutError {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Unsupported
    }
}
