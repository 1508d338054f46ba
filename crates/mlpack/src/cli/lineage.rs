//! Commands about where things come from: trace, verify, sign, keygen, rebuild, run.

use super::{RegistryArgs, ResourceArgs};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// `mlpack trace`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack trace out/legal-qa-Q4_K_M.gguf\n  \
    mlpack trace out/legal-qa-Q4_K_M.gguf --key release.pub\n  \
    mlpack trace out/legal-qa-Q4_K_M.gguf --check-store\n  \
    mlpack trace out/legal-qa-Q4_K_M.gguf --html lineage.html --cyclonedx bom.json\n  \
    mlpack trace oci:out/layout:v1\n  \
    mlpack trace --dependents dataset.jsonl\n\n\
    verified: the bytes fit, and a trusted key signed the statement. untrusted: signed, by a key that is not trusted \
    for it.\nunsigned: the bytes fit, and nobody signed. claimed: said, with nothing here to check. missing: nothing is \
    there.\nmismatch: other bytes, or a signature that does not fit (exit code 1).")]
pub struct TraceArgs {
    /// File, model directory, HOST/REPO:TAG, oci:DIR:TAG, or sha256:DIGEST; with --dependents, the folder to look in [default: .]
    #[arg(value_name = "ARTIFACT", required_unless_present = "dependents")]
    pub artifact: Option<String>,
    /// Write a page with the lineage as a picture, the training run, its metrics and data, and every tensor's type
    #[arg(long, value_name = "FILE.html")]
    pub html: Option<PathBuf>,
    /// Write a bill of materials, CycloneDX 1.6
    #[arg(long, value_name = "FILE.json")]
    pub cyclonedx: Option<PathBuf>,
    /// Print the graph for Mermaid
    #[arg(long, conflicts_with = "dot")]
    pub mermaid: bool,
    /// Print the graph for Graphviz
    #[arg(long)]
    pub dot: bool,
    /// Print what the artifact is known by: file or tree, tensors (the same in other shards and with other metadata), builds
    #[arg(long, conflicts_with_all = ["dependents", "html", "cyclonedx", "mermaid", "dot"])]
    pub identities: bool,
    /// List what was made from this: a digest, or a file or directory that is hashed
    #[arg(long, value_name = "DIGEST", conflicts_with_all = ["html", "cyclonedx", "mermaid", "dot", "check_store"])]
    pub dependents: Option<String>,
    /// Read the run store again and compare it with the record; its path if it has moved
    #[arg(long, value_name = "STORE", num_args = 0..=1, require_equals = true)]
    pub check_store: Option<Option<PathBuf>>,
    /// Hash every file, also one whose size, times and inode are those of a file hashed before
    #[arg(long)]
    pub rehash: bool,
    #[command(flatten)]
    pub trust: TrustArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// `mlpack rebuild`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack rebuild out/legal-qa-Q4_K_M.gguf\n  \
    mlpack rebuild out/legal-qa --keep rebuilt\n\n\
    Inputs are looked for where trace finds them; what is not here is made again first. The exit code is 1 when other\n\
    bytes come out.")]
pub struct RebuildArgs {
    /// File or model directory
    #[arg(value_name = "ARTIFACT")]
    pub path: PathBuf,
    /// Keep what is made, in this new folder [default: nothing is kept]
    #[arg(long = "keep", value_name = "DIR")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub resources: ResourceArgs,
}

/// `mlpack run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What to do
    #[command(subcommand)]
    pub command: RunCommand,
}

/// What is done with training runs.
#[derive(Debug, Subcommand)]
pub enum RunCommand {
    /// Record what a store or a trainer's files say about a run, and that it trained an adapter
    Import(RunImportArgs),
}

/// `mlpack run import`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack run import --adapter legal-qa-lora\n  \
    mlpack run import mlflow.db#4c421e9ce91a40368c786c2f89e8fc82 --adapter legal-qa-lora --dataset dataset.jsonl\n  \
    mlpack run import http://mlflow.example:5000#4c421e9ce91a40368c786c2f89e8fc82 --adapter legal-qa-lora\n\n\
    Files that were made from the adapter earlier lead to the run from then on. A server is asked with MLFLOW_TRACKING_TOKEN, or\n\
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, where they are set.")]
pub struct RunImportArgs {
    /// mlflow.db#RUN_ID, mlruns#RUN_ID, http://HOST#RUN_ID or a trainer_state.json [default: what is found near the adapter]
    #[arg(value_name = "RUN")]
    pub source: Option<String>,
    /// Adapter directory that the run trained
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,
    /// Training data, where it is not where the run says
    #[arg(long, value_name = "FILE")]
    pub dataset: Option<PathBuf>,
    /// Base checkpoint that the adapter was trained on: its digests are recorded, and compared when the adapter is merged
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Folder in whose .mlpack the record is kept [default: the one that holds the adapter directory]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
}

/// Whom to believe.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// Public key whose signatures are believed; repeat for several
    #[arg(long = "key", value_name = "KEY.pub")]
    pub keys: Vec<PathBuf>,
    /// Policy file with trusted keys for each step, and what must hold (docs/provenance.md)
    #[arg(long, value_name = "FILE", conflicts_with = "keys")]
    pub policy: Option<PathBuf>,
    /// Signature over the whole model [default: DIR/model.sig or FILE.sig]
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
}

/// Where a passphrase comes from; never from the command line.
#[derive(Debug, Args)]
pub struct PassphraseArgs {
    /// File whose first line is the passphrase [default: MLPACK_PASSPHRASE, else the terminal is asked]
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// What a key signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeyKind {
    /// ECDSA on P-256: verified by every sigstore tool
    EcdsaP256,
    /// ECDSA on P-384
    EcdsaP384,
    /// Ed25519: statements only, no model.sig
    Ed25519,
}

/// `mlpack keygen`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack keygen --out release\n  \
    mlpack keygen --out release --encrypt --passphrase-file passphrase.txt\n\n\
    Writes KEY.pem, readable by you alone, and KEY.pub.")]
pub struct KeygenArgs {
    /// Path of the pair, without the endings
    #[arg(long, value_name = "KEY")]
    pub out: PathBuf,
    /// Kind of the key
    #[arg(long, value_enum, default_value = "ecdsa-p256")]
    pub algorithm: KeyKind,
    /// Encrypt the private key with a passphrase
    #[arg(long)]
    pub encrypt: bool,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// A step that mlpack states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StepName {
    /// A training run, as its store tells it
    Train,
    /// Adapters into a base
    Merge,
    /// A checkpoint to another format
    Convert,
    /// One GGUF to another
    Quantize,
    /// Artifacts to an image
    Package,
}

/// `mlpack sign`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack sign out/legal-qa-Q4_K_M.gguf --key release.pem\n  \
    mlpack sign out/legal-qa --key env:RELEASE_KEY\n  \
    mlpack sign out/legal-qa-Q4_K_M.gguf --key train.pem --step train\n\n\
    Writes the signed statements into the claims beside the artifact, and FILE.sigstore.json for cosign and other tools;\n\
    for a directory, DIR/model.sig (OpenSSF Model Signing). A file that nothing is stated about gets FILE.sig.")]
pub struct SignArgs {
    /// File or model directory
    #[arg(value_name = "ARTIFACT")]
    pub path: PathBuf,
    /// Private key: a PEM file, or env:NAME for a variable that holds the PEM text
    #[arg(long, value_name = "KEY.pem")]
    pub key: String,
    /// Sign only statements of these steps, and no model, separated by commas
    #[arg(long = "step", value_enum, value_name = "STEPS", value_delimiter = ',')]
    pub steps: Vec<StepName>,
    /// Where to write the signature over the whole model [default: DIR/model.sig or FILE.sig]
    #[arg(long, value_name = "FILE")]
    pub signature: Option<PathBuf>,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
}

/// `mlpack verify`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack verify out/legal-qa-Q4_K_M.gguf --key release.pub\n  \
    mlpack verify out/legal-qa-Q4_K_M.gguf --policy policy.toml\n  \
    mlpack verify downloaded-model --key vendor.pub --signature vendor/model.sig\n\n\
    With keys: the artifact is signed by one of them and nothing contradicts what is stated. With a policy: what it says.\n\
    The exit code is 1 when a demand is not met.")]
pub struct VerifyArgs {
    /// File, model directory, HOST/REPO:TAG, oci:DIR:TAG, or sha256:DIGEST
    #[arg(value_name = "ARTIFACT")]
    pub artifact: String,
    #[command(flatten)]
    pub trust: TrustArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
}
