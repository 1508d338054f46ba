//! Telling provenance what a command read and made. Digests come from the work itself; only small files are hashed here.

use crate::show::Show;
use anyhow::bail;
use mlpack_convert::{Done, Plan, Resources, SealedFile, Source};
use mlpack_fs::{FileStamp, Sha256, hash_file};
use mlpack_provenance::{
    Artifact, BaseModel, Dependency, FoundRun, OtherBase, Role, RunSource, Step, StepKind, Store, find_run, other_bases,
};
use mlpack_tensor::{Escaped, MetaValue, Metadata};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The annotation with the place of one of several adapters.
pub const ORDER: &str = "order";

/// The tag of MLflow with the repository of the code that trained.
const REPOSITORY: &str = "mlflow.source.git.repoURL";

/// Bytes of the longest graph that is asked what it says.
const MAX_GRAPH_LEN: u64 = 64 << 20;

/// Everything that a run read, once it is done: digests of its source files are noted, so that the next step need not hash
/// them, and adapters that were trained on another base are warned about.
pub fn read(
    source: &Source,
    plan: &Plan,
    done: &Done,
    runs: &[FoundRun],
    store: &Store,
    out: &Show,
) -> anyhow::Result<Vec<Dependency>> {
    for (file, input) in source.files().iter().zip(&done.inputs) {
        store.note_digest(file.path(), file.stamp(), input.sha256)?;
    }
    let weights: Vec<_> = done.inputs.iter().map(|file| (file.path.clone(), file.sha256)).collect();
    let dependencies = dependencies(source, plan, &weights, runs, Some(store))?;
    for OtherBase { adapter, base, sha256 } in other_bases(&dependencies)? {
        out.warnings(&[format!(
            "adapter `{}` was trained on `{}` with sha256 {sha256}, which no file of the base has that it was merged into",
            adapter.display(),
            Escaped(&base),
        )]);
    }
    Ok(dependencies)
}

/// Everything that a merge, a conversion or a quantization read. `weights` are the files with weights and their digests;
/// runs are recorded where a store is given.
fn dependencies(
    source: &Source,
    plan: &Plan,
    weights: &[(PathBuf, Sha256)],
    runs: &[FoundRun],
    store: Option<&Store>,
) -> anyhow::Result<Vec<Dependency>> {
    let adapters = source.adapters();
    let weights_role = match adapters {
        _ if source.is_adapter() => Role::Adapter,
        [] => Role::Model,
        _ => Role::Base,
    };
    // A statement lists its inputs by name, and the first of several adapters may not be the first of these.
    let numbered = |dependency: Dependency, place: usize| match adapters.len() {
        1 => dependency,
        _ => dependency.annotate(ORDER, place.to_string()),
    };
    let dir = source.checkpoint().map(|checkpoint| checkpoint.dir().to_owned());
    let file = |role, path: &Path, sha256| match &dir {
        Some(dir) => Dependency::file_of(role, dir, path, sha256),
        None => Dependency::file(role, path, sha256),
    };
    let mut dependencies: Vec<Dependency> =
        weights.iter().map(|(path, sha256)| file(weights_role, path, *sha256)).collect();
    let index = source.checkpoint().and_then(|checkpoint| checkpoint.index());
    for path in index.into_iter().map(Path::to_owned).chain(plan.described_by.iter().cloned()) {
        let (sha256, _) = hash_file(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_tokenizer =
            || ["token", "vocab", "merges", "chat_template", "special"].iter().any(|part| name.contains(part));
        let role = match path.extension() {
            // No model directory has such a file.
            Some(extension) if extension == "toml" => Role::Architecture,
            _ if is_tokenizer() => Role::Tokenizer,
            _ => Role::Config,
        };
        let of_adapter = adapters.iter().position(|(adapter, _)| adapter.weights_path().parent() == path.parent());
        let file = file(role, &path, sha256);
        dependencies.push(of_adapter.map_or(file.clone(), |place| numbered(file, place)));
    }
    for (i, ((adapter, weight), run)) in adapters.iter().zip(runs).enumerate() {
        let weights = adapter.weights_path();
        let (sha256, _) = hash_file(weights)?;
        let file = Dependency::file(Role::Adapter, weights, sha256).annotate("weight", weight.to_string());
        dependencies.push(numbered(file, i));
        if let Some(config) = adapter.config_path() {
            dependencies.push(numbered(Dependency::file(Role::Config, config, hash_file(config)?.0), i));
        }
        dependencies.push(numbered(run_dependency(run, weights, sha256, store)?, i));
    }
    // An adapter that is converted for itself.
    if let (true, [run], [(path, sha256), ..]) = (source.is_adapter(), runs, weights) {
        dependencies.push(run_dependency(run, path, *sha256, store)?);
    }
    if let Some(importance) = &plan.importance {
        dependencies.push(Dependency::file(Role::Imatrix, importance.path(), *importance.sha256()));
    }
    Ok(dependencies)
}

fn run_dependency(run: &FoundRun, weights: &Path, sha256: Sha256, store: Option<&Store>) -> anyhow::Result<Dependency> {
    Ok(match store {
        Some(store) => store.record_run(run, &[Artifact::file(weights, sha256)], &[])?,
        None => run.dependency(),
    })
}

/// Tells a plan the digests of source files that were hashed before and have not changed since, as the store has them.
pub fn recall(source: &Source, plan: &mut Plan, store: &Store) {
    for file in source.files() {
        // The file is the one that is open, not another that has its path by now.
        let same = FileStamp::of(file.path()).is_ok_and(|now| now == *file.stamp());
        let known = store.known_digest(file.path()).filter(|_| same);
        plan.known.extend(known.map(|sha256| (file.path().to_owned(), sha256)));
    }
}

/// Writes into every planned GGUF file, graph or first shard what it will be made from: `mlpack.*` keys, and `general.*` keys
/// where the model's own files do not say. The inputs are read once more for that: their digests stand before the weights.
pub fn embed(
    kind: StepKind,
    source: &Source,
    plan: &mut Plan,
    runs: &[FoundRun],
    resources: &Resources,
    parameters: impl Fn(&str) -> anyhow::Result<Map<String, Value>>,
) -> anyhow::Result<()> {
    let mut weights: Vec<(PathBuf, Sha256)> = Vec::new();
    for file in source.files() {
        let known = plan.known.get(file.path()).filter(|_| !resources.rehash);
        let sha256 = known.copied().map_or_else(|| hash_file(file.path()).map(|(sha256, _)| sha256), Ok)?;
        weights.push((file.path().to_owned(), sha256));
    }
    plan.known.extend(weights.iter().cloned());
    let dependencies = dependencies(source, plan, &weights, runs, None)?;
    let mut shared: Vec<(String, MetaValue)> = Vec::new();
    let text = |text: &str| MetaValue::String(text.to_owned());
    for (role, word) in [(Role::Base, "base"), (Role::Model, "model"), (Role::Adapter, "adapter")] {
        for (i, input) in dependencies.iter().filter(|d| d.role() == role).enumerate() {
            let digest = input.sha256().map(|digest| digest.to_string()).unwrap_or_default();
            shared.push((format!("mlpack.{word}.{i}.name"), text(input.name())));
            shared.push((format!("mlpack.{word}.{i}.sha256"), MetaValue::String(digest)));
        }
    }
    let (mut datasets, mut bases, mut repositories) = (Vec::new(), Vec::<&BaseModel>::new(), Vec::new());
    for (i, run) in runs.iter().enumerate() {
        let FoundRun::Known(run) = run else { continue };
        shared.push((format!("mlpack.run.{i}.uri"), text(&run.record.source.uri)));
        shared.push((format!("mlpack.run.{i}.sha256"), text(&run.record.digest().to_string())));
        datasets.extend(run.record.datasets.iter().map(|d| (d.name.as_str(), d.sha256.as_deref())));
        bases.extend(&run.record.base_model);
        repositories.extend(run.record.code.get(REPOSITORY).map(String::as_str));
    }
    for (i, (_, sha256)) in datasets.iter().enumerate() {
        shared.extend(sha256.map(|sha256| (format!("mlpack.dataset.{i}.sha256"), text(sha256))));
    }
    // The code that trained the first of them.
    shared.extend(repositories.first().map(|url| ("general.source.repo_url".to_owned(), text(url))));
    for (i, base) in bases.iter().enumerate() {
        shared.extend(base.revision.as_deref().map(|at| (format!("general.base_model.{i}.version"), text(at))));
    }
    let bases: Vec<&str> = bases.iter().map(|base| base.name.as_str()).collect();
    for (what, names) in [("base_model", bases), ("dataset", datasets.into_iter().map(|(name, _)| name).collect())] {
        if !names.is_empty() {
            shared.push((format!("general.{what}.count"), MetaValue::U32(names.len() as u32)));
        }
        for (i, name) in names.into_iter().enumerate() {
            shared.push((format!("general.{what}.{i}.name"), text(name)));
        }
    }
    let mut told = Vec::new();
    for output in &mut plan.outputs {
        let variant = output.variant.unwrap_or_default();
        // Of the parts of a split file or a checkpoint the first one speaks for all.
        if told.contains(&variant) {
            continue;
        }
        told.push(variant);
        let build = Step::new(kind, parameters(variant)?, dependencies.clone()).build_id()?;
        let mut entries = vec![("mlpack.build".to_owned(), text(&build.to_string()))];
        entries.extend(shared.iter().cloned());
        mlpack_convert::add_metadata(output, &entries)?;
    }
    Ok(())
}

/// What a file says about where it comes from: the `mlpack.*` entries of its metadata.
pub fn embedded(path: &Path) -> Vec<(String, String)> {
    if path.is_dir() {
        return first_shard(path).map(|shard| embedded(&shard)).unwrap_or_default();
    }
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
        // A file that is none says nothing.
        let Ok(file) = mlpack_safetensors::SafetensorsFile::open(path) else { return Vec::new() };
        let entries = mlpack_safetensors::read_metadata(file.preamble()).unwrap_or_default();
        return entries.into_iter().filter(|(key, _)| is_ours(key)).collect();
    }
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
        // Weights may be in it too, but then it is not one of ours.
        let Ok(model) = mlpack_fs::read_bounded(path, MAX_GRAPH_LEN) else { return Vec::new() };
        let entries = mlpack_onnx::read_metadata(&model).unwrap_or_default();
        return entries.into_iter().filter(|(key, _)| is_ours(key)).collect();
    }
    if !path.is_file() || !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
        return Vec::new();
    }
    // A file that is no GGUF says nothing.
    let Ok(gguf) = mlpack_gguf::GgufFile::open(path) else { return Vec::new() };
    said(gguf.metadata())
}

/// The `mlpack.*` entries of a GGUF file's metadata.
pub fn said(metadata: &Metadata) -> Vec<(String, String)> {
    let entry = |(key, value): (&str, &MetaValue)| match value {
        MetaValue::String(text) if is_ours(key) => Some((key.to_owned(), text.clone())),
        _ => None,
    };
    metadata.iter().filter_map(entry).collect()
}

fn is_ours(key: &str) -> bool {
    key.starts_with("mlpack.")
}

/// The first by name of the weight files in a folder.
fn first_shard(dir: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).min()
}

/// The training run of each adapter: the one named, else the one that files beside the adapter tell about.
pub fn runs(
    adapters: &[(PathBuf, f64)],
    named: Option<&RunSource>,
    dataset: Option<&Path>,
) -> anyhow::Result<Vec<FoundRun>> {
    if named.is_some() && adapters.is_empty() {
        bail!("a training run belongs to an adapter, and there is none\n  expected: an adapter (-a), or no run");
    }
    adapters.iter().map(|(dir, _)| Ok(find_run(dir, named, dataset)?)).collect()
}

/// Outputs that lie in a directory of their own, as artifacts: the directory and its files.
pub fn directory(dir: &Path, files: &[SealedFile]) -> Vec<Artifact> {
    let names: Vec<_> = files
        .iter()
        .map(|f| (f.path.strip_prefix(dir).unwrap_or(&f.path).to_string_lossy().into_owned(), f.sha256))
        .collect();
    Artifact::directory(dir, &names)
}
