//! Encodes and decodes ggml block types, equal to llama.cpp b11434 to the bit.
//!
//! The functions are [`encode`] (f32 rows to blocks), [`decode`] (blocks to f32), [`widen`] (checkpoint floats to f32) and
//! [`first_invalid_block`] (does every block hold numbers?). They are pure and single-threaded: rows are independent, so
//! callers split work by rows.
//!
//! ```
//! use mlpack_tensor::GgmlType;
//! let row: Vec<f32> = (0..32).map(|i| i as f32 / 8.0 - 2.0).collect();
//! let mut block = [0u8; 34];
//! mlpack_quant::encode(GgmlType::Q8_0, &row, 32, None, &mut block)?;
//! let mut back = [0.0; 32];
//! mlpack_quant::decode(GgmlType::Q8_0, &block, &mut back)?;
//! assert!(row.iter().zip(back).all(|(a, b)| (a - b).abs() <= 2.0 / 127.0));
//! # Ok::<(), mlpack_quant::Error>(())
//! ```
//!
//! **Invariants**
//! - The scalar code in `reference` is the definition: IEEE f32, one rounding for each operation, in ggml's order.
//! - Every [`Backend`] gives the bits of the scalar code; `unsafe` is confined to vector intrinsics and their dispatch.
//! - No value of the data causes an error or a panic; whether values are finite is the caller's question, and
//!   [`first_invalid_block`] answers it.
//!
//! It knows no files, no threads, and no rule for which tensor gets which type.

mod blocks;
mod codec;
mod columns;
mod error;
mod float;
mod grid;
mod kernels;
mod nbits;
mod reference;
mod validate;

pub use codec::{
    can_decode, can_encode, decode, decode_on, encode, encode_on, needs_importance, uses_importance, widen, widen_on,
};
pub use columns::{ColumnBlocks, ColumnPart, Extremes, decode_columns, decode_table, encode_columns, encode_table};
pub use error::Error;
pub use grid::{Combination, GridTable, grid_table, has_grid};
pub use kernels::Backend;
pub use nbits::{NBits, NBitsPart};
pub use validate::first_invalid_block;
