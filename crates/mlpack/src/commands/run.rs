//! `mlpack run import`

use crate::cli::{RunArgs, RunCommand, RunImportArgs};
use crate::exit::Exit;
use crate::http;
use crate::show::Show;
use anyhow::bail;
use mlpack_fs::hash_file;
use mlpack_provenance::{Artifact, Dependency, FoundRun, Role, RunSource, Store, find_run_with};
use mlpack_safetensors::Checkpoint;
use mlpack_tensor::Escaped;
use serde_json::json;
use std::path::{Path, PathBuf};

/// What is done with training runs.
pub fn run(args: &RunArgs, out: &Show) -> anyhow::Result<Exit> {
    match &args.command {
        RunCommand::Import(args) => import(args, out),
    }
}

/// Records the training run of an adapter, so that everything made from the adapter leads to it, before and after.
fn import(args: &RunImportArgs, out: &Show) -> anyhow::Result<Exit> {
    let source = args.source.as_deref().map(|text| RunSource::parse(text, Path::new(""))).transpose()?;
    let weights = weights(&args.adapter)?;
    let found = find_run_with(&args.adapter, source.as_ref(), args.dataset.as_deref(), Some(&http::fetch))?;
    let FoundRun::Known(run) = &found else {
        bail!(
            "no training run was found for `{}`\n  expected: a source, or trainer_state.json or an MLflow store near the adapter",
            args.adapter.display()
        );
    };
    let folder = match &args.store {
        Some(folder) => folder.clone(),
        None => {
            let adapter = std::path::absolute(&args.adapter)?;
            adapter.parent().map(Path::to_owned).unwrap_or_default()
        }
    };
    let store = Store::beside(&folder);
    let bases = args.base.as_deref().map(|base| base_weights(base, &store)).transpose()?.unwrap_or_default();
    store.record_run(&found, &weights, &bases)?;
    let record = &run.record;
    let mut text = format!("run      {}\nrecord   sha256:{}\n", Escaped(record.label()), record.digest());
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<8} {}\n", Escaped(value)));
    line("source", &format!("{} ({})", record.source.uri, record.source.kind));
    if let Some(experiment) = &record.experiment {
        line("of", experiment);
    }
    if let Some(base) = &record.base_model {
        line("base", &base.name);
    }
    for dataset in &record.datasets {
        let digest = match (&dataset.sha256, &dataset.not_hashed) {
            (Some(digest), _) => format!("sha256:{digest}"),
            (None, why) => format!("not hashed: {}", why.as_deref().unwrap_or("no reason is known")),
        };
        line("data", &format!("{}  {digest}", dataset.name));
    }
    for artifact in &weights {
        line("adapter", &format!("{}  sha256:{}", artifact.name, artifact.sha256));
    }
    for base in &bases {
        let digest = base.sha256().map(|digest| digest.to_string()).unwrap_or_default();
        line("base", &format!("{}  sha256:{digest}", base.name()));
    }
    line("store", &store.dir().display().to_string());
    let value = json!({
        "schema": "mlpack.run-import/v1", "record": record, "sha256": record.digest().to_string(), "store": store.dir(),
        "adapter": weights.iter().map(|a| json!({"name": a.name, "sha256": a.sha256.to_string()})).collect::<Vec<_>>(),
        "base": bases.iter().map(|b| json!({"name": b.name(), "sha256": b.sha256().map(|d| d.to_string())})).collect::<Vec<_>>(),
    });
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// The base's weight files; those that were hashed before and have not changed since are not read again.
fn base_weights(dir: &Path, store: &Store) -> anyhow::Result<Vec<Dependency>> {
    let mut bases = Vec::new();
    for shard in Checkpoint::open(dir)?.shards() {
        let file = shard.map();
        let sha256 = match store.known_digest(file.path()) {
            Some(sha256) => sha256,
            None => hash_file(file.path())?.0,
        };
        store.note_digest(file.path(), file.stamp(), sha256)?;
        bases.push(Dependency::file(Role::Base, file.path(), sha256));
    }
    Ok(bases)
}

/// The adapter's weight files.
fn weights(dir: &Path) -> anyhow::Result<Vec<Artifact>> {
    const NAMES: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
    let found: Vec<PathBuf> = NAMES.iter().map(|name| dir.join(name)).filter(|path| path.is_file()).collect();
    if found.is_empty() {
        bail!("no adapter in `{}`\n  expected: adapter_model.safetensors\n  found:    no such file", dir.display());
    }
    found.iter().map(|path| Ok(Artifact::file(path, hash_file(path)?.0))).collect()
}
