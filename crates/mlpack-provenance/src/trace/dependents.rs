//! The way forward: what was made from something, however many steps away. The question of a recall.

use super::walk::{Judged, judge};
use super::{State, TraceOptions};
use crate::claims::Claims;
use crate::object::Object;
use crate::statement::Descriptor;
use crate::{Error, StepKind, TENSORS};
use mlpack_fs::Sha256;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

/// Something that was made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    /// Its name in the statement. May hold untrusted text.
    pub name: String,
    /// Its digest.
    pub sha256: Sha256,
    /// The step that made it.
    pub step: String,
    /// The statement that says so.
    pub statement: Sha256,
    /// How far that statement can be believed.
    pub state: State,
    /// Steps between.
    pub distance: usize,
    /// Where its bytes were seen, of what is still there; they are not hashed again.
    pub places: Vec<PathBuf>,
}

/// What the statements and run records in and near `folder` say was made from the bytes with that digest: a base, an
/// adapter, a dataset, any file; or the tensors of one. Nearest first, each artifact once for each statement.
pub fn dependents(of: Sha256, folder: &Path, options: &TraceOptions) -> Result<Vec<Dependent>, Error> {
    let mut claims = Claims::default();
    claims.look_in(folder)?;
    let mut readers: BTreeMap<Sha256, Vec<Object>> = BTreeMap::new();
    for object in claims.all() {
        let inputs: BTreeSet<Sha256> = match &object {
            Object::Statement(s) => {
                let dependencies = s.build.iter().flat_map(|build| &build.dependencies);
                let tensors = |d: &Descriptor| d.annotation(TENSORS).and_then(|hex| hex.parse().ok());
                dependencies.flat_map(|d| [d.sha256, tensors(d)]).flatten().collect()
            }
            Object::Run(record, _) => {
                let datasets = record.datasets.iter().filter_map(|d| d.sha256.as_deref());
                let evidence = record.evidence.iter().map(|e| e.sha256.as_str());
                datasets.chain(evidence).filter_map(|hex| hex.parse().ok()).collect()
            }
            Object::Signed(_) => BTreeSet::new(),
        };
        for input in inputs {
            readers.entry(input).or_default().push(object.clone());
        }
    }
    let mut found = Vec::new();
    let mut known = BTreeSet::from([of]);
    let mut queue = VecDeque::from([(of, 0)]);
    while let Some((digest, distance)) = queue.pop_front() {
        for object in readers.get(&digest).into_iter().flatten() {
            match object {
                Object::Statement(statement) => {
                    let build_type = statement.build.as_ref().map_or("", |build| build.build_type.as_str());
                    let step = match StepKind::from_build_type(build_type) {
                        Some(kind) => kind.name(),
                        None => build_type,
                    };
                    let Judged { state, .. } = judge(&claims, &options.trust, statement);
                    for (name, sha256) in statement.subjects().filter(|(_, made)| !statement.passes_through(*made)) {
                        let dependent = Dependent {
                            name: name.to_owned(),
                            sha256,
                            step: step.to_owned(),
                            statement: statement.digest(),
                            state,
                            distance: distance + 1,
                            places: claims.locations(sha256).into_iter().filter(|place| place.exists()).collect(),
                        };
                        let again = |other: &Dependent| (other.sha256, other.statement) == (sha256, statement.digest());
                        if !found.iter().any(again) {
                            found.push(dependent);
                        }
                        if known.insert(sha256) {
                            queue.push_back((sha256, distance + 1));
                        }
                    }
                }
                // A record is no artifact: what was trained on its data is one step away.
                Object::Run(..) => {
                    let record = object.digest();
                    if known.insert(record) {
                        queue.push_back((record, distance));
                    }
                }
                Object::Signed(_) => {}
            }
        }
    }
    found.sort_by(|a, b| {
        (a.distance, &a.name, a.sha256, a.statement).cmp(&(b.distance, &b.name, b.sha256, b.statement))
    });
    Ok(found)
}
