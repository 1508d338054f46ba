//! CNCF ModelPack: the config document and the manifest of one model (modelpack/model-spec d78bf32, 2026-06-08).
//!
//! ```text
//! manifest  mediaType application/vnd.oci.image.manifest.v1+json
//!           artifactType application/vnd.cncf.model.manifest.v1+json
//!   config  application/vnd.cncf.model.config.v1+json   {"config":…,"descriptor":…,"modelfs":{"diffIds":[…],"type":"layers"}}
//!   layers  one per file, uncompressed and unarchived: the layer's digest is the file's digest
//! ```
//!
//! The config's JSON schema allows no field of its own making, so what it has no field for goes into annotations.

use crate::publish::{LayerKind, ModelFormat, StagedFile};
use crate::{Error, FieldProblem, json, media};
use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder};
use serde::Serialize;
use std::collections::BTreeMap;

/// What is known about a model; every field may be left out. `createdAt` is never written: it would make two runs
/// differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelConfig {
    /// The model's name.
    pub name: Option<String>,
    /// A title for people.
    pub title: Option<String>,
    /// A description for people.
    pub description: Option<String>,
    /// The family, such as `llama`.
    pub family: Option<String>,
    /// The version.
    pub version: Option<String>,
    /// The source control revision.
    pub revision: Option<String>,
    /// Who distributes it.
    pub vendor: Option<String>,
    /// Contact details of those responsible.
    pub authors: Vec<String>,
    /// SPDX licence expressions.
    pub licenses: Vec<String>,
    /// Where its documentation is.
    pub doc_url: Option<String>,
    /// Where its source is.
    pub source_url: Option<String>,
    /// Where its training data are.
    pub datasets_url: Vec<String>,
    /// The architecture, such as `llama`.
    pub architecture: Option<String>,
    /// The number of parameters.
    pub parameter_count: Option<u64>,
    /// The computational precision in the specification's words (`float16`), comma-separated. Derived from the variant
    /// where it is a float type.
    pub precision: Option<String>,
    /// The quantization, such as `Q4_K_M`. Derived from the variant where it is not a float type.
    pub quantization: Option<String>,
    /// ISO 639 two-letter codes of the languages it speaks.
    pub languages: Vec<String>,
}

/// The words of `docs/config.md`, "precision".
const PRECISIONS: [&str; 18] = [
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "float8_e4m3",
    "float8_e5m2",
    "complex32",
    "complex64",
    "complex128",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
];

/// `docs/config.md`, "paramSize": at most one digit after the point and one of K, M, B, T, Q.
///
/// ```
/// assert_eq!(mlpack_oci::param_size(6_738_415_616), "6.7B");
/// assert_eq!(mlpack_oci::param_size(999_960), "1M");
/// ```
pub fn param_size(parameter_count: u64) -> String {
    const SCALES: [(u64, char); 5] =
        [(1_000, 'K'), (1_000_000, 'M'), (1_000_000_000, 'B'), (1_000_000_000_000, 'T'), (1_000_000_000_000_000, 'Q')];
    let tenths = |scale: u64| ((u128::from(parameter_count) * 10 + u128::from(scale) / 2) / u128::from(scale)) as u64;
    // The scale at which the rounded count is below 1000; quadrillions for everything larger.
    let &(scale, letter) = SCALES.iter().find(|(scale, _)| tenths(*scale) < 10_000).unwrap_or(&SCALES[4]);
    match (tenths(scale) / 10, tenths(scale) % 10) {
        (whole, 0) => format!("{whole}{letter}"),
        (whole, tenth) => format!("{whole}.{tenth}{letter}"),
    }
}

#[derive(Serialize)]
struct Document<'a> {
    config: Technical<'a>,
    descriptor: General<'a>,
    modelfs: ModelFs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Technical<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities<'a>>,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    param_size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    precision: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<&'a str>,
}

#[derive(Serialize)]
struct Capabilities<'a> {
    languages: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct General<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    authors: &'a [String],
    #[serde(rename = "datasetsURL", skip_serializing_if = "<[String]>::is_empty")]
    datasets_url: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(rename = "docURL", skip_serializing_if = "Option::is_none")]
    doc_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    licenses: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<&'a str>,
    #[serde(rename = "sourceURL", skip_serializing_if = "Option::is_none")]
    source_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ModelFs {
    diff_ids: Vec<String>,
    r#type: &'static str,
}

/// The config blob of a model whose layers are `files`.
pub(crate) fn config(
    config: &ModelConfig,
    format: ModelFormat,
    variant: Option<&str>,
    files: &[StagedFile],
) -> Result<Vec<u8>, Error> {
    check(config)?;
    let float = variant.and_then(float_precision);
    let technical = Technical {
        architecture: config.architecture.as_deref(),
        capabilities: (!config.languages.is_empty()).then_some(Capabilities { languages: &config.languages }),
        format: format.name(),
        param_size: config.parameter_count.map(param_size),
        precision: config.precision.as_deref().or(float),
        quantization: config.quantization.as_deref().or(if float.is_none() { variant } else { None }),
    };
    let general = General {
        authors: &config.authors,
        datasets_url: &config.datasets_url,
        description: config.description.as_deref(),
        doc_url: config.doc_url.as_deref(),
        family: config.family.as_deref(),
        licenses: &config.licenses,
        name: config.name.as_deref(),
        revision: config.revision.as_deref(),
        source_url: config.source_url.as_deref(),
        title: config.title.as_deref(),
        vendor: config.vendor.as_deref(),
        version: config.version.as_deref(),
    };
    // The layers are not archived or compressed, so the hash of a layer's content is the layer's digest.
    let diff_ids = files.iter().map(|f| format!("sha256:{}", f.blob.digest())).collect();
    Ok(json::canonical(&Document {
        config: technical,
        descriptor: general,
        modelfs: ModelFs { diff_ids, r#type: "layers" },
    }))
}

/// The manifest of a model.
pub(crate) fn manifest(
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: &BTreeMap<String, String>,
) -> ImageManifest {
    ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(media::media_type(media::IMAGE_MANIFEST))
        .artifact_type(media::media_type(media::MODEL_MANIFEST))
        .config(config)
        .layers(layers)
        .annotations(annotations.clone().into_iter().collect::<std::collections::HashMap<_, _>>())
        .build()
        .expect("every required field is set")
}

/// The media type of a layer.
pub(crate) fn layer_type(kind: LayerKind) -> &'static str {
    match kind {
        LayerKind::Weight => media::WEIGHT_RAW,
        LayerKind::WeightConfig => media::WEIGHT_CONFIG_RAW,
        LayerKind::Doc | LayerKind::TensorMap => media::DOC_RAW,
        LayerKind::Code => media::CODE_RAW,
    }
}

/// The descriptor of a file's layer.
pub(crate) fn layer(file: &StagedFile, mut blob: Descriptor) -> Descriptor {
    let mut annotations = std::collections::HashMap::from([
        (media::FILEPATH.to_owned(), file.name.clone()),
        (media::TITLE.to_owned(), file.name.clone()),
    ]);
    if file.untested {
        annotations.insert(media::MEDIATYPE_UNTESTED.to_owned(), "true".to_owned());
    }
    if file.kind == LayerKind::TensorMap {
        annotations.insert(media::TENSOR_MAP.to_owned(), "v1".to_owned());
    }
    blob.set_annotations(Some(annotations));
    blob
}

/// The specification's word for a variant that is a float type.
fn float_precision(variant: &str) -> Option<&'static str> {
    match variant.to_ascii_lowercase().as_str() {
        "f32" | "fp32" => Some("float32"),
        "f16" | "fp16" => Some("float16"),
        "bf16" => Some("bfloat16"),
        _ => None,
    }
}

fn check(config: &ModelConfig) -> Result<(), Error> {
    let invalid = |field: &str, expected, found: &str| {
        let problem = FieldProblem { expected, found: found.to_owned() };
        Err(Error::InvalidField { field: field.to_owned(), problem })
    };
    if config.name.as_deref() == Some("") {
        return invalid("name", "at least one character", "");
    }
    for word in config.precision.iter().flat_map(|p| p.split(',')) {
        if !PRECISIONS.contains(&word) {
            return invalid("precision", "a precision of the ModelPack specification, such as `float16`", word);
        }
    }
    for language in &config.languages {
        if language.len() != 2 || !language.bytes().all(|b| b.is_ascii_lowercase()) {
            return invalid("languages", "an ISO 639 code of two lower-case letters", language);
        }
    }
    if let Some(license) = config.licenses.iter().find(|l| l.trim().is_empty()) {
        return invalid("licenses", "an SPDX licence expression", license);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameter_counts_round_to_one_digit() {
        for (count, text) in [
            (0, "0K"),
            (512, "0.5K"),
            (1_147_200, "1.1M"),
            (134_515_008, "134.5M"),
            (999_949, "999.9K"),
            (999_950, "1M"),
            (8_030_261_248, "8B"),
            (1_000_000_000_000, "1T"),
            (u64::MAX, "18446.7Q"),
        ] {
            assert_eq!(param_size(count), text);
        }
    }

    #[test]
    fn a_field_outside_its_vocabulary_is_named() {
        let bad = ModelConfig { precision: Some("float16,fp8".into()), ..ModelConfig::default() };
        assert_eq!(
            check(&bad).unwrap_err().to_string(),
            "cannot describe the model\n  field `precision`\n  expected: a precision of the ModelPack specification, \
             such as `float16`\n  found:    `fp8`"
        );
        let bad = ModelConfig { languages: vec!["eng".into()], ..ModelConfig::default() };
        assert!(check(&bad).unwrap_err().to_string().contains("`languages`"));
    }
}
