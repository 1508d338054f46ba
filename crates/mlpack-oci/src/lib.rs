//! Models as OCI artifacts: references, an image layout on disk, ModelPack manifests, Modelfiles and chat templates.
//!
//! The nouns are [`Reference`] (where to), [`Layout`] (an OCI image layout directory), [`Artifact`] with [`publish`]
//! (one model in one format, and the act of writing it), [`Modelfile`] (what `ollama create` reads) and
//! [`ChatTemplate`] with [`translate`] (Jinja in, Ollama's Go template out).
//!
//! ```
//! use mlpack_oci::{Layout, Reference};
//! # fn main() -> Result<(), mlpack_oci::Error> {
//! # let tmp = tempfile::tempdir().unwrap();
//! # let text = format!("oci:{}:v1", tmp.path().join("layout").display());
//! let Reference::Layout { dir, tag } = text.parse()? else { unreachable!("the text starts with `oci:`") };
//! let layout = Layout::open_or_create(&dir)?;
//! let stored = layout.put_blob_bytes(b"{}")?;
//! assert!(layout.blob_path(&stored.digest).exists());
//! assert_eq!(tag.as_str(), "v1");
//! # Ok(()) }
//! ```
//!
//! **Invariants**
//! - Deterministic: no time, host, path or map order reaches a blob; the same inputs give the same digests.
//! - A blob is under its name only when its bytes have that digest; the tag is written last.
//! - A layout is untrusted: a digest is parsed before it becomes a path, and a document is bounded before it is read.
//! - No network and no terminal. Registries are another crate's work.

mod blob;
mod contents;
mod error;
mod json;
mod layout;
pub mod media;
mod modelfile;
mod modelpack;
mod ollama_store;
mod package;
mod publish;
mod reference;
mod tar;
mod template;
mod tensor_map;
mod unpack;

pub use blob::{Blob, BlobReader, Piece};
pub use contents::{Content, Contents, Entry, Form, contents};
pub use error::{BlobProblem, Error, FieldProblem, ModelfileProblem, ReferenceProblem};
pub use layout::{Layout, Stored, Verified};
pub use modelfile::{Instruction, Modelfile, Parameter, ParameterKind, Role, parameter_names};
pub use modelpack::{ModelConfig, param_size};
pub use ollama_store::{Installed, OllamaName, OllamaStore};
pub use package::{Package, PackageStored, PackedDocument};
pub use publish::{
    Artifact, AttachedBundle, BaseImage, BasePlatform, Details, Ecosystem, ExtraFile, ImageOptions, LayerKind,
    ModelFormat, Packed, PublishRequest, Published, PublishedManifest, attach_bundle, ollama_request, pack, publish,
};
pub use reference::{Reference, Tag};
pub use template::{ChatTemplate, NotTranslatable, Note, Translation, translate};
pub use tensor_map::{MappedTensor, TensorMap};
pub use unpack::{archive, unpack, unpack_layout, write_archive};
