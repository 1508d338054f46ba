//! Walking from digest to statement to digest.

use super::embedded::Embedded;
use super::{Image, Node, NodeKind, State, Trace, TraceOptions};
use crate::claims::Claims;
use crate::object::Object;
use crate::sign::{About, MAX_SIGNATURE_LEN, MODEL_SIGNING_TYPE, Verdict, check_model, model_signature_path};
use crate::statement::{Build, Descriptor};
use crate::store::{DIR_NAME, SIDECAR_ENDING};
use crate::tree::hash_tree;
use crate::{BUILDER, Error, RUN_MEDIA_TYPE, Statement, StepKind, Trust, UNKNOWN_RUN, tree_digest};
use mlpack_fs::{Sha256, hash_file};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most steps one after the other.
const MAX_DEPTH: usize = 32;
/// Most nodes of a trace.
const MAX_NODES: usize = 8192;

pub(super) fn walk(path: &Path, options: &TraceOptions) -> Result<Trace, Error> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut walk = Walk::new(options, absolute.parent().unwrap_or(Path::new("")));
    let known = fs::canonicalize(path).ok().and_then(|path| *walk.hashed.get(&path)?);
    let digest = known.map_or_else(|| hash_path(path), Ok)?;
    walk.claims.look_around(&absolute);
    let name = absolute.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut root = Node::new(NodeKind::Artifact, name, State::Verified);
    root.sha256 = Some(digest);
    root.checked = Some(path.to_owned());
    root.children = walk.steps(digest, 0);
    let model_signature = walk.model_signature(&absolute);
    if !root.children.iter().any(|child| child.kind == NodeKind::Step) {
        let (passed_on, _) = walk.claims.about(digest);
        if !passed_on.is_empty() {
            root.note = Some("not made by a step: passed on unchanged".to_owned());
            let heads = passed_on.iter().take(MAX_NODES).map(|statement| walk.step_head(statement));
            root.children.extend(heads);
        } else if model_signature.is_none() {
            (root.state, root.note) = walk.why_nothing(&absolute, digest);
        }
    }
    root.children.extend(model_signature);
    walk.compare_embedded(digest, &mut root);
    Ok(walk.finish(root))
}

/// Bytes that are not here.
pub(super) fn walk_digest(digest: Sha256, folder: &Path, options: &TraceOptions) -> Result<Trace, Error> {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let mut walk = Walk::new(options, &absolute);
    walk.claims.look_in(&absolute)?;
    let (statements, _) = walk.claims.about(digest);
    let names = statements.iter().flat_map(Statement::subjects);
    let name = names.filter(|(_, subject)| *subject == digest).map(|(name, _)| name.to_owned()).min();
    let name = name.unwrap_or_else(|| format!("sha256:{digest}"));
    let mut root = Node::new(NodeKind::Artifact, name.clone(), State::Missing);
    root.sha256 = Some(digest);
    root.children = walk.steps(digest, 0);
    if !root.children.iter().any(|child| child.kind == NodeKind::Step) {
        root.note = Some("no statement about such bytes".to_owned());
    }
    let mut trace = walk.finish(root);
    if let Some(attested) = trace.root.attested {
        let (state, checked, note) = walk.find_bytes(&name, digest, Some(attested));
        (trace.root.state, trace.root.checked, trace.root.note) = (state, checked, note);
    }
    Ok(trace)
}

/// An image: what states that it was packed, and each layer that something is stated about.
pub(super) fn walk_image(image: &Image, options: &TraceOptions) -> Result<Trace, Error> {
    let mut walk = Walk::new(options, image.near.as_deref().unwrap_or(Path::new("")));
    if let Some(near) = &image.near {
        walk.claims.look_around(&near.join(DIR_NAME));
    }
    for layer in image.layers.iter().filter(|layer| layer.name.ends_with(SIDECAR_ENDING)) {
        if let Some(path) = &layer.path {
            walk.claims.add_sidecar(path, &layer.name);
        }
        if let Some(bytes) = &layer.bytes {
            walk.claims.add_sidecar_bytes(bytes, &layer.name);
        }
    }
    for (origin, bytes) in &image.bundles {
        walk.claims.add_bundle(origin, bytes);
    }
    let mut root = Node::new(NodeKind::Artifact, image.name.clone(), State::Unsigned);
    root.sha256 = Some(image.manifest);
    root.children = walk.steps(image.manifest, 0);
    let packed = root.children.iter().any(|child| child.kind == NodeKind::Step);
    for layer in &image.layers {
        let fetched = layer.bytes.as_ref().map(|bytes| Some(Sha256::of(bytes)));
        let (state, note) = match fetched.or_else(|| layer.path.as_ref().map(|path| walk.hash(path))) {
            // Whoever pulls it checks the digest, which is the one that is stated.
            None => (State::Unsigned, Some("known by its digest: its bytes stay in the registry".to_owned())),
            Some(Some(found)) if found == layer.sha256 => (State::Unsigned, None),
            Some(Some(found)) => (State::Mismatch, Some(format!("the layer's bytes have sha256 {found}"))),
            Some(None) => (State::Missing, Some("the layer is not there".to_owned())),
        };
        let mut node = Node::new(NodeKind::Artifact, layer.name.clone(), state);
        (node.sha256, node.note, node.checked) = (Some(layer.sha256), note, layer.path.clone());
        node.role = Some("layer".to_owned());
        if walk.expanded.contains(&layer.sha256) {
            let (statements, _) = walk.claims.about(layer.sha256);
            node.repeated = statements.iter().any(|s| !s.passes_through(layer.sha256));
        } else {
            node.children = walk.steps(layer.sha256, 1);
        }
        if let Some(best) = node.children.iter().filter_map(|child| child.attested).min() {
            node.attested = Some(best);
            node.state = if state == State::Unsigned { best } else { state };
        }
        // With a statement about the image the plain layers are its inputs already.
        let told = packed && node.children.is_empty() && state != State::Mismatch;
        if !told {
            root.children.push(node);
        }
    }
    if !packed {
        // An image is as good as the worst of its models.
        let worst = root.children.iter().filter(|node| node.attested.is_some()).map(|node| node.state).max();
        root.state = worst.unwrap_or(State::Missing);
        root.attested = root.children.iter().filter_map(|node| node.attested).max();
        root.note = Some("nothing is stated about the image itself".to_owned());
    }
    Ok(walk.finish(root))
}

impl<'a> Walk<'a> {
    pub fn new(options: &'a TraceOptions, folder: &Path) -> Walk<'a> {
        Walk {
            options,
            claims: Claims::default(),
            folder: folder.to_owned(),
            hashed: options
                .known
                .iter()
                .filter_map(|(path, digest)| Some((fs::canonicalize(path).ok()?, Some(*digest))))
                .collect(),
            expanded: BTreeSet::new(),
            nodes: 1,
            cut: false,
        }
    }

    /// The root's state by what states it, and everything that is wrong with sidecars.
    fn finish(&self, mut root: Node) -> Trace {
        let stated = |node: &&Node| matches!(node.kind, NodeKind::Step | NodeKind::Signature);
        if let Some(best) = root.children.iter().filter(stated).filter_map(|node| node.attested).min() {
            (root.state, root.attested) = (best, Some(best));
            if best == State::Mismatch && root.note.is_none() {
                root.note = root.children.iter().filter(stated).find_map(|node| node.note.clone());
            }
        }
        let faults = self.claims.faults().map(|(place, fault)| fault_node(&file_name(place), fault.to_owned()));
        root.children.extend(faults);
        root.children.extend(self.broken_in_sidecars());
        Trace { root, cut: self.cut }
    }
}

pub(super) struct Walk<'a> {
    pub options: &'a TraceOptions,
    pub claims: Claims,
    // The traced file's folder.
    pub folder: PathBuf,
    // Digests of the paths hashed so far; `None` when a path cannot be read.
    pub hashed: BTreeMap<PathBuf, Option<Sha256>>,
    // Digests whose steps are shown.
    pub expanded: BTreeSet<Sha256>,
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
        nodes.extend(faults.into_iter().map(|fault| fault_node("store", fault)));
        nodes
    }

    fn step(&mut self, statement: &Statement, depth: usize) -> Node {
        let mut node = self.step_head(statement);
        // Nothing is attested by a statement that was edited.
        let attested = node.attested.filter(|state| *state != State::Mismatch);
        for dependency in statement.build.iter().flat_map(|build| &build.dependencies) {
            if !self.count() {
                self.cut = true;
                break;
            }
            let child = self.dependency(dependency, attested, depth);
            node.children.push(child);
        }
        // A run that was not known then may have been imported since, for every adapter of the step.
        let has_run = |node: &Node| node.any(&|below| below.record.is_some());
        let mut adapters = node.children.iter().filter(|child| child.role.as_deref() == Some("adapter")).peekable();
        if adapters.peek().is_some() && adapters.all(|adapter| adapter.repeated || has_run(adapter)) {
            let before = node.children.len();
            node.children.retain(|child| child.kind != NodeKind::Run);
            if node.children.len() < before {
                node.facts.push(("run".to_owned(), "not known then, imported since".to_owned()));
            }
        }
        node
    }

    fn dependency(&mut self, dependency: &Descriptor, attested: Option<State>, depth: usize) -> Node {
        let role = dependency.annotation("role");
        let mut node = match (&dependency.uri, dependency.sha256) {
            (Some(uri), _) if uri == UNKNOWN_RUN => {
                let mut node = Node::new(NodeKind::Run, "unknown", State::Missing);
                node.note = dependency.annotation("reason").map(str::to_owned);
                node
            }
            (uri, Some(digest)) if dependency.media_type.as_deref() == Some(RUN_MEDIA_TYPE) => {
                self.record(digest, uri.as_deref(), attested)
            }
            (_, Some(digest)) => self.file(&dependency.name, digest, attested, depth),
            (uri, None) => {
                let name = if dependency.name.is_empty() { uri.as_deref().unwrap_or("") } else { &dependency.name };
                let mut node = Node::new(NodeKind::Artifact, name, State::Claimed);
                node.note = Some("without a digest".to_owned());
                node
            }
        };
        node.role = role.map(str::to_owned);
        node.attested = attested;
        let shown = |key: &str| !matches!(key, "role" | "reason" | "status");
        for (key, value) in dependency.annotations.iter().filter(|(key, _)| shown(key)) {
            node.facts.push((key.clone(), plain(value)));
        }
        node
    }

    /// A file that something names by digest, and what it comes from.
    fn file(&mut self, name: &str, digest: Sha256, attested: Option<State>, depth: usize) -> Node {
        let (state, checked, note) = self.find_bytes(name, digest, attested);
        let mut node = Node::new(NodeKind::Artifact, name, state);
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

    /// A step without what it read.
    fn step_head(&self, statement: &Statement) -> Node {
        let mut node = Node::new(NodeKind::Step, statement.predicate_type.clone(), State::Unsigned);
        node.sha256 = Some(statement.digest());
        let judged = judge(&self.claims, &self.options.trust, statement);
        node.state = judged.state;
        node.children = judged.broken.into_iter().map(|(place, why)| fault_node(place, why)).collect();
        let mut note = judged.note;
        if let Some(build) = &statement.build {
            let kind = StepKind::from_build_type(&build.build_type);
            node.name = kind.map_or(build.build_type.as_str(), |kind| kind.name()).to_owned();
            node.facts = step_facts(build);
            node.byproducts = build.byproducts.clone();
            node.build = build.invocation_id.clone();
            if kind == Some(StepKind::Train) && node.state != State::Mismatch {
                note.push_str("; imported: mlpack did not train");
            }
        } else {
            note.push_str("; of a kind that mlpack does not read");
        }
        node.note = Some(note);
        node.attested = Some(node.state);
        node
    }

    /// Signatures in sidecars that are not what they say, about whatever statement: what an edited one is about is not
    /// known.
    fn broken_in_sidecars(&self) -> Vec<Node> {
        let judged = self.claims.sidecar_bundles().filter_map(|(place, (bundle, statement))| {
            match self.options.trust.judge(bundle, about(statement)) {
                Verdict::Broken(why) => Some(fault_node(&file_name(place), why)),
                Verdict::Trusted(_) | Verdict::Untrusted(_) => None,
            }
        });
        judged.collect()
    }

    /// Compares what a file says about itself with what is stated about it.
    fn compare_embedded(&self, digest: Sha256, root: &mut Node) {
        let embedded = Embedded::new(&self.options.embedded);
        let Some(build) = embedded.build() else { return };
        let (statements, _) = self.claims.about(digest);
        if statements.iter().any(|statement| statement.build_id() == Some(build)) {
            root.facts.push(("embedded build id".to_owned(), "fits the statement".to_owned()));
            return;
        }
        let of_another = "its metadata is of another step: the file was altered or quantized again afterwards";
        if statements.is_empty() {
            // What the sidecar says of this build, it says about other bytes.
            let stated = self.claims.all().into_iter().any(|object| match object {
                Object::Statement(statement) => statement.build_id() == Some(build),
                Object::Run(..) | Object::Signed(_) => false,
            });
            if root.state == State::Missing {
                root.state = State::Claimed;
                let alone = "no statement about these bytes; what follows the file says itself";
                root.note = Some(if stated { of_another } else { alone }.to_owned());
            }
            root.facts.push(("embedded build id".to_owned(), build.to_owned()));
            root.children.extend(embedded.nodes());
        } else {
            root.note = Some(of_another.to_owned());
        }
    }

    /// The signature over the whole model, where there is one: `model.sig` in a directory, `FILE.sig` beside a file.
    fn model_signature(&self, path: &Path) -> Option<Node> {
        let signature = match &self.options.model_signature {
            Some(given) => given.clone(),
            None => {
                let place = Some(model_signature_path(path)).filter(|place| place.is_file())?;
                // Other tools call their signatures FILE.sig too.
                if !path.is_dir()
                    && !matches!(mlpack_fs::read_bounded(&place, MAX_SIGNATURE_LEN), Ok(bytes) if bytes.starts_with(b"{"))
                {
                    return None;
                }
                place
            }
        };
        let mut node = Node::new(NodeKind::Signature, file_name(&signature), State::Mismatch);
        match check_model(path, &signature) {
            Err(e) => node.note = Some(e.to_string().lines().map(str::trim).collect::<Vec<_>>().join("; ")),
            Ok(check) => {
                let (state, note) = match (check.note(), self.options.trust.judge(&check.bundle, About::Model)) {
                    (Some(faults), _) => (State::Mismatch, faults),
                    (None, Verdict::Trusted(who)) => (State::Verified, who),
                    (None, Verdict::Untrusted(why)) => (State::Untrusted, why),
                    (None, Verdict::Broken(why)) => (State::Mismatch, why),
                };
                node.facts = vec![("files".to_owned(), check.resources.len().to_string())];
                (node.state, node.note) = (state, Some(note));
            }
        }
        node.attested = Some(node.state);
        Some(node)
    }

    fn count(&mut self) -> bool {
        self.nodes += 1;
        self.nodes <= MAX_NODES
    }
}

/// The digest of a file, or the tree digest of a directory.
pub fn hash_path(path: &Path) -> Result<Sha256, Error> {
    if path.is_dir() { Ok(tree_digest(&hash_tree(path)?)) } else { Ok(hash_file(path)?.0) }
}

pub(super) fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What the signatures over a statement come to.
pub(super) struct Judged {
    pub state: State,
    /// Who signed, or why the state is not better.
    pub note: String,
    /// Signatures that do not fit: where, and why.
    pub broken: Vec<(&'static str, String)>,
}

/// How far a statement can be believed: for its signatures, and for its build id.
pub(super) fn judge(claims: &Claims, trust: &Trust, statement: &Statement) -> Judged {
    let (bundles, faults) = claims.bundles(statement.digest());
    let mut broken: Vec<_> = faults.into_iter().map(|fault| ("store", fault)).collect();
    let (mut trusted, mut untrusted) = (Vec::new(), Vec::new());
    for bundle in &bundles {
        match trust.judge(bundle, about(statement)) {
            Verdict::Trusted(who) => trusted.push(who),
            Verdict::Untrusted(why) => untrusted.push(why),
            Verdict::Broken(why) => broken.push(("signature", why)),
        }
    }
    let edited = statement.build.as_ref().is_some_and(|build| {
        build.builder_id == BUILDER && build.invocation_id != build.definition.map(|digest| digest.to_string())
    });
    let (state, signed) = match (trusted.is_empty(), untrusted.is_empty(), broken.is_empty()) {
        _ if edited => {
            (State::Mismatch, vec!["its build id does not fit what it says: the statement was edited".to_owned()])
        }
        (false, ..) => (State::Verified, trusted),
        (true, false, _) => (State::Untrusted, untrusted),
        (true, true, false) => (State::Mismatch, vec!["its signature does not fit".to_owned()]),
        (true, true, true) => (State::Unsigned, vec!["unsigned".to_owned()]),
    };
    Judged { state, note: signed.join("; "), broken }
}

/// Something that is wrong with a sidecar or a store.
fn fault_node(place: &str, fault: String) -> Node {
    let mut node = Node::new(NodeKind::Fault, place, State::Mismatch);
    node.note = Some(fault);
    node
}

/// What a statement is about, for those who decide whether a key may sign it.
fn about(statement: &Statement) -> About {
    if statement.predicate_type == MODEL_SIGNING_TYPE {
        return About::Model;
    }
    let build_type = statement.build.as_ref().map_or("", |build| build.build_type.as_str());
    StepKind::from_build_type(build_type).map_or(About::Other, About::Step)
}

fn step_facts(build: &Build) -> Vec<(String, String)> {
    let mut facts: Vec<(String, String)> =
        build.external.iter().map(|(key, value)| (key.clone(), plain(value))).collect();
    facts.sort();
    facts.extend(build.builder_version.iter().map(|(tool, version)| (tool.clone(), version.clone())));
    if !build.byproducts.is_empty() {
        let names: Vec<&str> = build.byproducts.keys().map(String::as_str).collect();
        facts.push(("by-products".to_owned(), names.join(", ")));
    }
    facts
}
