//! Merges and encodes rows on a GPU, with the bytes of the CPU.
//!
//! [`Choice`] is what `--device` says. [`Device`] is an opened GPU: [`Device::run`] takes a [`Slab`] of rows as they are stored,
//! with the low-rank differences that adapters add, and gives the merged rows and every encoding that is asked for. The
//! kernels are in `kernels/`, in C that is compiled for devices and, in tests, for the host. [docs/gpu.md](../../../docs/gpu.md)
//!
//! ```
//! use mlpack_device::{Choice, Device};
//! assert_eq!(Choice::parse("cuda:1")?, Choice::Cuda(1));
//! assert!(Choice::parse("gpu").is_err());
//! println!("{}", if Device::IS_BUILT { "with CUDA" } else { "the CPU alone" });
//! # Ok::<(), mlpack_device::Error>(())
//! ```
//!
//! **Invariants**
//! - The kernels do mlpack-quant's reference and mlpack-lora's rounding operation for operation: bytes do not depend on where
//!   they were made.
//! - What a device cannot do is not done: [`Outcome::NotFinite`] and errors leave it to the CPU, which says what is wrong.
//! - The driver is found when it is asked for; building and running without it needs nothing.

mod choice;
mod cuda;
mod error;
mod slab;

pub use choice::Choice;
#[cfg(feature = "host-model")]
pub use cuda::model::HostModel;
pub use cuda::{Device, Limits, MAX_DELTAS, Probe};
pub use error::Error;
pub use slab::{Delta, Outcome, Output, PanelKey, Slab, can_encode, can_read, is_searched};
