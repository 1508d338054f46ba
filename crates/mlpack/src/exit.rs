//! Exit codes: whose turn it is.

use mlpack_fs::ErrorKind;
use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The answer is no: a trace that does not hold, an error over the limit.
    No = 1,
    /// The command line or `mlpack.toml` asks for something that makes no sense.
    Usage = 2,
    /// An input is malformed, not supported, over a limit, or does not fit another one.
    BadInput = 3,
    /// The environment: a missing file, a full disk, a permission, a network.
    Environment = 4,
    /// A bug of mlpack.
    Internal = 70,
}

/// The text of `--help` about exit codes.
pub const HELP: &str = "Exit codes: 0 done; 1 the answer is no (a trace that does not hold, a \
    policy that is not met, an error over its limit); 2 usage; 3 bad input; \
    4 environment (missing file, full disk, permission, network); 70 a bug, please report it.";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// The exit code of an error, by the kind that the library gave it.
pub fn of(error: &anyhow::Error) -> Exit {
    if let Some(mlpack_convert::Error::TooFar { .. }) = error.downcast_ref() {
        return Exit::No;
    }
    if error.downcast_ref::<crate::commands::GraphTooFar>().is_some() {
        return Exit::No;
    }
    match kind(error) {
        Some(ErrorKind::Misuse) => Exit::Usage,
        Some(ErrorKind::Malformed | ErrorKind::Unsupported | ErrorKind::Mismatch | ErrorKind::Limit) => Exit::BadInput,
        Some(ErrorKind::Io) => Exit::Environment,
        // Only errors of this crate have no kind of a library: they are about what was typed.
        None => Exit::Usage,
    }
}

/// The kind and the hint of an error that a library made, wherever it is in the chain.
macro_rules! first_library_error {
    ($error:expr, $e:ident => $answer:expr) => {
        $error.chain().find_map(|cause| {
            None.or_else(|| cause.downcast_ref::<mlpack_convert::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<mlpack_validate::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<mlpack_provenance::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<mlpack_registry::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<mlpack_oci::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<mlpack_arch::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<mlpack_gguf::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<mlpack_device::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<mlpack_fs::Error>().map(|$e| $answer))
                .or_else(|| cause.downcast_ref::<crate::commands::ConfigError>().map(|$e| $answer))
        })
    };
}

fn kind(error: &anyhow::Error) -> Option<ErrorKind> {
    first_library_error!(error, e => e.kind())
}

/// What to do about an error, where its library knows.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(graph) = error.downcast_ref::<crate::commands::GraphTooFar>() {
        return graph.hint().map(str::to_owned);
    }
    first_library_error!(error, e => e.hint().map(|hint| hint.to_string())).flatten()
}
