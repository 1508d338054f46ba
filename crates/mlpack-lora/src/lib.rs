//! Reads a PEFT LoRA adapter, pairs every adapter tensor with a base tensor, and computes deltas.
//!
//! [`Adapter`] is an adapter on disk: its config and its (A, B) pairs. [`Overlay`] is one or more adapters laid over a
//! base checkpoint: it knows which base tensors change and computes any row range of the merged tensor.
//!
//! ```no_run
//! # fn main() -> Result<(), mlpack_lora::Error> {
//! # let base = mlpack_safetensors::Checkpoint::open("base".as_ref()).unwrap();
//! let adapter = mlpack_lora::Adapter::open("legal-qa-lora".as_ref())?;
//! let overlay = mlpack_lora::Overlay::new(vec![(adapter, 1.0)], &base)?;
//! println!("{} tensors change", overlay.changed().count());
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - Every tensor of every adapter is used exactly once, or the overlay is not made and the error names each one.
//! - A merged element is the float64 sum of the base value and the scaled products, accumulated in rank order and
//!   rounded once, to the base dtype. Slabs, threads and devices do not change a bit of it.
//! - A setting of the adapter that changes the result and is not handled is an error, never ignored.

mod adapter;
mod config;
mod error;
mod merge;
mod overlay;
mod round;

pub use adapter::{Adapter, Pair};
pub use config::AdapterConfig;
pub use error::{Error, Misfit, Unmatched};
pub use overlay::{Change, Overlay};
pub use round::{NotFinite, round_to};
