//! Reads an adapter, finds the place of every adapter tensor in a base, and computes merged rows.
//!
//! [`Adapter`] is an adapter on disk: its config and its tensors by module. [`Overlay`] is one or more adapters laid over a
//! base checkpoint: it knows which tensors change ([`Target`]) and computes any rows of the merged tensor. How kinds of
//! adapters become one sum is in `target.rs`, where tensors go in `build.rs`.
//!
//! ```no_run
//! # fn main() -> Result<(), mlpack_lora::Error> {
//! # let base = mlpack_safetensors::Checkpoint::open("base".as_ref()).unwrap();
//! let adapter = mlpack_lora::Adapter::open("legal-qa-lora".as_ref())?;
//! let overlay = mlpack_lora::Overlay::new(vec![(adapter, 1.0)], &base, &Default::default())?;
//! println!("{} tensors change", overlay.targets().len());
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - Every tensor of every adapter is used exactly once, or the overlay is not made and the error names each one.
//! - A merged element is a float64 value, computed from the base's and the adapters' in an order that the tensor's name
//!   and shape decide, and rounded once, to the base dtype. Slabs, threads and [`ProductDevice`] do not change a bit of it.
//! - Nothing of an adapter is executed.
//! - A setting of the adapter that changes the result and is not handled is an error, never ignored.

mod adapter;
mod base;
mod build;
mod combine;
mod config;
mod delta;
mod error;
mod factors;
mod key;
mod matrix;
mod merge;
mod names;
mod overlay;
mod product;
mod round;
mod simd;
mod tally;
mod target;
mod torch;
mod weights;

pub use adapter::Adapter;
pub use combine::Combine;
pub use config::{AdapterConfig, Method};
pub use error::{Error, Misfit, Unmatched};
pub use factors::LowRank;
pub use matrix::AdapterTensor;
pub use merge::{BaseBytes, MergeRoom, Rows};
pub use names::embedding;
pub use overlay::{Overlay, OverlayOptions};
#[cfg(feature = "host-model")]
pub use product::Multiply;
pub use product::{ProductDevice, WrongElement};
pub use round::{NotFinite, round_scaled, round_to};
pub use tally::{ChangeTally, TensorChange};
pub use target::Target;
pub use torch::TorchProblem;
