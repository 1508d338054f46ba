//! Publishing models: files become blobs, blobs become manifests, manifests get tags.
//!
//! ```text
//! stage      every file of an artifact -> one blob (hashed, kept once whatever refers to it)
//! describe   the staged files -> the manifest of each ecosystem that was asked for
//! tag        one artifact: TAG -> manifest
//!            several: TAG-<variant> -> manifest each, then TAG -> an index of them
//!            several ecosystems: the one with the plain tags, and TAG[-<variant>]-<ecosystem> for the others
//! ```

use crate::modelpack::{self, ModelConfig};
use crate::package::Package;
use crate::reference::Tag;
use crate::{Blob, Error, FieldProblem, Layout, Modelfile, media};
use mlpack_fs::Sha256;
use oci_spec::image::{Descriptor, ImageIndexBuilder};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

mod docker;
mod files;
mod image;
mod ollama;

pub use files::{ExtraFile, LayerKind};
pub use image::{BaseImage, BasePlatform, ImageOptions};
pub use ollama::ollama_request;

/// Who a manifest is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ecosystem {
    /// CNCF ModelPack: modctl, KitOps, Docker Hub's models, CRI-O.
    ModelPack,
    /// Ollama.
    Ollama,
    /// Docker Model Runner.
    Docker,
    /// A plain OCI image with the model in a layer: podman, Kubernetes image volumes; runnable on a base.
    Image,
}

impl Ecosystem {
    /// All of them.
    pub const ALL: [Ecosystem; 4] = [Ecosystem::ModelPack, Ecosystem::Ollama, Ecosystem::Docker, Ecosystem::Image];

    /// Its word in options and tags.
    pub fn name(self) -> &'static str {
        match self {
            Ecosystem::ModelPack => "modelpack",
            Ecosystem::Ollama => "ollama",
            Ecosystem::Docker => "docker",
            Ecosystem::Image => "image",
        }
    }
}

/// What runtimes want to know beyond ModelPack's fields.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The Modelfile of a GGUF: its template, system message, parameters and licences become layers for Ollama.
    pub modelfile: Option<Modelfile>,
    /// `general.architecture` of a GGUF.
    pub architecture: Option<String>,
    /// `general.file_type` of a GGUF.
    pub file_type: Option<u32>,
    /// The context length in tokens.
    pub context_length: Option<u64>,
    /// Scalar metadata of a GGUF as text, for Docker's config.
    pub metadata: BTreeMap<String, String>,
    /// The tensor map of a GGUF (`docs/publishing.md`), which becomes a small layer.
    pub tensor_map: Option<Vec<u8>>,
    /// Statements about the artifact, which become a referrer of its manifests.
    pub claims: Option<PathBuf>,
    /// Signatures over statements about it; each refers to the manifest, too.
    pub bundles: Vec<AttachedBundle>,
}

/// A signature over a statement, as a referrer of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedBundle {
    /// What the statement says: its predicate's type URI.
    pub predicate_type: String,
    /// The sigstore bundle.
    pub bytes: Vec<u8>,
}

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
    /// What runtimes want to know.
    pub details: Details,
}

/// What to publish. No clock, host name or path of this machine is added to it.
#[derive(Clone, Copy, Debug)]
pub struct PublishRequest<'a> {
    /// The artifacts. Their order does not matter.
    pub artifacts: &'a [Artifact],
    /// The tag of the whole.
    pub tag: &'a Tag,
    /// Who the manifests are for; none is ModelPack. ModelPack has the plain tags where it is among them, else the first.
    pub ecosystems: &'a [Ecosystem],
    /// The base and the configuration of images.
    pub image: &'a ImageOptions,
    /// Annotations for every manifest and for the index.
    pub annotations: &'a BTreeMap<String, String>,
    /// Digests of source files that the caller computed itself, by the path given here; those files are not read again
    /// when their blob is there.
    pub digests: &'a BTreeMap<PathBuf, Sha256>,
}

/// A manifest or an index with its tag.
#[derive(Clone, Debug)]
pub struct PublishedManifest {
    /// Its tag.
    pub tag: Tag,
    /// Who it is for.
    pub ecosystem: Ecosystem,
    /// Its descriptor.
    pub descriptor: Descriptor,
    /// Its digest.
    pub digest: Sha256,
}

/// A package with what is in it.
#[derive(Clone, Debug)]
pub struct Packed {
    /// Blobs, documents and tags.
    pub package: Package,
    /// One manifest per artifact and ecosystem: ecosystem by ecosystem as asked for, each ordered by tag.
    pub manifests: Vec<PublishedManifest>,
    /// The index over the manifests with plain tags, when there is more than one artifact.
    pub index: Option<PublishedManifest>,
    /// Hidden files and directories that were left out.
    pub left_out: Vec<PathBuf>,
}

impl Packed {
    /// What the tag of the request points at: the index, or the only manifest with a plain tag.
    pub fn root(&self) -> &PublishedManifest {
        self.index.as_ref().unwrap_or(&self.manifests[0])
    }
}

/// What [`publish`] did.
#[derive(Clone, Debug)]
pub struct Published {
    /// One manifest per artifact and ecosystem.
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
}

/// A file of an artifact as a blob.
#[derive(Clone, Debug)]
pub(crate) struct StagedFile {
    /// Its path inside the artifact, with `/`.
    pub name: String,
    /// What it is for.
    pub kind: LayerKind,
    /// Whether the kind is a guess.
    pub untested: bool,
    /// The blob.
    pub blob: Blob,
}

/// Publishes models into a layout: blobs first, then variant tags, the tag of the whole last.
pub fn publish(layout: &Layout, request: &PublishRequest<'_>) -> Result<Published, Error> {
    let packed = pack(request)?;
    let stored = packed.package.store(layout)?;
    Ok(Published {
        manifests: packed.manifests,
        index: packed.index,
        bytes_written: stored.bytes_written,
        bytes_skipped: stored.bytes_skipped,
        left_out: packed.left_out,
    })
}

/// Works out all blobs, documents and tags. Files are read for their digests and for nothing else.
pub fn pack(request: &PublishRequest<'_>) -> Result<Packed, Error> {
    check_annotations(request.annotations)?;
    let ecosystems = ecosystems(request.ecosystems);
    let variants = variants(request)?;
    // Every directory is listed before the first byte is hashed, so that what cannot be published is found at once.
    let mut listings = Vec::new();
    for (tag, artifact) in &variants {
        for ecosystem in &ecosystems {
            check_format(artifact, *ecosystem)?;
        }
        listings.push((tag, *artifact, files::list(artifact)?));
    }
    let mut packed = Packed { package: Package::default(), manifests: Vec::new(), index: None, left_out: Vec::new() };
    let mut models = Vec::new();
    for (tag, artifact, listing) in listings {
        let mut files = Vec::with_capacity(listing.files.len());
        for file in listing.files {
            let blob = Blob::of_file(&file.path, request.digests.get(&file.path).copied())?;
            files.push(StagedFile { name: file.name, kind: file.kind, untested: file.untested, blob });
        }
        packed.left_out.extend(listing.left_out);
        models.push(Model { tag: tag.clone(), artifact, facts: facts(artifact, &files), files });
    }
    let mut entries = Vec::new();
    for (at, ecosystem) in ecosystems.iter().enumerate() {
        for model in &models {
            let mut descriptor = match ecosystem {
                Ecosystem::ModelPack => describe(&mut packed.package, request, model)?,
                Ecosystem::Ollama => ollama::describe(&mut packed.package, model)?,
                Ecosystem::Docker => docker::describe(&mut packed.package, model)?,
                Ecosystem::Image => image::describe(&mut packed.package, request, model)?,
            };
            let digest = crate::layout::sha256(descriptor.digest()).expect("our documents have sha256 digests");
            let tag = match at {
                0 => model.tag.clone(),
                _ => {
                    model.tag.with_suffix(ecosystem.name()).ok_or_else(|| no_label(request, model, ecosystem.name()))?
                }
            };
            attach_claims(&mut packed.package, model, &descriptor, digest)?;
            for bundle in &model.artifact.details.bundles {
                attach_bundle(&mut packed.package, &descriptor, bundle);
            }
            packed.package.tag(tag.clone(), digest);
            let manifest = PublishedManifest { tag, ecosystem: *ecosystem, descriptor: descriptor.clone(), digest };
            packed.manifests.push(manifest);
            if at == 0 {
                // No `artifactType` on the entry: skopeo 1.9.3 (Debian 12) drops it when it copies an index, and the digest
                // with it.
                descriptor.set_annotations(Some(model.facts.clone().into_iter().collect()));
                entries.push(descriptor);
            }
        }
    }
    if entries.len() > 1 {
        let builder = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(media::media_type(media::IMAGE_INDEX))
            .manifests(entries);
        let builder = match request.annotations.is_empty() {
            true => builder,
            false => builder.annotations(request.annotations.clone().into_iter().collect::<HashMap<_, _>>()),
        };
        let index = builder.build().expect("every required field is set");
        let descriptor = packed.package.add_document(media::IMAGE_INDEX, &index);
        let digest = crate::layout::sha256(descriptor.digest()).expect("our documents have sha256 digests");
        packed.package.tag(request.tag.clone(), digest);
        let tag = request.tag.clone();
        packed.index = Some(PublishedManifest { tag, ecosystem: ecosystems[0], descriptor, digest });
    }
    Ok(packed)
}

/// An artifact with its blobs.
pub(crate) struct Model<'a> {
    pub tag: Tag,
    pub artifact: &'a Artifact,
    pub files: Vec<StagedFile>,
    pub facts: BTreeMap<String, String>,
}

/// The ecosystems once each, the one with the plain tags first.
fn ecosystems(asked: &[Ecosystem]) -> Vec<Ecosystem> {
    let mut list = Vec::new();
    for ecosystem in asked {
        if !list.contains(ecosystem) {
            list.push(*ecosystem);
        }
    }
    match list.iter().position(|e| *e == Ecosystem::ModelPack) {
        Some(at) => list[..=at].rotate_right(1),
        None if list.is_empty() => list.push(Ecosystem::ModelPack),
        None => {}
    }
    list
}

fn check_format(artifact: &Artifact, ecosystem: Ecosystem) -> Result<(), Error> {
    let takes = match ecosystem {
        Ecosystem::ModelPack | Ecosystem::Image => true,
        Ecosystem::Ollama => artifact.format == ModelFormat::Gguf,
        Ecosystem::Docker => artifact.format != ModelFormat::Onnx,
    };
    match takes {
        true => Ok(()),
        false => Err(Error::FormatNotTaken {
            path: artifact.path.clone(),
            ecosystem: ecosystem.name(),
            format: artifact.format.name(),
        }),
    }
}

/// Statements about an artifact refer to each of its manifests.
fn attach_claims(package: &mut Package, model: &Model<'_>, subject: &Descriptor, digest: Sha256) -> Result<(), Error> {
    let Some(path) = &model.artifact.details.claims else { return Ok(()) };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let config = package.add_blob(media::EMPTY, Blob::of_bytes(b"{}".to_vec()));
    let mut layer = package.add_blob(media::CLAIMS, Blob::of_file(path, None)?);
    layer.set_annotations(Some(HashMap::from([(media::TITLE.to_owned(), name)])));
    let subject = Descriptor::new(subject.media_type().clone(), subject.size(), subject.digest().clone());
    let referrer = json!({
        "schemaVersion": 2, "mediaType": media::IMAGE_MANIFEST, "artifactType": media::CLAIMS,
        "config": config, "layers": [layer], "subject": subject,
    });
    package.add_referrer(&referrer, digest);
    Ok(())
}

/// Adds a signature to what refers to a manifest or an index of the package, in the form that cosign 3 reads.
///
/// # Panics
/// When the descriptor is of no sha256 digest; those of a package are.
pub fn attach_bundle(package: &mut Package, subject: &Descriptor, bundle: &AttachedBundle) {
    let digest = crate::layout::sha256(subject.digest()).expect("our documents have sha256 digests");
    let config = package.add_blob(media::EMPTY, Blob::of_bytes(b"{}".to_vec()));
    let layer = package.add_blob(media::SIGSTORE_BUNDLE, Blob::of_bytes(bundle.bytes.clone()));
    let subject = Descriptor::new(subject.media_type().clone(), subject.size(), subject.digest().clone());
    let referrer = json!({
        "schemaVersion": 2, "mediaType": media::IMAGE_MANIFEST, "artifactType": media::SIGSTORE_BUNDLE,
        "config": config, "layers": [layer], "subject": subject,
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": bundle.predicate_type,
        },
    });
    package.add_referrer(&referrer, digest);
}

fn no_label(request: &PublishRequest<'_>, model: &Model<'_>, label: &str) -> Error {
    Error::VariantLabel { path: model.artifact.path.clone(), tag: request.tag.to_string(), label: label.to_owned() }
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
    let weights: Vec<&Blob> = files.iter().filter(|f| f.kind == LayerKind::Weight).map(|f| &f.blob).collect();
    let mut facts = BTreeMap::from([
        (media::FORMAT.to_owned(), artifact.format.name().to_owned()),
        (media::WEIGHT_SIZE.to_owned(), weights.iter().map(|w| w.byte_len()).sum::<u64>().to_string()),
    ]);
    if let Some(variant) = &artifact.variant {
        facts.insert(media::VARIANT.to_owned(), variant.clone());
    }
    if let [weight] = weights[..] {
        facts.insert(media::WEIGHT_DIGEST.to_owned(), format!("sha256:{}", weight.digest()));
    }
    facts
}

/// The annotations of a model's manifest.
fn annotations(request: &PublishRequest<'_>, model: &Model<'_>) -> BTreeMap<String, String> {
    let config = &model.artifact.config;
    let mut annotations = model.facts.clone();
    if let Some(title) = config.title.as_ref().or(config.name.as_ref()) {
        annotations.insert(media::TITLE.to_owned(), title.clone());
    }
    if !config.licenses.is_empty() {
        annotations.insert(media::LICENSES.to_owned(), spdx_and(&config.licenses));
    }
    annotations.extend(request.annotations.clone());
    annotations
}

/// The ModelPack config and manifest of a model.
fn describe(package: &mut Package, request: &PublishRequest<'_>, model: &Model<'_>) -> Result<Descriptor, Error> {
    let artifact = model.artifact;
    let mut files = model.files.clone();
    if let Some(map) = &artifact.details.tensor_map {
        let name = format!("{}.tensors.json", artifact.path.file_name().unwrap_or_default().to_string_lossy());
        let blob = Blob::of_bytes(map.clone());
        files.push(StagedFile { name, kind: LayerKind::TensorMap, untested: false, blob });
    }
    let bytes = modelpack::config(&artifact.config, artifact.format, artifact.variant.as_deref(), &files)?;
    let config = package.add_blob(media::MODEL_CONFIG, Blob::of_bytes(bytes));
    let mut layers = Vec::with_capacity(files.len());
    for file in &files {
        layers.push(modelpack::layer(file, package.add_blob(modelpack::layer_type(file.kind), file.blob.clone())));
    }
    let manifest = modelpack::manifest(config, layers, &annotations(request, model));
    Ok(package.add_document(media::IMAGE_MANIFEST, &manifest))
}

/// One SPDX expression that demands them all; `AND` binds tighter than `OR`.
fn spdx_and(licenses: &[String]) -> String {
    let part = |l: &String| match licenses.len() > 1 && l.contains(" OR ") {
        true => format!("({l})"),
        false => l.clone(),
    };
    licenses.iter().map(part).collect::<Vec<_>>().join(" AND ")
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
