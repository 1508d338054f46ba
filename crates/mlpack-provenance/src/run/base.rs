//! What is said about the base that an adapter was trained on.

use crate::claims::Claims;
use crate::object::Object;
use crate::statement::Build;
use crate::{Dependency, Error, Role, StepKind};
use mlpack_fs::Sha256;
use std::path::{Path, PathBuf};

/// An adapter that was trained on other bytes than those that it was laid over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherBase {
    /// The adapter's weights.
    pub adapter: PathBuf,
    /// What the statement calls a file of the base that it was trained on. May hold untrusted text.
    pub base: String,
    /// That file's digest.
    pub sha256: Sha256,
}

/// The adapters among what a step read that were trained on other bytes than its base's, as far as statements around them
/// say on which (`mlpack run import --base`). They are claims: whoever relies on them checks who signed.
///
/// # Errors
/// When a store cannot be read.
pub fn other_bases(read: &[Dependency]) -> Result<Vec<OtherBase>, Error> {
    let is_base = |digest: Sha256| read.iter().any(|d| d.role() == Role::Base && d.sha256() == Some(digest));
    let mut others = Vec::new();
    for adapter in read.iter().filter(|d| d.role() == Role::Adapter) {
        let (Some(path), Some(sha256)) = (&adapter.path, adapter.sha256) else { continue };
        for build in trainings(path, sha256)? {
            for (sha256, name) in bases_of(&build).filter(|(digest, _)| !is_base(*digest)) {
                let other = OtherBase { adapter: path.clone(), base: name.to_owned(), sha256 };
                // Several statements may say the same.
                if !others.contains(&other) {
                    others.push(other);
                }
            }
        }
    }
    Ok(others)
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
