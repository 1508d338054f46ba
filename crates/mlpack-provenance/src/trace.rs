//! The way back: from a file to the step that made it, to what that step read, to the training run and its data; and for
//! each of them whether it was checked, is only claimed, is missing, or is something else.

mod bytes;
mod cyclonedx;
mod dependents;
mod embedded;
mod graph;
mod json;
mod recipe;
mod render;
mod runs;
mod walk;

pub use dependents::{Dependent, dependents};
pub use graph::{Graph, GraphNode};
pub use recipe::{Ingredient, Recipe, recipe};
pub use render::Line;
pub use walk::hash_path;

use crate::{Error, RunRecord, Trust};
use mlpack_fs::Sha256;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How far something that a statement or a record says was checked. The order is from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A trusted signature covers it, and the bytes were found and have the digest.
    Verified,
    /// The bytes fit, and the statement is signed by a key that is not trusted for it.
    Untrusted,
    /// The bytes fit, and nobody signed the statement.
    Unsigned,
    /// A statement, a record or metadata says so; the bytes are not here to check, or it has no digest.
    Claimed,
    /// There is nothing: no statement, no bytes where they were, no known run.
    Missing,
    /// The bytes found are others, a signature does not fit, or two sources contradict each other.
    Mismatch,
}

impl State {
    /// Every state, from best to worst.
    pub const ALL: [State; 6] =
        [State::Verified, State::Untrusted, State::Unsigned, State::Claimed, State::Missing, State::Mismatch];

    /// The state in a word.
    pub const fn name(self) -> &'static str {
        match self {
            State::Verified => "verified",
            State::Untrusted => "untrusted",
            State::Unsigned => "unsigned",
            State::Claimed => "claimed",
            State::Missing => "missing",
            State::Mismatch => "mismatch",
        }
    }
}

/// What a node of a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A file or directory.
    Artifact,
    /// A step, as a statement tells it.
    Step,
    /// The record of a training run.
    Record,
    /// A training run, as its record tells it, or the statement that none is known.
    Run,
    /// A dataset of a run.
    Dataset,
    /// The model that a run started from, by name.
    BaseModel,
    /// A file that backs a record.
    Evidence,
    /// A signature over a whole model.
    Signature,
    /// A fault of a sidecar or a store.
    Fault,
}

impl NodeKind {
    /// The kind in a word.
    pub const fn name(self) -> &'static str {
        match self {
            NodeKind::Artifact => "artifact",
            NodeKind::Step => "step",
            NodeKind::Record => "run-record",
            NodeKind::Run => "run",
            NodeKind::Dataset => "dataset",
            NodeKind::BaseModel => "base-model",
            NodeKind::Evidence => "evidence",
            NodeKind::Signature => "signature",
            NodeKind::Fault => "fault",
        }
    }
}

/// A node of a trace. Names, facts and notes may hold untrusted text: [`Trace::lines`] escapes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// What it was to the step above.
    pub role: Option<String>,
    /// Its name.
    pub name: String,
    /// The digest that is stated; for the traced file, the one it has.
    pub sha256: Option<Sha256>,
    /// How far it was checked.
    pub state: State,
    /// How far the statement that names it, or for a step the statement itself, can be believed: verified, untrusted,
    /// unsigned or mismatch. `None` for what no statement names.
    pub attested: Option<State>,
    /// Why it has that state, where that is not plain.
    pub note: Option<String>,
    /// What else is said about it, in order.
    pub facts: Vec<(String, String)>,
    /// The path whose bytes were hashed.
    pub checked: Option<PathBuf>,
    /// The whole record of a run.
    pub record: Option<Box<RunRecord>>,
    /// Of a step: its build id, known before the output exists.
    pub build: Option<String>,
    /// Of a step: further facts about what it made, such as each tensor's type, by name.
    pub byproducts: BTreeMap<String, Value>,
    /// What it comes from.
    pub children: Vec<Node>,
    /// Whether what it comes from is shown at an earlier place with the same digest.
    pub repeated: bool,
}

impl Node {
    pub(crate) fn new(kind: NodeKind, name: impl Into<String>, state: State) -> Node {
        Node {
            kind,
            role: None,
            name: name.into(),
            sha256: None,
            state,
            attested: None,
            note: None,
            facts: Vec::new(),
            checked: None,
            record: None,
            build: None,
            byproducts: BTreeMap::new(),
            children: Vec::new(),
            repeated: false,
        }
    }

    fn any(&self, test: &impl Fn(&Node) -> bool) -> bool {
        test(self) || self.children.iter().any(|child| child.any(test))
    }
}

/// The result of [`trace`].
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The traced file or directory.
    pub root: Node,
    /// Whether the graph was larger than mlpack walks, so that a part of it is not shown.
    pub cut: bool,
}

impl Trace {
    /// Whether nothing contradicts what is stated: no node is a [`State::Mismatch`]. A command exits with "the answer is
    /// no" otherwise.
    pub fn holds(&self) -> bool {
        !self.root.any(&|node| node.state == State::Mismatch)
    }

    /// The first contradiction, in a sentence. A signature over a whole model is left out: it can be made anew.
    pub(crate) fn first_fault(&self) -> Option<String> {
        let is_fault = |node: &&Node| node.state == State::Mismatch && node.kind != NodeKind::Signature;
        // The root may be wrong for that signature alone.
        let mut nodes = self.nodes();
        let root_alone = self.root.children.iter().any(|node| node.kind == NodeKind::Signature);
        if root_alone {
            nodes.next();
        }
        nodes.find(is_fault).map(|node| {
            let note = node.note.as_deref().unwrap_or("mismatch");
            format!("`{}`: {note}", node.name)
        })
    }

    /// Every node, parents first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> + use<'_> {
        let mut stack = vec![&self.root];
        std::iter::from_fn(move || {
            let node = stack.pop()?;
            stack.extend(node.children.iter().rev());
            Some(node)
        })
    }
}

/// Whether the store that a run record came from is read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CheckStore {
    /// No: what the record says stays claimed.
    #[default]
    No,
    /// Yes, where it was when the record was made.
    Remembered,
    /// Yes, at this path.
    At(PathBuf),
}

/// What [`trace`] does beyond hashing files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceOptions {
    /// The keys whose signatures are believed.
    pub trust: Trust,
    /// Whether run stores are read again.
    pub check_store: CheckStore,
    /// The signature over the whole model, where it is not at [`model_signature_path`](crate::model_signature_path).
    pub model_signature: Option<PathBuf>,
    /// Digests of files that the caller has just read or made.
    pub known: BTreeMap<PathBuf, Sha256>,
    /// Whether a file is taken for the one that was hashed before where size, times and inode say so. The traced file itself
    /// is always hashed.
    pub reuse_digests: bool,
    /// The `mlpack.*` entries of the traced file's own metadata. They are shown as claims.
    pub embedded: Vec<(String, String)>,
}

/// Traces a file, or a directory by its tree digest. Only the traced path itself must be readable; everything else that
/// goes wrong is a node of the trace.
pub fn trace(path: &Path, options: &TraceOptions) -> Result<Trace, Error> {
    walk::walk(path, options)
}

/// Traces bytes that are not here, by their digest: what the stores and sidecars in and near `folder` know about them.
pub fn trace_digest(digest: Sha256, folder: &Path, options: &TraceOptions) -> Result<Trace, Error> {
    walk::walk_digest(digest, folder, options)
}

/// Traces an image: its manifest, and the layers that hold models.
pub fn trace_image(image: &Image, options: &TraceOptions) -> Result<Trace, Error> {
    walk::walk_image(image, options)
}

/// An image whose manifest and layers were read from a layout or a registry.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// What people call it, such as `oci:layout:v1`.
    pub name: String,
    /// The digest of its manifest or index.
    pub manifest: Sha256,
    /// Its layers, with those of every manifest of an index.
    pub layers: Vec<Layer>,
    /// Sigstore bundles that are attached to the manifest as referrers: each with where it is from.
    pub bundles: Vec<(String, Vec<u8>)>,
    /// A folder near which stores are looked for; none for an image of a registry.
    pub near: Option<PathBuf>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The name of the file that it is.
    pub name: String,
    /// Its digest, as the manifest states it.
    pub sha256: Sha256,
    /// Where its bytes are on this machine, where they are.
    pub path: Option<PathBuf>,
    /// Its bytes, where they were fetched: those of a sidecar.
    pub bytes: Option<Vec<u8>>,
}

#[cfg(test)]
mod tests;
