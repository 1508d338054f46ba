//! Runs ONNX graphs in ONNX Runtime beside a small forward pass of their source weights, and says how far apart they are.
//!
//! The nouns are [`Reference`] (texts, and what a model makes of them, computed from its description and the weights of its
//! checkpoint, with what adapters change), [`Runtime`] (a library of ONNX Runtime that the user has) and [`Comparison`] (a graph
//! beside the reference).
//!
//! ```no_run
//! use mlpack_convert::{Computation, Precision, Source};
//! use mlpack_validate::{Reference, Runtime};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = Source::open("model".as_ref(), &[], &Default::default())?;
//! let computation = Computation::open(&source, None, &mlpack_arch::Families::builtin(), None)?;
//! let runtime = Runtime::load("libonnxruntime.so".as_ref())?;
//! let reference = Reference::compute(&source, &computation, &Default::default())?;
//! let comparison = runtime.compare(&reference, "onnx/model.onnx".as_ref(), Precision::Fp32)?;
//! assert!(comparison.is_near());
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - The reference knows no graph: it is driven by the description and the checkpoint alone, one text at a time without padding.
//! - Weights are read some rows at a time; what a model weighs is never in memory here. ONNX Runtime maps or loads the graph's own.
//! - Texts and reference depend on the model and on the sizes that are fixed, and on nothing else.
//!
//! It writes nothing, and looks for no library by itself.

mod compare;
mod error;
mod forward;
mod probe;
mod reference;
mod runtime;

pub use compare::{Comparison, OutputComparison, Tolerance};
pub use error::Error;
pub use forward::Overflow;
pub use reference::Reference;
pub use runtime::Runtime;
