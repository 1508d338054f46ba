//! What can be wrong with a checkpoint.

use mlpack_fs::ErrorKind;
use mlpack_tensor::{Dtype, Escaped, Shape, join_limited};
use std::path::PathBuf;

/// Names shown of a long list.
const SHOWN: usize = 5;

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused, or a file is over its limit.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// The file ends before its header does.
    #[error("cannot read `{}`: the header is longer than the file\n  expected: {expected} bytes (8 + header length at offset 0)\n  found:    {found} bytes", path.display())]
    HeaderPastEnd {
        /// The file.
        path: PathBuf,
        /// Bytes that the header length asks for, with the 8 bytes of the length itself.
        expected: u128,
        /// The length of the file.
        found: u64,
    },
    /// The header is longer than the format allows.
    #[error("cannot read `{}`: the header is too long\n  expected: at most {limit} bytes\n  found:    {found} bytes (header length at offset 0)", path.display())]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// The limit of the format.
        limit: u64,
        /// The header length found.
        found: u64,
    },
    /// The header is not the JSON that the format asks for.
    #[error("cannot read `{}`: the header is not valid\n  expected: a JSON object of tensors with dtype, shape and data_offsets\n  found:    {reason} (the header starts at offset 8)", path.display())]
    HeaderJson {
        /// The file.
        path: PathBuf,
        /// What the JSON parser said.
        reason: String,
    },
    /// One tensor of the header is wrong.
    #[error("cannot read `{}`\n  tensor `{}`: {problem}", path.display(), Escaped(tensor))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: TensorProblem,
    },
    /// The data section is longer than the tensors.
    #[error("cannot read `{}`: bytes follow the last tensor\n  expected: {expected} bytes\n  found:    {found} bytes", path.display())]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Where the last tensor ends.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// The safetensors crate refuses a header that the checks above let through.
    #[error("cannot read `{}`: the header is not valid\n  found:    {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What the crate said.
        reason: String,
    },
    /// No weights in a directory.
    #[error("cannot read `{}`: no weights in this directory\n  expected: model.safetensors, or shards named model-00001-of-0000N.safetensors\n  found:    {found}", path.display())]
    NoWeights {
        /// The directory.
        path: PathBuf,
        /// What is there instead.
        found: String,
        /// Whether the weights are there in PyTorch's format.
        pytorch: bool,
    },
    /// The index is not an index.
    #[error("cannot read `{}`: not a safetensors index\n  expected: a JSON object whose weight_map maps tensor names to file names\n  found:    {reason}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The index names a file outside its directory.
    #[error("cannot read `{}`: a file name leads out of the directory\n  tensor `{}`: stored in `{}`\n  expected: a plain file name", path.display(), Escaped(tensor), Escaped(file))]
    IndexPath {
        /// The index file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file name in the index.
        file: String,
    },
    /// The index names a shard that is not there.
    #[error("cannot read `{}`: a shard is missing\n  expected: {} (named by the index for {count} tensors, the first `{}`)\n  found:    {found} of {total} shards", dir.display(), join_limited(shards.iter().map(String::as_str), SHOWN), Escaped(tensor))]
    MissingShards {
        /// The directory.
        dir: PathBuf,
        /// The missing shards.
        shards: Vec<String>,
        /// How many tensors they hold.
        count: usize,
        /// The first of those tensors.
        tensor: String,
        /// How many shards are there.
        found: usize,
        /// How many the index names.
        total: usize,
    },
    /// The index and the shards name different tensors.
    #[error("cannot read `{}`: the index and the shards disagree{}{}", path.display(), list("only in the index", missing), list("only in the shards", extra))]
    IndexMismatch {
        /// The index file.
        path: PathBuf,
        /// In the index, in no shard.
        missing: Vec<String>,
        /// In a shard, not in the index.
        extra: Vec<String>,
    },
    /// Two shards hold a tensor of the same name.
    #[error("cannot read `{}`\n  tensor `{}`: also in `{other}`", path.display(), Escaped(tensor))]
    DuplicateAcrossShards {
        /// The later shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// File name of the earlier shard.
        other: String,
    },
}

fn list(label: &str, names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("\n  {label}: {}", join_limited(names.iter().map(String::as_str), SHOWN)),
    }
}

/// What is wrong with one tensor of a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// A dtype that the format does not have.
    #[error("unknown dtype\n  expected: one of {}\n  found:    `{}`", Dtype::ALL.map(Dtype::name).join(", "), Escaped(found))]
    UnknownDtype {
        /// The spelling found.
        found: String,
    },
    /// The name is empty.
    #[error("the name is empty")]
    EmptyName,
    /// The name occurs twice.
    #[error("the name occurs twice in the header")]
    Duplicate,
    /// The size does not fit in 64 bits.
    #[error("the shape is too large\n  found:    {shape} of {dtype}")]
    TooLarge {
        /// The shape found.
        shape: Shape,
        /// The dtype found.
        dtype: Dtype,
    },
    /// The end lies before the start.
    #[error("the data ends before it starts\n  found:    data_offsets [{start}, {end}]")]
    OffsetsReversed {
        /// The start found.
        start: u64,
        /// The end found.
        end: u64,
    },
    /// The data lies past the end of the file.
    #[error(
        "the data lies outside the file\n  expected: at most {available} bytes of data in this file\n  found:    data_offsets [{start}, {end}]"
    )]
    OutOfRange {
        /// The start found.
        start: u64,
        /// The end found.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// The number of bytes does not follow from dtype and shape.
    #[error("data length does not match its shape\n  expected: {expected} bytes ({dtype} x {shape})\n  found:    {} bytes (data_offsets [{start}, {end}])", end - start)]
    LengthMismatch {
        /// Bytes that dtype and shape ask for.
        expected: u64,
        /// The dtype found.
        dtype: Dtype,
        /// The shape found.
        shape: Shape,
        /// The start found.
        start: u64,
        /// The end found.
        end: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "its data overlaps `{}`\n  expected: a start at or after {other_end}\n  found:    data_offsets [{start}, {end}]",
        Escaped(other)
    )]
    Overlap {
        /// The other tensor.
        other: String,
        /// Where the other tensor ends.
        other_end: u64,
        /// The start found.
        start: u64,
        /// The end found.
        end: u64,
    },
    /// Bytes that belong to no tensor.
    #[error(
        "a hole lies before its data\n  expected: a start at {expected}\n  found:    data_offsets [{start}, {end}]"
    )]
    Hole {
        /// Where the tensor before it ends.
        expected: u64,
        /// The start found.
        start: u64,
        /// The end found.
        end: u64,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Fs(e) => e.kind(),
            Error::HeaderTooLong { .. } => ErrorKind::Limit,
            Error::NoWeights { pytorch: true, .. } => ErrorKind::Unsupported,
            Error::NoWeights { .. } | Error::MissingShards { .. } => ErrorKind::Io,
            Error::HeaderPastEnd { .. }
            | Error::HeaderJson { .. }
            | Error::Tensor { .. }
            | Error::TrailingBytes { .. }
            | Error::Refused { .. }
            | Error::Index { .. }
            | Error::IndexPath { .. }
            | Error::IndexMismatch { .. }
            | Error::DuplicateAcrossShards { .. } => ErrorKind::Malformed,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint().map(str::to_owned),
            Error::Tensor { problem: TensorProblem::OutOfRange { .. }, .. } | Error::HeaderPastEnd { .. } => {
                "the file may be truncated; compare its sha256 with the published one and download it again"
            }
            Error::NoWeights { pytorch: true, .. } => {
                "convert the PyTorch files once: model.save_pretrained(DIR, safe_serialization=True)"
            }
            Error::NoWeights { .. } => "give the directory that holds config.json and the weights",
            Error::MissingShards { .. } => "download the missing shards into this directory",
            Error::IndexMismatch { .. } => "the index and the shards are from different versions; download both again",
            Error::Tensor { problem: TensorProblem::LengthMismatch { .. }, .. } => {
                "the file may be damaged; compare its sha256 with the published one"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
