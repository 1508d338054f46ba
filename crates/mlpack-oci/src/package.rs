//! What a push or a layout receives: blobs, the documents that name them, and tags, in that order.

use crate::layout::oci_digest;
use crate::{Blob, Error, Layout, Tag, json, media};
use mlpack_fs::Sha256;
use oci_spec::image::Descriptor;
use serde::Serialize;
use std::collections::BTreeMap;

/// Blobs, documents and tags that go somewhere together.
///
/// **Invariant**: a document comes after the documents that it names; a tag names a document of the package.
#[derive(Clone, Debug, Default)]
pub struct Package {
    blobs: BTreeMap<Sha256, Blob>,
    documents: Vec<PackedDocument>,
    tags: Vec<(Tag, Sha256)>,
}

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedDocument {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Sha256,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The manifest that it is about, for a referrer.
    pub subject: Option<Sha256>,
}

/// What storing a package in a layout came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackageStored {
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes that were there already.
    pub bytes_skipped: u64,
}

impl Package {
    /// Adds a blob and returns its descriptor. The same content is kept once.
    pub fn add_blob(&mut self, media_type: &str, blob: Blob) -> Descriptor {
        let descriptor = Descriptor::new(media::media_type(media_type), blob.byte_len(), oci_digest(blob.digest()));
        self.blobs.entry(*blob.digest()).or_insert(blob);
        descriptor
    }

    /// Adds a document in its canonical bytes and returns its descriptor.
    pub fn add_document<T: Serialize>(&mut self, media_type: &str, document: &T) -> Descriptor {
        self.add_bytes(media_type, json::canonical(document), None)
    }

    /// Adds a document that is about another one.
    pub fn add_referrer<T: Serialize>(&mut self, document: &T, subject: Sha256) -> Descriptor {
        self.add_bytes(media::IMAGE_MANIFEST, json::canonical(document), Some(subject))
    }

    /// Adds a document as it stands.
    pub fn add_bytes(&mut self, media_type: &str, bytes: Vec<u8>, subject: Option<Sha256>) -> Descriptor {
        let digest = Sha256::of(&bytes);
        let descriptor = Descriptor::new(media::media_type(media_type), bytes.len() as u64, oci_digest(&digest));
        if self.document(&digest).is_none() {
            self.documents.push(PackedDocument { media_type: media_type.to_owned(), digest, bytes, subject });
        }
        descriptor
    }

    /// Points a tag at a document of the package.
    ///
    /// # Panics
    /// When the document is not in the package.
    pub fn tag(&mut self, tag: Tag, digest: Sha256) {
        assert!(self.document(&digest).is_some(), "a tag names a document of its package");
        self.tags.retain(|(other, _)| *other != tag);
        self.tags.push((tag, digest));
    }

    /// The blobs, ordered by digest.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.blobs.values()
    }

    /// The documents; each after those that it names.
    pub fn documents(&self) -> &[PackedDocument] {
        &self.documents
    }

    /// The tags in the order in which they are set.
    pub fn tags(&self) -> &[(Tag, Sha256)] {
        &self.tags
    }

    /// The document of that digest.
    pub fn document(&self, digest: &Sha256) -> Option<&PackedDocument> {
        self.documents.iter().find(|document| document.digest == *digest)
    }

    /// Bytes of all blobs.
    pub fn byte_len(&self) -> u64 {
        self.blobs.values().map(Blob::byte_len).sum()
    }

    /// Writes everything into a layout: blobs, documents, tags. A referrer has no tag; it is an entry of its own, so that
    /// whoever copies the layout finds it.
    pub fn store(&self, layout: &Layout) -> Result<PackageStored, Error> {
        let mut stored = PackageStored::default();
        let mut count = |blob: crate::Stored| match blob.written {
            true => stored.bytes_written += blob.byte_len,
            false => stored.bytes_skipped += blob.byte_len,
        };
        for blob in self.blobs.values() {
            count(layout.put_blob(blob)?);
        }
        for document in &self.documents {
            count(layout.put_blob_bytes(&document.bytes)?);
        }
        for document in self.documents.iter().filter(|document| document.subject.is_some()) {
            layout.add_untagged(&self.descriptor(document))?;
        }
        for (tag, digest) in &self.tags {
            let document = self.document(digest).expect("a tag names a document of its package");
            layout.tag(&self.descriptor(document), tag)?;
        }
        Ok(stored)
    }

    fn descriptor(&self, document: &PackedDocument) -> Descriptor {
        let size = document.bytes.len() as u64;
        Descriptor::new(media::media_type(&document.media_type), size, oci_digest(&document.digest))
    }
}
