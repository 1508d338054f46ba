//! The client of OCI registries (distribution-spec v1.1), and a read-only registry over an image layout.
//!
//! The nouns are [`Client`] (one registry, with its credentials and what was learned about it), [`Repository`] (manifests
//! and blobs in it), [`push()`] and [`pull()`] (transfers that survive what networks do), and [`Server`].
//!
//! ```
//! use mlpack_registry::{Client, Options};
//! # fn main() -> Result<(), mlpack_registry::Error> {
//! let client = Client::new("127.0.0.1:5000", Options { plain_http: true, ..Options::default() }, None)?;
//! assert_eq!(client.repository("team/model").to_string(), "127.0.0.1:5000/team/model");
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - A finished blob is never sent again; manifests follow their blobs, and the tag comes last.
//! - A file gets its final name only when its bytes have their digest.
//! - Credentials go to their own host, and to the token service that it names over TLS; to nobody else, and into no message.
//! - Nothing that a registry sends is kept in memory without a limit.
//! - No terminal, no clock and no environment: pauses, credential files and journals are the caller's.

mod auth;
mod client;
mod credentials;
mod error;
mod http;
mod journal;
mod limits;
mod ollama;
mod places;
mod pull;
mod push;
mod referrers;
mod retry;
mod serve;
mod upload;
mod url;

pub use client::{Client, Document, Options, Repository};
pub use credentials::{CredentialFiles, Credentials};
pub use error::{Error, Trouble};
pub use ollama::OllamaApi;
pub use pull::{Known, Pulled, Wanted, pull};
pub use push::{Progress, PushRequest, Pushed, push};
pub use serve::{Server, Stopper};
