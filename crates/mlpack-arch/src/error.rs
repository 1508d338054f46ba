//! What can be wrong with a model directory or an architecture description.

use crate::tokenizer;
use mlpack_fs::ErrorKind;
use mlpack_tensor::{Escaped, Shape, join_limited};
use std::path::PathBuf;

/// An error about a model directory or an architecture description.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The description does not say what the architecture computes.
    #[error("cannot make ONNX from `{}`\n  architecture `{}`\n  expected: a description with a [decoder] table\n  found:    one without", path.display(), Escaped(arch))]
    NoDecoder {
        /// The config file.
        path: PathBuf,
        /// The architecture.
        arch: String,
    },
    /// A task that the architecture has no class for.
    #[error("no class of this architecture is for `{}`\n  file `{}`\n  expected: one of {}", Escaped(task), path.display(), join_limited(known.iter().copied(), 8))]
    UnknownTask {
        /// The config file.
        path: PathBuf,
        /// The task asked for.
        task: String,
        /// The tasks that there are.
        known: Vec<&'static str>,
    },
    /// A file could not be read.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// The tokenizer could not be read.
    #[error(transparent)]
    Tokenizer(#[from] tokenizer::Error),
    /// A JSON file is not JSON.
    #[error("cannot read `{}`: not valid JSON\n  line {line}, column {column}: {}", path.display(), Escaped(message))]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A JSON file holds something other than an object.
    #[error("cannot read `{}`\n  expected: an object\n  found:    {found}", path.display())]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// What it holds, in words.
        found: String,
    },
    /// A needed field is missing.
    #[error("cannot read `{}`\n  missing field: {}", path.display(), join_limited(fields.iter().map(String::as_str), 8))]
    MissingField {
        /// The file.
        path: PathBuf,
        /// Any of these would do.
        fields: Vec<String>,
    },
    /// A field has a value that cannot be used.
    #[error("cannot read `{}`\n  field `{}`\n  expected: {expected}\n  found:    {found}", path.display(), Escaped(field))]
    WrongValue {
        /// The file.
        path: PathBuf,
        /// The field, with dots between levels.
        field: String,
        /// What is accepted, in words.
        expected: &'static str,
        /// What is there, in words.
        found: String,
    },
    /// No config.json, but the files of Mistral's own layout.
    #[error("cannot convert `{}`: it has params.json and no config.json (Mistral's own layout)", dir.display())]
    MistralLayout {
        /// The model directory.
        dir: PathBuf,
    },
    /// A LoRA adapter where a model is wanted.
    #[error("cannot convert `{}`: it is an adapter (adapter_config.json, no config.json), not a model", dir.display())]
    AdapterInstead {
        /// The directory.
        dir: PathBuf,
    },
    /// The config names a class that no description serves.
    #[error("cannot convert `{}`\n  field `architectures`: `{}` is not a known architecture{}", path.display(),
        Escaped(class), nearest_note(nearest))]
    UnknownArchitecture {
        /// The config file.
        path: PathBuf,
        /// The class name.
        class: String,
        /// Known names like it, best first.
        nearest: Vec<String>,
    },
    /// The config's `model_type` has no table of defaults.
    #[error("cannot convert `{}`\n  field `model_type`: the defaults of `{}` are not known{}", path.display(),
        Escaped(model_type), nearest_note(nearest))]
    UnknownModelType {
        /// The config file.
        path: PathBuf,
        /// The model type.
        model_type: String,
        /// Known types like it, best first.
        nearest: Vec<String>,
    },
    /// The checkpoint's weights are already quantized.
    #[error("cannot convert `{}`: the checkpoint is already quantized\n  quant_method: `{}`", path.display(), Escaped(method))]
    Quantized {
        /// The file that says so.
        path: PathBuf,
        /// The method.
        method: String,
    },
    /// The config has a part that mlpack does not handle.
    #[error("cannot convert `{}`\n  field `{field}`: {what}", path.display())]
    UnsupportedConfig {
        /// The config file.
        path: PathBuf,
        /// The field.
        field: &'static str,
        /// What such a model is.
        what: &'static str,
    },
    /// A tensor that the description does not know.
    #[error("cannot convert `{}`\n  tensor `{}`: not a tensor of the architecture `{}`{}", dir.display(), Escaped(tensor),
        Escaped(arch), nearest_note(nearest))]
    UnknownTensor {
        /// The model directory.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// The architecture.
        arch: String,
        /// Known names like it, best first.
        nearest: Vec<String>,
    },
    /// A tensor of a layer that the config says is not there.
    #[error("cannot convert `{}`\n  tensor `{}`\n  expected: a layer below {layers} (config.json)\n  found:    layer {layer}",
        dir.display(), Escaped(tensor))]
    LayerOutOfRange {
        /// The model directory.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its layer.
        layer: u64,
        /// The number of layers.
        layers: u64,
    },
    /// The rows of a tensor do not divide into heads.
    #[error("cannot convert `{}`\n  tensor `{}`\n  expected: a number of rows that is a multiple of {} ({heads} heads of an \
        even size)\n  found:    shape {shape}", dir.display(), Escaped(tensor), heads.saturating_mul(2))]
    HeadsDoNotDivide {
        /// The model directory.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// The number of heads from the config.
        heads: u64,
        /// The shape of the tensor.
        shape: Shape,
    },
    /// A tensor has another shape than its transform can take.
    #[error("cannot convert `{}`\n  tensor `{}`\n  expected: {expected}\n  found:    shape {shape}", dir.display(), Escaped(tensor))]
    TensorShape {
        /// The model directory.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// What the transform needs.
        expected: String,
        /// The shape of the tensor.
        shape: Shape,
    },
    /// Tensors that one tensor is made of do not belong together.
    #[error("cannot convert `{}`\n  tensor `{}`\n  expected: {expected}\n  found:    {found}", dir.display(), Escaped(tensor))]
    Stack {
        /// The model directory.
        dir: PathBuf,
        /// The GGUF tensor, or the member that does not fit.
        tensor: String,
        /// What belongs together.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The converter treats models of this name in a way of its own.
    #[error("cannot convert `{}`: `{name}` models are not handled", dir.display())]
    RefusedName {
        /// The model directory.
        dir: PathBuf,
        /// The name.
        name: String,
    },
    /// The front matter of a model card is not YAML.
    #[error("cannot read `{}`: its front matter is not valid YAML\n  line {line}: {}", path.display(), Escaped(message))]
    Yaml {
        /// The model card.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A sentence embedder pools in a way that GGUF has no name for.
    #[error("cannot convert `{}`\n  expected: mean, cls or last-token pooling\n  found:    {found}", path.display())]
    UnknownPooling {
        /// The file that says how.
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// A description is not TOML, or has a key or a word that the format does not have.
    #[error("cannot read the architecture description `{}`\n  line {line}: {}", path.display(), Escaped(message))]
    DescriptionSyntax {
        /// The description.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A description breaks a rule of the format.
    #[error("cannot read the architecture description `{}`\n  {}\n  expected: {problem}", path.display(), place)]
    Description {
        /// The description.
        path: PathBuf,
        /// Where.
        place: String,
        /// The rule.
        problem: &'static str,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Fs(e) => e.kind(),
            Error::Tokenizer(e) => e.kind(),
            Error::Json { .. }
            | Error::NotAnObject { .. }
            | Error::MissingField { .. }
            | Error::WrongValue { .. }
            | Error::Yaml { .. }
            | Error::DescriptionSyntax { .. }
            | Error::Description { .. } => ErrorKind::Malformed,
            Error::MistralLayout { .. }
            | Error::UnknownArchitecture { .. }
            | Error::UnknownModelType { .. }
            | Error::NoDecoder { .. }
            | Error::Quantized { .. }
            | Error::UnsupportedConfig { .. }
            | Error::RefusedName { .. }
            | Error::UnknownTensor { .. }
            | Error::UnknownPooling { .. } => ErrorKind::Unsupported,
            Error::LayerOutOfRange { .. }
            | Error::HeadsDoNotDivide { .. }
            | Error::TensorShape { .. }
            | Error::Stack { .. } => ErrorKind::Mismatch,
            Error::AdapterInstead { .. } | Error::UnknownTask { .. } => ErrorKind::Misuse,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::Fs(e) => return e.hint().map(str::to_owned),
            Error::Tokenizer(e) => return e.hint(),
            Error::UnknownArchitecture { .. } => {
                "`mlpack archs` lists what is known; a model with the same tensors as a known one can be described in a \
                 file given with --arch-file (docs/architectures.md)"
            }
            Error::UnknownModelType { .. } => {
                "describe its config defaults in a file given with --arch-file (docs/architectures.md)"
            }
            Error::UnknownTensor { .. } => {
                "if the tensor belongs to the model, describe it in a file given with --arch-file (docs/architectures.md)"
            }
            Error::Quantized { .. } => "convert the checkpoint that it was quantized from",
            Error::MistralLayout { .. } => {
                "use the checkpoint in the Hugging Face layout (config.json, model*.safetensors)"
            }
            Error::AdapterInstead { .. } => "give the base model as the model, and this directory with -a",
            Error::Yaml { .. } => "correct the block between the `---` lines, or remove it",
            Error::WrongValue { path, .. } if path.ends_with("README.md") => {
                "put quotes around the value in the block between the `---` lines"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

fn nearest_note(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!("\n  nearest known: {}", join_limited(names.iter().map(String::as_str), 3)),
    }
}
