//! What is said about the base that an adapter was trained on.

use crate::claims::Claims;
use crate::object::Object;
use crate::statement::Build;
use crate::{Error, Role, StepKind};
use mlpack_fs::Sha256;
use std::collections::BTreeMap;
use std::path::Path;

/// The base's files with weights, by digest with their names, on which an adapter was trained as statements around it say
/// (`mlpack run import --base`). Empty where none does. They are claims: whoever relies on them checks who signed.
///
/// # Errors
/// When a store cannot be read.
pub fn trained_on(adapter: &Path, sha256: Sha256) -> Result<BTreeMap<Sha256, String>, Error> {
    let mut bases = BTreeMap::new();
    for build in trainings(adapter, sha256)? {
        bases.extend(bases_of(&build).map(|(digest, name)| (digest, name.to_owned())));
    }
    Ok(bases)
}

/// Whether a statement says that this run trained the adapter, and on which base.
pub(crate) fn says_more(adapter: &Path, sha256: Sha256, run: Sha256) -> Result<bool, Error> {
    let of_run = |build: &Build| build.dependencies.iter().any(|d| d.sha256 == Some(run));
    Ok(trainings(adapter, sha256)?.iter().any(|build| of_run(build) && bases_of(build).next().is_some()))
}

fn bases_of(build: &Build) -> impl Iterator<Item = (Sha256, &str)> {
    let bases = build.dependencies.iter().filter(|d| d.annotation("role") == Some(Role::Base.name()));
    bases.filter_map(|d| Some((d.sha256?, d.name.as_str())))
}

fn trainings(adapter: &Path, sha256: Sha256) -> Result<Vec<Build>, Error> {
    let mut claims = Claims::default();
    claims.look_around(adapter);
    let of_adapter = claims.chain(sha256)?.into_iter().filter_map(|object| match object {
        Object::Statement(statement) => Some(statement),
        Object::Signed(signed) => Some(signed.1),
        Object::Run(..) => None,
    });
    let about = of_adapter.filter(|statement| statement.subjects().any(|(_, subject)| subject == sha256));
    let is_training = |build: &Build| StepKind::from_build_type(&build.build_type) == Some(StepKind::Train);
    Ok(about.filter_map(|statement| statement.build).map(|build| *build).filter(is_training).collect())
}
