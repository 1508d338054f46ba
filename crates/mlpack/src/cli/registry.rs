//! Commands that take models elsewhere: publish, pull, serve, deploy, export, import.

use super::{ModelfileArgs, PassphraseArgs};
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// How registries are reached.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Registry")]
pub struct RegistryArgs {
    /// Speak http instead of https
    #[arg(long)]
    pub plain_http: bool,
    /// Further certificate authorities, in PEM; repeat for several
    #[arg(long, value_name = "FILE")]
    pub ca: Vec<PathBuf>,
    /// Credentials, as podman's auth.json or docker's config.json [default: theirs]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Transfers at the same time [default: 4]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Tries after a failure, without progress in between [default: 6]
    #[arg(long, value_name = "N")]
    pub retries: Option<u32>,
}

/// Who a manifest is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EcosystemArg {
    /// CNCF ModelPack: modctl, KitOps, Docker Hub, CRI-O
    Modelpack,
    /// Ollama
    Ollama,
    /// Docker Model Runner
    Docker,
    /// An OCI image with the model under models/: podman, Kubernetes image volumes
    Image,
}

/// `mlpack publish`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack publish out/legal-qa-Q4_K_M.gguf oci:out/layout:v1\n  \
    mlpack publish out/*.gguf registry.example/team/legal-qa:v1 --as modelpack,ollama,docker\n  \
    mlpack publish out/*.gguf oci:out/layout:v1 --system 'You answer questions about the US Constitution.' \\\n      \
    --parameter temperature=0.2 --parameter num_ctx=4096 --license LICENSE\n  \
    mlpack publish m.gguf registry.example/team/m:v1 --as image --base registry.example/llama-server:1 \\\n      \
    --entrypoint /llama-server --command=-m --command=/models/m.gguf\n  \
    mlpack publish oci:out/layout:v1 registry.example/team/legal-qa:v1\n\n\
    Every GGUF gets its own tag (v1-q4_k_m, …) and, unless it has one and no option says what is in\n\
    it, a Modelfile beside it; v1 is the index over all of them. Of several ecosystems, ModelPack has\n\
    these tags (else the first named), and the others have -ollama, -docker, -image added.\n\
    A push that was ended in any way goes on when the same command runs again.")]
pub struct PublishArgs {
    /// GGUF files or model directories, or one oci:DIR:TAG; then where to: HOST/REPOSITORY:TAG or oci:DIR:TAG
    #[arg(value_name = "ARTIFACT... REF", required = true, num_args = 2..)]
    pub artifacts_and_ref: Vec<String>,
    /// Who the manifests are for, separated by commas [default: modelpack]
    #[arg(long = "as", value_enum, value_name = "NAMES", value_delimiter = ',')]
    pub ecosystems: Vec<EcosystemArg>,
    /// Sign which files are in which manifests, and let the signatures refer to them: PEM file, or env:NAME
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
    #[command(flatten)]
    pub image: ImageArgs,
    #[command(flatten)]
    pub modelfile: ModelfileArgs,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// What an image is made of beside the model.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Image (--as image)")]
pub struct ImageArgs {
    /// Image that the model is added to: HOST/REPOSITORY:TAG or oci:DIR:TAG [default: none]
    #[arg(long, value_name = "REF")]
    pub base: Option<String>,
    /// Program to run, and its first arguments when repeated
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub entrypoint: Vec<String>,
    /// Argument of the program; repeat for several
    #[arg(long = "command", value_name = "WORD", allow_hyphen_values = true)]
    pub words: Vec<String>,
    /// Variable of the environment; repeat for several
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Label; repeat for several
    #[arg(long, value_name = "NAME=VALUE")]
    pub label: Vec<String>,
}

/// `mlpack pull`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack pull registry.example/team/legal-qa:v1 --select quant=Q4_K_M -o legal-qa\n  \
    mlpack pull registry.example/team/legal-qa:v1 --select 'file=*.gguf' -o legal-qa\n\n\
    DIR appears when it is complete. A pull that was ended in any way goes on when the same command runs again. Into a\n\
    directory that is there, only what is missing or different is fetched.")]
pub struct PullArgs {
    /// What to pull: HOST/REPOSITORY[:TAG][@DIGEST] or oci:DIR:TAG
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Only these variants or files: quant=NAME, format=NAME, platform=OS/ARCH, file=PATTERN; repeat for several
    #[arg(long, value_name = "WHAT")]
    pub select: Vec<String>,
    /// Output directory
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// `mlpack serve`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack serve out/layout\n  \
    mlpack serve out/layout --listen 0.0.0.0:5000\n\n\
    Every repository name serves the layout's tags. What was published with --as ollama can be pulled by Ollama:\n  \
    ollama pull --insecure http://127.0.0.1:5000/library/legal-qa:v1-ollama")]
pub struct ServeArgs {
    /// Image layout
    #[arg(value_name = "DIR")]
    pub layout: PathBuf,
    /// Address to listen on; port 0 for any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5000")]
    pub listen: String,
}

/// `mlpack deploy`
#[derive(Debug, Subcommand)]
pub enum DeployCommand {
    /// Put a GGUF into Ollama's store, its digest kept
    Ollama(DeployOllamaArgs),
}

/// `mlpack deploy ollama`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    mlpack deploy ollama out/legal-qa-Q4_K_M.gguf legal-qa\n  \
    mlpack deploy ollama out/legal-qa-Q4_K_M.gguf legal-qa:q4 --api http://127.0.0.1:11434\n\n\
    The file becomes a hard link where the file system allows it: do not change it in place afterwards.")]
pub struct DeployOllamaArgs {
    /// GGUF file
    #[arg(value_name = "ARTIFACT")]
    pub artifact: PathBuf,
    /// Name of the model: [NAMESPACE/]MODEL[:TAG]
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Ollama's store [default: $OLLAMA_MODELS, else ~/.ollama/models]
    #[arg(long, value_name = "DIR", conflicts_with = "api")]
    pub store: Option<PathBuf>,
    /// Over Ollama's API at this address instead; Ollama may then rewrite the GGUF
    #[arg(long, value_name = "URL")]
    pub api: Option<String>,
    #[command(flatten)]
    pub modelfile: ModelfileArgs,
}

/// `mlpack export`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mlpack export registry.example/team/legal-qa:v1 -o legal-qa.tar")]
pub struct ExportArgs {
    /// What to export: HOST/REPOSITORY:TAG or oci:DIR:TAG
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Archive to write: a tar of an OCI image layout
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    #[command(flatten)]
    pub registry: RegistryArgs,
}

/// `mlpack import`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mlpack import legal-qa.tar -o layout && mlpack serve layout")]
pub struct ImportArgs {
    /// Archive: a tar of an OCI image layout
    #[arg(value_name = "FILE")]
    pub archive: PathBuf,
    /// Image layout to add it to
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
}
