//! Why something cannot be planned or executed.

use crate::FileType;
use mlpack_fs::ErrorKind;
use mlpack_tensor::{Dtype, Escaped, Shape};
use std::path::PathBuf;

/// Problems of a list that are shown before it is cut with a count.
const SHOWN: usize = 10;

/// Why something cannot be planned or executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Safetensors(#[from] mlpack_safetensors::Error),
    /// An adapter cannot be read or does not fit.
    #[error(transparent)]
    Lora(#[from] mlpack_lora::Error),
    /// The architecture or the tokenizer cannot be described.
    #[error(transparent)]
    Arch(#[from] mlpack_arch::Error),
    /// A block type cannot be encoded.
    #[error(transparent)]
    Quant(#[from] mlpack_quant::Error),
    /// A GGUF file cannot hold what was planned.
    #[error("cannot plan `{file}`\n  {source}")]
    Layout {
        /// The output.
        file: String,
        /// What does not fit.
        source: mlpack_gguf::LayoutError,
    },
    /// Several independent problems of one input.
    #[error("{}{}", .0.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("\n\n"), more(.0.len()))]
    Several(Vec<Error>),
    /// A variant that llama-quantize does not have.
    #[error("unknown quantization `{}`\n  expected: one of {}\n  found:    `{}`", Escaped(name), FileType::available().map(|t| t.name).collect::<Vec<_>>().join(", "), Escaped(name))]
    UnknownFileType {
        /// The name given.
        name: String,
        /// The most similar name.
        nearest: Option<&'static str>,
    },
    /// A variant that this version does not make.
    #[error("quantization `{name}` is not available in this version\n  expected: one of {}\n  found:    `{name}`", FileType::available().map(|t| t.name).collect::<Vec<_>>().join(", "))]
    FileTypeNotAvailable {
        /// The name.
        name: &'static str,
    },
    /// The same variant was asked for twice.
    #[error("quantization `{name}` is asked for twice")]
    RepeatedFileType {
        /// The name.
        name: &'static str,
    },
    /// A name that cannot be a file name.
    #[error(
        "`{}` cannot be the name of an output\n  expected: a file name without / and not starting with a dot",
        Escaped(name)
    )]
    OutputName {
        /// The name given.
        name: String,
    },
    /// A tensor of a dtype that has no conversion.
    #[error(
        "cannot convert tensor `{}`\n  expected: F32, F16, BF16 or F64\n  found:    {dtype} {shape}",
        Escaped(tensor)
    )]
    TensorDtype {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Shape,
    },
    /// A weight is NaN or infinite.
    #[error("cannot use tensor `{}` of `{}`: a value is not finite\n  expected: finite {dtype} values\n  found:    {value:?} at row {row}, column {column}", Escaped(tensor), path.display())]
    NotFinite {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
        /// The row of the element.
        row: u64,
        /// The column of the element.
        column: u64,
        /// The value.
        value: f32,
    },
    /// A value is too large for float16.
    #[error(
        "cannot store tensor `{}` as F16 in `{}`: a value overflows\n  expected: values below 65520 in magnitude\n  found:    {value:?} at row {row}, column {column}",
        Escaped(tensor),
        Escaped(output)
    )]
    F16Overflow {
        /// The source tensor.
        tensor: String,
        /// The output file.
        output: String,
        /// The row of the element.
        row: u64,
        /// The column of the element.
        column: u64,
        /// The value.
        value: f32,
    },
    /// The memory budget is too small for one slab.
    #[error(
        "the memory budget is too small for tensor `{}`\n  expected: at least {needed} bytes (--memory)\n  found:    {budget} bytes",
        Escaped(tensor)
    )]
    Budget {
        /// The tensor.
        tensor: String,
        /// Bytes that its smallest slab needs.
        needed: u64,
        /// The budget.
        budget: u64,
    },
    /// The thread pool cannot start.
    #[error("cannot start {threads} threads\n  found:    {reason}")]
    Threads {
        /// The number asked for.
        threads: usize,
        /// What the system said.
        reason: String,
    },
    /// A merge without adapters.
    #[error("nothing to merge: no adapter given")]
    NoAdapter,
}

fn more(len: usize) -> String {
    if len > SHOWN { format!("\n\nand {} more problems", len - SHOWN) } else { String::new() }
}

impl Error {
    /// One error for a list of problems; `Ok` when there are none.
    pub(crate) fn from_list(mut problems: Vec<Error>) -> Result<(), Error> {
        match problems.len() {
            0 => Ok(()),
            1 => Err(problems.remove(0)),
            _ => Err(Error::Several(problems)),
        }
    }

    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Fs(e) => e.kind(),
            Error::Safetensors(e) => e.kind(),
            Error::Lora(e) => e.kind(),
            Error::Arch(e) => e.kind(),
            Error::Layout { source, .. } => source.kind(),
            Error::Several(all) => all.first().map_or(ErrorKind::Malformed, Error::kind),
            Error::UnknownFileType { .. }
            | Error::FileTypeNotAvailable { .. }
            | Error::RepeatedFileType { .. }
            | Error::OutputName { .. }
            | Error::NoAdapter => ErrorKind::Misuse,
            // Lengths are the executor's own; what is left is a type that is not encoded.
            Error::Quant(_) | Error::TensorDtype { .. } | Error::F16Overflow { .. } => ErrorKind::Unsupported,
            Error::NotFinite { .. } => ErrorKind::Malformed,
            Error::Budget { .. } => ErrorKind::Limit,
            Error::Threads { .. } => ErrorKind::Io,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint().map(str::to_owned),
            Error::Safetensors(e) => return e.hint(),
            Error::Lora(e) => return e.hint(),
            Error::Arch(e) => return e.hint(),
            Error::Quant(e) => return e.hint(),
            Error::Several(all) => return all.iter().find_map(Error::hint),
            Error::UnknownFileType { nearest: Some(nearest), .. } => return Some(format!("did you mean `{nearest}`?")),
            Error::F16Overflow { .. } => "use BF16, F32 or a quantized type for this model; nothing was written",
            Error::NotFinite { .. } => "the checkpoint is damaged, or the training diverged; nothing was written",
            Error::TensorDtype { .. } => "dequantize the checkpoint to BF16 or F32 first",
            Error::Budget { .. } => "raise --memory, or lower --threads",
            Error::NoAdapter => "give at least one adapter with -a",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
