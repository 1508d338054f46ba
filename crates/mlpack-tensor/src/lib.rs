//! The vocabulary of the workspace: element types, ggml block types, shapes, names and metadata values.
//!
//! The nouns are [`Dtype`] (what a safetensors file stores), [`GgmlType`] (what a GGUF file stores, with its block
//! geometry), [`Shape`] (row-major dimensions, outermost first) and [`MetaValue`] (a typed metadata value as GGUF
//! defines it).
//!
//! ```
//! use mlpack_tensor::{Dtype, GgmlType, Shape};
//! let shape = Shape::new(vec![128, 256]);
//! assert_eq!(Dtype::BF16.byte_len(&shape), Some(65_536));
//! assert_eq!(GgmlType::Q4_K.byte_len(&shape), Some(128 * 144));
//! ```
//!
//! **Invariants**
//! - No I/O, no allocation that depends on untrusted numbers, and every size computation is checked: overflow is `None`.
//! - One place maps a type to its name, number and geometry, by an exhaustive match.

mod dtype;
mod ggml;
mod meta;
mod shape;
mod text;

pub use dtype::Dtype;
pub use ggml::GgmlType;
pub use meta::{MetaArray, MetaValue, Metadata};
pub use shape::Shape;
pub use text::{Escaped, join_limited, nearest};
