//! A trace as a graph: what is the same is one node, and plain files of one role share one. Mermaid and DOT from it.

use super::render::{group, short_name};
use super::{Node, NodeKind, State, Trace};
use mlpack_fs::Sha256;
use mlpack_tensor::Escaped;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A trace as nodes and arrows. Arrows go the way of the data: from what was read to the step, from the step to what it made.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph<'a> {
    /// The nodes, the traced artifact first.
    pub nodes: Vec<GraphNode<'a>>,
    /// Pairs of indices into `nodes`: from, to.
    pub arrows: Vec<(usize, usize)>,
}

/// A node of a graph: one of the trace's, or several plain files of one role.
#[derive(Clone, Debug, PartialEq)]
pub struct GraphNode<'a> {
    /// The trace's nodes; at least one.
    pub nodes: Vec<&'a Node>,
    /// Steps from the artifact: 0 for itself.
    pub depth: usize,
}

impl GraphNode<'_> {
    /// What the node is: a word and a name. May hold untrusted text.
    pub fn label(&self) -> (String, String) {
        let node = self.nodes[0];
        let word = node.role.as_deref().filter(|_| node.kind == NodeKind::Artifact).unwrap_or(node.kind.name());
        match self.nodes.len() {
            1 => (word.to_owned(), short_name(node)),
            n => (word.to_owned(), format!("{n} files")),
        }
    }

    /// The state; of several files all have the same.
    pub fn state(&self) -> State {
        self.nodes[0].state
    }
}

impl Trace {
    /// The trace as a graph.
    pub fn graph(&self) -> Graph<'_> {
        let mut graph = Graph { nodes: Vec::new(), arrows: Vec::new() };
        let mut known = BTreeMap::new();
        add(&self.root, None, 0, &mut graph, &mut known);
        graph.arrows.sort_unstable();
        graph.arrows.dedup();
        graph
    }

    /// The graph for Mermaid.
    pub fn to_mermaid(&self) -> String {
        let graph = self.graph();
        let mut text = "flowchart RL\n".to_owned();
        for (i, node) in graph.nodes.iter().enumerate() {
            let (word, name) = node.label();
            let label = format!("{}<br/>{}<br/>{}", mermaid(&word), mermaid(&name), node.state().name());
            let (open, close) = if is_step(node) { ("([", "])") } else { ("[", "]") };
            writeln!(text, "  n{i}{open}\"{label}\"{close}:::{}", node.state().name()).expect(INFALLIBLE);
        }
        for (from, to) in &graph.arrows {
            writeln!(text, "  n{from} --> n{to}").expect(INFALLIBLE);
        }
        for state in State::ALL {
            writeln!(text, "  classDef {} fill:{},stroke:#57606a,color:#1b1f24", state.name(), fill(state))
                .expect(INFALLIBLE);
        }
        text
    }

    /// The graph for Graphviz.
    pub fn to_dot(&self) -> String {
        let graph = self.graph();
        let mut text = "digraph lineage {\n  rankdir=RL;\n  node [style=filled, fontname=\"sans-serif\"];\n".to_owned();
        for (i, node) in graph.nodes.iter().enumerate() {
            let (word, name) = node.label();
            let shape = if is_step(node) { "ellipse" } else { "box" };
            let label = format!("{}\\n{}\\n{}", dot(&word), dot(&name), node.state().name());
            writeln!(text, "  n{i} [label=\"{label}\", shape={shape}, fillcolor=\"{}\"];", fill(node.state()))
                .expect(INFALLIBLE);
        }
        for (from, to) in &graph.arrows {
            writeln!(text, "  n{from} -> n{to};").expect(INFALLIBLE);
        }
        text.push_str("}\n");
        text
    }
}

/// Writing to a string has no way to fail.
const INFALLIBLE: &str = "a string takes any text";

fn is_step(node: &GraphNode<'_>) -> bool {
    node.nodes[0].kind == NodeKind::Step
}

type Known = BTreeMap<(&'static str, Option<Sha256>, String), usize>;

fn add<'a>(node: &'a Node, parent: Option<usize>, depth: usize, graph: &mut Graph<'a>, known: &mut Known) {
    let index = place(&[node], depth, graph, known);
    graph.arrows.extend(parent.filter(|parent| *parent != index).map(|parent| (index, parent)));
    for group in group(&node.children) {
        match group {
            [child] => add(child, Some(index), depth + 1, graph, known),
            files => {
                let files: Vec<&Node> = files.iter().collect();
                let child = place(&files, depth + 1, graph, known);
                graph.arrows.push((child, index));
            }
        }
    }
}

fn place<'a>(nodes: &[&'a Node], depth: usize, graph: &mut Graph<'a>, known: &mut Known) -> usize {
    let first = nodes[0];
    // What has no digest is the same only where it stands; the same file may have several names.
    let name = match (first.sha256, nodes.len()) {
        (Some(_), 1) => String::new(),
        _ => format!("{}.{}", graph.nodes.len(), first.name),
    };
    let next = graph.nodes.len();
    let index = *known.entry((first.kind.name(), first.sha256, name)).or_insert(next);
    if index == next {
        graph.nodes.push(GraphNode { nodes: nodes.to_vec(), depth });
    } else {
        graph.nodes[index].depth = graph.nodes[index].depth.max(depth);
    }
    index
}

/// Pale colours that dark text is read on.
const fn fill(state: State) -> &'static str {
    match state {
        State::Verified => "#c6ebd0",
        State::Untrusted => "#d8d4f5",
        State::Unsigned => "#e6e9ec",
        State::Claimed => "#fbeebc",
        State::Missing => "#fbdcb8",
        State::Mismatch => "#f8c4c0",
    }
}

fn mermaid(untrusted: &str) -> String {
    let plain = Escaped(untrusted).to_string();
    plain.chars().fold(String::new(), |mut text, c| {
        match c {
            '"' => text.push_str("#quot;"),
            '#' => text.push_str("#35;"),
            '<' => text.push_str("#lt;"),
            '>' => text.push_str("#gt;"),
            '&' => text.push_str("#amp;"),
            '`' => text.push_str("#96;"),
            c => text.push(c),
        }
        text
    })
}

fn dot(untrusted: &str) -> String {
    Escaped(untrusted).to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, role: &str, content: &str) -> Node {
        let mut node = Node::new(NodeKind::Artifact, name, State::Verified);
        (node.role, node.sha256) = (Some(role.to_owned()), Some(Sha256::of(content.as_bytes())));
        node
    }

    fn step(name: &str, children: Vec<Node>) -> Node {
        let mut node = Node::new(NodeKind::Step, name, State::Unsigned);
        (node.sha256, node.children) = (Some(Sha256::of(name.as_bytes())), children);
        node
    }

    /// A file from a step from a hostile name, two plain files and a file that is there twice.
    fn traced() -> Trace {
        let mut root = Node::new(NodeKind::Artifact, "m.gguf", State::Unsigned);
        root.sha256 = Some(Sha256::of(b"m"));
        let merge = step("merge", vec![file("a\"]\n<b>", "base", "base")]);
        let mut model = file("merged.safetensors", "model", "merged");
        model.children = vec![merge];
        let again = file("base/other-name", "base", "base");
        let plain = ["c.json", "d.json"].map(|name| file(name, "config", name));
        root.children = vec![step("convert", [vec![model, again], plain.to_vec()].concat())];
        Trace { root, cut: false }
    }

    #[test]
    fn the_same_file_is_one_node_and_plain_files_share_one() {
        let trace = traced();
        let graph = trace.graph();
        let labels: Vec<String> = graph.nodes.iter().map(|node| node.label().1).collect();
        assert_eq!(labels, ["m.gguf", "convert", "merged.safetensors", "merge", "a\"]\n<b>", "2 files"]);
        assert_eq!(graph.arrows, [(1, 0), (2, 1), (3, 2), (4, 1), (4, 3), (5, 1)]);
        assert_eq!(graph.nodes.iter().map(|n| n.depth).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 2]);
    }

    #[test]
    fn hostile_names_stay_text() {
        let mermaid = traced().to_mermaid();
        assert!(mermaid.contains("  n4[\"base<br/>a#quot;]\\u{a}#lt;b#gt;<br/>verified\"]:::verified\n"), "{mermaid}");
        let dot = traced().to_dot();
        assert!(dot.contains("  n4 [label=\"base\\na\\\"]\\\\u{a}<b>\\nverified\", shape=box,"), "{dot}");
        assert!(dot.starts_with("digraph lineage {\n") && dot.ends_with("  n5 -> n1;\n}\n"), "{dot}");
    }
}
