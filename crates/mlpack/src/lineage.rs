//! Telling provenance what a command read and made. Digests come from the work itself; only small files are hashed here.

use anyhow::bail;
use mlpack_convert::{Done, Plan, SealedFile, Source};
use mlpack_fs::hash_file;
use mlpack_provenance::{Artifact, Dependency, FoundRun, Role, RunSource, Store, find_run};
use std::path::{Path, PathBuf};

/// Everything that a merge, a conversion or a quantization read.
pub fn dependencies(
    source: &Source,
    plan: &Plan,
    done: &Done,
    runs: &[FoundRun],
    store: &Store,
) -> anyhow::Result<Vec<Dependency>> {
    let adapters = source.adapters();
    let weights_role = match adapters {
        _ if source.is_adapter() => Role::Adapter,
        [] => Role::Model,
        _ => Role::Base,
    };
    let mut dependencies: Vec<Dependency> =
        done.inputs.iter().map(|file| Dependency::file(weights_role, &file.path, file.sha256)).collect();
    let index = source.checkpoint().and_then(|checkpoint| checkpoint.index());
    for path in index.into_iter().map(Path::to_owned).chain(plan.described_by.iter().cloned()) {
        let (sha256, _) = hash_file(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_tokenizer =
            ["token", "vocab", "merges", "chat_template", "special"].iter().any(|part| name.contains(part));
        let role = if is_tokenizer { Role::Tokenizer } else { Role::Config };
        dependencies.push(Dependency::file(role, &path, sha256));
    }
    for ((adapter, weight), run) in adapters.iter().zip(runs) {
        let weights = adapter.weights_path();
        let (sha256, _) = hash_file(weights)?;
        dependencies.push(Dependency::file(Role::Adapter, weights, sha256).annotate("weight", weight.to_string()));
        if let Some(config) = adapter.config_path() {
            dependencies.push(Dependency::file(Role::Config, config, hash_file(config)?.0));
        }
        dependencies.push(store.record_run(run, &[Artifact::file(weights, sha256)])?);
    }
    if let Some(importance) = &plan.importance {
        dependencies.push(Dependency::file(Role::Imatrix, importance.path(), *importance.sha256()));
    }
    Ok(dependencies)
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
        .map(|f| (f.path.file_name().unwrap_or_default().to_string_lossy().into_owned(), f.sha256))
        .collect();
    Artifact::directory(dir, &names)
}
