//! A trace as JSON for machines, schema `mlpack.trace/v1`.

use super::{Node, Trace};
use crate::RunRecord;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

impl Trace {
    /// The trace as one JSON object: `schema`, `holds`, `cut` and `root`, a node with its `children`. Fields may be added
    /// under the same schema name.
    pub fn to_json(&self) -> serde_json::Value {
        let wire = WireTrace { schema: "mlpack.trace/v1", holds: self.holds(), cut: self.cut, root: wire(&self.root) };
        serde_json::to_value(wire).expect("maps with string keys always serialise")
    }
}

#[derive(Serialize)]
struct WireTrace<'a> {
    schema: &'static str,
    holds: bool,
    cut: bool,
    root: WireNode<'a>,
}

#[derive(Serialize)]
struct WireNode<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    attested: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    facts: BTreeMap<&'a str, &'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<&'a RunRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    byproducts: &'a BTreeMap<String, Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    repeated: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    children: Vec<WireNode<'a>>,
}

fn wire(node: &Node) -> WireNode<'_> {
    WireNode {
        kind: node.kind.name(),
        role: node.role.as_deref(),
        name: &node.name,
        sha256: node.sha256.map(|digest| digest.to_string()),
        state: node.state.name(),
        attested: node.attested.map(super::State::name),
        note: node.note.as_deref(),
        facts: node.facts.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect(),
        checked: node.checked.as_ref().map(|path| path.display().to_string()),
        record: node.record.as_deref(),
        build: node.build.as_deref(),
        byproducts: &node.byproducts,
        repeated: node.repeated,
        children: node.children.iter().map(wire).collect(),
    }
}
