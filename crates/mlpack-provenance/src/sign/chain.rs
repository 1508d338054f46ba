//! Signing what is stated about an artifact and about everything that it comes from.

use super::bundle::Bundle;
use super::key::PrivateKey;
use crate::claims::Claims;
use crate::object::Object;
use crate::store::bundle_path;
use crate::{BUILDER, Error, Statement, StepKind, Store, TraceOptions, trace};
use mlpack_fs::{Sha256, write_atomic};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Which statements are signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignOptions {
    /// Only statements of these steps; `None` for all of mlpack's.
    pub steps: Option<BTreeSet<StepKind>>,
}

/// A statement that was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedStep {
    /// What the step does.
    pub kind: StepKind,
    /// What it made.
    pub subjects: Vec<String>,
    /// The statement.
    pub statement: Sha256,
}

/// What [`sign_chain`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedChain {
    /// The signed statements, from the artifact back; none when nothing is stated.
    pub steps: Vec<SignedStep>,
    /// The sidecar that has the bundles now.
    pub sidecar: Option<PathBuf>,
    /// `<artifact>.sigstore.json`: the bundle of the step that made the artifact, for tools that take one bundle.
    pub bundle: Option<PathBuf>,
}

/// Signs mlpack's statements about an artifact and about what it comes from, writes the bundles to the store beside it and
/// to its sidecar. Refuses when the artifact's trace does not hold: a signature would hide that.
///
/// Nothing is signed, and nothing written, where nothing is stated.
pub fn sign_chain(artifact: &Path, key: &PrivateKey, options: &SignOptions) -> Result<SignedChain, Error> {
    let traced = trace(artifact, &TraceOptions::default())?;
    if let Some(fault) = traced.first_fault() {
        return Err(Error::UnsoundChain { path: artifact.to_owned(), fault });
    }
    let digest = traced.root.sha256.expect("the root of a trace was hashed");
    let absolute = std::path::absolute(artifact).unwrap_or_else(|_| artifact.to_owned());
    let mut claims = Claims::default();
    claims.look_around(&absolute);
    let store = Store::beside(absolute.parent().unwrap_or(Path::new("")));
    let chain = claims.chain(digest)?;
    let mut signed = SignedChain { steps: Vec::new(), sidecar: None, bundle: None };
    let mut bundles = Vec::new();
    for object in &chain {
        let Object::Statement(statement) = object else { continue };
        let Some(kind) = signable(statement, options) else { continue };
        let bundle = Bundle::sign(statement.bytes(), key);
        let subjects = statement.subjects().map(|(name, _)| name.to_owned()).collect();
        signed.steps.push(SignedStep { kind, subjects, statement: statement.digest() });
        let made_it = statement.subjects().any(|(_, subject)| subject == digest) && !statement.passes_through(digest);
        bundles.push((made_it, Object::signed(bundle, statement.clone())));
    }
    if bundles.is_empty() {
        return Ok(signed);
    }
    for object in chain.iter().chain(bundles.iter().map(|(_, object)| object)) {
        store.put(object)?;
    }
    signed.sidecar = Some(store.write_sidecar_of(digest, &absolute, &claims)?);
    if !artifact.is_dir()
        && let Some((_, object)) = bundles.iter().find(|(made_it, _)| *made_it)
    {
        let path = bundle_path(&absolute);
        write_atomic(&path, object.bytes())?;
        signed.bundle = Some(path);
    }
    Ok(signed)
}

/// The step of a statement that mlpack made, says what its build id says, and was asked for.
fn signable(statement: &Statement, options: &SignOptions) -> Option<StepKind> {
    let build = statement.build.as_ref().filter(|build| build.builder_id == BUILDER)?;
    let kind = StepKind::from_build_type(&build.build_type)?;
    options.steps.as_ref().is_none_or(|steps| steps.contains(&kind)).then_some(kind)
}
