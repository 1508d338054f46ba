//! `mlpack trace`

mod curves;
mod html;
mod image;
mod picture;
mod types;

use crate::cli::{RegistryArgs, TraceArgs};
use crate::exit::Exit;
use crate::show::{Show, table};
use crate::{keys, lineage};
use image::image;
use mlpack_convert::{OverlayOptions, Source, SourceTensor};
use mlpack_fs::{Sha256, write_atomic};
use mlpack_oci::Reference;
use mlpack_provenance::{CheckStore, Dependent, Line, State, TensorContent, Trace, TraceOptions, tensors_digest};
use mlpack_tensor::Escaped;
use owo_colors::OwoColorize as _;
use serde_json::json;
use std::path::Path;

/// Shows what an artifact is made from, and how far that was checked; or what was made from it.
pub fn trace(args: &TraceArgs, out: &Show) -> anyhow::Result<Exit> {
    let check_store = match &args.check_store {
        None => CheckStore::No,
        Some(None) => CheckStore::Remembered,
        Some(Some(path)) => CheckStore::At(path.clone()),
    };
    let trust = keys::policy(&args.trust)?.trust;
    let model_signature = args.trust.signature.clone();
    let options =
        TraceOptions { trust, check_store, model_signature, reuse_digests: !args.rehash, ..TraceOptions::default() };
    if let Some(of) = &args.dependents {
        return dependents(of, args.artifact.as_deref().unwrap_or("."), &options, out);
    }
    let trace = trace_artifact(args.artifact.as_deref().unwrap_or_default(), &args.registry, &options)?;
    if args.identities {
        return identities(&trace, Path::new(args.artifact.as_deref().unwrap_or_default()), out);
    }
    if let Some(path) = &args.html {
        write_atomic(path, html::page(&trace).as_bytes())?;
        out.step(&format!("written: {}", path.display()));
    }
    if let Some(path) = &args.cyclonedx {
        let mut bom = serde_json::to_vec_pretty(&trace.to_cyclonedx())?;
        bom.push(b'\n');
        write_atomic(path, &bom)?;
        out.step(&format!("written: {}", path.display()));
    }
    let shown = match (args.mermaid, args.dot) {
        (true, _) => trace.to_mermaid(),
        (_, true) => trace.to_dot(),
        (false, false) => text(&trace),
    };
    out.result(&shown, &trace.to_json());
    Ok(if trace.holds() { Exit::Done } else { Exit::No })
}

/// The trace of a path, of an image in a layout, or of a digest that something here is stated about.
pub fn trace_artifact(artifact: &str, registry: &RegistryArgs, options: &TraceOptions) -> anyhow::Result<Trace> {
    if let Some(digest) = digest(artifact) {
        return Ok(mlpack_provenance::trace_digest(digest, Path::new("."), options)?);
    }
    let is_image = || artifact.parse::<Reference>().is_ok() && artifact.contains(['/', ':']);
    if !Path::new(artifact).exists() && !artifact.starts_with(['.', '/']) && is_image() {
        return Ok(mlpack_provenance::trace_image(&image(artifact, registry)?, options)?);
    }
    let path = Path::new(artifact);
    let options = TraceOptions { embedded: lineage::embedded(path), ..options.clone() };
    Ok(mlpack_provenance::trace(path, &options)?)
}

/// What an artifact is known by.
fn identities(trace: &Trace, path: &Path, out: &Show) -> anyhow::Result<Exit> {
    let bytes = trace.root.sha256.map(|digest| digest.to_string()).unwrap_or_default();
    let kind = if path.is_dir() { "tree" } else { "file" };
    let builds: Vec<&str> = trace.root.children.iter().filter_map(|step| step.build.as_deref()).collect();
    let source = match path.is_dir() {
        true => Source::open(path, &[], &OverlayOptions::default()).ok(),
        false => Source::open_gguf(path).ok(),
    };
    let tensors = source.map(|source| {
        let content = |t: &SourceTensor| TensorContent {
            name: t.name.clone(),
            stored: t.stored.name().to_owned(),
            shape: t.shape.dims().to_vec(),
            sha256: Sha256::of(source.bytes(t)),
        };
        tensors_digest(&source.tensors().iter().map(content).collect::<Vec<_>>()).to_string()
    });
    let mut text = format!("{kind:<8} sha256:{bytes}\n");
    match &tensors {
        Some(tensors) => text.push_str(&format!("tensors  sha256:{tensors}\n")),
        None => text.push_str("tensors  none: neither a GGUF file nor a directory with safetensors\n"),
    }
    builds.iter().for_each(|build| text.push_str(&format!("build    {}\n", Escaped(build))));
    out.result(&text, &json!({"schema": "mlpack.identities/v1", kind: bytes, "tensors": tensors, "builds": builds}));
    Ok(Exit::Done)
}

fn digest(text: &str) -> Option<Sha256> {
    text.strip_prefix("sha256:")?.parse().ok()
}

fn dependents(of: &str, folder: &str, options: &TraceOptions, out: &Show) -> anyhow::Result<Exit> {
    let of = match digest(of).or_else(|| of.parse().ok()) {
        Some(digest) => digest,
        None => mlpack_provenance::hash_path(Path::new(of))?,
    };
    let found = mlpack_provenance::dependents(of, Path::new(folder), options)?;
    let place = |d: &Dependent| match d.places.first() {
        Some(path) => Escaped(&path.display().to_string()).to_string(),
        None => "not seen here".to_owned(),
    };
    let rows = found.iter().map(|d| {
        let name = Escaped(&d.name).to_string();
        [d.distance.to_string(), d.step.clone(), name, d.state.name().to_owned(), d.sha256.to_string(), place(d)]
    });
    let text = if found.is_empty() {
        format!("nothing is stated to be made from sha256:{of}\n")
    } else {
        table(["steps", "made by", "artifact", "statement", "sha256", "seen at"], rows)
    };
    let list: Vec<_> = found
        .iter()
        .map(|d| {
            json!({
                "name": d.name, "sha256": d.sha256.to_string(), "step": d.step, "statement": d.statement.to_string(),
                "state": d.state.name(), "distance": d.distance, "places": d.places,
            })
        })
        .collect();
    out.result(&text, &json!({"schema": "mlpack.dependents/v1", "of": of.to_string(), "dependents": list}));
    Ok(Exit::Done)
}

/// The tree with coloured states; the colours go where the output is no terminal.
pub fn text(trace: &Trace) -> String {
    let line = |line: Line| {
        let state = match line.state {
            None => String::new(),
            Some(state @ State::Verified) => format!("  [{}]", state.name().green()),
            Some(state @ (State::Untrusted | State::Unsigned | State::Claimed | State::Missing)) => {
                format!("  [{}]", state.name().yellow())
            }
            Some(state @ State::Mismatch) => format!("  [{}]", state.name().red()),
        };
        format!("{}{}{state}\n", line.branches, line.text)
    };
    trace.lines().into_iter().map(line).collect()
}
