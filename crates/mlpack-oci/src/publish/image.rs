//! A plain OCI image with the model in one uncompressed layer, from scratch or on a base.
//!
//! ```text
//! layer   models/                 mode 0755
//!         models/<file> …         mode 0644, uid 0, gid 0, mtime 0: the same files give the same digest
//!         models/model.file       a link to the file, where there is one (RamaLama's convention)
//! ```
//!
//! The layer is a tar around the files where they lie: it is never written to disk.

use super::{LayerKind, Model, PublishRequest};
use crate::package::Package;
use crate::tar;
use crate::{Blob, Error, Layout, Piece, Tag, json, media};
use mlpack_fs::Sha256;
use oci_spec::image::Descriptor;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The directory of the model in the image.
const DIR: &str = "models";

/// How images are made.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// The image that the model is added to; none for an image that holds the model alone.
    pub base: Option<BaseImage>,
    /// The program and its first arguments, instead of the base's.
    pub entrypoint: Option<Vec<String>>,
    /// Further arguments, instead of the base's.
    pub command: Option<Vec<String>>,
    /// `NAME=VALUE`, in place of the base's of that name.
    pub environment: Vec<String>,
    /// Labels, in place of the base's of that name.
    pub labels: BTreeMap<String, String>,
}

/// An image of one platform or of several.
#[derive(Clone, Debug)]
pub struct BaseImage {
    /// As it was given, for messages.
    pub name: String,
    /// The platforms.
    pub platforms: Vec<BasePlatform>,
    /// Whether it is an index, so that what is made of it is one.
    pub is_index: bool,
}

/// A base image of one platform.
#[derive(Clone, Debug)]
pub struct BasePlatform {
    /// The entry of the index, or nothing for a base that is no index.
    pub entry: Option<Value>,
    /// The manifest.
    pub manifest: Value,
    /// The config.
    pub config: Value,
    /// The layers.
    pub layers: Vec<Blob>,
}

impl BaseImage {
    /// An image of a layout.
    pub fn of_layout(layout: &Layout, tag: &Tag) -> Result<BaseImage, Error> {
        let root = layout.resolve(tag)?;
        let name = format!("oci:{}:{tag}", layout.dir().display());
        let is_index = [media::IMAGE_INDEX, media::DOCKER_LIST].contains(&root.media_type().to_string().as_str());
        let entries = if is_index { layout.read_index(&root)?.manifests().clone() } else { vec![root] };
        let mut platforms = Vec::new();
        for entry in entries {
            let manifest: Value = layout.read_value(&entry, "an image manifest")?;
            let base = |found: &str| no_base(&name, found);
            let config = manifest.get("config").cloned().ok_or_else(|| base("a manifest without a config"))?;
            let config: Descriptor = serde_json::from_value(config).map_err(|e| base(&e.to_string()))?;
            let config: Value = layout.read_value(&config, "an image config")?;
            let mut layers = Vec::new();
            for (digest, byte_len) in layers_of(&name, &manifest)? {
                let blob = Blob::of_file(&layout.blob_path(&digest), Some(digest))?;
                if blob.byte_len() != byte_len {
                    return Err(base(&format!("a layer of {} bytes instead of {byte_len}", blob.byte_len())));
                }
                layers.push(blob);
            }
            let entry = is_index.then(|| serde_json::to_value(&entry).expect("a descriptor serialises"));
            platforms.push(BasePlatform { entry, manifest, config, layers });
        }
        Ok(BaseImage { name, platforms, is_index })
    }

    /// The digests and lengths of a manifest's layers.
    pub fn layers_of(&self, manifest: &Value) -> Result<Vec<(Sha256, u64)>, Error> {
        layers_of(&self.name, manifest)
    }
}

fn no_base(name: &str, found: &str) -> Error {
    Error::NoBase { base: name.to_owned(), expected: "an image with a config and layers", found: found.to_owned() }
}

fn layers_of(name: &str, manifest: &Value) -> Result<Vec<(Sha256, u64)>, Error> {
    let layers = manifest.get("layers").and_then(Value::as_array).ok_or_else(|| no_base(name, "no layers"))?;
    let digest = |layer: &Value| layer.get("digest")?.as_str()?.strip_prefix("sha256:")?.parse().ok();
    layers
        .iter()
        .map(|layer| Some((digest(layer)?, layer.get("size")?.as_u64()?)))
        .collect::<Option<_>>()
        .ok_or_else(|| no_base(name, "a layer without a sha256 digest and a size"))
}

/// The manifest, or the index of manifests, of an image with the model.
pub(super) fn describe(
    package: &mut Package,
    request: &PublishRequest<'_>,
    model: &Model<'_>,
) -> Result<Descriptor, Error> {
    let blob = layer(model)?;
    let diff_id = format!("sha256:{}", blob.digest());
    let layer = package.add_blob(media::IMAGE_LAYER, blob);
    let options = request.image;
    let annotations = super::annotations(request, model);
    let manifest = |package: &mut Package, config: &Value, mut layers: Vec<Value>| {
        let config = package.add_blob(media::IMAGE_CONFIG, Blob::of_bytes(json::canonical(config)));
        layers.push(json!(layer));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::IMAGE_MANIFEST, "config": config, "layers": layers,
            "annotations": annotations,
        });
        package.add_document(media::IMAGE_MANIFEST, &manifest)
    };
    let Some(base) = &options.base else {
        let config = config(json!({"architecture": "amd64", "os": "linux"}), &diff_id, options);
        return Ok(manifest(package, &config, Vec::new()));
    };
    let mut entries = Vec::new();
    for platform in &base.platforms {
        // Attestations of a build are entries of its index, of no platform that could run.
        if platform.config.get("rootfs").and_then(|r| r.get("diff_ids")).is_none() {
            if base.is_index {
                continue;
            }
            return Err(no_base(&base.name, "a config without `rootfs.diff_ids`"));
        }
        let mut layers = Vec::new();
        let stated = platform.manifest.get("layers").and_then(Value::as_array).cloned().unwrap_or_default();
        for (mut stated, blob) in stated.into_iter().zip(&platform.layers) {
            let media_type = oci_layer_type(stated.get("mediaType").and_then(Value::as_str).unwrap_or_default());
            package.add_blob(&media_type, blob.clone());
            stated["mediaType"] = json!(media_type);
            layers.push(stated);
        }
        let made = manifest(package, &config(platform.config.clone(), &diff_id, options), layers);
        let mut entry = json!(made);
        if let Some(platform) = platform.entry.as_ref().and_then(|e| e.get("platform")) {
            entry["platform"] = platform.clone();
        }
        entries.push((entry, made));
    }
    match (base.is_index, &entries[..]) {
        (_, []) => Err(no_base(&base.name, "no platform")),
        (false, [(_, made), ..]) => Ok(made.clone()),
        (true, _) => {
            let entries: Vec<Value> = entries.into_iter().map(|(entry, _)| entry).collect();
            let index = json!({
                "schemaVersion": 2, "mediaType": media::IMAGE_INDEX, "manifests": entries, "annotations": annotations,
            });
            Ok(package.add_document(media::IMAGE_INDEX, &index))
        }
    }
}

/// Docker's layer types in OCI's words: the bytes are the same.
fn oci_layer_type(media_type: &str) -> String {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar" => media::IMAGE_LAYER,
        other => other,
    }
    .to_owned()
}

/// The config of the image: the base's with the layer and what was asked for.
fn config(mut config: Value, diff_id: &str, options: &ImageOptions) -> Value {
    let root = config.as_object_mut();
    let Some(root) = root else { return config };
    let runtime = root.entry("config").or_insert_with(|| json!({}));
    if !runtime.is_object() {
        *runtime = json!({});
    }
    if let Some(entrypoint) = &options.entrypoint {
        runtime["Entrypoint"] = json!(entrypoint);
        // Arguments of the base belong to the base's program.
        runtime["Cmd"] = json!(options.command.clone().unwrap_or_default());
    } else if let Some(command) = &options.command {
        runtime["Cmd"] = json!(command);
    }
    if !options.environment.is_empty() {
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        let ours: BTreeSet<String> = options.environment.iter().map(|e| name(e)).collect();
        let kept = runtime.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
        let kept = kept.into_iter().filter(|e| e.as_str().is_some_and(|e| !ours.contains(&name(e))));
        runtime["Env"] = kept.chain(options.environment.iter().map(|e| json!(e))).collect();
    }
    let mut labels = runtime.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.entry("org.containers.type").or_insert_with(|| json!("ai.image.model.raw"));
    labels.extend(options.labels.iter().map(|(key, value)| (key.clone(), json!(value))));
    labels.sort_keys();
    runtime["Labels"] = Value::Object(labels);
    let rootfs = root.entry("rootfs").or_insert_with(|| json!({"type": "layers", "diff_ids": []}));
    push(rootfs, "diff_ids", json!(diff_id));
    let mut with_history = Value::Object(std::mem::take(root));
    push(&mut with_history, "history", json!({"created_by": "mlpack publish", "comment": "the model"}));
    with_history
}

fn push(object: &mut Value, key: &str, item: Value) {
    let Some(object) = object.as_object_mut() else { return };
    match object.entry(key).or_insert_with(|| json!([])) {
        Value::Array(list) => list.push(item),
        other => *other = json!([item]),
    }
}

/// The tar around the model's files.
fn layer(model: &Model<'_>) -> Result<Blob, Error> {
    let mut pieces = Vec::new();
    let mut folders = BTreeSet::from([format!("{DIR}/")]);
    let mut files: Vec<_> = model.files.iter().filter(|f| f.kind != LayerKind::TensorMap).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    for file in &files {
        for (at, _) in file.name.match_indices('/') {
            folders.insert(format!("{DIR}/{}", &file.name[..=at]));
        }
    }
    for folder in &folders {
        pieces.push(Piece::Bytes(tar::directory(folder).into()));
    }
    for file in &files {
        pieces.push(Piece::Bytes(tar::file(&format!("{DIR}/{}", file.name), file.blob.byte_len()).into()));
        pieces.extend(file.blob.pieces().iter().cloned());
        pieces.push(Piece::Bytes(tar::padding(file.blob.byte_len()).into()));
    }
    let weights: Vec<_> = files.iter().filter(|f| f.kind == LayerKind::Weight).collect();
    if let [weight] = weights[..] {
        pieces.push(Piece::Bytes(tar::link(&format!("{DIR}/model.file"), &weight.name).into()));
    }
    pieces.push(Piece::Bytes(tar::end().into()));
    Blob::of_pieces(pieces)
}
