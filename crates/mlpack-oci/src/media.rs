//! Media types and annotation keys, with the documents that define them.

use oci_spec::image::MediaType;

/// OCI image-spec v1.1, `manifest.md`.
pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image-spec v1.1, `image-index.md`.
pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest v2, schema 2: the only one that Ollama asks for.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list v2: an index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// ModelPack model-spec (d78bf32, 2026-06-08), `docs/spec.md`: the manifest's `artifactType`.
pub const MODEL_MANIFEST: &str = "application/vnd.cncf.model.manifest.v1+json";
/// ModelPack, `docs/config.md`: the config blob.
pub const MODEL_CONFIG: &str = "application/vnd.cncf.model.config.v1+json";
/// ModelPack: an unarchived weights file.
pub const WEIGHT_RAW: &str = "application/vnd.cncf.model.weight.v1.raw";
/// ModelPack: an unarchived configuration file of the weights (tokenizer.json, config.json, Modelfile).
pub const WEIGHT_CONFIG_RAW: &str = "application/vnd.cncf.model.weight.config.v1.raw";
/// ModelPack: an unarchived document (README, LICENSE, provenance statements).
pub const DOC_RAW: &str = "application/vnd.cncf.model.doc.v1.raw";
/// ModelPack: an unarchived code file.
pub const CODE_RAW: &str = "application/vnd.cncf.model.code.v1.raw";

/// ModelPack `docs/annotations.md`: the path of a layer's file inside the model, with `/` between components.
pub const FILEPATH: &str = "org.cncf.model.filepath";
/// ModelPack `docs/annotations.md`: "true" when a layer's media type was inferred from the file name alone.
pub const MEDIATYPE_UNTESTED: &str = "org.cncf.model.file.mediatype.untested";
/// OCI image-spec `annotations.md`: the title; on a layer, the file name that generic clients give it.
pub const TITLE: &str = "org.opencontainers.image.title";
/// OCI image-spec `annotations.md`: the licences as an SPDX expression.
pub const LICENSES: &str = "org.opencontainers.image.licenses";
/// OCI image-spec `image-layout.md`: the tag of an entry of `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// On a manifest and on its entry in a variant index: gguf, safetensors or onnx.
///
/// ModelPack has no vocabulary for variants; the prefix is ours and is not a domain, because the domain of that name
/// belongs to another project.
pub const FORMAT: &str = "vnd.mlpack.format";
/// On the same: the variant's label, such as `Q4_K_M`.
pub const VARIANT: &str = "vnd.mlpack.variant";
/// On the same: the bytes of all weight layers, in decimal.
pub const WEIGHT_SIZE: &str = "vnd.mlpack.weight.size";
/// On the same: the digest of the weight layer, where there is exactly one.
pub const WEIGHT_DIGEST: &str = "vnd.mlpack.weight.digest";

/// On the layer that is a GGUF's tensor map: its version.
pub const TENSOR_MAP: &str = "vnd.mlpack.tensor-map";
/// Statements about an artifact, one JSON object a line: a referrer's artifact type and its layer's type.
pub const CLAIMS: &str = "application/vnd.mlpack.claims.v1+jsonl";
/// Sigstore protobuf-specs v0.3; cosign 3 (d6d86c22) finds a referrer by this artifact type, and its layer has it too.
pub const SIGSTORE_BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// OCI image-spec v1.1, `manifest.md`: the config of an artifact that has none.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// OCI image-spec v1.1: the config of a runnable image.
pub const IMAGE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI image-spec v1.1: a layer that is not compressed.
pub const IMAGE_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker image config v1: also the type of Ollama's config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Ollama (fb30760, 2026-08-21, `server/images.go`): layer types are this and `model`, `template`, `system`, `license`,
/// `params`, `messages`, ….
pub const OLLAMA_LAYER: &str = "application/vnd.ollama.image.";

/// Docker Model Runner (642c721, 2026-07-22): the config of a model of known files.
pub const DOCKER_MODEL_CONFIG: &str = "application/vnd.docker.ai.model.config.v0.1+json";
/// The same for a model whose files are layers with paths.
pub const DOCKER_MODEL_CONFIG_FILES: &str = "application/vnd.docker.ai.model.config.v0.2+json";
/// Docker Model Runner: a GGUF file.
pub const DOCKER_GGUF: &str = "application/vnd.docker.ai.gguf.v3";
/// Docker Model Runner: a safetensors file.
pub const DOCKER_SAFETENSORS: &str = "application/vnd.docker.ai.safetensors";
/// Docker Model Runner: a licence.
pub const DOCKER_LICENSE: &str = "application/vnd.docker.ai.license";
/// Docker Model Runner: another file of a model.
pub const DOCKER_FILE: &str = "application/vnd.docker.ai.model.file";

/// KitOps (a041892, 2025-08-19): the config, a Kitfile as JSON.
pub const KIT_CONFIG: &str = "application/vnd.kitops.modelkit.config.v1+json";
/// KitOps: layer types start with this.
pub const KIT_LAYER: &str = "application/vnd.kitops.modelkit.";

/// The `oci-spec` value of one of the media types above.
pub(crate) fn media_type(name: &str) -> MediaType {
    MediaType::from(name)
}
