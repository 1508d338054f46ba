//! What a file says about itself: shown, and never believed.

use super::{Node, NodeKind, State};
use mlpack_fs::Sha256;
use std::collections::BTreeMap;

/// Most inputs of one kind that are shown.
const MAX_SHOWN: usize = 64;
/// The words of the keys, with the kind of node that each is about.
const WORDS: [(&str, NodeKind); 5] = [
    ("base", NodeKind::Artifact),
    ("model", NodeKind::Artifact),
    ("adapter", NodeKind::Artifact),
    ("run", NodeKind::Record),
    ("dataset", NodeKind::Dataset),
];

/// `mlpack.*` entries of a file's metadata.
pub(super) struct Embedded<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Embedded<'a> {
    pub fn new(entries: &'a [(String, String)]) -> Embedded<'a> {
        Embedded(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect())
    }

    /// The build id of the step that wrote the entries.
    pub fn build(&self) -> Option<&'a str> {
        self.0.get("mlpack.build").copied()
    }

    /// A node for each input that the entries name.
    pub fn nodes(&self) -> Vec<Node> {
        let mut nodes = Vec::new();
        for (word, kind) in WORDS {
            for i in 0..MAX_SHOWN {
                let entry = |what: &str| self.0.get(format!("mlpack.{word}.{i}.{what}").as_str()).copied();
                let (name, digest) = (entry("name").or(entry("uri")), entry("sha256"));
                if name.is_none() && digest.is_none() {
                    break;
                }
                let mut node = Node::new(kind, name.unwrap_or(word), State::Claimed);
                node.sha256 = digest.and_then(|hex| hex.parse::<Sha256>().ok());
                node.role = (kind == NodeKind::Artifact).then(|| word.to_owned());
                node.note = Some("the file says so itself".to_owned());
                nodes.push(node);
            }
        }
        nodes
    }
}
