//! Reads Hugging Face checkpoints: single safetensors files, and directories of shards with or without an index; lays out
//! new ones.
//!
//! [`SafetensorsFile`] is one file with a checked header; [`Checkpoint`] is a model directory as a set of named
//! tensors. Opening reads headers only; weights stay in the map until somebody asks for a range.
//!
//! ```no_run
//! # fn main() -> Result<(), mlpack_safetensors::Error> {
//! let base = mlpack_safetensors::Checkpoint::open("llama-3.2-1b".as_ref())?;
//! for tensor in base.tensors() {
//!     println!("{} {} {}", tensor.name, tensor.dtype, tensor.shape);
//! }
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - Every tensor that is handed out lies inside its file, has exactly the bytes that its dtype and shape need, and
//!   overlaps no other; the tensors of a file cover its data without holes.
//! - Every tensor name is unique in a checkpoint, and the index, where there is one, agrees with the shards.
//! - A name in an index never leads out of the checkpoint's directory.

mod checkpoint;
mod error;
mod file;
mod layout;
mod metadata;

pub use checkpoint::{Checkpoint, INDEX_NAME, TensorInfo};
pub use error::{Error, TensorProblem};
pub use file::{Entry, SafetensorsFile};
pub use layout::{FileLayout, NewTensor, index, lay_out, shard, shard_name};
pub use metadata::{add_metadata, read_metadata};
