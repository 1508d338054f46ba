//! The way back: from a file to the step that made it, to what that step read, to the training run and its data; and for
//! each of them whether it was checked, is only claimed, is missing, or is something else.

mod json;
mod render;
mod walk;

pub use render::Line;

use crate::{Error, RunRecord};
use mlpack_fs::Sha256;
use std::path::{Path, PathBuf};

/// How far something that a statement or a record says was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// The bytes were found and have the digest; for a run, its store says the same today.
    Verified,
    /// A statement or a store says so; nothing here was checked against it.
    Claimed,
    /// There is nothing: no statement, no bytes where they were, no known run.
    Missing,
    /// The bytes found are others, or two sources contradict each other.
    Mismatch,
}

impl State {
    /// The state in a word.
    pub const fn name(self) -> &'static str {
        match self {
            State::Verified => "verified",
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
    /// Why it has that state, where that is not plain.
    pub note: Option<String>,
    /// What else is said about it, in order.
    pub facts: Vec<(String, String)>,
    /// The path whose bytes were hashed.
    pub checked: Option<PathBuf>,
    /// The whole record of a run.
    pub record: Option<Box<RunRecord>>,
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
            note: None,
            facts: Vec::new(),
            checked: None,
            record: None,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceOptions {
    /// Whether run stores are read again.
    pub check_store: CheckStore,
}

/// Traces a file, or a directory by its tree digest. Only the traced path itself must be readable; everything else that
/// goes wrong is a node of the trace.
pub fn trace(path: &Path, options: &TraceOptions) -> Result<Trace, Error> {
    walk::walk(path, options)
}

#[cfg(test)]
mod tests;
