//! `mlpack publish`

use super::modelfile::{self, Settings};
use super::registry::{Place, Source};
use crate::cli::{EcosystemArg, PublishArgs, RegistryArgs};
use crate::exit::Exit;
use crate::keys;
use crate::show::{Show, bytes, table};
use anyhow::{Context as _, bail};
use mlpack_convert::FileType;
use mlpack_fs::Sha256;
use mlpack_gguf::GgufFile;
use mlpack_oci::{
    Artifact, AttachedBundle, BaseImage, BasePlatform, Blob, Details, Ecosystem, ExtraFile, ImageOptions, LayerKind,
    Layout, MappedTensor, ModelConfig, ModelFormat, Modelfile, Package, Packed, PublishRequest, TensorMap,
};
use mlpack_provenance::{
    Artifact as Made, Bundle, Dependency, Identity, PrivateKey, Role, Statement, Step, StepKind, Store, TENSORS,
    TensorContent, sidecar_path, signatures_of, tensors_digest,
};
use mlpack_registry::{Document, PushRequest, Wanted};
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Publishes artifacts to a registry or into an OCI image layout.
pub fn publish(args: &PublishArgs, out: &Show) -> anyhow::Result<Exit> {
    let [artifacts @ .., reference] = args.artifacts_and_ref.as_slice() else {
        unreachable!("clap asks for two values")
    };
    let target = Place::target(reference, &args.registry)?;
    if let [source] = artifacts
        && source.starts_with("oci:")
    {
        return copy(source, &target, &args.registry, out);
    }
    let settings = Settings::new(&args.modelfile)?;
    let paths: Vec<PathBuf> = artifacts.iter().map(PathBuf::from).collect();
    let (image, mount_from) = image_options(args, &target, out)?;
    let key = args.key.as_deref().map(|key| keys::private_key(key, &args.passphrase)).transpose()?;
    let how = How {
        key,
        ecosystems: args.ecosystems.iter().map(|e| ecosystem(*e)).collect(),
        image,
        licenses: args.modelfile.licenses.clone(),
        mount_from,
    };
    let (text, value) = publish_into(&paths, &target, &settings, &how, &BTreeMap::new(), out)?;
    out.result(&text, &value);
    Ok(Exit::Done)
}

fn ecosystem(argument: EcosystemArg) -> Ecosystem {
    match argument {
        EcosystemArg::Modelpack => Ecosystem::ModelPack,
        EcosystemArg::Ollama => Ecosystem::Ollama,
        EcosystemArg::Docker => Ecosystem::Docker,
        EcosystemArg::Image => Ecosystem::Image,
    }
}

/// How artifacts are published.
#[derive(Default)]
pub struct How {
    pub ecosystems: Vec<Ecosystem>,
    pub image: ImageOptions,
    pub licenses: Vec<PathBuf>,
    /// Repositories of the target's registry that have blobs of the base.
    pub mount_from: Vec<String>,
    /// The key that signs which files are in which manifests.
    pub key: Option<PrivateKey>,
}

fn image_options(args: &PublishArgs, target: &Place, out: &Show) -> anyhow::Result<(ImageOptions, Vec<String>)> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => bail!("`{text}` is not a label or a variable\n  expected: NAME=VALUE\n  found:    `{text}`"),
    };
    let image = &args.image;
    for variable in &image.env {
        pair(variable)?;
    }
    let some = |words: &Vec<String>| (!words.is_empty()).then(|| words.clone());
    let mut mount_from = Vec::new();
    let base = match image.base.as_deref().map(|base| Place::new(base, &args.registry)).transpose()? {
        None => None,
        Some(Place::Layout { dir, tag }) => Some(BaseImage::of_layout(&Layout::open(&dir)?, &tag)?),
        Some(place) => {
            let (source, root) = Source::open(&place)?;
            let mut base = registry_base(&source, &root)?;
            match (&place, target) {
                (Place::Registry { client, repository, .. }, Place::Registry { client: other, .. })
                    if client.host() == other.host() =>
                {
                    mount_from.push(repository.clone());
                }
                _ => fetch_layers(&source, &mut base, &args.artifacts_and_ref[0], out)?,
            }
            Some(base)
        }
    };
    let options = ImageOptions {
        base,
        entrypoint: some(&image.entrypoint),
        command: some(&image.words),
        environment: image.env.clone(),
        labels: image.label.iter().map(pair).collect::<anyhow::Result<_>>()?,
    };
    Ok((options, mount_from))
}

/// Brings the layers of a base here, into the store beside the artifact.
fn fetch_layers(source: &Source<'_>, base: &mut BaseImage, artifact: &str, out: &Show) -> anyhow::Result<()> {
    let folder = Path::new(artifact).parent().unwrap_or(Path::new(""));
    let cache = Store::beside(folder).dir().join("base");
    let mut wanted: Vec<Wanted> = Vec::new();
    for blob in base.platforms.iter().flat_map(|platform| &platform.layers) {
        let path = cache.join(blob.digest().to_string());
        if !path.is_file() && !wanted.iter().any(|w| w.path == path) {
            wanted.push(Wanted { digest: *blob.digest(), byte_len: blob.byte_len(), path, known: Vec::new() });
        }
    }
    out.step(&format!("pulling {} layers of {}", wanted.len(), base.name));
    source.fetch(&wanted, &|_| {})?;
    for blob in base.platforms.iter_mut().flat_map(|platform| &mut platform.layers) {
        *blob = Blob::of_file(&cache.join(blob.digest().to_string()), None)?;
    }
    Ok(())
}

/// The documents of a base in a registry; its layers stay there until it is known whether the target needs them.
fn registry_base(source: &Source<'_>, root: &Document) -> anyhow::Result<BaseImage> {
    let Source::Registry(repository) = source else { unreachable!("the caller has no layout") };
    let name = repository.to_string();
    let no_base = |found: &str| mlpack_oci::Error::NoBase {
        base: name.clone(),
        expected: "an image with a config and layers",
        found: found.to_owned(),
    };
    let root_value: Value = serde_json::from_slice(&root.bytes).map_err(|e| no_base(&e.to_string()))?;
    let entries = root_value.get("manifests").and_then(Value::as_array).cloned();
    let is_index = entries.is_some();
    let mut base = BaseImage { name: name.clone(), platforms: Vec::new(), is_index };
    let digest = |value: &Value| value.get("digest")?.as_str()?.strip_prefix("sha256:")?.parse::<Sha256>().ok();
    for entry in entries.map_or_else(|| vec![None], |entries| entries.into_iter().map(Some).collect()) {
        let manifest: Value = match &entry {
            None => root_value.clone(),
            Some(entry) => {
                let digest = digest(entry).ok_or_else(|| no_base("an entry without a sha256 digest"))?;
                serde_json::from_slice(&source.document(&digest)?.bytes).map_err(|e| no_base(&e.to_string()))?
            }
        };
        let config = manifest.get("config").and_then(digest).ok_or_else(|| no_base("a manifest without a config"))?;
        let config = repository.small_blob(&config)?;
        let config: Value = serde_json::from_slice(&config).map_err(|e| no_base(&e.to_string()))?;
        let layers = base.layers_of(&manifest)?.into_iter().map(|(digest, len)| Blob::elsewhere(digest, len)).collect();
        base.platforms.push(BasePlatform { entry, manifest, config, layers });
    }
    Ok(base)
}

/// Copies what a tag of a layout leads to.
fn copy(source: &str, target: &Place, registry: &RegistryArgs, out: &Show) -> anyhow::Result<Exit> {
    let Place::Layout { dir, tag } = Place::new(source, registry)? else { unreachable!("the reference is a layout's") };
    let layout = Layout::open(&dir)?;
    let package = Package::of_layout(&layout, &tag, target.tag())?;
    out.step(&format!("publishing {source} to {}", target.name()));
    let (written, skipped) = send(&package, target, &[], &dir, out)?;
    let rows: Vec<(String, Sha256)> = package.tags().iter().map(|(tag, digest)| (tag.to_string(), *digest)).collect();
    let (text, value) = report(target, &rows, written, skipped);
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// Writes Modelfiles, publishes, and records the step; shared with `release`. `digests` are those of files that the caller
/// has just made.
pub fn publish_into(
    paths: &[PathBuf],
    target: &Place,
    settings: &Settings,
    how: &How,
    digests: &BTreeMap<PathBuf, Sha256>,
    out: &Show,
) -> anyhow::Result<(String, Value)> {
    let artifacts =
        paths.iter().map(|path| artifact(path, settings, &how.licenses, out)).collect::<anyhow::Result<Vec<_>>>()?;
    out.step(&format!("publishing {} artifacts to {}", artifacts.len(), target.name()));
    // What the target cannot be is said before anything is read.
    if let Place::Layout { dir, .. } = target {
        Layout::open_or_create(dir)?;
    }
    let annotations = BTreeMap::new();
    let request = PublishRequest {
        artifacts: &artifacts,
        tag: target.tag(),
        ecosystems: &how.ecosystems,
        image: &how.image,
        annotations: &annotations,
        digests,
    };
    let mut packed = mlpack_oci::pack(&request)?;
    if !packed.left_out.is_empty() {
        let names: Vec<String> = packed.left_out.iter().map(|p| p.display().to_string()).collect();
        out.warnings(&[format!("hidden files are not published: {}", names.join(", "))]);
    }
    let folder = match target {
        Place::Layout { dir, .. } => dir.parent().unwrap_or(Path::new("")).to_owned(),
        Place::Registry { .. } => paths.first().and_then(|p| p.parent()).unwrap_or(Path::new("")).to_owned(),
    };
    let tensors: BTreeMap<&Path, Sha256> = artifacts
        .iter()
        .filter_map(|artifact| Some((artifact.path.as_path(), tensors(artifact).transpose()?)))
        .map(|(path, digest)| digest.map(|digest| (path, digest)))
        .collect::<anyhow::Result<_>>()?;
    let step = package_step(&packed, &tensors, target);
    let statement = step.statement()?;
    let signature = how.key.as_ref().map(|key| Bundle::sign(statement.bytes(), key));
    if let Some(signature) = &signature {
        let attached = attached(signature, &statement);
        for manifest in packed.manifests.iter().chain(&packed.index) {
            mlpack_oci::attach_bundle(&mut packed.package, &manifest.descriptor, &attached);
        }
    }
    let (written, skipped) = send(&packed.package, target, &how.mount_from, &folder, out)?;
    let store = Store::beside(&folder);
    store.record(&step)?;
    if let Some(signature) = signature {
        store.add_signature(&statement, signature)?;
    }
    let rows: Vec<(String, Sha256)> =
        packed.manifests.iter().chain(&packed.index).map(|m| (m.tag.to_string(), m.digest)).collect();
    Ok(report(target, &rows, written, skipped))
}

/// Stores or pushes a package; the bytes that were written and those that were there. `folder` is where a push keeps its
/// journal.
fn send(
    package: &Package,
    target: &Place,
    mount_from: &[String],
    folder: &Path,
    out: &Show,
) -> anyhow::Result<(u64, u64)> {
    let (client, name) = match target {
        Place::Layout { dir, .. } => {
            let stored = package.store(&Layout::open_or_create(dir)?)?;
            return Ok((stored.bytes_written, stored.bytes_skipped));
        }
        Place::Registry { client, repository, .. } => (client, repository),
    };
    let repository = client.repository(name);
    let note = |subject: &str, suffix: &str| {
        let name = format!("{}{suffix}", &Sha256::of(subject.as_bytes()).to_string()[..16]);
        Store::beside(folder).dir().join("push").join(name)
    };
    let journal = note(&repository.to_string(), ".json");
    let places = note(client.host(), ".blobs.json");
    let bar = out.progress(package.byte_len());
    let progress = |n: i64| match u64::try_from(n) {
        Ok(n) => bar.inc(n),
        Err(_) => bar.dec(n.unsigned_abs()),
    };
    let request =
        PushRequest { package, journal: Some(&journal), mount_from, places: Some(&places), progress: &progress };
    let pushed = mlpack_registry::push(&repository, &request)?;
    bar.finish_and_clear();
    Ok((pushed.bytes_sent, pushed.bytes_skipped))
}

/// An artifact with what is known about it; of a GGUF the Modelfile is written beside it.
pub fn artifact(path: &Path, settings: &Settings, licenses: &[PathBuf], out: &Show) -> anyhow::Result<Artifact> {
    let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let mut extra = Vec::new();
    let mut details = Details::default();
    let (format, variant, config) = if path.is_dir() {
        (directory_format(path)?, None, ModelConfig::default())
    } else if is_gguf {
        let gguf = GgufFile::open(path)?;
        let modelfile = modelfile::write_beside(&gguf, settings, out)?;
        extra.push(extra_file(&modelfile, LayerKind::WeightConfig));
        let variant = file_type(gguf.metadata());
        details = gguf_details(&gguf, &modelfile)?;
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
        details.claims = Some(claims);
    }
    details.bundles = signatures_of(path).iter().map(|(bundle, statement)| attached(bundle, statement)).collect();
    extra.extend(licenses.iter().map(|path| extra_file(path, LayerKind::Doc)));
    Ok(Artifact { path: path.to_owned(), format, variant: variant.map(str::to_owned), config, extra, details })
}

/// ONNX where the directory has a graph, below `onnx/` as transformers.js wants it, too; else safetensors.
fn directory_format(dir: &Path) -> anyhow::Result<ModelFormat> {
    for dir in [dir.to_owned(), dir.join("onnx")] {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list `{}`", dir.display()))?;
            if Path::new(&entry.file_name()).extension().is_some_and(|e| e == "onnx") {
                return Ok(ModelFormat::Onnx);
            }
        }
    }
    Ok(ModelFormat::Safetensors)
}

/// Metadata that is no use in a registry is left out from this length on.
const MAX_METADATA_LEN: usize = 1024;

fn gguf_details(gguf: &GgufFile, modelfile: &Path) -> anyhow::Result<Details> {
    let metadata = gguf.metadata();
    let text = |value: &MetaValue| match value {
        MetaValue::Array(_) => None,
        MetaValue::String(text) => Some(text.clone()),
        // "3 (u32)" without its type.
        value => value.to_string().rsplit_once(" (").map(|(value, _)| value.to_owned()),
    };
    let scalars = metadata.iter().filter_map(|(key, value)| Some((key.to_owned(), text(value)?)));
    let architecture = match metadata.find("general.architecture") {
        Some(MetaValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let context = architecture.as_ref().and_then(|a| metadata.find(&format!("{a}.context_length")));
    Ok(Details {
        modelfile: Some(Modelfile::open(modelfile)?),
        context_length: context.and_then(MetaValue::as_u64),
        architecture,
        file_type: metadata.find("general.file_type").and_then(MetaValue::as_u64).and_then(|id| u32::try_from(id).ok()),
        metadata: scalars.filter(|(_, text)| text.len() <= MAX_METADATA_LEN).collect(),
        tensor_map: Some(tensor_map(gguf)?.to_bytes()),
        claims: None,
        bundles: Vec::new(),
    })
}

/// Where each tensor is, and what its bytes hash to; the whole file is hashed meanwhile.
fn tensor_map(gguf: &GgufFile) -> anyhow::Result<TensorMap> {
    let tensors = || {
        let mut tensors: Vec<MappedTensor> = Vec::with_capacity(gguf.tensors().len());
        for tensor in gguf.tensors() {
            let (offset, byte_len) = (tensor.range.start, tensor.range.end - tensor.range.start);
            let sha256 = Sha256::of(gguf.bytes(tensor));
            gguf.release(tensor.range.clone());
            tensors.push(MappedTensor { name: tensor.name.clone(), offset, byte_len, sha256 });
        }
        tensors.sort_by_key(|tensor| tensor.offset);
        tensors
    };
    let (tensors, file) = std::thread::scope(|scope| {
        let file = scope.spawn(|| mlpack_fs::hash_file(gguf.path()));
        (tensors(), file.join().expect("hashing a file does not panic"))
    });
    let (file, byte_len) = file?;
    Ok(TensorMap { file, byte_len, tensors })
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

fn attached(bundle: &Bundle, statement: &Statement) -> AttachedBundle {
    AttachedBundle { predicate_type: statement.predicate_type().to_owned(), bytes: bundle.bytes().to_vec() }
}

/// What the tensors of a GGUF are known by, whatever else its file says; its tensor map has hashed each of them.
fn tensors(artifact: &Artifact) -> anyhow::Result<Option<Sha256>> {
    let Some(map) = &artifact.details.tensor_map else { return Ok(None) };
    let map = TensorMap::parse(map)?;
    let digests: BTreeMap<&str, Sha256> = map.tensors.iter().map(|t| (t.name.as_str(), t.sha256)).collect();
    let gguf = GgufFile::open(&artifact.path)?;
    let content = gguf.tensors().iter().filter_map(|tensor| {
        Some(TensorContent {
            name: tensor.name.clone(),
            stored: tensor.ty.name().to_owned(),
            shape: tensor.shape.dims().to_vec(),
            sha256: *digests.get(tensor.name.as_str())?,
        })
    });
    Ok(Some(tensors_digest(&content.collect::<Vec<_>>())))
}

/// What was packed into which manifests. `tensors` are the identities of the tensors of files.
fn package_step(packed: &Packed, tensors: &BTreeMap<&Path, Sha256>, target: &Place) -> Step {
    let files: BTreeMap<Sha256, &Path> =
        packed.package.blobs().filter_map(|blob| Some((*blob.digest(), blob.file()?))).collect();
    let mut dependencies = Vec::new();
    for manifest in &packed.manifests {
        let document = packed.package.document(&manifest.digest).expect("a manifest is in its package");
        let document: Value = serde_json::from_slice(&document.bytes).expect("a document of ours is JSON");
        for layer in document.get("layers").and_then(Value::as_array).into_iter().flatten() {
            let digest =
                layer.get("digest").and_then(Value::as_str).and_then(|d| d.strip_prefix("sha256:")?.parse().ok());
            if let Some((digest, path)) = digest.and_then(|digest| Some((digest, files.get(&digest)?))) {
                let mut dependency = Dependency::file(Role::Artifact, path, digest);
                if let Some(tensors) = tensors.get(*path) {
                    dependency = dependency.annotate(TENSORS, tensors.to_string());
                }
                if !dependencies.contains(&dependency) {
                    dependencies.push(dependency);
                }
            }
        }
    }
    let parameters = Map::from_iter([("tag".to_owned(), Value::from(packed.root().tag.to_string()))]);
    let mut step = Step::new(StepKind::Package, parameters, dependencies);
    let made = packed.manifests.iter().chain(&packed.index).map(|m| Made {
        name: format!("manifest:{}", m.tag),
        sha256: m.digest,
        identity: Identity::File,
        path: match target {
            Place::Layout { dir, .. } => dir.join("blobs/sha256").join(m.digest.to_string()),
            // Not on this machine: no place is remembered.
            Place::Registry { .. } => PathBuf::from(target.name()),
        },
    });
    step.outputs = made.collect();
    step
}

fn report(target: &Place, manifests: &[(String, Sha256)], written: u64, skipped: u64) -> (String, Value) {
    let rows = manifests.iter().map(|(tag, digest)| [format!("{}:{tag}", target.name()), format!("sha256:{digest}")]);
    let mut text = table(["reference", "manifest"], rows);
    text.push_str(&format!("{} written, {} were there already\n", bytes(written), bytes(skipped)));
    let list: Vec<_> =
        manifests.iter().map(|(tag, digest)| json!({"tag": tag, "digest": format!("sha256:{digest}")})).collect();
    let mut value = json!({"schema": "mlpack.publish/v1"});
    match target {
        Place::Layout { dir, .. } => value["layout"] = json!(dir),
        Place::Registry { .. } => value["repository"] = json!(target.name()),
    }
    value["manifests"] = json!(list);
    value["bytes_written"] = json!(written);
    value["bytes_skipped"] = json!(skipped);
    (text, value)
}
