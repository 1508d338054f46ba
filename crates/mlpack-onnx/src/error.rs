//! Why a graph cannot be built.

use crate::graph::Profile;
use mlpack_fs::ErrorKind;
use mlpack_tensor::{Escaped, Shape};

/// Problems that are shown before the list is cut with a count.
const SHOWN: usize = 10;

/// Why a graph cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint is not what the graph needs.
    #[error("the weights do not fit the graph{}{}", problems.iter().take(SHOWN).map(|p| format!("\n  {p}")).collect::<String>(), if problems.len() > SHOWN { format!("\n  and {} more", problems.len() - SHOWN) } else { String::new() })]
    Weights {
        /// Every tensor that does not fit.
        problems: Vec<WeightProblem>,
    },
    /// Something that the profile's operators cannot say.
    #[error("profile `{}` cannot express {what}\n  expected: opset {needed} or newer\n  found:    opset {}", profile.name(), profile.max_opset())]
    Opset {
        /// The profile.
        profile: Profile,
        /// What was asked for.
        what: &'static str,
        /// The opset that has it.
        needed: i64,
    },
    /// A graph that protobuf cannot hold, without its weights, which lie in files beside it.
    #[error(
        "the graph itself is longer than protobuf can say\n  expected: at most {limit} bytes\n  found:    {byte_len} bytes"
    )]
    TooLarge {
        /// Its length.
        byte_len: u64,
        /// What protobuf can say.
        limit: u64,
    },
    /// Four bits multiplied in integers.
    #[error("there is no operator that multiplies 4 bits in integers")]
    NotInIntegers,
    /// A size for a dimension that the graph has not.
    #[error("the graph has no dimension `{name}`")]
    NoDim {
        /// The dimension.
        name: &'static str,
    },
    /// Texts of a fixed length that the model has no positions for.
    #[error(
        "texts of {sequence} tokens are longer than the model can read\n  expected: at most {limit}\n  found:    {sequence}"
    )]
    TooLong {
        /// The length.
        sequence: u64,
        /// The positions that there are.
        limit: u64,
    },
}

/// A tensor that does not fit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightProblem {
    /// It is not there.
    #[error("tensor `{}`: expected {shape}, found none", Escaped(role))]
    Missing {
        /// Its role.
        role: String,
        /// The shape that is needed.
        shape: Shape,
    },
    /// It has another shape.
    #[error("tensor `{}`: expected {expected}, found {found}", Escaped(role))]
    Shape {
        /// Its role.
        role: String,
        /// The shape that is needed.
        expected: Shape,
        /// Its shape.
        found: Shape,
    },
    /// The graph has no use for it.
    #[error("tensor `{}`: the graph has no place for it", Escaped(role))]
    Unused {
        /// Its role.
        role: String,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Weights { .. } => ErrorKind::Mismatch,
            Error::TooLarge { .. } => ErrorKind::Limit,
            Error::Opset { .. } => ErrorKind::Unsupported,
            Error::NotInIntegers | Error::NoDim { .. } | Error::TooLong { .. } => ErrorKind::Misuse,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Weights { .. } => Some(
                "config.json and the weights are of different models, or the architecture's [decoder] table in its \
                      description is wrong (docs/onnx.md)"
                    .to_owned(),
            ),
            Error::Opset { .. } => Some("use --profile std".to_owned()),
            Error::NotInIntegers => Some("use --precision int8, or --scheme blocks or qdq".to_owned()),
            Error::NoDim { .. } => Some("an encoder has batch and sequence".to_owned()),
            Error::TooLong { .. } | Error::TooLarge { .. } => None,
        }
    }
}
