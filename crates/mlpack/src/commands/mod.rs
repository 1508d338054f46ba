//! One file a command: resolve the arguments, call the libraries, show what was done.

mod archs;
mod check;
mod completions;
mod convert;
mod diff;
mod merge;
mod modelfile;
mod publish;
mod quantize;
mod release;
mod trace;

pub use archs::archs;
pub use check::check;
pub use completions::completions;
pub use convert::convert;
pub use diff::diff;
pub use merge::merge;
pub use publish::publish;
pub use quantize::quantize;
pub use release::{ConfigError, release};
pub use trace::trace;
