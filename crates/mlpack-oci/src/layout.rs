//! An OCI image layout on disk (image-spec v1.1, `image-layout.md`).
//!
//! ```text
//! DIR/oci-layout            {"imageLayoutVersion":"1.0.0"}
//! DIR/index.json            entries: descriptor + annotation org.opencontainers.image.ref.name = TAG
//! DIR/blobs/sha256/<hex>    manifests, indexes, configs, layers: named by the digest of their bytes
//! ```

use crate::reference::Tag;
use crate::{Blob, BlobProblem, Error, json, media};
use mlpack_fs::{AtomicFile, Operation, Sha256, hash_file, read_bounded, write_atomic};
use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Largest manifest or index read: what the distribution spec asks registries to take at least.
const DOCUMENT_LIMIT: u64 = 4 << 20;
/// Largest `index.json` read.
const LAYOUT_INDEX_LIMIT: u64 = 16 << 20;
/// Indexes inside each other.
const DEPTH_LIMIT: usize = 8;
/// Bytes copied at a time.
const COPY_LEN: usize = 1 << 20;

/// An image layout directory.
///
/// **Invariant**: blobs are written before the entry that refers to them, each under its final name only when its
/// bytes have its digest.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

/// A blob in a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its digest.
    pub digest: Sha256,
    /// Its length in bytes.
    pub byte_len: u64,
    /// Whether it was written now; `false` when it was there already.
    pub written: bool,
}

/// What [`Layout::verify`] read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Blobs that were read and have their digest.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

impl Layout {
    /// Opens the layout in `dir`, which must be one.
    pub fn open(dir: &Path) -> Result<Layout, Error> {
        let layout = Layout { dir: dir.to_owned() };
        let path = layout.dir.join("oci-layout");
        let marker: Value = parse(&path, &read_bounded(&path, DOCUMENT_LIMIT)?, "an image layout marker")?;
        match marker.get("imageLayoutVersion").and_then(Value::as_str) {
            Some("1.0.0") => Ok(layout),
            found => {
                let found = found.unwrap_or("no version").to_owned();
                Err(Error::LayoutVersion { dir: layout.dir, found })
            }
        }
    }

    /// Opens the layout in `dir`, or makes one where the directory is missing or empty.
    pub fn open_or_create(dir: &Path) -> Result<Layout, Error> {
        let marker = dir.join("oci-layout");
        if !marker.exists() {
            if !is_vacant(dir)? {
                return Err(Error::NotALayout { dir: dir.to_owned() });
            }
            write_atomic(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let layout = Layout::open(dir)?;
        let blobs = layout.dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|e| mlpack_fs::Error::io(Operation::CreateDir, &blobs, e))?;
        if !layout.index_path().exists() {
            layout.locked(|| layout.write_entries(Vec::new()))?;
        }
        Ok(layout)
    }

    /// The layout's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the blob of that digest is or would be.
    pub fn blob_path(&self, digest: &Sha256) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.to_string())
    }

    /// Copies a file into the layout. A file whose digest is known (`expected`) and whose blob is there is not read at
    /// all; otherwise it is hashed first, and copied only when its blob is missing. The copy is hashed again, so a
    /// file that changes meanwhile is an error. Memory does not depend on the file's size.
    pub fn put_blob_file(&self, path: &Path, expected: Option<Sha256>) -> Result<Stored, Error> {
        self.put_blob(&Blob::of_file(path, expected)?)
    }

    /// Copies a blob into a file, under its name only when its bytes have the digest.
    pub fn copy_blob(&self, digest: &Sha256, byte_len: u64, path: &Path) -> Result<(), Error> {
        let source = self.blob_path(digest);
        let unreadable =
            |problem| Error::UnreadableBlob { dir: self.dir.clone(), digest: format!("sha256:{digest}"), problem };
        check_size(&source, byte_len).map_err(|e| match e {
            Ok(problem) => unreadable(problem),
            Err(error) => error,
        })?;
        let blob = Blob::of_file(&source, Some(*digest))?;
        match write_blob(&blob, path) {
            Err(Error::ContentMismatch { found, .. }) => Err(unreadable(BlobProblem::WrongDigest { found })),
            result => result,
        }
    }

    /// Moves a file that is verified into the layout, as the blob of that digest.
    pub fn adopt_blob(&self, digest: &Sha256, file: &Path) -> Result<(), Error> {
        let path = self.blob_path(digest);
        let len = fs::metadata(file).map_err(|e| mlpack_fs::Error::io(Operation::Open, file, e))?.len();
        if self.has(digest, len) {
            return Ok(());
        }
        fs::rename(file, &path).map_err(|e| mlpack_fs::Error::io(Operation::Rename, &path, e).into())
    }

    /// Stores a blob from wherever its bytes are. What is there already is not read; what is written is hashed again.
    pub fn put_blob(&self, blob: &Blob) -> Result<Stored, Error> {
        let (digest, byte_len) = (*blob.digest(), blob.byte_len());
        if self.has(&digest, byte_len) {
            return Ok(Stored { digest, byte_len, written: false });
        }
        write_blob(blob, &self.blob_path(&digest))?;
        Ok(Stored { digest, byte_len, written: true })
    }

    /// Stores bytes as a blob.
    pub fn put_blob_bytes(&self, bytes: &[u8]) -> Result<Stored, Error> {
        let digest = Sha256::of(bytes);
        let byte_len = bytes.len() as u64;
        let written = !self.has(&digest, byte_len);
        if written {
            write_atomic(&self.blob_path(&digest), bytes)?;
        }
        Ok(Stored { digest, byte_len, written })
    }

    /// Points `tag` at a manifest or an index that is in the layout. The other entries stay as they are; the file's
    /// bytes depend on its entries alone, not on the order in which they came.
    pub fn tag(&self, descriptor: &Descriptor, tag: &Tag) -> Result<(), Error> {
        self.locked(|| {
            let mut entries = self.entries()?;
            entries.retain(|entry| ref_name(entry) != Some(tag.as_str()));
            let mut entry = serde_json::to_value(descriptor).expect("a descriptor serialises");
            entry["annotations"][media::REF_NAME] = json!(tag.as_str());
            entries.push(entry);
            self.write_entries(entries)
        })
    }

    /// Adds an entry without a tag, unless there is one of that digest.
    pub fn add_untagged(&self, descriptor: &Descriptor) -> Result<(), Error> {
        self.locked(|| {
            let mut entries = self.entries()?;
            let entry = serde_json::to_value(descriptor).expect("a descriptor serialises");
            if !entries.iter().any(|other| other["digest"] == entry["digest"]) {
                entries.push(entry);
                self.write_entries(entries)?;
            }
            Ok(())
        })
    }

    /// The entries of `index.json` with their tags, in file order.
    pub fn tags(&self) -> Result<Vec<(Option<String>, Descriptor)>, Error> {
        let path = self.index_path();
        self.entries()?
            .into_iter()
            .map(|entry| {
                let tag = ref_name(&entry).map(str::to_owned);
                Ok((tag, descriptor(&path, entry)?))
            })
            .collect()
    }

    /// What `tag` points at.
    pub fn resolve(&self, tag: &Tag) -> Result<Descriptor, Error> {
        let mut known = Vec::new();
        for (name, descriptor) in self.tags()? {
            match name {
                Some(name) if name == tag.as_str() => return Ok(descriptor),
                Some(name) => known.push(name),
                None => {}
            }
        }
        Err(Error::UnknownTag { dir: self.dir.clone(), tag: tag.as_str().to_owned(), known })
    }

    /// Reads a manifest, checked against its descriptor's size and digest.
    pub fn read_manifest(&self, descriptor: &Descriptor) -> Result<ImageManifest, Error> {
        self.read_document(descriptor, "an image manifest")
    }

    /// Reads an index, checked against its descriptor's size and digest.
    pub fn read_index(&self, descriptor: &Descriptor) -> Result<ImageIndex, Error> {
        self.read_document(descriptor, "an image index")
    }

    /// The digests of all that `index.json` leads to, in order.
    pub fn reachable(&self) -> Result<BTreeSet<Sha256>, Error> {
        let mut found = BTreeSet::new();
        let mut pending: Vec<(Descriptor, usize)> = self.tags()?.into_iter().map(|(_, d)| (d, 0)).collect();
        while let Some((descriptor, depth)) = pending.pop() {
            let Some(digest) = sha256(descriptor.digest()) else { continue };
            if !found.insert(digest) || depth >= DEPTH_LIMIT {
                continue;
            }
            pending.extend(self.children(&descriptor)?.into_iter().map(|child| (child, depth + 1)));
        }
        Ok(found)
    }

    /// What a manifest or an index names; nothing for any other blob.
    pub fn children(&self, descriptor: &Descriptor) -> Result<Vec<Descriptor>, Error> {
        match &*descriptor.media_type().to_string() {
            media::IMAGE_INDEX | media::DOCKER_LIST => Ok(self.read_index(descriptor)?.manifests().clone()),
            media::IMAGE_MANIFEST | media::DOCKER_MANIFEST => {
                let manifest = self.read_manifest(descriptor)?;
                Ok(std::iter::once(manifest.config()).chain(manifest.layers()).cloned().collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// The descriptor of a manifest or an index by its digest: an entry of `index.json`, or of an index that it leads to.
    pub fn find_document(&self, digest: &Sha256) -> Result<Option<Descriptor>, Error> {
        let mut pending: Vec<(Descriptor, usize)> = self.tags()?.into_iter().rev().map(|(_, d)| (d, 0)).collect();
        let mut seen = BTreeSet::new();
        while let Some((descriptor, depth)) = pending.pop() {
            if sha256(descriptor.digest()) == Some(*digest) {
                return Ok(Some(descriptor));
            }
            let is_index = [media::IMAGE_INDEX, media::DOCKER_LIST].contains(&&*descriptor.media_type().to_string());
            if is_index && depth < DEPTH_LIMIT && seen.insert(descriptor.digest().to_string()) {
                let index = self.read_index(&descriptor)?;
                pending.extend(index.manifests().iter().rev().map(|child| (child.clone(), depth + 1)));
            }
        }
        Ok(None)
    }

    /// Reads a document of any kind as JSON, checked against its descriptor's size and digest.
    pub fn read_value(&self, descriptor: &Descriptor, expected: &'static str) -> Result<Value, Error> {
        self.read_document(descriptor, expected)
    }

    /// Reads the bytes of a document, checked against its descriptor's size and digest.
    pub fn read_bytes(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let read = || {
            let path = self.readable_path(descriptor).map_err(Ok)?;
            self.checked_bytes(descriptor, &path)
        };
        read().map_err(|problem| self.unreadable(descriptor, problem))
    }

    /// Reads everything that `index.json` leads to and checks sizes and digests. All problems are reported at once.
    pub fn verify(&self) -> Result<Verified, Error> {
        let mut verified = Verified { blobs: 0, bytes: 0 };
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        let mut pending: Vec<(Descriptor, usize)> = self.tags()?.into_iter().rev().map(|(_, d)| (d, 0)).collect();
        while let Some((descriptor, depth)) = pending.pop() {
            let digest = descriptor.digest().to_string();
            if !seen.insert((digest.clone(), descriptor.size(), descriptor.media_type().to_string())) {
                continue;
            }
            match self.verify_blob(&descriptor, depth) {
                Ok(children) => {
                    verified.blobs += 1;
                    verified.bytes += descriptor.size();
                    pending.extend(children.into_iter().rev().map(|d| (d, depth + 1)));
                }
                Err(problem) => problems.push((digest, problem?)),
            }
        }
        if problems.is_empty() { Ok(verified) } else { Err(Error::BrokenLayout { dir: self.dir.clone(), problems }) }
    }

    /// What a blob refers to, when it is whole. The inner result is an error of the environment.
    fn verify_blob(
        &self,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Vec<Descriptor>, Result<BlobProblem, Error>> {
        let media_type = descriptor.media_type().to_string();
        let is_index = [media::IMAGE_INDEX, media::DOCKER_LIST].contains(&&*media_type);
        if is_index || [media::IMAGE_MANIFEST, media::DOCKER_MANIFEST].contains(&&*media_type) {
            if depth >= DEPTH_LIMIT {
                return Err(Ok(BlobProblem::TooDeep { limit: DEPTH_LIMIT }));
            }
            let path = self.readable_path(descriptor).map_err(Ok)?;
            let bytes = self.checked_bytes(descriptor, &path)?;
            return if is_index {
                document::<ImageIndex>(&bytes, "an image index").map(|i| i.manifests().clone()).map_err(Ok)
            } else {
                let manifest = document::<ImageManifest>(&bytes, "an image manifest").map_err(Ok)?;
                Ok(std::iter::once(manifest.config()).chain(manifest.layers()).cloned().collect())
            };
        }
        let expected = sha256(descriptor.digest()).ok_or(Ok(BlobProblem::Algorithm))?;
        let path = self.blob_path(&expected);
        check_size(&path, descriptor.size())?;
        let (found, _) = hash_file(&path).map_err(|e| Err(e.into()))?;
        if found == expected { Ok(Vec::new()) } else { Err(Ok(BlobProblem::WrongDigest { found })) }
    }

    fn read_document<T: serde::de::DeserializeOwned>(
        &self,
        descriptor: &Descriptor,
        expected: &'static str,
    ) -> Result<T, Error> {
        let read = || {
            let path = self.readable_path(descriptor).map_err(Ok)?;
            let bytes = self.checked_bytes(descriptor, &path)?;
            document(&bytes, expected).map_err(Ok)
        };
        read().map_err(|problem| self.unreadable(descriptor, problem))
    }

    fn unreadable(&self, descriptor: &Descriptor, problem: Result<BlobProblem, Error>) -> Error {
        match problem {
            Ok(problem) => {
                Error::UnreadableBlob { dir: self.dir.clone(), digest: descriptor.digest().to_string(), problem }
            }
            Err(error) => error,
        }
    }

    /// The path of a document that may be read whole.
    fn readable_path(&self, descriptor: &Descriptor) -> Result<PathBuf, BlobProblem> {
        let digest = sha256(descriptor.digest()).ok_or(BlobProblem::Algorithm)?;
        if descriptor.size() > DOCUMENT_LIMIT {
            return Err(BlobProblem::TooLarge { limit: DOCUMENT_LIMIT, found: descriptor.size() });
        }
        Ok(self.blob_path(&digest))
    }

    fn checked_bytes(&self, descriptor: &Descriptor, path: &Path) -> Result<Vec<u8>, Result<BlobProblem, Error>> {
        check_size(path, descriptor.size())?;
        let bytes = read_bounded(path, DOCUMENT_LIMIT).map_err(|e| Err(e.into()))?;
        let found = Sha256::of(&bytes);
        if Some(found) == sha256(descriptor.digest()) { Ok(bytes) } else { Err(Ok(BlobProblem::WrongDigest { found })) }
    }

    /// Whether the blob is there with its full length; a blob cut short by a fault outside mlpack is written anew.
    fn has(&self, digest: &Sha256, byte_len: u64) -> bool {
        fs::symlink_metadata(self.blob_path(digest)).is_ok_and(|m| m.is_file() && m.len() == byte_len)
    }

    fn index_path(&self) -> PathBuf {
        self.dir.join("index.json")
    }

    /// The entries as they stand in the file, each checked to be a descriptor; unknown fields are kept.
    fn entries(&self) -> Result<Vec<Value>, Error> {
        let path = self.index_path();
        let mut index: Map<String, Value> = parse(&path, &read_bounded(&path, LAYOUT_INDEX_LIMIT)?, "an image index")?;
        let malformed = |reason: &str| Error::MalformedDocument {
            path: path.clone(),
            expected: "an image index",
            reason: reason.to_owned(),
        };
        if index.get("schemaVersion").and_then(Value::as_u64) != Some(2) {
            return Err(malformed("`schemaVersion` is not 2"));
        }
        let Some(Value::Array(entries)) = index.remove("manifests") else {
            return Err(malformed("`manifests` is not an array"));
        };
        for entry in &entries {
            descriptor(&path, entry.clone())?;
        }
        Ok(entries)
    }

    fn write_entries(&self, mut entries: Vec<Value>) -> Result<(), Error> {
        entries.sort_by_cached_key(|entry| (ref_name(entry).map(str::to_owned), json::canonical(entry)));
        let index = json!({ "schemaVersion": 2, "mediaType": media::IMAGE_INDEX, "manifests": entries });
        write_atomic(&self.index_path(), &json::canonical(&index))?;
        Ok(())
    }

    /// Runs `change` while no other process changes `index.json`.
    fn locked<T>(&self, change: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let dir = File::open(&self.dir).map_err(|e| mlpack_fs::Error::io(Operation::Open, &self.dir, e))?;
        match dir.lock() {
            Ok(()) => {}
            // A file system without locks: the rename still keeps the file whole.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
            Err(e) => return Err(mlpack_fs::Error::io(Operation::Lock, &self.dir, e).into()),
        }
        change()
    }
}

/// Writes a blob into a file, under its name only when its bytes have its digest.
pub(crate) fn write_blob(blob: &Blob, path: &Path) -> Result<(), Error> {
    let byte_len = blob.byte_len();
    let file = AtomicFile::create(path, byte_len)?;
    let mut reader = blob.reader(0..byte_len)?;
    let mut buffer = vec![0; COPY_LEN.min(byte_len as usize)];
    let mut offset = 0;
    while offset < byte_len {
        let len = match reader.read(&mut buffer) {
            Ok(0) => return Err(blob.read_error(io::ErrorKind::UnexpectedEof.into())),
            Ok(len) => len,
            Err(e) => return Err(blob.read_error(e)),
        };
        file.write_at(offset, &buffer[..len])?;
        offset += len as u64;
    }
    let found = file.digest()?;
    if found != *blob.digest() {
        let path = blob.file().unwrap_or(path).to_owned();
        return Err(Error::ContentMismatch { path, expected: *blob.digest(), found });
    }
    file.seal()?;
    Ok(())
}

/// The digest as ours, when it is a sha256 digest. `oci-spec` has checked its digits.
pub(crate) fn sha256(digest: &Digest) -> Option<Sha256> {
    digest.as_ref().strip_prefix("sha256:")?.parse().ok()
}

/// Our digest as `oci-spec`'s.
pub(crate) fn oci_digest(digest: &Sha256) -> Digest {
    format!("sha256:{digest}").parse().expect("64 lower-case hexadecimal digits are a sha256 digest")
}

/// Whether a layout may be made in `dir`: it is missing, empty, or holds only what a killed run began with.
fn is_vacant(dir: &Path) -> Result<bool, Error> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|e| mlpack_fs::Error::io(Operation::List, dir, e))?;
                if entry.file_name() != ".oci-layout.mlpack-partial" {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(mlpack_fs::Error::io(Operation::List, dir, e).into()),
    }
}

fn check_size(path: &Path, expected: u64) -> Result<(), Result<BlobProblem, Error>> {
    match fs::metadata(path) {
        Ok(m) if !m.is_file() => Err(Ok(BlobProblem::Missing)),
        Ok(m) if m.len() != expected => Err(Ok(BlobProblem::WrongSize { expected, found: m.len() })),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Ok(BlobProblem::Missing)),
        Err(e) => Err(Err(mlpack_fs::Error::io(Operation::Open, path, e).into())),
    }
}

fn ref_name(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(media::REF_NAME)?.as_str()
}

fn descriptor(path: &Path, entry: Value) -> Result<Descriptor, Error> {
    serde_json::from_value(entry).map_err(|e| Error::MalformedDocument {
        path: path.to_owned(),
        expected: "an image index",
        reason: e.to_string(),
    })
}

fn document<T: serde::de::DeserializeOwned>(bytes: &[u8], expected: &'static str) -> Result<T, BlobProblem> {
    serde_json::from_slice(bytes).map_err(|e| BlobProblem::NotADocument { expected, reason: e.to_string() })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8], expected: &'static str) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::MalformedDocument {
        path: path.to_owned(),
        expected,
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod tests;
