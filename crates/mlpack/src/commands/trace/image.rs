//! An image of a layout or a registry, as a trace takes it.

use crate::cli::RegistryArgs;
use crate::commands::registry::{Place, Source};
use mlpack_fs::Sha256;
use mlpack_provenance::{BUNDLE_MEDIA_TYPE, Image, Layer};
use mlpack_registry::Document;
use serde_json::Value;
use std::path::PathBuf;

/// The annotation with a layer's file name.
const TITLE: &str = "org.opencontainers.image.title";
/// How a layer with claims is named.
const CLAIMS: &str = ".claims.jsonl";
/// Most manifests of an index, and most referrers, that are read.
const MAX_DOCUMENTS: usize = 256;

/// The image that a reference names. Of a registry manifests, claims and signatures are fetched, and no weights.
pub fn image(reference: &str, args: &RegistryArgs) -> anyhow::Result<Image> {
    let place = Place::new(reference, args)?;
    let (source, root) = Source::open(&place)?;
    let parsed: Value = serde_json::from_slice(&root.bytes)?;
    let mut documents = Vec::new();
    match parsed.get("manifests").and_then(Value::as_array) {
        Some(manifests) => {
            for digest in manifests.iter().filter_map(digest).take(MAX_DOCUMENTS) {
                documents.push(source.document(&digest)?);
            }
        }
        None => documents.push(root.clone()),
    }
    let mut layers: Vec<Layer> = Vec::new();
    for document in &documents {
        let manifest: Value = serde_json::from_slice(&document.bytes)?;
        for layer in manifest.get("layers").and_then(Value::as_array).into_iter().flatten() {
            let Some(sha256) = digest(layer).filter(|found| layers.iter().all(|known| known.sha256 != *found)) else {
                continue;
            };
            let title = layer.pointer(&format!("/annotations/{TITLE}")).and_then(Value::as_str);
            let name = title.map_or_else(|| format!("sha256:{sha256}"), str::to_owned);
            let (path, bytes) = match &source {
                Source::Layout(layout) => (Some(layout.blob_path(&sha256)), None),
                Source::Registry(repository) if name.ends_with(CLAIMS) => (None, Some(repository.small_blob(&sha256)?)),
                Source::Registry(_) => (None, None),
            };
            layers.push(Layer { name, sha256, path, bytes });
        }
    }
    let subjects: Vec<Sha256> = documents.iter().chain([&root]).map(|document| document.digest).collect();
    let mut bundles: Vec<(String, Vec<u8>)> = Vec::new();
    for referrer in referrers(&source, &subjects)? {
        let manifest: Value = serde_json::from_slice(&referrer.bytes)?;
        let kind = manifest.get("artifactType").and_then(Value::as_str);
        let Some(layer) = manifest.pointer("/layers/0") else { continue };
        let Some(sha256) = digest(layer) else { continue };
        match kind {
            Some(BUNDLE_MEDIA_TYPE) => {
                let origin = format!("referrer sha256:{}", referrer.digest);
                if bundles.iter().all(|(known, _)| *known != origin) {
                    bundles.push((origin, source.small_blob(&sha256)?));
                }
            }
            // Where the claims are a layer of the manifest too, they are known already.
            Some(mlpack_oci::media::CLAIMS) if layers.iter().all(|known| known.sha256 != sha256) => {
                let title = layer.pointer(&format!("/annotations/{TITLE}")).and_then(Value::as_str);
                let name = title.filter(|title| title.ends_with(CLAIMS)).unwrap_or(CLAIMS).to_owned();
                layers.push(Layer { name, sha256, path: None, bytes: Some(source.small_blob(&sha256)?) });
            }
            _ => {}
        }
    }
    let near = match &source {
        Source::Layout(layout) => layout.dir().parent().map(|parent| match parent.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => parent.to_owned(),
        }),
        Source::Registry(_) => None,
    };
    Ok(Image { name: reference.to_owned(), manifest: root.digest, layers, bundles, near })
}

/// The manifests that refer to one of those.
fn referrers(source: &Source<'_>, subjects: &[Sha256]) -> anyhow::Result<Vec<Document>> {
    let mut found: Vec<Document> = Vec::new();
    match source {
        Source::Registry(repository) => {
            for subject in subjects {
                for referrer in repository.referrers(subject)?.iter().take(MAX_DOCUMENTS).filter_map(digest) {
                    if found.iter().all(|known| known.digest != referrer) {
                        found.push(source.document(&referrer)?);
                    }
                }
            }
        }
        Source::Layout(layout) => {
            for (tag, descriptor) in layout.tags()? {
                let is_manifest = descriptor.media_type().to_string() == mlpack_oci::media::IMAGE_MANIFEST;
                if tag.is_some() || !is_manifest || found.len() >= MAX_DOCUMENTS {
                    continue;
                }
                let bytes = layout.read_bytes(&descriptor)?;
                let manifest: Value = serde_json::from_slice(&bytes)?;
                if manifest.get("subject").and_then(digest).is_some_and(|subject| subjects.contains(&subject)) {
                    let media_type = descriptor.media_type().to_string();
                    found.push(Document { media_type, digest: Sha256::of(&bytes), bytes });
                }
            }
        }
    }
    Ok(found)
}

/// The digest of a descriptor.
fn digest(descriptor: &Value) -> Option<Sha256> {
    descriptor.get("digest")?.as_str()?.strip_prefix("sha256:")?.parse().ok()
}
