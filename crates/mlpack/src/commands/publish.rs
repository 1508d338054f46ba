//! `mlpack publish`

use super::modelfile::{self, Settings};
use crate::cli::PublishArgs;
use crate::exit::Exit;
use crate::show::{Show, bytes, table};
use anyhow::bail;
use mlpack_convert::FileType;
use mlpack_fs::Sha256;
use mlpack_gguf::GgufFile;
use mlpack_oci::{
    Artifact, ExtraFile, LayerKind, Layout, ModelConfig, ModelFormat, PublishRequest, Published, Reference, Tag,
};
use mlpack_provenance::{Artifact as Made, Dependency, Identity, Role, Step, StepKind, Store, sidecar_path};
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Publishes artifacts into an OCI image layout.
pub fn publish(args: &PublishArgs, out: &Show) -> anyhow::Result<Exit> {
    let [artifacts @ .., reference] = args.artifacts_and_ref.as_slice() else {
        unreachable!("clap asks for two values")
    };
    let settings = Settings::new(&args.modelfile)?;
    let paths: Vec<PathBuf> = artifacts.iter().map(PathBuf::from).collect();
    let (dir, tag) = layout_reference(reference)?;
    let published = publish_into(&paths, &dir, &tag, &settings, &args.modelfile.licenses, &BTreeMap::new(), out)?;
    let (text, value) = report(&dir, &published);
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// The layout and the tag that a reference names.
pub fn layout_reference(text: &str) -> anyhow::Result<(PathBuf, Tag)> {
    match text.parse::<Reference>()? {
        Reference::Layout { dir, tag } => Ok((dir, tag)),
        Reference::Registry { .. } => bail!(
            "registries are not available in this version\n  expected: oci:DIR:TAG\n  found:    `{text}`\n\n\
             hint: publish into a layout and copy it with skopeo copy oci:DIR:TAG docker://{text}"
        ),
    }
}

/// Writes Modelfiles, publishes, and records the step; shared with `release`. `digests` are those of files that the caller
/// has just made.
pub fn publish_into(
    paths: &[PathBuf],
    dir: &Path,
    tag: &Tag,
    settings: &Settings,
    licenses: &[PathBuf],
    digests: &BTreeMap<PathBuf, Sha256>,
    out: &Show,
) -> anyhow::Result<Published> {
    let artifacts =
        paths.iter().map(|path| artifact(path, settings, licenses, out)).collect::<anyhow::Result<Vec<_>>>()?;
    out.step(&format!("publishing {} artifacts into {}", artifacts.len(), dir.display()));
    let layout = Layout::open_or_create(dir)?;
    let annotations = BTreeMap::new();
    let request = PublishRequest { artifacts: &artifacts, tag, annotations: &annotations, digests };
    let published = mlpack_oci::publish(&layout, &request)?;
    if !published.left_out.is_empty() {
        let names: Vec<String> = published.left_out.iter().map(|p| p.display().to_string()).collect();
        out.warnings(&[format!("hidden files are not published: {}", names.join(", "))]);
    }
    record(&artifacts, &layout, &published)?;
    Ok(published)
}

fn artifact(path: &Path, settings: &Settings, licenses: &[PathBuf], out: &Show) -> anyhow::Result<Artifact> {
    let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let mut extra = Vec::new();
    let (format, variant, config) = if path.is_dir() {
        (ModelFormat::Safetensors, None, ModelConfig::default())
    } else if is_gguf {
        let gguf = GgufFile::open(path)?;
        let modelfile = modelfile::write_beside(&gguf, settings, out)?;
        extra.push(extra_file(&modelfile, LayerKind::WeightConfig));
        let variant = file_type(gguf.metadata());
        (ModelFormat::Gguf, variant, config(&gguf, variant))
    } else {
        bail!(
            "cannot publish `{}`\n  expected: a GGUF file or a model directory\n  found:    {}",
            path.display(),
            if path.exists() { "another kind of file" } else { "nothing there" }
        );
    };
    let claims = sidecar_path(path);
    if claims.is_file() {
        extra.push(extra_file(&claims, LayerKind::Doc));
    }
    extra.extend(licenses.iter().map(|path| extra_file(path, LayerKind::Doc)));
    Ok(Artifact { path: path.to_owned(), format, variant: variant.map(str::to_owned), config, extra })
}

fn extra_file(path: &Path, kind: LayerKind) -> ExtraFile {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ExtraFile { path: path.to_owned(), name, kind }
}

/// The variant that a GGUF states.
fn file_type(metadata: &Metadata) -> Option<&'static str> {
    let Some(MetaValue::U32(id)) = metadata.find("general.file_type") else { return None };
    FileType::ALL.iter().find(|ty| ty.id == *id).map(|ty| ty.name)
}

/// What a GGUF says about its model.
fn config(gguf: &GgufFile, variant: Option<&str>) -> ModelConfig {
    let string = |key: &str| match gguf.metadata().find(key) {
        Some(MetaValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let parameter_count = gguf.tensors().iter().filter_map(|t| t.shape.element_count()).sum();
    let architecture = string("general.architecture");
    ModelConfig {
        name: string("general.name"),
        description: string("general.description"),
        family: architecture.clone(),
        architecture,
        version: string("general.version"),
        licenses: string("general.license").into_iter().collect(),
        parameter_count: Some(parameter_count),
        quantization: variant.filter(|v| !matches!(*v, "F32" | "F16" | "BF16")).map(str::to_owned),
        ..ModelConfig::default()
    }
}

/// Records what was packed into which manifests, in the store beside the layout.
fn record(artifacts: &[Artifact], layout: &Layout, published: &Published) -> anyhow::Result<()> {
    let mut dependencies = Vec::new();
    for manifest in &published.manifests {
        let layers = layout.read_manifest(&manifest.descriptor)?;
        for layer in layers.layers() {
            let title = layer.annotations().as_ref().and_then(|a| a.get("org.opencontainers.image.title"));
            let digest = layer.digest().to_string();
            let sha256 = digest.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
            let path = title.and_then(|title| source_of(artifacts, title));
            if let (Some(path), Some(sha256)) = (path, sha256) {
                dependencies.push(Dependency::file(Role::Artifact, &path, sha256));
            }
        }
    }
    let tag = published.root().tag.to_string();
    let parameters = Map::from_iter([("tag".to_owned(), Value::from(tag))]);
    let mut step = Step::new(StepKind::Package, parameters, dependencies);
    step.outputs = published
        .manifests
        .iter()
        .chain(&published.index)
        .map(|m| Made {
            name: format!("manifest:{}", m.tag),
            sha256: m.digest,
            identity: Identity::File,
            path: layout.blob_path(&m.digest),
        })
        .collect();
    Store::beside(layout.dir().parent().unwrap_or(Path::new(""))).record(&step)?;
    Ok(())
}

/// The file that became the layer with that title.
fn source_of(artifacts: &[Artifact], title: &str) -> Option<PathBuf> {
    artifacts.iter().find_map(|artifact| {
        if artifact.path.is_dir() {
            return Some(artifact.path.join(title)).filter(|path| path.is_file());
        }
        let own = artifact.path.file_name().is_some_and(|name| name == title).then(|| artifact.path.clone());
        own.or_else(|| artifact.extra.iter().find(|e| e.name == title).map(|e| e.path.clone()))
    })
}

pub fn report(dir: &Path, published: &Published) -> (String, Value) {
    let rows = published
        .manifests
        .iter()
        .chain(&published.index)
        .map(|m| [format!("oci:{}:{}", dir.display(), m.tag), format!("sha256:{}", m.digest)]);
    let mut text = table(["reference", "manifest"], rows);
    text.push_str(&format!(
        "{} written, {} were there already\n",
        bytes(published.bytes_written),
        bytes(published.bytes_skipped)
    ));
    let list: Vec<_> = published
        .manifests
        .iter()
        .chain(&published.index)
        .map(|m| json!({"tag": m.tag.as_str(), "digest": format!("sha256:{}", m.digest)}))
        .collect();
    let value = json!({
        "schema": "mlpack.publish/v1", "layout": dir, "manifests": list,
        "bytes_written": published.bytes_written, "bytes_skipped": published.bytes_skipped,
    });
    (text, value)
}
