//! Why something cannot be planned or executed.

use crate::{Exceeded, FileType, ImportanceError, Precision, Stored};
use mlpack_fs::ErrorKind;
use mlpack_tensor::{Dtype, Escaped, GgmlType, Shape};
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
    /// A GGUF file cannot be read.
    #[error(transparent)]
    Gguf(#[from] mlpack_gguf::Error),
    /// An importance matrix cannot be read.
    #[error(transparent)]
    Importance(#[from] ImportanceError),
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
    /// An ONNX graph cannot be built.
    #[error("cannot make ONNX from `{}`\n  {}", dir.display(), source.to_string().replace('\n', "\n  "))]
    Onnx {
        /// The model directory.
        dir: PathBuf,
        /// What is wrong.
        source: mlpack_onnx::Error,
    },
    /// A precision that is not known.
    #[error("unknown precision `{}`\n  expected: one of {}\n  found:    `{}`", Escaped(name), Precision::names().collect::<Vec<_>>().join(", "), Escaped(name))]
    UnknownPrecision {
        /// The name given.
        name: String,
        /// The most similar name.
        nearest: Option<&'static str>,
    },
    /// The same precision was asked for twice.
    #[error("precision `{name}` is asked for twice")]
    RepeatedPrecision {
        /// The name.
        name: &'static str,
    },
    /// Tensors that float16 cannot hold.
    #[error("float16 cannot hold every value\n  file `{output}`{}", tensors.iter().take(SHOWN).map(|(name, value)| format!("\n  tensor `{}`: a magnitude of {value:?}", Escaped(name))).collect::<String>() + &if tensors.len() > SHOWN { format!("\n  and {} more", tensors.len() - SHOWN) } else { String::new() })]
    F16Overflows {
        /// The file.
        output: String,
        /// The tensors, each with its largest magnitude.
        tensors: Vec<(String, f32)>,
    },
    /// Something that a runtime's layout has no place for.
    #[error("layout `{layout}` has no place for {what}")]
    RuntimeLayout {
        /// The layout.
        layout: &'static str,
        /// What was asked for.
        what: &'static str,
    },
    /// A tensor that ONNX graphs have no use for: one of a stack, or a part of another.
    #[error(
        "tensor `{}` has no place in an ONNX graph\n  expected: one tensor for one matrix\n  found:    {what}",
        Escaped(tensor)
    )]
    OnnxTensor {
        /// The tensor.
        tensor: String,
        /// What it is.
        what: &'static str,
    },
    /// Several independent problems of one input.
    #[error("{}{}", .0.iter().take(SHOWN).map(ToString::to_string).collect::<Vec<_>>().join("\n\n"), more(.0.len()))]
    Several(Vec<Error>),
    /// A variant that llama-quantize does not have.
    #[error("unknown quantization `{}`\n  expected: one of {}\n  found:    `{}`", Escaped(name), FileType::names().collect::<Vec<_>>().join(", "), Escaped(name))]
    UnknownFileType {
        /// The name given.
        name: String,
        /// The most similar name.
        nearest: Option<&'static str>,
    },
    /// An option that llama-quantize would refuse, or take for something else.
    #[error("{option} `{}` makes no sense\n  expected: {expected}\n  found:    {reason}", Escaped(value))]
    Option {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What is expected.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A GGUF file where a checkpoint is needed.
    #[error("cannot convert `{}`\n  expected: a checkpoint directory\n  found:    a GGUF file", path.display())]
    NotACheckpoint {
        /// The file.
        path: PathBuf,
    },
    /// A checkpoint where a GGUF file is needed.
    #[error("cannot quantize `{}`\n  expected: a GGUF file\n  found:    a checkpoint", path.display())]
    NotAGguf {
        /// The first file of the checkpoint.
        path: PathBuf,
    },
    /// Quantized tensors would be quantized again.
    #[error("{} quantized already\n  expected: F32, F16 or BF16\n  found:    {}", count(tensors.len()), list(tensors.iter().map(|(name, from, to)| format!("`{}` is {from}, to be stored as {to}", Escaped(name)))))]
    Requantize {
        /// The tensors with the types that they have, and those that were asked for.
        tensors: Vec<(String, GgmlType, GgmlType)>,
    },
    /// A tensor of a type whose values cannot be read.
    #[error(
        "the values of tensor `{}` cannot be read\n  expected: floats or blocks\n  found:    {ty}",
        Escaped(tensor)
    )]
    Undecodable {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
    },
    /// A row that is not whole blocks of the type, and no smaller block is defined for it.
    #[error("tensor `{}` cannot be stored as {ty}\n  expected: rows of a multiple of {} elements\n  found:    rows of {row_len}", Escaped(tensor), ty.block_len())]
    RowLength {
        /// The tensor.
        tensor: String,
        /// The type that was asked for.
        ty: GgmlType,
        /// Elements of a row.
        row_len: u64,
    },
    /// Types that are never written without importance values.
    #[error("{} of a type that needs an importance matrix\n  expected: values for {} in {}\n  found:    none for {}", count(tensors.len()), if tensors.len() == 1 { "it" } else { "them" }, file.as_ref().map_or("an importance matrix (--imatrix)".to_owned(), |f| format!("`{}`", f.display())), list(tensors.iter().map(|(name, ty)| format!("`{}`, to be stored as {ty}", Escaped(name)))))]
    ImportanceMissing {
        /// The tensors with the types that the mixture gives them.
        tensors: Vec<(String, GgmlType)>,
        /// The importance matrix, where one was given.
        file: Option<PathBuf>,
    },
    /// Importance values of another model.
    #[error("importance matrix `{}` does not fit tensor `{}`\n  expected: {expected} values\n  found:    {found}", path.display(), Escaped(tensor))]
    ImportanceSize {
        /// The tensor.
        tensor: String,
        /// The importance matrix.
        path: PathBuf,
        /// Columns times experts of the tensor.
        expected: u64,
        /// Values in the file.
        found: u64,
    },
    /// Experts that the calibration text never reached.
    #[error("importance matrix `{}` says nothing about {} of tensor `{}`\n  expected: every expert visited at least once\n  found:    never visited: {}", path.display(), if experts.len() == 1 { "an expert".to_owned() } else { format!("{} experts", experts.len()) }, Escaped(tensor), experts.iter().take(SHOWN).map(u64::to_string).collect::<Vec<_>>().join(", ") + if experts.len() > SHOWN { ", …" } else { "" })]
    UnvisitedExperts {
        /// The tensor.
        tensor: String,
        /// The importance matrix.
        path: PathBuf,
        /// The experts.
        experts: Vec<u64>,
    },
    /// A layer to prune that is not there.
    #[error("there is no layer {layer} to prune\n  expected: layers of a model that has {layers}\n  found:    {layer}")]
    NoSuchLayer {
        /// The layer.
        layer: u64,
        /// The number of layers.
        layers: u64,
    },
    /// Pruning would leave nothing.
    #[error("no layer would be left\n  expected: at least one layer that is not pruned\n  found:    none")]
    NoLayerLeft,
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
        "cannot convert tensor `{}`\n  expected: F32, F16, BF16 or F64\n  found:    {} {shape}",
        Escaped(tensor),
        stored.name()
    )]
    TensorDtype {
        /// The tensor.
        tensor: String,
        /// How it is stored.
        stored: Stored,
        /// Its shape.
        shape: Shape,
    },
    /// Tensors that one tensor is made of are stored in different ways.
    #[error("cannot convert tensor `{}`\n  expected: {} like `{}`\n  found:    {}", Escaped(tensor), expected.name(), Escaped(like), stored.name())]
    StackDtype {
        /// The tensor.
        tensor: String,
        /// How it is stored.
        stored: Stored,
        /// The first of those that it goes with.
        like: String,
        /// How that is stored.
        expected: Stored,
    },
    /// A variant that a GGUF adapter is not written as.
    #[error("an adapter is not written as {name}\n  expected: F32, F16, BF16 or Q8_0")]
    AdapterVariant {
        /// The variant.
        name: &'static str,
    },
    /// A tensor of an adapter that a GGUF adapter has no place for.
    #[error(
        "cannot convert the adapter: `{}` cannot be written as the two factors of one tensor of the base",
        Escaped(tensor)
    )]
    AdapterTensor {
        /// The tensor, or the module.
        tensor: String,
    },
    /// The vocabulary has another size than the tensor whose rows it names.
    #[error(
        "the tokenizer does not fit tensor `{}`\n  expected: {tokens} rows, one for each token\n  found:    {rows}",
        Escaped(tensor)
    )]
    VocabularySize {
        /// The embedding, or the output matrix.
        tensor: String,
        /// Its rows.
        rows: u64,
        /// Tokens of the vocabulary, as many as config.json says.
        tokens: u64,
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
    /// A block of a source that can only be damage.
    #[error("cannot use tensor `{}` of `{}`: a block's scale is not finite\n  expected: finite scales in every {ty} block\n  found:    NaN or infinity at row {row}, column {column}", Escaped(tensor), path.display())]
    InvalidBlock {
        /// The file that holds the tensor.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
        /// The row of the block.
        row: u64,
        /// The first column of the block.
        column: u64,
    },
    /// Values are too large for the scale of a block.
    #[error(
        "cannot store tensor `{}` as {ty} in `{}`: a block's scale overflows\n  expected: values whose scale fits the type\n  found:    {value:?} at row {row}, near column {column}",
        Escaped(tensor),
        Escaped(output)
    )]
    ScaleOverflow {
        /// The source tensor.
        tensor: String,
        /// The output file.
        output: String,
        /// The type asked for.
        ty: GgmlType,
        /// The row of the block.
        row: u64,
        /// The first column of the block.
        column: u64,
        /// The largest value of the block.
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
    /// Stored values are further from their source than was accepted.
    #[error("{} too far from the source; nothing was written{}{}", count(tensors.len()), tensors.iter().take(SHOWN).map(|t| format!("\n  `{}` in `{}`: {}", Escaped(&t.tensor), Escaped(&t.file), t.exceeded)).collect::<String>(), if tensors.len() > SHOWN { format!("\n  and {} more", tensors.len() - SHOWN) } else { String::new() })]
    TooFar {
        /// The tensors, in the order of the outputs.
        tensors: Vec<TooFar>,
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
    /// A file would be larger than 64 bits can say.
    #[error("cannot lay out `{}`: its tensors have more than 2^64 bytes", Escaped(file))]
    TooLarge {
        /// The file.
        file: String,
    },
    /// A file that describes the model is no JSON.
    #[error("cannot read `{}`: not JSON\n  found:    {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A merge without adapters.
    #[error("nothing to merge: no adapter given")]
    NoAdapter,
}

/// "a tensor is", "3 tensors are"
fn count(tensors: usize) -> String {
    if tensors == 1 { "a tensor is".to_owned() } else { format!("{tensors} tensors are") }
}

/// The first of them, one below the other.
fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(SHOWN);
    let mut shown: Vec<String> = items.take(SHOWN).collect();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    shown.join("\n            ")
}

/// A tensor that does not keep a limit.
#[derive(Clone, Debug, PartialEq)]
pub struct TooFar {
    /// The output.
    pub file: String,
    /// The tensor.
    pub tensor: String,
    /// The limit and what was found.
    pub exceeded: Exceeded,
}

fn more(len: usize) -> String {
    if len > SHOWN { format!("\n\nand {} more problems", len - SHOWN) } else { String::new() }
}

impl Error {
    /// One error for a list of problems; `Ok` when there are none.
    pub(crate) fn from_list(mut problems: Vec<Error>) -> Result<(), Error> {
        // A wrong config is the problem of many tensors.
        let mut seen = std::collections::HashSet::new();
        problems.retain(|problem| seen.insert(problem.to_string()));
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
            Error::Gguf(e) => e.kind(),
            Error::Importance(e) => e.kind(),
            Error::Lora(e) => e.kind(),
            Error::Arch(e) => e.kind(),
            Error::Layout { source, .. } => source.kind(),
            Error::Several(all) => all.first().map_or(ErrorKind::Malformed, Error::kind),
            Error::UnknownFileType { .. }
            | Error::Option { .. }
            | Error::NotACheckpoint { .. }
            | Error::NotAGguf { .. }
            | Error::NoSuchLayer { .. }
            | Error::NoLayerLeft
            | Error::RepeatedFileType { .. }
            | Error::OutputName { .. }
            | Error::AdapterVariant { .. }
            | Error::UnknownPrecision { .. }
            | Error::RuntimeLayout { .. }
            | Error::RepeatedPrecision { .. }
            | Error::NoAdapter => ErrorKind::Misuse,
            Error::Quant(e) => e.kind(),
            Error::Onnx { source, .. } => source.kind(),
            Error::TensorDtype { .. }
            | Error::OnnxTensor { .. }
            | Error::StackDtype { .. }
            | Error::AdapterTensor { .. }
            | Error::Undecodable { .. }
            | Error::RowLength { .. }
            | Error::Requantize { .. }
            | Error::ScaleOverflow { .. }
            | Error::F16Overflow { .. }
            | Error::F16Overflows { .. } => ErrorKind::Unsupported,
            Error::NotFinite { .. } | Error::InvalidBlock { .. } => ErrorKind::Malformed,
            Error::TooFar { .. }
            | Error::VocabularySize { .. }
            | Error::ImportanceMissing { .. }
            | Error::ImportanceSize { .. }
            | Error::UnvisitedExperts { .. } => ErrorKind::Mismatch,
            Error::Budget { .. } | Error::TooLarge { .. } => ErrorKind::Limit,
            Error::Json { .. } => ErrorKind::Malformed,
            Error::Threads { .. } => ErrorKind::Io,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint().map(str::to_owned),
            Error::Safetensors(e) => return e.hint(),
            Error::Gguf(e) => return e.hint(),
            Error::Importance(e) => return e.hint(),
            Error::Lora(e) => return e.hint(),
            Error::Arch(e) => return e.hint(),
            Error::Quant(e) => return e.hint(),
            Error::Several(all) => return all.iter().find_map(Error::hint),
            Error::Onnx { source, .. } => return source.hint(),
            Error::UnknownPrecision { nearest: Some(nearest), .. } => {
                return Some(format!("did you mean `{nearest}`?"));
            }
            Error::UnknownFileType { nearest: Some(nearest), .. } => return Some(format!("did you mean `{nearest}`?")),
            Error::NotACheckpoint { .. } => "a GGUF file can be quantized: use mlpack quantize",
            Error::NotAGguf { .. } => "quantize a checkpoint while it is converted: use mlpack convert",
            Error::Requantize { .. } => {
                "quantize from the F16 or BF16 file; or accept the loss of quality with --allow-requantize"
            }
            Error::RowLength { .. } => "ask for another type for this tensor with --tensor-type",
            Error::ImportanceMissing { file: None, .. } => {
                "make an importance matrix with llama-imatrix and give it with --imatrix"
            }
            Error::ImportanceMissing { .. } => {
                "the importance matrix was made for another model or with a text that does not reach this tensor"
            }
            Error::ImportanceSize { .. } => "make the importance matrix from this very model",
            Error::UnvisitedExperts { .. } => {
                "calibrate with more text; or give these experts equal weights, as llama-quantize does in silence, with \
                 --allow-unvisited-experts"
            }
            Error::InvalidBlock { .. } => "the file is damaged; compare its sha256 with the published one",
            Error::ScaleOverflow { .. } => "use BF16 or F32 for this tensor (--tensor-type); nothing was written",
            Error::F16Overflow { .. } => "use BF16, F32 or a quantized type for this model; nothing was written",
            Error::F16Overflows { .. } => {
                "keep these in float32 with --keep-fp32 overflow, or use bf16 or fp32; nothing was written"
            }
            Error::NotFinite { .. } => "the checkpoint is damaged, or the training diverged; nothing was written",
            Error::TensorDtype { .. } => "dequantize the checkpoint to BF16 or F32 first",
            Error::TooFar { .. } => "ask for more bits for these tensors (--tensor-type), or for another variant",
            Error::AdapterTensor { .. } => "merge the adapter into the base instead: mlpack convert BASE -a ADAPTER",
            Error::VocabularySize { rows, tokens, .. } if rows > tokens => {
                "set `vocab_size` in config.json to the number of rows: tokens that are missing are filled up"
            }
            Error::VocabularySize { .. } => "use the tokenizer and the config.json that these weights were saved with",
            Error::Budget { .. } => "raise --memory, or lower --threads",
            Error::NoAdapter => "give at least one adapter with -a",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
