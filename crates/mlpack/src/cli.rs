//! The command line.

mod lineage;
mod onnx;
mod registry;

pub use lineage::*;

use crate::exit;
use clap::{Args, Parser, Subcommand, ValueEnum};
pub use onnx::{OnnxArgs, OnnxProfile, OnnxScheme, ValidateArgs};
pub use registry::*;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// From a finished training run to published, traceable model artifacts: merge adapters, convert and quantize in one pass,
/// publish, and trace any file back to its run.
#[derive(Debug, Parser)]
#[command(name = "mlpack", version, after_help = exit::HELP, propagate_version = true)]
pub struct Cli {
    /// Print the result as JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing on standard error but errors and warnings
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Do everything that mlpack.toml declares: merge, convert, publish, trace
    Release(ReleaseArgs),
    /// Merge adapters into a base checkpoint
    Merge(MergeArgs),
    /// Convert a checkpoint, with or without adapters, to GGUF: several variants from one read
    Convert(ConvertArgs),
    /// Quantize a GGUF file: several variants from one read
    Quantize(QuantizeArgs),
    /// Show what convert or quantize would write, from headers alone
    Check(CheckArgs),
    /// Measure how far a file is from its source, tensor by tensor
    Diff(DiffArgs),
    /// Publish artifacts to a registry or into an OCI image layout, with a Modelfile beside each GGUF
    Publish(PublishArgs),
    /// Pull an artifact: of ModelPack, Ollama, Docker Model Runner, KitOps, or an image with a model
    Pull(PullArgs),
    /// Serve an OCI image layout as a read-only registry
    Serve(ServeArgs),
    /// Put a model into a runtime on this machine
    #[command(subcommand)]
    Deploy(DeployCommand),
    /// Write an artifact with all that belongs to it into one archive
    Export(ExportArgs),
    /// Read such an archive into an OCI image layout
    Import(ImportArgs),
    /// Show what a file is made from, back to its training run, and how far that was checked
    Trace(TraceArgs),
    /// Do the recorded steps again from their recorded inputs, and compare what comes out
    Rebuild(RebuildArgs),
    /// Record the training run of an adapter
    Run(RunArgs),
    /// Make a key pair for signing
    Keygen(KeygenArgs),
    /// Sign what is stated about an artifact and where it comes from; for a directory, its files too
    Sign(SignArgs),
    /// Check signatures and lineage against trusted keys or a policy
    Verify(VerifyArgs),
    /// List the architectures that can be converted
    Archs(ArchsArgs),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Base, adapters and their training run.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Model directory: config.json, tokenizer and safetensors weights
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,
    /// Adapter directory (PEFT), with its weight if that is not 1; repeat for several
    #[arg(short, long = "adapter", value_name = "ADAPTER[=WEIGHT]")]
    pub adapters: Vec<String>,
    #[command(flatten)]
    pub merging: MergingArgs,
    /// Training run of the adapters: mlflow.db#RUN_ID, mlruns#RUN_ID or a trainer_state.json [default: the one near the adapter]
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
}

/// How adapters are laid over the base.
#[derive(Clone, Debug, Args)]
pub struct MergingArgs {
    /// Accept adapters, or modules of them, that change nothing
    #[arg(long)]
    pub allow_empty: bool,
    /// How several adapters become one: sum, ties, dare or magnitude-prune, on full deltas
    #[arg(long, value_name = "HOW", default_value = "sum")]
    pub combine: String,
    /// The share of each delta's elements that stays, for ties, dare and magnitude-prune
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub density: f64,
    /// Where the coins of dare begin
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Write what each adapter changed, tensor by tensor, as JSON, and show it
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,
}

impl Default for MergingArgs {
    fn default() -> MergingArgs {
        MergingArgs { allow_empty: false, combine: "sum".to_owned(), density: 0.5, seed: 0, report: None }
    }
}

/// What a run may use.
#[derive(Debug, Args)]
pub struct ResourceArgs {
    /// Memory for the work, such as 256MiB or 2GB
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub memory: String,
    /// Threads; 0 for one for each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Hash every input, also one whose size, times and inode are those of a file hashed before
    #[arg(long)]
    pub rehash: bool,
}

/// Where the work is done.
#[derive(Debug, Default, Args)]
pub struct DeviceArgs {
    /// Device that merges and encodes: auto, cpu, cuda, cuda:N or metal; the bytes are the same [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Memory of a CUDA device that may be used, such as 8GB [default: most of what is free]
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<String>,
}

/// `mlpack release`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mlpack release\n  mlpack release fixtures/legal-qa/mlpack.toml -o out")]
pub struct ReleaseArgs {
    /// The release file
    #[arg(value_name = "FILE", default_value = "mlpack.toml")]
    pub file: PathBuf,
    /// Output directory, instead of the file's
    #[arg(short, long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub resources: ResourceArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// `mlpack merge`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack merge llama-3.2-1b -a legal-qa-lora -o legal-qa\n  \
    mlpack merge base -a style-lora=0.7 -a facts-lora=0.3 -o merged\n\n\
    DIR must not exist: it appears when it is complete.")]
pub struct MergeArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    /// Output directory
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// The most bytes of a weights file, such as 5GB; the model is cut anew [default: the base's files]
    #[arg(long, value_name = "SIZE")]
    pub max_shard_size: Option<String>,
    /// Write into the first weights file what the model is made from: mlpack.* metadata that trace shows as claims
    #[arg(long)]
    pub embed_provenance: bool,
    #[command(flatten)]
    pub resources: ResourceArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// The format to convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// llama.cpp, Ollama and what builds on them
    Gguf,
    /// A LoRA adapter for llama.cpp, apart from its base
    GgufLora,
    /// ONNX Runtime, transformers.js and what builds on them
    Onnx,
}

/// What to convert to.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Format of the outputs
    #[arg(long = "to", value_enum, default_value = "gguf")]
    pub format: Format,
    /// Variants, separated by commas: F32, F16, BF16, Q8_0, Q4_0, Q4_K_M, …
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required_unless_present_any = ["base", "precision"])]
    pub quant: Vec<String>,
    /// Base model of an adapter (gguf-lora): its config.json is enough
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    #[command(flatten)]
    pub onnx: OnnxArgs,
    /// Name of the outputs [default: the name of the last adapter's or the model's directory]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Pre-tokenizer as llama.cpp calls it, where it cannot be recognised
    #[arg(long, value_name = "NAME")]
    pub pre: Option<String>,
    /// Description of an architecture that is not built in (docs/architectures.md)
    #[arg(long, value_name = "FILE")]
    pub arch_file: Vec<PathBuf>,
    /// Split outputs into files of at most so many tensors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub split_max_tensors: Option<u64>,
    /// Split outputs into files with at most so many bytes of tensors: N, NK, NM or NG
    #[arg(long, value_name = "SIZE")]
    pub split_max_size: Option<String>,
}

/// Options of llama-quantize, with its names and its meaning, and limits of the error. `[quantize]` of mlpack.toml has the
/// same, with underscores.
#[derive(Clone, Debug, Default, Args, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[command(next_help_heading = "Quantization")]
pub struct QuantizerArgs {
    /// Importance matrix of llama-imatrix, GGUF or .dat
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imatrix: Option<String>,
    /// Use the importance matrix for tensors whose name contains this alone; repeat for several
    #[arg(long, value_name = "NAME", conflicts_with = "exclude_weights")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include_weights: Vec<String>,
    /// Do not use the importance matrix for tensors whose name contains this; repeat for several
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude_weights: Vec<String>,
    /// Give experts that the importance matrix never saw equal weights, as llama-quantize does, instead of stopping
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    pub allow_unvisited_experts: bool,
    /// Quantize tensors again that are quantized already, at a loss
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    pub allow_requantize: bool,
    /// No mixture: one type for all tensors that are quantized
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    pub pure: bool,
    /// Type of tensors whose name matches a regular expression; the first that matches counts
    #[arg(long, value_name = "PATTERN=TYPE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensor_type: Vec<String>,
    /// File with such patterns, separated by white space, after those given here
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_type_file: Option<PathBuf>,
    /// Type of output.weight
    #[arg(long, value_name = "TYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tensor_type: Option<String>,
    /// Type of the token embedding
    #[arg(long, value_name = "TYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_embedding_type: Option<String>,
    /// Leave output.weight as it is
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    pub leave_output_tensor: bool,
    /// Layers to leave out, separated by commas
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prune_layers: Vec<u64>,
    /// Metadata to set, with the type int, float, bool or str; repeat for several
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub override_kv: Vec<String>,
    /// Write nothing, and exit with 1, when a tensor's root mean square error is larger
    #[arg(long, value_name = "ERROR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rmse: Option<f64>,
    /// Write nothing, and exit with 1, when the cosine of a tensor and its source is smaller
    #[arg(long, value_name = "COSINE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_cosine: Option<f64>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// `mlpack convert`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack convert llama-3.2-1b --to gguf --quant Q4_K_M,Q8_0,F16 -o out\n  \
    mlpack convert llama-3.2-1b -a legal-qa-lora --to gguf --quant Q4_K_M -o out\n  \
    mlpack convert legal-qa-lora --to gguf-lora --base llama-3.2-1b -o out\n  \
    mlpack convert llama-3.2-1b --quant IQ3_XXS,Q4_K_M --imatrix imatrix.gguf --min-cosine 0.98 -o out\n\n\
    Writes DIR/NAME-<QUANT>.gguf and, beside each, its claims (NAME-<QUANT>.gguf.claims.jsonl).")]
pub struct ConvertArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Output directory
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Write into the files what they are made from: mlpack.* keys that trace shows as claims
    #[arg(long)]
    pub embed_provenance: bool,
    #[command(flatten)]
    pub resources: ResourceArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub quantizer: QuantizerArgs,
    #[command(flatten)]
    pub validation: ValidateArgs,
}

/// `mlpack quantize`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack quantize legal-qa-BF16.gguf --quant Q4_K_M -o legal-qa-Q4_K_M.gguf\n  \
    mlpack quantize legal-qa-BF16.gguf --quant IQ2_M,Q4_K_M,Q8_0 --imatrix imatrix.gguf -o out\n  \
    mlpack quantize big-00001-of-00004.gguf --quant Q6_K --keep-split -o out\n\n\
    Writes one file, or a directory with NAME-<QUANT>.gguf, and beside each its claims.")]
pub struct QuantizeArgs {
    /// GGUF file, or the first file of a split model
    #[arg(value_name = "IN.gguf")]
    pub input: PathBuf,
    /// Variants, separated by commas: Q8_0, Q4_K_M, IQ3_XXS, …, COPY
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    pub quant: Vec<String>,
    /// Output file, or directory
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
    /// Name of the outputs in a directory [default: the input's, without its type]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Write into the files what they are made from: mlpack.* keys that trace shows as claims
    #[arg(long)]
    pub embed_provenance: bool,
    #[command(flatten)]
    pub resources: ResourceArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub quantizer: QuantizerArgs,
    #[command(flatten)]
    pub requantizer: RequantizerArgs,
}

/// What can be asked for a GGUF input alone.
#[derive(Clone, Debug, Default, Args, Deserialize, Serialize)]
#[serde(default)]
#[command(next_help_heading = "Quantization")]
pub struct RequantizerArgs {
    /// Split the output as the input is split
    #[arg(long)]
    #[serde(skip_serializing_if = "is_false")]
    pub keep_split: bool,
}

/// `mlpack check`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack check llama-3.2-1b -a legal-qa-lora --quant Q4_K_M,Q8_0\n  \
    mlpack check llama-3.2-1b --quant F16 --tensors\n  \
    mlpack check legal-qa-BF16.gguf --quant IQ3_XXS --imatrix imatrix.gguf")]
pub struct CheckArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Output directory whose free space is compared with what would be written
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
    /// List every tensor with its type, shape and offset
    #[arg(long)]
    pub tensors: bool,
    #[command(flatten)]
    pub quantizer: QuantizerArgs,
    #[command(flatten)]
    pub requantizer: RequantizerArgs,
}

/// `mlpack diff`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack diff llama-3.2-1b out/llama-3.2-1b-Q4_K_M.gguf\n  \
    mlpack diff llama-3.2-1b -a legal-qa-lora out/legal-qa-Q4_K_M.gguf --report diff.html\n  \
    mlpack diff legal-qa-BF16.gguf legal-qa-Q4_K_M.gguf --min-cosine 0.99\n\n\
    With a limit, the exit code is 1 when a tensor does not keep it, is not finite, or could not be compared.")]
pub struct DiffArgs {
    /// Source: a model directory or a GGUF file
    #[arg(value_name = "A")]
    pub a: PathBuf,
    /// File made from it: GGUF, or a model directory
    #[arg(value_name = "B")]
    pub b: PathBuf,
    /// Adapter directory (PEFT) to lay over A, with its weight if that is not 1; repeat for several
    #[arg(short, long = "adapter", value_name = "ADAPTER[=WEIGHT]")]
    pub adapters: Vec<String>,
    /// Write a page with a plot for each kind of tensor
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Exit with 1 when a tensor's root mean square error is larger
    #[arg(long, value_name = "ERROR")]
    pub max_rmse: Option<f64>,
    /// Exit with 1 when the cosine of a tensor and its source is smaller
    #[arg(long, value_name = "COSINE")]
    pub min_cosine: Option<f64>,
    /// Show every tensor, not only those furthest from A
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub resources: ResourceArgs,
    /// Description of an architecture that is not built in (docs/architectures.md)
    #[arg(long, value_name = "FILE")]
    pub arch_file: Vec<PathBuf>,
}

/// What the Modelfiles say beyond the model.
#[derive(Debug, Default, Args)]
pub struct ModelfileArgs {
    /// SYSTEM of the Modelfiles: the system message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// TEMPLATE of the Modelfiles: a file with a Go template [default: translated from the model's chat template]
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
    /// PARAMETER of the Modelfiles, such as temperature=0.2; repeat for several
    #[arg(long = "parameter", value_name = "NAME=VALUE")]
    pub parameters: Vec<String>,
    /// LICENSE of the Modelfiles: a text file; repeat for several
    #[arg(long = "license", value_name = "FILE")]
    pub licenses: Vec<PathBuf>,
}

/// `mlpack archs`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mlpack archs")]
pub struct ArchsArgs {
    /// Description of an architecture that is not built in (docs/architectures.md)
    #[arg(long, value_name = "FILE")]
    pub arch_file: Vec<PathBuf>,
}
