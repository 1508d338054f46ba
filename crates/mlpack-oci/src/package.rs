//! What a push or a layout receives: blobs, the documents that name them, and tags, in that order.

use crate::layout::oci_digest;
use crate::{Blob, BlobProblem, Error, Layout, Tag, json, media};
use mlpack_fs::Sha256;
use oci_spec::image::Descriptor;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Indexes inside each other.
const DEPTH_LIMIT: usize = 8;

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

    /// What a tag of a layout leads to, with what refers to it.
    pub fn of_layout(layout: &Layout, tag: &Tag, as_tag: &Tag) -> Result<Package, Error> {
        let root = layout.resolve(tag)?;
        let mut package = Package::default();
        package.add_from(layout, &root, None, 0)?;
        let digest = crate::layout::sha256(root.digest()).expect("it was read by this digest");
        package.tag(as_tag.clone(), digest);
        for (other, descriptor) in layout.tags()? {
            // Tags of the variants of an index go along.
            let digest = crate::layout::sha256(descriptor.digest()).filter(|d| package.document(d).is_some());
            let suffix = other.as_deref().and_then(|other| other.strip_prefix(tag.as_str())?.strip_prefix('-'));
            if let (Some(digest), Some(tag)) = (digest, suffix.and_then(|suffix| as_tag.with_suffix(suffix))) {
                package.tag(tag, digest);
            }
        }
        for (tag, descriptor) in layout.tags()? {
            let manifest = descriptor.media_type().to_string() == media::IMAGE_MANIFEST;
            if tag.is_some() || !manifest {
                continue;
            }
            let read = layout.read_manifest(&descriptor)?;
            let subject = read.subject().as_ref().and_then(|s| crate::layout::sha256(s.digest()));
            if subject.is_some_and(|subject| package.document(&subject).is_some()) {
                package.add_from(layout, &descriptor, subject, 0)?;
            }
        }
        Ok(package)
    }

    fn add_from(
        &mut self,
        layout: &Layout,
        descriptor: &Descriptor,
        subject: Option<Sha256>,
        depth: usize,
    ) -> Result<(), Error> {
        let media_type = descriptor.media_type().to_string();
        let is_document = [media::IMAGE_INDEX, media::DOCKER_LIST, media::IMAGE_MANIFEST, media::DOCKER_MANIFEST]
            .contains(&&*media_type);
        if !is_document || depth > DEPTH_LIMIT {
            let digest = crate::layout::sha256(descriptor.digest()).ok_or_else(|| Error::UnreadableBlob {
                dir: layout.dir().to_owned(),
                digest: descriptor.digest().to_string(),
                problem: BlobProblem::Algorithm,
            })?;
            let blob = Blob::of_file(&layout.blob_path(&digest), Some(digest))?;
            if blob.byte_len() != descriptor.size() {
                let problem = BlobProblem::WrongSize { expected: descriptor.size(), found: blob.byte_len() };
                let (dir, digest) = (layout.dir().to_owned(), descriptor.digest().to_string());
                return Err(Error::UnreadableBlob { dir, digest, problem });
            }
            self.blobs.entry(digest).or_insert(blob);
            return Ok(());
        }
        for child in layout.children(descriptor)? {
            self.add_from(layout, &child, None, depth + 1)?;
        }
        self.add_bytes(&media_type, layout.read_bytes(descriptor)?, subject);
        Ok(())
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

    /// The `index.json` of a layout that holds this package and nothing else.
    pub(crate) fn index(&self) -> Vec<u8> {
        let mut entries: Vec<Value> = Vec::new();
        for (tag, digest) in &self.tags {
            let document = self.document(digest).expect("a tag names a document of its package");
            let mut entry = serde_json::to_value(self.descriptor(document)).expect("a descriptor serialises");
            entry["annotations"] = json!({media::REF_NAME: tag.as_str()});
            entries.push(entry);
        }
        for document in self.documents.iter().filter(|document| document.subject.is_some()) {
            entries.push(serde_json::to_value(self.descriptor(document)).expect("a descriptor serialises"));
        }
        json::canonical(&json!({"schemaVersion": 2, "mediaType": media::IMAGE_INDEX, "manifests": entries}))
    }

    fn descriptor(&self, document: &PackedDocument) -> Descriptor {
        let size = document.bytes.len() as u64;
        Descriptor::new(media::media_type(&document.media_type), size, oci_digest(&document.digest))
    }
}
