//! Reads and writes GGUF version 3: ordered metadata, a tensor table, aligned data.
//!
//! [`Layout`] is everything about a file that is known before its data: the header bytes and the place of every
//! tensor. [`GgufFile`] is a file that exists, with its table checked; [`GgufModel`] is one such file, or all parts of a
//! split model.
//!
//! ```
//! use mlpack_gguf::{Layout, TensorSpec};
//! use mlpack_tensor::{GgmlType, Metadata, Shape};
//!
//! let mut metadata = Metadata::new();
//! metadata.set("general.architecture", "llama".into());
//! let tensor = TensorSpec { name: "output_norm.weight".into(), ty: GgmlType::F32, shape: Shape::new(vec![5]) };
//! let layout = Layout::new(&metadata, vec![tensor]).unwrap();
//! assert_eq!(layout.header().len() as u64, layout.tensors()[0].range.start);
//! assert_eq!(layout.byte_len(), layout.tensors()[0].range.start + 32, "20 bytes, padded");
//! ```
//!
//! **Invariants**
//! - Metadata keeps its order, in reading and in writing, whatever characters a key has.
//! - Writing what was read gives the same bytes.
//! - A tensor that is handed out lies inside its file, is aligned, and overlaps no other.

mod error;
mod layout;
mod model;
mod read;

pub use error::{Error, LayoutError, Problem, SplitProblem};
pub use layout::{DEFAULT_ALIGNMENT, Layout, TensorSlot, TensorSpec};
pub use model::{GgufModel, part_name};
pub use read::{GgufFile, Tensor, header_metadata};

/// `GGUF` in ASCII, the first four bytes of a file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written; 2 and 3 are read.
pub(crate) const VERSION: u32 = 3;

/// ggml's limit on dimensions (`GGML_MAX_DIMS`).
pub(crate) const MAX_DIMS: usize = 4;

/// ggml's limit on the bytes of a tensor name, with its terminating zero (`GGML_MAX_NAME`).
pub(crate) const MAX_NAME: usize = 64;

/// Numbers of the value types in a file (`enum gguf_type`).
pub(crate) mod value_type {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}
