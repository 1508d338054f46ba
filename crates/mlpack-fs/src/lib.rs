//! Files as mlpack needs them: atomic outputs, read-only maps, positioned writes that hash, bounded reads.
//!
//! The nouns are [`MappedFile`] (an input) and [`InputHasher`] (its digest on the way), [`AtomicFile`] and [`AtomicDir`] (outputs that are whole or absent),
//! [`Sha256`] (a digest), [`Error`] (an I/O error that knows its path) and [`ErrorKind`] (whose fault an error is;
//! every error of the workspace answers `kind()`).
//!
//! ```
//! # fn main() -> Result<(), mlpack_fs::Error> {
//! # let dir = tempfile::tempdir().unwrap();
//! let path = dir.path().join("out.bin");
//! let file = mlpack_fs::AtomicFile::create(&path, 4)?;
//! file.write_at(2, b"cd")?;
//! file.write_at(0, b"ab")?;
//! assert!(!path.exists());
//! let digest = file.seal()?;
//! assert_eq!(digest, mlpack_fs::Sha256::of(b"abcd"));
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - Nothing appears under a final name before it is complete and on disk.
//! - Nothing is read into memory without a limit.
//! - This crate knows no format.

mod atomic;
mod buffers;
mod digest;
mod error;
mod hash;
mod input;
mod journal;
mod map;
mod pair;
mod queue;
mod read;
mod space;
mod stamp;

pub use atomic::{AtomicDir, AtomicFile, Data, Extent, write_atomic, write_together};
pub use buffers::{Buffer, Buffers, SharedBytes};
pub use digest::{Hasher, ParseDigestError, Sha256, hash_file};
pub use error::{Error, ErrorKind, Operation};
pub use input::{InputExtent, InputHasher, hash_files};
pub use journal::Journal;
pub use map::MappedFile;
pub use read::{BoundedReader, ReadError, read_bounded, read_to_string_bounded};
pub use space::free_bytes;
pub use stamp::FileStamp;
