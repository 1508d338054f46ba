//! Docker Model Runner's manifest (docker/model-runner 642c721, 2026-07-22, `pkg/distribution/types`).
//!
//! ```text
//! config  …ai.model.config.v0.1+json (one GGUF) or v0.2+json (a directory)   {"config":…,"descriptor":…,"rootfs":…}
//! layers  bare files: …ai.gguf.v3, …ai.safetensors, …ai.license, …ai.model.file
//! ```

use super::{LayerKind, Model, ModelFormat};
use crate::package::Package;
use crate::{Blob, Error, Instruction, media};
use oci_spec::image::Descriptor;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// The manifest of a model for Docker, in the package. Nothing tells when it was made: two runs give the same digest.
pub(super) fn describe(package: &mut Package, model: &Model<'_>) -> Result<Descriptor, Error> {
    let artifact = model.artifact;
    let is_gguf = artifact.format == ModelFormat::Gguf;
    let mut layers = Vec::new();
    for file in &model.files {
        let media_type = match file.kind {
            LayerKind::Weight if is_gguf => media::DOCKER_GGUF,
            LayerKind::Weight => media::DOCKER_SAFETENSORS,
            // Of a GGUF the files beside it have no place here, but its licences have.
            LayerKind::Doc if file.name.to_ascii_uppercase().starts_with("LICEN") => media::DOCKER_LICENSE,
            _ if is_gguf => continue,
            _ => media::DOCKER_FILE,
        };
        let mut layer = package.add_blob(media_type, file.blob.clone());
        layer.set_annotations(Some(HashMap::from([(media::FILEPATH.to_owned(), file.name.clone())])));
        layers.push(layer);
    }
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.digest().to_string()).collect();
    let details = &artifact.details;
    let size: u64 = model.files.iter().filter(|f| f.kind == LayerKind::Weight).map(|f| f.blob.byte_len()).sum();
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    set("format", json!(artifact.format.name()));
    if let Some(variant) = &artifact.variant {
        set("quantization", json!(variant));
    }
    if let Some(count) = artifact.config.parameter_count {
        set("parameters", json!(parameters(count)));
    }
    if let Some(architecture) = &artifact.config.architecture {
        set("architecture", json!(architecture));
    }
    set("size", json!(binary_size(size)));
    if !details.metadata.is_empty() {
        set("gguf", json!(details.metadata));
    }
    let context = details.modelfile.iter().flat_map(|m| m.instructions()).find_map(|i| match i {
        Instruction::Parameter(p) if p.name() == "num_ctx" => p.value().parse::<u64>().ok(),
        _ => None,
    });
    if let Some(context) = context {
        set("context_size", json!(context));
    }
    let document = json!({"config": config, "descriptor": {}, "rootfs": {"type": "rootfs", "diff_ids": diff_ids}});
    let media_type = if is_gguf { media::DOCKER_MODEL_CONFIG } else { media::DOCKER_MODEL_CONFIG_FILES };
    let config = package.add_blob(media_type, Blob::of_bytes(crate::json::canonical(&document)));
    let manifest = json!({"schemaVersion": 2, "mediaType": media::IMAGE_MANIFEST, "config": config, "layers": layers});
    Ok(package.add_document(media::IMAGE_MANIFEST, &manifest))
}

/// "1.10B", "134.52M": two digits, no space.
fn parameters(count: u64) -> String {
    match count {
        1_000_000_000.. => format!("{:.2}B", count as f64 / 1e9),
        1_000_000.. => format!("{:.2}M", count as f64 / 1e6),
        1_000.. => format!("{:.2}K", count as f64 / 1e3),
        count => count.to_string(),
    }
}

/// "606.54MiB": units of 1024, two digits, no space.
fn binary_size(bytes: u64) -> String {
    match bytes {
        0x4000_0000.. => format!("{:.2}GiB", bytes as f64 / f64::from(1u32 << 30)),
        0x10_0000.. => format!("{:.2}MiB", bytes as f64 / f64::from(1u32 << 20)),
        0x400.. => format!("{:.2}KiB", bytes as f64 / 1024.0),
        bytes => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_have_units_without_a_space() {
        assert_eq!([12, 1_147_200, 1_100_048_384].map(parameters), ["12", "1.15M", "1.10B"]);
        assert_eq!([12, 636_000_000, 5 << 30].map(binary_size), ["12B", "606.54MiB", "5.00GiB"]);
    }
}
