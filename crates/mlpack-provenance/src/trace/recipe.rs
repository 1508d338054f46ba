//! How something was made, with its inputs found: what is needed to make it again.

use super::walk::Walk;
use super::{State, TraceOptions};
use crate::claims::FoundRecord;
use crate::{BUILDER, Error, RunRecord, Statement, StepKind};
use mlpack_fs::Sha256;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A step of mlpack's, to be done again.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// What the step does.
    pub kind: StepKind,
    /// The version of mlpack that did it.
    pub version: Option<String>,
    /// What was asked for.
    pub parameters: Map<String, Value>,
    /// What was read, in the statement's order, without training runs.
    pub inputs: Vec<Ingredient>,
    /// The training runs: the annotations, and the record where one is named and is here. A file's bytes depend on them
    /// only where it says itself what it is made from.
    pub runs: Vec<(Map<String, Value>, Option<RunRecord>)>,
    /// What was made: name and digest.
    pub outputs: Vec<(String, Sha256)>,
    /// The statement.
    pub statement: Sha256,
}

/// Something that a step read.
#[derive(Clone, Debug, PartialEq)]
pub struct Ingredient {
    /// What it was to the step, as the statement spells it.
    pub role: String,
    /// Its name in the statement.
    pub name: String,
    /// Its digest.
    pub sha256: Sha256,
    /// The annotations, such as an adapter's weight.
    pub annotations: Map<String, Value>,
    /// A file with exactly these bytes; `None` when there is none here.
    pub path: Option<PathBuf>,
}

/// The recipe of the bytes with that digest, as the stores and sidecars near `near` (a file, or a folder and what is in it)
/// state it; `None` when no step of mlpack's made them.
pub fn recipe(digest: Sha256, near: &Path, options: &TraceOptions) -> Result<Option<Recipe>, Error> {
    let absolute = std::path::absolute(near).unwrap_or_else(|_| near.to_owned());
    let mut walk = Walk::new(options, absolute.parent().unwrap_or(Path::new("")));
    if absolute.is_dir() {
        walk.claims.look_in(&absolute)?;
    }
    walk.claims.look_around(&absolute);
    let (statements, _) = walk.claims.about(digest);
    for statement in statements.iter().filter(|statement| !statement.passes_through(digest)) {
        if let Some(recipe) = walk.recipe(statement) {
            return Ok(Some(recipe));
        }
    }
    Ok(None)
}

impl Walk<'_> {
    fn recipe(&mut self, statement: &Statement) -> Option<Recipe> {
        let build = statement.build.as_ref().filter(|build| build.builder_id == BUILDER)?;
        let kind = StepKind::from_build_type(&build.build_type)?;
        if matches!(kind, StepKind::Train | StepKind::Package) {
            return None;
        }
        let (mut inputs, mut runs) = (Vec::with_capacity(build.dependencies.len()), Vec::new());
        for dependency in &build.dependencies {
            let role = dependency.annotation("role").unwrap_or_default();
            if role == "training-run" {
                let record = match dependency.sha256.map(|digest| self.claims.record(digest, None)) {
                    Some(FoundRecord::Found(record, _)) => Some(*record),
                    Some(FoundRecord::Damaged(_) | FoundRecord::Missing) | None => None,
                };
                runs.push((dependency.annotations.clone(), record));
                continue;
            }
            let Some(sha256) = dependency.sha256 else { continue };
            // Only what fits is taken: a state of its own says that it does.
            let (state, place, _) = self.find_bytes(&dependency.name, sha256, Some(State::Verified));
            inputs.push(Ingredient {
                role: role.to_owned(),
                name: dependency.name.clone(),
                sha256,
                annotations: dependency.annotations.clone(),
                path: place.filter(|_| state == State::Verified),
            });
        }
        Some(Recipe {
            kind,
            version: build.builder_version.get("mlpack").cloned(),
            parameters: build.external.clone(),
            inputs,
            runs,
            outputs: statement.subjects().map(|(name, digest)| (name.to_owned(), digest)).collect(),
            statement: statement.digest(),
        })
    }
}
