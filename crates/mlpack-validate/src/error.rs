//! Why a graph cannot be validated.

use mlpack_fs::ErrorKind;
use mlpack_tensor::Escaped;
use std::path::PathBuf;

/// Why a graph cannot be validated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The weights cannot be read.
    #[error(transparent)]
    Convert(Box<mlpack_convert::Error>),
    /// The library is not there or is none.
    #[error("cannot load ONNX Runtime from `{}`\n  {}", Escaped(&path.display().to_string()), Escaped(reason))]
    Library {
        /// What was loaded: a path, or a name that the system looks for.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// The library is too old.
    #[error("ONNX Runtime in `{}` is too old\n  expected: 1.{least} or newer\n  found:    {}", Escaped(&path.display().to_string()), Escaped(found))]
    OldLibrary {
        /// The library.
        path: PathBuf,
        /// The least minor version.
        least: u32,
        /// Its version.
        found: String,
    },
    /// ONNX Runtime does not open or run the graph.
    #[error("ONNX Runtime does not run `{}`\n  {}", Escaped(file), Escaped(reason))]
    Graph {
        /// The graph.
        file: String,
        /// What it says.
        reason: String,
    },
    /// An output is missing or has another shape.
    #[error(
        "`{}` gives something else\n  output `{}`\n  expected: {expected:?}\n  found:    {found:?}",
        Escaped(file),
        Escaped(output)
    )]
    Output {
        /// The graph.
        file: String,
        /// The output.
        output: String,
        /// Its shape.
        expected: Vec<usize>,
        /// What it has; nothing where it is missing.
        found: Vec<i64>,
    },
    /// A product that the reference needs failed: a bug.
    #[error("the reference cannot be computed\n  {0}")]
    Tensor(#[from] candle_core::Error),
}

impl From<mlpack_convert::Error> for Error {
    fn from(error: mlpack_convert::Error) -> Error {
        Error::Convert(Box::new(error))
    }
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Convert(e) => e.kind(),
            Error::Library { .. } | Error::OldLibrary { .. } => ErrorKind::Io,
            Error::Graph { .. } | Error::Output { .. } | Error::Tensor(_) => ErrorKind::Mismatch,
        }
    }

    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Convert(e) => e.hint().map(|hint| hint.to_string()),
            Error::Library { .. } | Error::OldLibrary { .. } => Some(
                "the Python package `onnxruntime` has the library in its folder `capi`; name it or the folder with --onnxruntime \
                 or in ORT_DYLIB_PATH"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
