//! Walking from digest to statement to digest.

use super::{CheckStore, Node, NodeKind, State, Trace, TraceOptions};
use crate::claims::{Claims, FoundRecord, Sidecar};
use crate::run::{Dataset, MlflowStore};
use crate::statement::{Build, Descriptor};
use crate::store::sidecar_path;
use crate::tree::hash_tree;
use crate::{BUILDER, Error, RUN_MEDIA_TYPE, RunRecord, Statement, StepKind, UNKNOWN_RUN, tree_digest};
use mlpack_fs::{Sha256, hash_file};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Most steps one after the other.
const MAX_DEPTH: usize = 32;
/// Most nodes of a trace.
const MAX_NODES: usize = 8192;
/// Most statements of a store that are looked through for an edited file's earlier digest.
const MAX_SCANNED: usize = 4096;
/// Fields shown of a record that a store contradicts.
const SHOWN_DIFFERENCES: usize = 3;

pub(super) fn walk(path: &Path, options: &TraceOptions) -> Result<Trace, Error> {
    let digest = hash_path(path)?;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut walk = Walk {
        options,
        claims: Claims::default(),
        folder: absolute.parent().map(Path::to_owned).unwrap_or_default(),
        hashed: BTreeMap::new(),
        expanded: BTreeSet::new(),
        nodes: 1,
        cut: false,
    };
    walk.claims.look_around(&absolute);
    let name = absolute.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut root = Node::new(NodeKind::Artifact, name, State::Verified);
    root.sha256 = Some(digest);
    root.checked = Some(path.to_owned());
    root.children = walk.steps(digest, 0);
    if !root.children.iter().any(|child| child.kind == NodeKind::Step) {
        let (passed_on, _) = walk.claims.about(digest);
        if passed_on.is_empty() {
            (root.state, root.note) = walk.why_nothing(&absolute, digest);
        } else {
            root.note = Some("not made by a step: passed on unchanged".to_owned());
            root.children.extend(passed_on.iter().take(MAX_NODES).map(step_head));
        }
    }
    for (place, fault) in walk.claims.faults() {
        let mut node = Node::new(NodeKind::Fault, file_name(place), State::Mismatch);
        node.note = Some(fault.to_owned());
        root.children.push(node);
    }
    Ok(Trace { root, cut: walk.cut })
}

struct Walk<'a> {
    options: &'a TraceOptions,
    claims: Claims,
    // The traced file's folder.
    folder: PathBuf,
    // Digests of the paths hashed so far; `None` when a path cannot be read.
    hashed: BTreeMap<PathBuf, Option<Sha256>>,
    // Digests whose steps are shown.
    expanded: BTreeSet<Sha256>,
    nodes: usize,
    cut: bool,
}

impl Walk<'_> {
    /// The steps that made the bytes with that digest.
    fn steps(&mut self, digest: Sha256, depth: usize) -> Vec<Node> {
        self.expanded.insert(digest);
        let (statements, faults) = self.claims.about(digest);
        let mut nodes = Vec::new();
        for statement in statements.iter().filter(|s| !s.passes_through(digest)) {
            if depth >= MAX_DEPTH || !self.count() {
                self.cut = true;
                break;
            }
            nodes.push(self.step(statement, depth));
        }
        for fault in faults {
            let mut node = Node::new(NodeKind::Fault, "store", State::Mismatch);
            node.note = Some(fault);
            nodes.push(node);
        }
        nodes
    }

    fn step(&mut self, statement: &Statement, depth: usize) -> Node {
        let mut node = step_head(statement);
        for dependency in statement.build.iter().flat_map(|build| &build.dependencies) {
            if !self.count() {
                self.cut = true;
                break;
            }
            let child = self.dependency(dependency, depth);
            node.children.push(child);
        }
        node
    }

    fn dependency(&mut self, dependency: &Descriptor, depth: usize) -> Node {
        let role = dependency.annotation("role");
        let mut node = match (&dependency.uri, dependency.sha256) {
            (Some(uri), _) if uri == UNKNOWN_RUN => {
                let mut node = Node::new(NodeKind::Run, "unknown", State::Missing);
                node.note = dependency.annotation("reason").map(str::to_owned);
                node
            }
            (uri, Some(digest)) if dependency.media_type.as_deref() == Some(RUN_MEDIA_TYPE) => {
                self.record(digest, uri.as_deref())
            }
            (_, Some(digest)) => self.file(NodeKind::Artifact, &dependency.name, digest, depth),
            (uri, None) => {
                let name = if dependency.name.is_empty() { uri.as_deref().unwrap_or("") } else { &dependency.name };
                let mut node = Node::new(NodeKind::Artifact, name, State::Claimed);
                node.note = Some("without a digest".to_owned());
                node
            }
        };
        node.role = role.map(str::to_owned);
        let shown = |key: &str| !matches!(key, "role" | "reason" | "status");
        for (key, value) in dependency.annotations.iter().filter(|(key, _)| shown(key)) {
            node.facts.push((key.clone(), plain(value)));
        }
        node
    }

    /// A file that something names by digest, and what it comes from.
    fn file(&mut self, kind: NodeKind, name: &str, digest: Sha256, depth: usize) -> Node {
        let (state, checked, note) = self.find_bytes(name, digest);
        let mut node = Node::new(kind, name, state);
        node.sha256 = Some(digest);
        node.note = note;
        if let Some(path) = &checked {
            self.claims.look_around(path);
        }
        node.checked = checked;
        if self.expanded.contains(&digest) {
            let (statements, _) = self.claims.about(digest);
            node.repeated = statements.iter().any(|s| !s.passes_through(digest));
        } else {
            node.children = self.steps(digest, depth + 1);
        }
        node
    }

    /// Looks for the bytes where they were seen, then by name around the traced file, and hashes what is there.
    fn find_bytes(&mut self, name: &str, digest: Sha256) -> (State, Option<PathBuf>, Option<String>) {
        let places = self.claims.locations(digest);
        let mut other = None;
        for place in &places {
            match self.hash(place) {
                Some(found) if found == digest => return (State::Verified, Some(place.clone()), None),
                Some(found) => other = Some((place, found)),
                None => {}
            }
        }
        for place in self.places_by_name(name) {
            if self.hash(&place) == Some(digest) {
                return (State::Verified, Some(place), None);
            }
        }
        match (other, places.first()) {
            (Some((place, found)), _) => {
                let note = format!("`{}` has sha256 {found} now", file_name(place));
                (State::Mismatch, Some(place.clone()), Some(note))
            }
            (None, Some(_)) => (State::Missing, None, Some("no longer where it was".to_owned())),
            (None, None) => (State::Claimed, None, Some("its bytes are not here".to_owned())),
        }
    }

    /// `DIR/FILE` in the traced file's folder and in the one above. The name is untrusted: only one that stays inside.
    fn places_by_name(&self, name: &str) -> Vec<PathBuf> {
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if name.is_empty() || !inside {
            return Vec::new();
        }
        self.folder.ancestors().take(2).map(|folder| folder.join(name)).collect()
    }

    /// The digest of a regular file or a directory; `None` for everything else.
    fn hash(&mut self, path: &Path) -> Option<Sha256> {
        if let Some(known) = self.hashed.get(path) {
            return *known;
        }
        // Devices and pipes have no end.
        let found = match fs::metadata(path) {
            Ok(m) if m.is_file() || m.is_dir() => hash_path(path).ok(),
            _ => None,
        };
        self.hashed.insert(path.to_owned(), found);
        found
    }

    fn record(&mut self, digest: Sha256, uri: Option<&str>) -> Node {
        let name = uri.unwrap_or("a training run");
        let mut node = Node::new(NodeKind::Record, name, State::Verified);
        node.sha256 = Some(digest);
        let record = match self.claims.record(digest, uri) {
            FoundRecord::Found(record, _) => record,
            FoundRecord::Damaged(what) => {
                node.state = State::Mismatch;
                node.note = Some(what);
                return node;
            }
            FoundRecord::Missing => {
                node.state = State::Missing;
                node.note = Some("the record is not here".to_owned());
                return node;
            }
        };
        if self.expanded.insert(digest) {
            let run = self.run(digest, record);
            node.children.push(run);
        } else {
            node.repeated = true;
        }
        node
    }

    fn run(&mut self, digest: Sha256, record: Box<RunRecord>) -> Node {
        let mut node = Node::new(NodeKind::Run, record.label(), State::Claimed);
        (node.state, node.note) = self.check_store(digest, &record);
        node.facts = run_facts(&record);
        if let Some(base) = &record.base_model {
            let mut child = Node::new(NodeKind::BaseModel, base.name.clone(), State::Claimed);
            child.facts.extend(base.revision.iter().map(|r| ("revision".to_owned(), r.clone())));
            child.note = Some(format!("named by {}", base.stated_by));
            node.children.push(child);
        }
        for dataset in &record.datasets {
            let child = self.dataset(dataset);
            node.children.push(child);
        }
        for evidence in &record.evidence {
            let Ok(sha256) = evidence.sha256.parse() else { continue };
            let (state, checked, note) = self.find_bytes(&evidence.file, sha256);
            let mut child = Node::new(NodeKind::Evidence, evidence.file.clone(), state);
            (child.sha256, child.checked, child.note) = (Some(sha256), checked, note);
            node.children.push(child);
        }
        node.record = Some(record);
        node
    }

    fn dataset(&mut self, dataset: &Dataset) -> Node {
        let mut node = Node::new(NodeKind::Dataset, dataset.name.clone(), State::Claimed);
        match dataset.sha256.as_deref().map(str::parse::<Sha256>) {
            Some(Ok(digest)) => {
                let file = dataset.source.as_deref().unwrap_or(&dataset.name);
                (node.state, node.checked, node.note) = self.find_bytes(file, digest);
                node.sha256 = Some(digest);
            }
            Some(Err(_)) => node.note = Some("its digest is not one".to_owned()),
            None => node.note = dataset.not_hashed.clone(),
        }
        node.facts.extend(dataset.source.iter().map(|s| ("file".to_owned(), s.clone())));
        node.facts.extend(dataset.context.iter().map(|c| ("used for".to_owned(), c.clone())));
        if let Some(claimed) = &dataset.claimed_digest {
            let algorithm = dataset.claimed_algorithm.as_deref().unwrap_or("unknown");
            node.facts.push((format!("{algorithm} claimed by {}", dataset.stated_by), claimed.clone()));
        }
        node
    }

    fn check_store(&self, digest: Sha256, record: &RunRecord) -> (State, Option<String>) {
        let said = format!("as `{}` said when the record was made", record.source.file);
        let run_id = match (&record.run_id, record.source.kind.as_str()) {
            (Some(run_id), "mlflow-sqlite") => run_id,
            _ => return (State::Claimed, Some(said)),
        };
        let db = match &self.options.check_store {
            CheckStore::No => return (State::Claimed, Some(said)),
            CheckStore::At(db) => db.clone(),
            CheckStore::Remembered => match self.claims.sources(digest).into_iter().next() {
                Some(db) => db,
                None => return (State::Claimed, Some(format!("{said}; nobody noted where that is"))),
            },
        };
        match MlflowStore::open(&db).and_then(|store| store.read_run(run_id)) {
            Ok(today) => match differences(record, &today).as_slice() {
                [] => (State::Verified, Some(format!("`{}` says the same today", record.source.file))),
                all => {
                    let more = match all.len().saturating_sub(SHOWN_DIFFERENCES) {
                        0 => String::new(),
                        n => format!(" and {n} more"),
                    };
                    let shown = all[..all.len().min(SHOWN_DIFFERENCES)].join(", ");
                    let note = format!("`{}` says something else today: {shown}{more}", record.source.file);
                    (State::Mismatch, Some(note))
                }
            },
            Err(e @ Error::RunNotFound { .. }) => {
                let first = e.to_string();
                (State::Mismatch, Some(first.lines().next().unwrap_or_default().to_owned()))
            }
            Err(e) => {
                let text = e.to_string();
                (State::Missing, Some(text.lines().map(str::trim).collect::<Vec<_>>().join("; ")))
            }
        }
    }

    /// Why there is no step: nobody states one, or somebody states one about bytes that this path had before.
    fn why_nothing(&self, path: &Path, digest: Sha256) -> (State, Option<String>) {
        let name = file_name(path);
        if let Some(sidecar) = Sidecar::open(&sidecar_path(path)) {
            let subjects = || sidecar.statements().flat_map(Statement::subjects);
            let named = subjects().find(|(subject, _)| *subject == name);
            if let Some((subject, described)) = named.or_else(|| subjects().next()) {
                let what = if subject == name { String::new() } else { format!(" `{subject}` with") };
                let note = format!(
                    "no statement about these bytes; a sidecar is there but describes{what} sha256 {described}"
                );
                return (State::Mismatch, Some(note));
            }
        }
        let canonical = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        for store in self.claims.stores() {
            for (subject, described) in store.statements(MAX_SCANNED).iter().flat_map(Statement::subjects) {
                let was_here = || {
                    let places = store.places("locations", described);
                    places.iter().any(|place| fs::canonicalize(place).is_ok_and(|place| place == canonical))
                };
                if subject.rsplit('/').next() == Some(&name) && described != digest && was_here() {
                    let note = format!(
                        "no statement about these bytes; this path had sha256 {described} when it was recorded"
                    );
                    return (State::Mismatch, Some(note));
                }
            }
        }
        (State::Missing, Some("no statement about these bytes".to_owned()))
    }

    fn count(&mut self) -> bool {
        self.nodes += 1;
        self.nodes <= MAX_NODES
    }
}

fn hash_path(path: &Path) -> Result<Sha256, Error> {
    if path.is_dir() { Ok(tree_digest(&hash_tree(path)?)) } else { Ok(hash_file(path)?.0) }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A step without what it read.
fn step_head(statement: &Statement) -> Node {
    let mut node = Node::new(NodeKind::Step, statement.predicate_type.clone(), State::Claimed);
    node.sha256 = Some(statement.digest());
    let Some(build) = &statement.build else {
        node.note = Some("unsigned, and of a kind that mlpack does not read".to_owned());
        return node;
    };
    let kind = StepKind::from_build_type(&build.build_type);
    node.name = kind.map_or(build.build_type.as_str(), |kind| kind.name()).to_owned();
    node.facts = step_facts(build);
    node.note = Some(match kind {
        Some(StepKind::Train) => "unsigned, imported: mlpack did not train".to_owned(),
        _ => "unsigned".to_owned(),
    });
    let ours = build.builder_id == BUILDER;
    if ours && build.invocation_id != build.definition.map(|digest| digest.to_string()) {
        node.state = State::Mismatch;
        node.note = Some("its build id does not fit what it says: the statement was edited".to_owned());
    }
    node
}

fn step_facts(build: &Build) -> Vec<(String, String)> {
    let mut facts: Vec<(String, String)> =
        build.external.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
    facts.sort();
    facts.extend(build.builder_version.iter().map(|(tool, version)| (tool.clone(), version.clone())));
    if !build.byproducts.is_empty() {
        facts.push(("by-products".to_owned(), build.byproducts.join(", ")));
    }
    facts
}

fn run_facts(record: &RunRecord) -> Vec<(String, String)> {
    const TOLD: [&str; 8] = [
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "optim",
        "seed",
        "lr_scheduler_type",
        "weight_decay",
        "max_steps",
    ];
    let mut facts = Vec::new();
    let mut fact = |key: &str, value: Option<String>| facts.extend(value.map(|value| (key.to_owned(), value)));
    fact("experiment", record.experiment.clone());
    fact("name", record.name.clone());
    fact("status", record.status.clone());
    fact("lifecycle", record.lifecycle.clone());
    for key in ["train_loss", "loss", "eval_loss", "epoch"] {
        fact(key, record.metrics.get(key).cloned());
    }
    for key in TOLD {
        fact(key, record.params.get(key).cloned());
    }
    fact("steps", record.trainer.get("global_step").cloned());
    let counted = (record.params.len(), record.metrics.len());
    fact("recorded", Some(format!("{} parameters, {} metrics", counted.0, counted.1)));
    for (key, value) in &record.code {
        let key = match key.as_str() {
            "mlflow.source.name" => "script",
            "mlflow.source.type" => "started as",
            other => other.strip_prefix("mlflow.source.").unwrap_or(other),
        };
        fact(key, Some(value.clone()));
    }
    if let Some(agreement) = &record.agreement {
        let text = format!("{} of {} loss values equal {}", agreement.equal, agreement.compared, agreement.file);
        fact("agreement", Some(text));
    }
    facts
}

/// Names of the fields in which a record and its store differ; fields that are not from the store are not compared.
fn differences(record: &RunRecord, today: &RunRecord) -> Vec<String> {
    let mut names = Vec::new();
    for (name, a, b) in [
        ("experiment", &record.experiment, &today.experiment),
        ("name", &record.name, &today.name),
        ("status", &record.status, &today.status),
        ("lifecycle", &record.lifecycle, &today.lifecycle),
        ("started_ms", &record.started_ms, &today.started_ms),
        ("ended_ms", &record.ended_ms, &today.ended_ms),
    ] {
        if a != b {
            names.push(name.to_owned());
        }
    }
    for (table, a, b) in [
        ("params", &record.params, &today.params),
        ("metrics", &record.metrics, &today.metrics),
        ("code", &record.code, &today.code),
    ] {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        names.extend(keys.into_iter().filter(|key| a.get(*key) != b.get(*key)).map(|key| format!("{table}.{key}")));
    }
    let claims = |r: &RunRecord| -> Vec<(String, Option<String>)> {
        let from_store = r.datasets.iter().filter(|d| d.claimed_digest.is_some());
        from_store.map(|d| (d.name.clone(), d.claimed_digest.clone())).collect()
    };
    if claims(record) != claims(today) {
        names.push("datasets".to_owned());
    }
    if record.models != today.models {
        names.push("models".to_owned());
    }
    names
}
