//! One file a command: resolve the arguments, call the libraries, show what was done.

mod archs;
mod check;
mod completions;
mod convert;
mod merge;
mod modelfile;
mod publish;
mod release;
mod trace;

pub use archs::archs;
pub use check::check;
pub use completions::completions;
pub use convert::convert;
pub use merge::merge;
pub use publish::publish;
pub use release::{ConfigError, release};
pub use trace::trace;
