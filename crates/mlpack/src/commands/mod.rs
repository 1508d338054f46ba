//! One file a command: resolve the arguments, call the libraries, show what was done.

mod archive;
mod archs;
mod changes;
mod check;
mod completions;
mod convert;
mod deploy;
mod described;
mod diff;
mod merge;
mod modelfile;
mod publish;
mod pull;
mod quantize;
mod registry;
mod release;
mod serve;
mod trace;

pub use archive::{export, import};
pub use archs::archs;
pub use check::check;
pub use completions::completions;
pub use convert::convert;
pub use deploy::deploy_ollama;
pub use diff::diff;
pub use merge::merge;
pub use publish::publish;
pub use pull::pull;
pub use quantize::quantize;
pub use release::{ConfigError, release};
pub use serve::serve;
pub use trace::trace;
