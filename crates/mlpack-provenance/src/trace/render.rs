//! A trace as text: one line a node, box drawing on the left, the state at the end.

use super::{Node, NodeKind, State, Trace};
use mlpack_tensor::{Escaped, join_limited};

/// Files of one role and state that share a line before the rest is counted.
const SHOWN_FILES: usize = 6;

/// A line of a rendered trace. Untrusted text in it is escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The branches on the left.
    pub branches: String,
    /// What the line says.
    pub text: String,
    /// The state that belongs to it; a line that only adds to another has none.
    pub state: Option<State>,
}

impl Trace {
    /// The trace as lines, for a terminal that colours states.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        push_node(&self.root, "", "", &mut lines);
        if self.cut {
            let text = "the graph is larger than this: a part of it is not shown".to_owned();
            lines.push(Line { branches: String::new(), text, state: None });
        }
        lines
    }

    /// The trace as text without colours, with a line break after each line.
    pub fn to_text(&self) -> String {
        let line = |line: Line| match line.state {
            Some(state) => format!("{}{}  [{}]\n", line.branches, line.text, state.name()),
            None => format!("{}{}\n", line.branches, line.text),
        };
        self.lines().into_iter().map(line).collect()
    }
}

fn push_node(node: &Node, first: &str, rest: &str, lines: &mut Vec<Line>) {
    lines.push(Line { branches: first.to_owned(), text: head(node), state: Some(node.state) });
    let groups = group(&node.children);
    let below = if groups.is_empty() { "   " } else { "│  " };
    for text in details(node) {
        lines.push(Line { branches: format!("{rest}{below}"), text, state: None });
    }
    for (i, group) in groups.iter().enumerate() {
        let last = i + 1 == groups.len();
        let first = format!("{rest}{}", if last { "└─ " } else { "├─ " });
        let rest = format!("{rest}{}", if last { "   " } else { "│  " });
        match group {
            [node] => push_node(node, &first, &rest, lines),
            many => lines.push(Line { branches: first, text: many_files(many), state: Some(many[0].state) }),
        }
    }
}

/// Consecutive files of the same role and state, of which there is nothing more to say, go on one line.
pub(super) fn group(nodes: &[Node]) -> Vec<&[Node]> {
    let plain = |n: &Node| {
        n.kind == NodeKind::Artifact
            && n.children.is_empty()
            && n.facts.is_empty()
            && !n.repeated
            && n.state != State::Mismatch
            && matches!(n.role.as_deref(), Some("config" | "tokenizer" | "artifact"))
    };
    nodes.chunk_by(|a, b| plain(a) && plain(b) && a.role == b.role && a.state == b.state && a.note == b.note).collect()
}

/// A name for a picture: of a file the last part, of an id or a URI the last part too.
pub(super) fn short_name(node: &Node) -> String {
    let name = node.name.trim_end_matches('/');
    match node.kind {
        NodeKind::Record | NodeKind::Artifact | NodeKind::Evidence => {
            name.rsplit('/').next().unwrap_or(name).to_owned()
        }
        _ => name.to_owned(),
    }
}

fn many_files(nodes: &[Node]) -> String {
    let role = nodes[0].role.as_deref().unwrap_or("file");
    let names = join_limited(nodes.iter().map(|n| n.name.as_str()), SHOWN_FILES);
    let note = nodes[0].note.iter().map(|note| format!("  ({})", Escaped(note))).collect::<String>();
    format!("{} {names}{note}", Escaped(role))
}

fn head(node: &Node) -> String {
    let name = Escaped(&node.name);
    let mut text = match (node.kind, node.role.as_deref()) {
        (NodeKind::Artifact, Some(role)) => format!("{} `{name}`", Escaped(role)),
        (NodeKind::Artifact, None) => format!("`{name}`"),
        (NodeKind::Step, _) => format!("{name}"),
        (NodeKind::Record, _) => format!("training-run record {name}"),
        (NodeKind::Run, _) => format!("training run {name}"),
        (NodeKind::Dataset, _) => format!("dataset `{name}`"),
        (NodeKind::BaseModel, _) => format!("base model `{name}`"),
        (NodeKind::Evidence, _) => format!("evidence `{name}`"),
        (NodeKind::Signature, _) => format!("signature `{name}`"),
        (NodeKind::Fault, _) => format!("fault in `{name}`"),
    };
    match (node.kind, node.sha256) {
        // A statement's own digest identifies it; the long form is in the JSON.
        (NodeKind::Step, Some(digest)) => text.push_str(&format!("  statement {:.12}", digest.to_string())),
        (_, Some(digest)) => text.push_str(&format!("  sha256:{digest}")),
        (_, None) => {}
    }
    if inline_note(node) {
        text.extend(node.note.iter().map(|note| format!("  ({})", escape_note(note))));
    }
    if node.repeated {
        text.push_str("  (shown above)");
    }
    text
}

fn details(node: &Node) -> Vec<String> {
    let facts: Vec<String> =
        node.facts.iter().map(|(key, value)| format!("{}={}", Escaped(key), Escaped(value))).collect();
    let mut lines: Vec<String> = facts.chunks(4).map(|some| some.join("  ")).collect();
    if !inline_note(node) {
        lines.extend(node.note.iter().map(|note| escape_note(note)));
    }
    lines
}

/// Short notes that belong to nearly every node of a kind stand on its line.
fn inline_note(node: &Node) -> bool {
    node.state != State::Mismatch && matches!(node.kind, NodeKind::Step | NodeKind::BaseModel)
}

/// A note is our sentence around untrusted names: control characters are escaped, its quotes stay.
fn escape_note(note: &str) -> String {
    note.split('`').map(|part| Escaped(part).to_string()).collect::<Vec<_>>().join("`")
}
