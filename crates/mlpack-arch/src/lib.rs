//! What an architecture and a tokenizer mean: from a Hugging Face model directory to the names and metadata of a GGUF
//! file.
//!
//! The nouns are [`Families`] (the architecture descriptions, data files under `archs/`), [`Model`] (a directory whose
//! architecture is known), [`TensorRule`] (what becomes of one tensor) and [`ModelMetadata`] (the key-value pairs).
//!
//! ```
//! # fn main() -> Result<(), mlpack_arch::Error> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path();
//! # let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}"#;
//! # std::fs::write(dir.join("config.json"), config).unwrap();
//! use mlpack_arch::{Families, Model, TensorRule};
//! use mlpack_tensor::Shape;
//!
//! let model = Model::open(dir, &Families::builtin())?;
//! assert_eq!(model.arch(), "llama");
//! let rule = model.map_tensor("model.layers.1.mlp.up_proj.weight", &Shape::new(vec![11008, 4096]))?;
//! assert!(matches!(rule, TensorRule::Mapped(parts) if parts[0].gguf_name == "blk.1.ffn_up.weight"));
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - Keys, types, values and their order are those of llama.cpp b11434's `convert_hf_to_gguf.py`, with the config
//!   defaults of transformers 5.23.0. What is not known is an error with the nearest known names, never a guess.
//! - A family that needs no new transform is a data file: no code knows the name of an architecture.
//! - Tensor data is never read here.

mod config;
mod decoder;
mod encoder;
mod error;
mod extra;
mod family;
mod general;
mod json;
mod model;
mod parameters;
mod pooling;
mod tensors;
pub mod tokenizer;
mod view;
mod yaml;

pub use config::Config;
pub use decoder::{Activation, Decoder, Layer, LongRope, Mlp, Norm, Placement, QkNorm, Rope};
pub use encoder::{
    AfterPooling, Dense, Encoder, Head, HeadActivation, NormPlacement, Pooling, PoolingMode, Positions, Task,
    TensorNames, TokenTypes, dense_folders, embedder_files,
};
pub use error::Error;
pub use extra::ExtraTensor;
pub use family::{Families, Family, ValueChange};
pub use general::{ParameterCount, parameter_count};
pub use model::{MetadataRequest, Model, ModelMetadata};
pub use tensors::{MappedTensor, Mapping, Packing, StackPlace, TensorPart, TensorRole, TensorRule};
pub use view::View;
