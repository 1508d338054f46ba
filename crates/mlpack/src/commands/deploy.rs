//! `mlpack deploy`

use super::modelfile::Settings;
use super::publish;
use crate::cli::DeployOllamaArgs;
use crate::exit::Exit;
use crate::show::{Show, bytes};
use anyhow::Context as _;
use mlpack_oci::{Ecosystem, ImageOptions, OllamaName, OllamaStore, PublishRequest, pack};
use serde_json::json;
use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;

/// Puts a GGUF into Ollama: into its store on disk, or through its API.
pub fn deploy_ollama(args: &DeployOllamaArgs, out: &Show) -> anyhow::Result<Exit> {
    let name: OllamaName = args.name.parse()?;
    let settings = Settings::new(&args.modelfile)?;
    let artifact = publish::artifact(&args.artifact, &settings, &[], out)?;
    let request = PublishRequest {
        artifacts: std::slice::from_ref(&artifact),
        tag: &"deploy".parse()?,
        ecosystems: &[Ecosystem::Ollama],
        image: &ImageOptions::default(),
        annotations: &BTreeMap::new(),
        digests: &BTreeMap::new(),
    };
    let packed = pack(&request)?;
    let manifest = packed.root().digest;
    if let Some(api) = &args.api {
        let gguf = packed.package.blobs().find(|blob| blob.file() == Some(&args.artifact));
        let gguf = gguf.expect("the artifact is a blob of its package");
        let sent =
            mlpack_registry::OllamaApi::new(api)?.create(&name, gguf, artifact.details.modelfile.as_ref(), &|_| {})?;
        let note = "Ollama may rewrite the GGUF when it makes a model over its API; its digest is then another one";
        out.warnings(&[note.to_owned()]);
        let text = format!("{name} at {api}\n{} sent\n", bytes(sent));
        out.result(
            &text,
            &json!({"schema": "mlpack.deploy/v1", "name": name.to_string(), "api": api, "bytes_sent": sent}),
        );
        return Ok(Exit::Done);
    }
    let dir = match &args.store {
        Some(dir) => dir.clone(),
        None => default_store()
            .context("where Ollama keeps its models is not known\n  expected: --store DIR, OLLAMA_MODELS or HOME")?,
    };
    let installed = OllamaStore::new(&dir).install(&name, &packed.package, &manifest)?;
    let text = format!(
        "{name} in {}\n{} linked, {} copied, {} were there already\n",
        dir.display(),
        bytes(installed.bytes_linked),
        bytes(installed.bytes_copied),
        bytes(installed.bytes_skipped)
    );
    let value = json!({
        "schema": "mlpack.deploy/v1", "name": name.to_string(), "store": dir, "manifest": installed.manifest,
        "digest": format!("sha256:{manifest}"), "bytes_linked": installed.bytes_linked,
        "bytes_copied": installed.bytes_copied, "bytes_skipped": installed.bytes_skipped,
    });
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// `OLLAMA_MODELS`, or the folder in the user's home.
fn default_store() -> Option<PathBuf> {
    let path = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    path("OLLAMA_MODELS").or_else(|| Some(path("HOME")?.join(".ollama/models")))
}
