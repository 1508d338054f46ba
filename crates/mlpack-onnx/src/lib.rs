//! ONNX graphs of models, written from a description alone: no model is loaded, no code is traced.
//!
//! The nouns are [`Graph`] (nodes, typed [`Value`]s, and [`Weight`]s that say what they are made of), [`Weights`] (what a
//! checkpoint has to offer), [`build_decoder`] and [`build_encoder`] (the recipes) and [`DataFiles`] (where every weight lies
//! in the files beside the graph).
//!
//! ```
//! use mlpack_onnx::{DataFiles, Element, Form, Graph, Profile};
//!
//! let mut graph = Graph::new(Profile::Std);
//! let x = graph.input("x", Element::F32, &["batch".into(), 4.into()]);
//! let w = graph.weight("w", "proj.weight", Form::Transposed, Element::F32, &[4, 8]);
//! let y = graph.node("MatMul", "/proj/MatMul", &[&x, &w], Element::F32, &[]);
//! graph.output("y", &y, &["batch".into(), 8.into()]);
//! let data = DataFiles::new(graph.weights(), u64::MAX);
//! assert_eq!(data.places()[0].range, 0..128);
//! let model = graph.encode("model.onnx", &data)?;
//! assert!(model.windows(6).any(|w| w == b"MatMul"));
//! # Ok::<(), mlpack_onnx::Error>(())
//! ```
//!
//! **Invariants**
//! - The opset and IR versions are the oldest that the emitted operators need.
//! - The same description gives the same bytes: nodes, names and initializers are in the order of the recipe.
//! - Every weight that a checkpoint has is used by the graph, or named in an error.
//! - No weight's value is read here.

mod data;
mod decoder;
mod element;
mod encoder;
mod error;
mod graph;
mod metadata;
mod proto;
mod quantized;
mod recipe;
mod weights;

pub use data::{DataFiles, Place};
pub use decoder::build_decoder;
pub use element::Element;
pub use encoder::build_encoder;
pub use error::{Error, WeightProblem};
pub use graph::{Attribute, Blocks, Dim, FixedDims, Form, Graph, Profile, Value, Weight};
pub use metadata::{add_metadata, read_metadata};
pub use recipe::{GraphRequest, Quantization, Scheme};
pub use weights::Weights;
