//! The command line.

use crate::exit;
use clap::{Args, Parser, Subcommand, ValueEnum};
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
    /// Show what convert would write, from headers alone
    Check(CheckArgs),
    /// Publish artifacts into an OCI image layout, with a Modelfile beside each GGUF
    Publish(PublishArgs),
    /// Show what a file is made from, back to its training run, and how far that was checked
    Trace(TraceArgs),
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
    /// Training run of the adapters: mlflow.db#RUN_ID or a trainer_state.json [default: the one beside the adapter]
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
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
    #[command(flatten)]
    pub resources: ResourceArgs,
}

/// The format to convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// llama.cpp, Ollama and what builds on them
    Gguf,
}

/// What to convert to.
#[derive(Debug, Args)]
pub struct TargetArgs {
    /// Format of the outputs
    #[arg(long = "to", value_enum, default_value = "gguf")]
    pub format: Format,
    /// Variants, separated by commas: F32, F16, BF16, Q8_0, Q4_0, Q4_K_M, …
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    pub quant: Vec<String>,
    /// Name of the outputs [default: the name of the last adapter's or the model's directory]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Pre-tokenizer as llama.cpp calls it, where it cannot be recognised
    #[arg(long, value_name = "NAME")]
    pub pre: Option<String>,
    /// Description of an architecture that is not built in (docs/architectures.md)
    #[arg(long, value_name = "FILE")]
    pub arch_file: Vec<PathBuf>,
}

/// `mlpack convert`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack convert llama-3.2-1b --to gguf --quant Q4_K_M,Q8_0,F16 -o out\n  \
    mlpack convert llama-3.2-1b -a legal-qa-lora --to gguf --quant Q4_K_M -o out\n\n\
    Writes DIR/NAME-<QUANT>.gguf and, beside each, its claims (NAME-<QUANT>.gguf.claims.jsonl).")]
pub struct ConvertArgs {
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub target: TargetArgs,
    /// Output directory
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    #[command(flatten)]
    pub resources: ResourceArgs,
}

/// `mlpack check`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack check llama-3.2-1b -a legal-qa-lora --quant Q4_K_M,Q8_0\n  \
    mlpack check llama-3.2-1b --quant F16 --tensors")]
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
}

/// `mlpack publish`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack publish out/legal-qa-Q4_K_M.gguf oci:out/layout:v1\n  \
    mlpack publish out/*.gguf oci:out/layout:v1 --system 'You answer questions about the US Constitution.' \\\n      \
    --parameter temperature=0.2 --parameter num_ctx=4096 --license LICENSE\n\n\
    Every GGUF gets its own tag (v1-q4_k_m, …) and a Modelfile beside it; v1 is the index over all of them.")]
pub struct PublishArgs {
    /// GGUF files or model directories, then where to: oci:DIR:TAG
    #[arg(value_name = "ARTIFACT... REF", required = true, num_args = 2..)]
    pub artifacts_and_ref: Vec<String>,
    #[command(flatten)]
    pub modelfile: ModelfileArgs,
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

/// `mlpack trace`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack trace out/legal-qa-Q4_K_M.gguf\n  \
    mlpack trace out/legal-qa-Q4_K_M.gguf --check-store\n  \
    mlpack trace out/legal-qa-Q4_K_M.gguf --json\n\n\
    verified: the bytes were found and have the stated digest. claimed: a statement or a run store says so.\n\
    missing: nothing is there to check. mismatch: the bytes found are others (exit code 1).")]
pub struct TraceArgs {
    /// File or model directory
    #[arg(value_name = "FILE")]
    pub path: PathBuf,
    /// Read the run store again and compare it with the record; its path if it has moved
    #[arg(long, value_name = "STORE", num_args = 0..=1, require_equals = true)]
    pub check_store: Option<Option<PathBuf>>,
}

/// `mlpack archs`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mlpack archs")]
pub struct ArchsArgs {
    /// Description of an architecture that is not built in (docs/architectures.md)
    #[arg(long, value_name = "FILE")]
    pub arch_file: Vec<PathBuf>,
}
