//! Publishing models into an image layout: files become blobs, blobs become manifests, manifests get tags.
//!
//! ```text
//! stage      every file of an artifact -> one blob (hashed, stored once whatever refers to it)
//! describe   the staged files -> a ModelPack config and manifest       (another ecosystem is another such step)
//! tag        one artifact: TAG -> manifest
//!            several: TAG-<variant> -> manifest each, then TAG -> an index of them
//! ```

use crate::layout::oci_digest;
use crate::modelpack::{self, ModelConfig};
use crate::reference::Tag;
use crate::{Error, FieldProblem, Layout, Stored, json, media};
use mlpack_fs::Sha256;
use oci_spec::image::{Descriptor, ImageIndexBuilder};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

mod files;

pub use files::{ExtraFile, LayerKind};

/// The format of a model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelFormat {
    /// One GGUF file, or a directory of its splits.
    Gguf,
    /// A checkpoint directory or one safetensors file.
    Safetensors,
    /// A directory with an ONNX graph and its external data, or one file.
    Onnx,
}

impl ModelFormat {
    /// The name in ModelPack's `format` field.
    pub fn name(self) -> &'static str {
        match self {
            ModelFormat::Gguf => "gguf",
            ModelFormat::Safetensors => "safetensors",
            ModelFormat::Onnx => "onnx",
        }
    }
}

/// One model in one format and one precision.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The file or the directory. Of a directory every file is published, except hidden ones.
    pub path: PathBuf,
    /// The format of its weights.
    pub format: ModelFormat,
    /// The label that tells it from the other variants, such as `Q4_K_M` or `fp16`; the format's name when absent.
    pub variant: Option<String>,
    /// What is known about the model.
    pub config: ModelConfig,
    /// Files that go with it and lie elsewhere: Modelfile, LICENSE, provenance statements.
    pub extra: Vec<ExtraFile>,
}

/// What to publish. No clock, host name or path of this machine is added to it.
#[derive(Clone, Copy, Debug)]
pub struct PublishRequest<'a> {
    /// The artifacts. Their order does not matter.
    pub artifacts: &'a [Artifact],
    /// The tag of the whole.
    pub tag: &'a Tag,
    /// Annotations for every manifest and for the index.
    pub annotations: &'a BTreeMap<String, String>,
    /// Digests of source files that the caller computed itself, by the path given here; those files are not read again
    /// when their blob is there.
    pub digests: &'a BTreeMap<PathBuf, Sha256>,
}

/// A manifest or an index that is in the layout and has its tag.
#[derive(Clone, Debug)]
pub struct PublishedManifest {
    /// Its tag.
    pub tag: Tag,
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Its digest.
    pub digest: Sha256,
}

/// What [`publish`] did.
#[derive(Clone, Debug)]
pub struct Published {
    /// One manifest per artifact, ordered by tag.
    pub manifests: Vec<PublishedManifest>,
    /// The index over them, when there is more than one.
    pub index: Option<PublishedManifest>,
    /// Bytes of blobs written.
    pub bytes_written: u64,
    /// Bytes of blobs that were there already.
    pub bytes_skipped: u64,
    /// Hidden files and directories that were left out.
    pub left_out: Vec<PathBuf>,
}

impl Published {
    /// What the tag of the request points at: the index, or the only manifest.
    pub fn root(&self) -> &PublishedManifest {
        self.index.as_ref().unwrap_or(&self.manifests[0])
    }

    fn count(&mut self, stored: &Stored) {
        match stored.written {
            true => self.bytes_written += stored.byte_len,
            false => self.bytes_skipped += stored.byte_len,
        }
    }
}

/// A file of an artifact that is a blob of the layout.
#[derive(Clone, Debug)]
pub(crate) struct StagedFile {
    /// Its path inside the artifact, with `/`.
    pub name: String,
    /// What it is for.
    pub kind: LayerKind,
    /// Whether the kind is a guess.
    pub untested: bool,
    /// The blob.
    pub stored: Stored,
}

/// Publishes models into a layout: blobs first, then variant tags, the tag of the whole last.
pub fn publish(layout: &Layout, request: &PublishRequest<'_>) -> Result<Published, Error> {
    check_annotations(request.annotations)?;
    let variants = variants(request)?;
    // Every directory is listed before the first byte is copied, so that what cannot be published is found at once.
    let mut listings = Vec::new();
    for (tag, artifact) in &variants {
        listings.push((tag, *artifact, files::list(artifact)?));
    }
    let mut published =
        Published { manifests: Vec::new(), index: None, bytes_written: 0, bytes_skipped: 0, left_out: Vec::new() };
    let mut entries = Vec::new();
    for (tag, artifact, listing) in listings {
        let mut staged = Vec::with_capacity(listing.files.len());
        for file in listing.files {
            let stored = layout.put_blob_file(&file.path, request.digests.get(&file.path).copied())?;
            published.count(&stored);
            staged.push(StagedFile { name: file.name, kind: file.kind, untested: file.untested, stored });
        }
        published.left_out.extend(listing.left_out);
        let facts = facts(artifact, &staged);
        let (manifest, entry) = describe(layout, request, artifact, &staged, &facts, &mut published)?;
        entries.push(entry);
        published.manifests.push(PublishedManifest { tag: tag.clone(), ..manifest });
    }
    for manifest in &published.manifests {
        layout.tag(&manifest.descriptor, &manifest.tag)?;
    }
    if entries.len() > 1 {
        let index = put_index(layout, request, entries, &mut published)?;
        layout.tag(&index.descriptor, &index.tag)?;
        published.index = Some(index);
    }
    Ok(published)
}

/// The artifacts with their tags, ordered by tag.
fn variants<'a>(request: &PublishRequest<'a>) -> Result<BTreeMap<Tag, &'a Artifact>, Error> {
    if let [artifact] = request.artifacts {
        return Ok(BTreeMap::from([(request.tag.clone(), artifact)]));
    }
    let mut variants: BTreeMap<Tag, &Artifact> = BTreeMap::new();
    for artifact in request.artifacts {
        let label = artifact.variant.as_deref().unwrap_or(artifact.format.name());
        let tag = request.tag.with_suffix(label).ok_or_else(|| Error::VariantLabel {
            path: artifact.path.clone(),
            tag: request.tag.to_string(),
            label: label.to_owned(),
        })?;
        if let Some(other) = variants.insert(tag.clone(), artifact) {
            let (first, second) = (other.path.clone(), artifact.path.clone());
            return Err(Error::SameVariant { tag: tag.to_string(), first, second });
        }
    }
    if variants.is_empty() { Err(Error::NoArtifacts) } else { Ok(variants) }
}

/// The annotations of a variant: on its manifest and on its entry in the index.
fn facts(artifact: &Artifact, files: &[StagedFile]) -> BTreeMap<String, String> {
    let weights: Vec<&Stored> = files.iter().filter(|f| f.kind == LayerKind::Weight).map(|f| &f.stored).collect();
    let mut facts = BTreeMap::from([
        (media::FORMAT.to_owned(), artifact.format.name().to_owned()),
        (media::WEIGHT_SIZE.to_owned(), weights.iter().map(|w| w.byte_len).sum::<u64>().to_string()),
    ]);
    if let Some(variant) = &artifact.variant {
        facts.insert(media::VARIANT.to_owned(), variant.clone());
    }
    if let [weight] = weights[..] {
        facts.insert(media::WEIGHT_DIGEST.to_owned(), format!("sha256:{}", weight.digest));
    }
    facts
}

/// Writes the ModelPack config and manifest of an artifact; returns the manifest and its entry for an index.
fn describe(
    layout: &Layout,
    request: &PublishRequest<'_>,
    artifact: &Artifact,
    files: &[StagedFile],
    facts: &BTreeMap<String, String>,
    published: &mut Published,
) -> Result<(PublishedManifest, Descriptor), Error> {
    let bytes = modelpack::config(&artifact.config, artifact.format, artifact.variant.as_deref(), files)?;
    let config = layout.put_blob_bytes(&bytes)?;
    published.count(&config);
    let mut annotations = facts.clone();
    if let Some(title) = artifact.config.title.as_ref().or(artifact.config.name.as_ref()) {
        annotations.insert(media::TITLE.to_owned(), title.clone());
    }
    if !artifact.config.licenses.is_empty() {
        annotations.insert(media::LICENSES.to_owned(), spdx_and(&artifact.config.licenses));
    }
    annotations.extend(request.annotations.clone());
    let config = Descriptor::new(media::media_type(media::MODEL_CONFIG), config.byte_len, oci_digest(&config.digest));
    let manifest = modelpack::manifest(config, files, &annotations);
    let stored = layout.put_blob_bytes(&json::canonical(&manifest))?;
    published.count(&stored);
    let descriptor =
        Descriptor::new(media::media_type(media::IMAGE_MANIFEST), stored.byte_len, oci_digest(&stored.digest));
    // No `artifactType` on the entry: skopeo 1.9.3 (Debian 12) drops it when it copies an index, and the digest with it.
    let mut entry = descriptor.clone();
    entry.set_annotations(Some(facts.clone().into_iter().collect()));
    let manifest = PublishedManifest { tag: request.tag.clone(), descriptor, digest: stored.digest };
    Ok((manifest, entry))
}

/// One SPDX expression that demands them all; `AND` binds tighter than `OR`.
fn spdx_and(licenses: &[String]) -> String {
    let part = |l: &String| match licenses.len() > 1 && l.contains(" OR ") {
        true => format!("({l})"),
        false => l.clone(),
    };
    licenses.iter().map(part).collect::<Vec<_>>().join(" AND ")
}

fn put_index(
    layout: &Layout,
    request: &PublishRequest<'_>,
    entries: Vec<Descriptor>,
    published: &mut Published,
) -> Result<PublishedManifest, Error> {
    let builder = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(media::media_type(media::IMAGE_INDEX))
        .manifests(entries);
    let builder = match request.annotations.is_empty() {
        true => builder,
        false => builder.annotations(request.annotations.clone().into_iter().collect::<HashMap<_, _>>()),
    };
    let index = builder.build().expect("every required field is set");
    let stored = layout.put_blob_bytes(&json::canonical(&index))?;
    published.count(&stored);
    let descriptor =
        Descriptor::new(media::media_type(media::IMAGE_INDEX), stored.byte_len, oci_digest(&stored.digest));
    Ok(PublishedManifest { tag: request.tag.clone(), descriptor, digest: stored.digest })
}

fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), Error> {
    for key in annotations.keys() {
        let ours = key.starts_with("vnd.mlpack.") || key == media::REF_NAME;
        if ours || key.is_empty() || key.len() > 256 {
            let expected = "an annotation key of 1 to 256 bytes that is not one of mlpack's own";
            let problem = FieldProblem { expected, found: key.clone() };
            return Err(Error::InvalidField { field: "annotations".to_owned(), problem });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
