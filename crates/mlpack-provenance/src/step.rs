//! A step of mlpack's as a statement: artifacts and dependencies in, canonical bytes out.

use crate::statement::{MAX_SUBJECTS, PREDICATE_TYPE, STATEMENT_TYPE};
use crate::{Error, RunRecord, Statement, json, tree_digest};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use mlpack_fs::Sha256;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The URI of the builder that statements name. A name, not an address: the project claims no domain.
pub const BUILDER: &str = "urn:mlpack:builder";
/// Media type of a run record.
pub const RUN_MEDIA_TYPE: &str = "application/vnd.mlpack.run.v1+json";
/// `uri` of the training run that nobody knows.
pub const UNKNOWN_RUN: &str = "urn:mlpack:run:unknown";
/// The annotation with what the tensors of a file are known by ([`tensors_digest`](crate::tensors_digest)).
pub const TENSORS: &str = "tensors";
/// The version that statements and records name: the workspace's.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Longest name of a subject or dependency, in bytes.
const MAX_NAME_LEN: usize = 1024;

/// What a step does. Each kind has its build type URI, `urn:mlpack:<kind>:v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepKind {
    /// A training run, as a store or a trainer's files tell it. mlpack did not do it; the statement says so.
    Train,
    /// Base and adapters to a merged checkpoint.
    Merge,
    /// A checkpoint, or a base and adapters, to another format.
    Convert,
    /// One GGUF to another.
    Quantize,
    /// Artifacts to an image.
    Package,
}

impl StepKind {
    /// Every kind, in the order of a release.
    pub const ALL: [StepKind; 5] =
        [StepKind::Train, StepKind::Merge, StepKind::Convert, StepKind::Quantize, StepKind::Package];

    /// The kind in words.
    pub const fn name(self) -> &'static str {
        match self {
            StepKind::Train => "train",
            StepKind::Merge => "merge",
            StepKind::Convert => "convert",
            StepKind::Quantize => "quantize",
            StepKind::Package => "package",
        }
    }

    /// The `buildType` URI.
    pub fn build_type(self) -> String {
        format!("urn:mlpack:{}:v1", self.name())
    }

    pub(crate) fn from_build_type(uri: &str) -> Option<StepKind> {
        StepKind::ALL.into_iter().find(|kind| kind.build_type() == uri)
    }
}

/// What a digest is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// The bytes of one file.
    File,
    /// The files of a directory, as [`tree_digest`] takes it.
    Tree,
}

/// Something that a step made.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    /// Its name in statements: relative, `/` between parts.
    pub name: String,
    /// Its digest.
    pub sha256: Sha256,
    /// What the digest is taken over.
    pub identity: Identity,
    /// Where it is on this machine; never stated.
    pub path: PathBuf,
}

impl Artifact {
    /// A file, named by its file name.
    pub fn file(path: &Path, sha256: Sha256) -> Artifact {
        Artifact { name: last_part(path), sha256, identity: Identity::File, path: path.to_owned() }
    }

    /// A directory and each of its files: the directory first, then the files as `DIR/FILE` in the order of their
    /// names. `files` are names relative to `dir` (`/` between parts) with their digests.
    pub fn directory(dir: &Path, files: &[(String, Sha256)]) -> Vec<Artifact> {
        let name = last_part(dir);
        let mut sorted: Vec<_> = files.iter().collect();
        sorted.sort();
        let tree =
            Artifact { name: name.clone(), sha256: tree_digest(files), identity: Identity::Tree, path: dir.to_owned() };
        let files = sorted.into_iter().map(|(file, sha256)| Artifact {
            name: format!("{name}/{file}"),
            sha256: *sha256,
            identity: Identity::File,
            path: dir.join(file),
        });
        std::iter::once(tree).chain(files).collect()
    }
}

/// What a dependency was to its step. The order is the order in statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Weights of the base checkpoint, and its index.
    Base,
    /// Weights of a checkpoint or GGUF that no adapter was applied to in this step.
    Model,
    /// An adapter's weights.
    Adapter,
    /// A configuration file.
    Config,
    /// A description of an architecture that is not built in.
    Architecture,
    /// A tokenizer file.
    Tokenizer,
    /// An importance matrix.
    Imatrix,
    /// What a packaging step packs.
    Artifact,
    /// A training run's record.
    TrainingRun,
}

impl Role {
    /// The spelling in statements.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Base => "base",
            Role::Model => "model",
            Role::Adapter => "adapter",
            Role::Config => "config",
            Role::Architecture => "architecture",
            Role::Tokenizer => "tokenizer",
            Role::Imatrix => "imatrix",
            Role::Artifact => "artifact",
            Role::TrainingRun => "training-run",
        }
    }
}

/// Something that a step read.
#[derive(Clone, Debug, PartialEq)]
pub struct Dependency {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) sha256: Option<Sha256>,
    pub(crate) uri: Option<String>,
    pub(crate) media_type: Option<&'static str>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) path: Option<PathBuf>,
}

impl Dependency {
    /// A file that the step hashed, named `DIR/FILE` after its directory and itself.
    pub fn file(role: Role, path: &Path, sha256: Sha256) -> Dependency {
        let name = match absolute(path).parent().and_then(Path::file_name) {
            Some(dir) => format!("{}/{}", dir.to_string_lossy(), last_part(path)),
            None => last_part(path),
        };
        Dependency {
            role,
            name,
            sha256: Some(sha256),
            uri: None,
            media_type: None,
            annotations: BTreeMap::new(),
            path: Some(path.to_owned()),
        }
    }

    /// The same of a file in a folder of a model's directory, named `DIR/FOLDER/FILE`; `DIR/FILE` where it lies in the directory
    /// itself or somewhere else.
    pub fn file_of(role: Role, dir: &Path, path: &Path, sha256: Sha256) -> Dependency {
        let mut dependency = Dependency::file(role, path, sha256);
        let (dir, path) = (absolute(dir), absolute(path));
        if let (Some(name), Ok(within)) = (dir.file_name(), path.strip_prefix(&dir)) {
            let parts: Vec<_> = within.components().map(|part| part.as_os_str().to_string_lossy()).collect();
            dependency.name = format!("{}/{}", name.to_string_lossy(), parts.join("/"));
        }
        dependency
    }

    /// A training run, by the digest of its record. [`Store::record_run`](crate::Store::record_run) stores the record
    /// and returns this.
    pub fn run(record: &RunRecord) -> Dependency {
        Dependency {
            role: Role::TrainingRun,
            name: Role::TrainingRun.name().to_owned(),
            sha256: Some(record.digest()),
            uri: Some(record.source.uri.clone()),
            media_type: Some(RUN_MEDIA_TYPE),
            annotations: BTreeMap::new(),
            path: None,
        }
    }

    /// The statement that the training run is not known, and why.
    pub fn unknown_run(reason: &str) -> Dependency {
        Dependency {
            role: Role::TrainingRun,
            name: Role::TrainingRun.name().to_owned(),
            sha256: None,
            uri: Some(UNKNOWN_RUN.to_owned()),
            media_type: None,
            annotations: BTreeMap::from([
                ("reason".to_owned(), reason.to_owned()),
                ("status".to_owned(), "unknown".to_owned()),
            ]),
            path: None,
        }
    }

    /// What it was to the step.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name in statements.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its digest; an unknown run has none.
    pub fn sha256(&self) -> Option<Sha256> {
        self.sha256
    }

    /// Adds an annotation, such as an adapter's `weight`.
    #[must_use]
    pub fn annotate(mut self, key: &str, value: impl Into<String>) -> Dependency {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    fn descriptor(&self) -> Result<Value, Error> {
        check_name(&self.name)?;
        let mut annotations: Map<String, Value> = self.annotations.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        annotations.insert("role".to_owned(), json!(self.role.name()));
        let mut descriptor = json!({"name": self.name, "annotations": annotations});
        if let Some(sha256) = self.sha256 {
            descriptor["digest"] = json!({"sha256": sha256.to_string()});
        }
        if let Some(uri) = &self.uri {
            descriptor["uri"] = json!(uri);
        }
        if let Some(media_type) = self.media_type {
            descriptor["mediaType"] = json!(media_type);
        }
        Ok(descriptor)
    }
}

/// One step: what was asked for, what was read, what was made.
///
/// The statement is a function of these values and of mlpack's version alone: the order of dependencies, outputs and
/// by-products does not show in it, and neither do paths.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What the step does.
    pub kind: StepKind,
    /// What the user asked for (`externalParameters`). Numbers that are not integers go in as strings.
    pub parameters: Map<String, Value>,
    /// What was read.
    pub dependencies: Vec<Dependency>,
    /// What was made.
    pub outputs: Vec<Artifact>,
    /// Further facts about the result by name, such as the type of every tensor.
    pub byproducts: BTreeMap<String, Value>,
}

impl Step {
    /// A step without outputs and by-products yet: enough for its [`Step::build_id`].
    pub fn new(kind: StepKind, parameters: Map<String, Value>, dependencies: Vec<Dependency>) -> Step {
        Step { kind, parameters, dependencies, outputs: Vec::new(), byproducts: BTreeMap::new() }
    }

    /// sha256 of the canonical `buildDefinition`: the same for the same inputs, parameters and version, and known before
    /// the output exists.
    pub fn build_id(&self) -> Result<Sha256, Error> {
        Ok(Sha256::of(&json::canonical(&self.definition()?)))
    }

    /// The statement.
    pub fn statement(&self) -> Result<Statement, Error> {
        if self.outputs.is_empty() {
            return Err(Error::NoSubject);
        }
        if self.outputs.len() > MAX_SUBJECTS {
            return Err(Error::TooManySubjects { found: self.outputs.len(), limit: MAX_SUBJECTS });
        }
        let definition = self.definition()?;
        let build_id = Sha256::of(&json::canonical(&definition));
        let mut outputs: Vec<&Artifact> = self.outputs.iter().collect();
        outputs.sort_by(|a, b| (&a.name, a.identity, a.sha256).cmp(&(&b.name, b.identity, b.sha256)));
        let mut subjects = Vec::with_capacity(outputs.len());
        for output in outputs {
            check_name(&output.name)?;
            let mut subject = json!({"name": output.name, "digest": {"sha256": output.sha256.to_string()}});
            if output.identity == Identity::Tree {
                subject["annotations"] = json!({"identity": "tree"});
            }
            subjects.push(subject);
        }
        let mut details = json!({
            "builder": {"id": BUILDER, "version": {"mlpack": VERSION}},
            "metadata": {"invocationId": build_id.to_string()},
        });
        if !self.byproducts.is_empty() {
            let byproducts = self.byproducts.iter().map(|(name, content)| {
                if let Some(place) = json::first_inexact_number(content) {
                    return Err(Error::InexactNumber { place: format!("{name}.{place}") });
                }
                let content = BASE64_STANDARD.encode(json::canonical(content));
                Ok(json!({"name": name, "mediaType": "application/json", "content": content}))
            });
            details["byproducts"] = Value::Array(byproducts.collect::<Result<_, _>>()?);
        }
        let statement = json!({
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": PREDICATE_TYPE,
            "predicate": {"buildDefinition": definition, "runDetails": details},
        });
        Statement::parse(&json::canonical(&statement))
    }

    fn definition(&self) -> Result<Value, Error> {
        let parameters = Value::Object(self.parameters.clone());
        if let Some(place) = json::first_inexact_number(&parameters) {
            return Err(Error::InexactNumber { place });
        }
        let mut dependencies: Vec<&Dependency> = self.dependencies.iter().collect();
        dependencies.sort_by(|a, b| {
            (a.role, &a.name, a.sha256, &a.uri, &a.annotations).cmp(&(
                b.role,
                &b.name,
                b.sha256,
                &b.uri,
                &b.annotations,
            ))
        });
        dependencies.dedup_by(|a, b| {
            (a.role, &a.name, a.sha256, &a.uri, &a.annotations) == (b.role, &b.name, b.sha256, &b.uri, &b.annotations)
        });
        let internal = match self.kind {
            // mlpack read about the training; it did not do it.
            StepKind::Train => json!({"mlpack": VERSION, "imported": true}),
            _ => json!({"mlpack": VERSION, "deterministic": true}),
        };
        Ok(json!({
            "buildType": self.kind.build_type(),
            "externalParameters": parameters,
            "internalParameters": internal,
            "resolvedDependencies": dependencies.into_iter().map(Dependency::descriptor).collect::<Result<Vec<_>, _>>()?,
        }))
    }
}

/// A name that means the same on every machine: relative, without `.` and `..`, without control characters.
fn check_name(name: &str) -> Result<(), Error> {
    let found = if name.is_empty() {
        "an empty name"
    } else if name.len() > MAX_NAME_LEN {
        "a longer name"
    } else if name.starts_with('/')
        || name.contains('\\')
        || name.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        "a name with `\\`, or with an empty, `.` or `..` part"
    } else if name.chars().any(char::is_control) {
        "a name with a control character"
    } else {
        return Ok(());
    };
    Err(Error::BadName { name: name.to_owned(), found, limit: MAX_NAME_LEN })
}

/// The path from the root, so that `.` and `../base` give the same name to the same folder.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn last_part(path: &Path) -> String {
    absolute(path).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
