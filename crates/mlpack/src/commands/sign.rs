//! `mlpack sign`

use crate::cli::{SignArgs, StepName};
use crate::exit::Exit;
use crate::keys;
use crate::show::{Show, table};
use anyhow::bail;
use mlpack_fs::write_atomic;
use mlpack_provenance::{
    KeyAlgorithm, PrivateKey, SignOptions, StepKind, model_signature_path, sign_chain, sign_model,
};
use mlpack_tensor::{Escaped, join_limited};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Subjects named in a line before the rest is counted.
const SHOWN: usize = 3;

/// Signs the statements about an artifact and what it comes from, and a model as a whole.
pub fn sign(args: &SignArgs, out: &Show) -> anyhow::Result<Exit> {
    let key = keys::private_key(&args.key, &args.passphrase)?;
    let steps = (!args.steps.is_empty()).then(|| args.steps.iter().map(|step| kind(*step)).collect());
    let only_steps = steps.is_some();
    let chain = sign_chain(&args.path, &key, &SignOptions { steps })?;
    let whole = args.signature.is_some() || (!only_steps && (args.path.is_dir() || chain.steps.is_empty()));
    let to = args.signature.as_deref();
    let model = if whole { model_signature(&args.path, to, &key, chain.steps.is_empty(), out)? } else { None };
    if chain.steps.is_empty() && model.is_none() {
        bail!(
            "nothing to sign about `{}`\n  expected: a statement of such a step in its claims or in a store near it\n  found:    none",
            args.path.display()
        );
    }
    let rows = chain.steps.iter().map(|step| {
        let subjects = join_limited(step.subjects.iter().map(String::as_str), SHOWN);
        [step.kind.name().to_owned(), format!("{:.12}", step.statement.to_string()), subjects]
    });
    let mut text = if chain.steps.is_empty() { String::new() } else { table(["signed", "statement", "about"], rows) };
    for path in chain.sidecar.iter().chain(&chain.bundle).chain(&model) {
        text.push_str(&format!("written: {}\n", Escaped(&path.display().to_string())));
    }
    text.push_str(&format!("key: {} sha256:{}\n", key.algorithm().name(), key.public().id()));
    let statements: Vec<_> = chain
        .steps
        .iter()
        .map(|s| json!({"step": s.kind.name(), "statement": s.statement.to_string(), "subjects": s.subjects}))
        .collect();
    let value = json!({
        "schema": "mlpack.sign/v1", "signed": statements, "claims": chain.sidecar, "bundle": chain.bundle,
        "model_signature": model, "key": key.public().id().to_string(),
    });
    out.result(&text, &value);
    Ok(Exit::Done)
}

/// Signs what is stated about an artifact that was just made, and a directory as a whole; shared with `release`.
pub fn sign_made(path: &Path, key: &PrivateKey, out: &Show) -> anyhow::Result<()> {
    sign_chain(path, key, &SignOptions { steps: None })?;
    if path.is_dir() {
        model_signature(path, None, key, false, out)?;
    }
    Ok(())
}

/// Writes the signature over the whole model; `None` where the key cannot and statements were signed.
fn model_signature(
    of: &Path,
    to: Option<&Path>,
    key: &PrivateKey,
    alone: bool,
    out: &Show,
) -> anyhow::Result<Option<PathBuf>> {
    let path = to.map_or_else(|| model_signature_path(of), Path::to_owned);
    if key.algorithm() == KeyAlgorithm::Ed25519 && !alone && to.is_none() {
        out.warnings(&[format!(
            "no `{}`: OpenSSF Model Signing has no Ed25519; the statements are signed",
            path.display()
        )]);
        return Ok(None);
    }
    let bundle = sign_model(of, &path, key)?;
    write_atomic(&path, bundle.bytes())?;
    Ok(Some(path))
}

fn kind(step: StepName) -> StepKind {
    match step {
        StepName::Train => StepKind::Train,
        StepName::Merge => StepKind::Merge,
        StepName::Convert => StepKind::Convert,
        StepName::Quantize => StepKind::Quantize,
        StepName::Package => StepKind::Package,
    }
}
