//! A trace as a bill of materials: CycloneDX 1.6 (ECMA-424), JSON, an ML-BOM.
//!
//! The artifact is a `machine-learning-model` with base and adapter as its ancestors and its datasets in the model card;
//! every file is a component with its sha256. There is no time in it, and its serial number comes from the artifact's
//! digest: the same trace gives the same bytes.

use super::{Node, NodeKind, Trace};
use crate::RunRecord;
use mlpack_fs::Sha256;
use mlpack_tensor::Escaped;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

impl Trace {
    /// The bill of materials.
    pub fn to_cyclonedx(&self) -> Value {
        let mut bom = Bom { components: BTreeMap::new(), depends: BTreeMap::new() };
        bom.visit(&self.root, None);
        let root = reference(&self.root);
        let nodes: Vec<&Node> = self.nodes().collect();
        let record = nodes.iter().find_map(|node| node.record.as_deref());
        let mut artifact = bom.components.remove(&root).unwrap_or_else(|| json!({}));
        let ancestors: BTreeSet<String> = nodes
            .iter()
            .filter(|node| matches!(node.role.as_deref(), Some("base" | "adapter")))
            .map(|node| reference(node))
            .collect();
        let ancestor = |reference: &String| {
            let mut component = bom.components.get(reference)?.clone();
            // A reference is unique in a document: the copy under the pedigree has none.
            component.as_object_mut()?.remove("bom-ref");
            Some(component)
        };
        let ancestors: Vec<Value> = ancestors.iter().filter_map(ancestor).collect();
        if !ancestors.is_empty() {
            artifact["pedigree"] = json!({"ancestors": ancestors});
        }
        let datasets: BTreeSet<String> =
            nodes.iter().filter(|node| node.kind == NodeKind::Dataset).map(|node| reference(node)).collect();
        let mut card = Map::new();
        if !datasets.is_empty() {
            let refs: Vec<Value> = datasets.iter().map(|reference| json!({"ref": reference})).collect();
            card.insert("modelParameters".to_owned(), json!({"approach": {"type": "supervised"}, "datasets": refs}));
        }
        if let Some(record) = record {
            card.insert("properties".to_owned(), run_properties(record));
            let metrics: Vec<Value> = record
                .metrics
                .iter()
                .map(|(name, value)| json!({"type": plain(name), "value": plain(value)}))
                .collect();
            if !metrics.is_empty() {
                card.insert("quantitativeAnalysis".to_owned(), json!({"performanceMetrics": metrics}));
            }
        }
        if !card.is_empty() {
            artifact["modelCard"] = Value::Object(card);
        }
        let components: Vec<Value> = bom.components.into_values().collect();
        let dependencies: Vec<Value> =
            bom.depends.into_iter().map(|(reference, on)| json!({"ref": reference, "dependsOn": on})).collect();
        json!({
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": serial_number(self.root.sha256),
            "version": 1,
            "metadata": {
                "tools": {"components": [{"type": "application", "name": "mlpack", "version": env!("CARGO_PKG_VERSION")}]},
                "component": artifact,
            },
            "components": components,
            "dependencies": dependencies,
        })
    }
}

struct Bom {
    components: BTreeMap<String, Value>,
    depends: BTreeMap<String, BTreeSet<String>>,
}

impl Bom {
    /// Adds what a node is and what it comes from. Steps are no components: what a step read is what its output depends on.
    fn visit(&mut self, node: &Node, above: Option<&str>) {
        let own = match component(node) {
            Some(mut component) => {
                let reference = reference(node);
                if let Some(above) = above.filter(|above| *above != reference) {
                    self.depends.entry(above.to_owned()).or_default().insert(reference.clone());
                }
                self.depends.entry(reference.clone()).or_default();
                component["bom-ref"] = json!(reference);
                self.components.entry(reference.clone()).or_insert(component);
                Some(reference)
            }
            None => above.map(str::to_owned),
        };
        for child in &node.children {
            self.visit(child, own.as_deref());
        }
    }
}

/// The component that a node is; `None` for steps, runs and faults.
fn component(node: &Node) -> Option<Value> {
    let kind = match node.kind {
        NodeKind::Artifact => match node.role.as_deref() {
            None | Some("base" | "model" | "adapter") => "machine-learning-model",
            Some(_) => "file",
        },
        NodeKind::Dataset => "data",
        NodeKind::BaseModel => "machine-learning-model",
        NodeKind::Record | NodeKind::Evidence | NodeKind::Signature => "file",
        NodeKind::Step | NodeKind::Run | NodeKind::Fault => return None,
    };
    let mut component = json!({"type": kind, "name": plain(&node.name)});
    if let Some(digest) = node.sha256 {
        component["hashes"] = json!([{"alg": "SHA-256", "content": digest.to_string()}]);
    }
    let mut properties = vec![property("mlpack:state", node.state.name())];
    properties.extend(node.attested.map(|state| property("mlpack:attested", state.name())));
    properties.extend(node.role.as_deref().map(|role| property("mlpack:role", role)));
    properties.extend(node.note.as_deref().map(|note| property("mlpack:note", note)));
    if node.kind == NodeKind::Dataset {
        component["data"] = json!([{"type": "dataset", "name": plain(&node.name)}]);
    }
    for (key, value) in &node.facts {
        properties.push(property(&format!("mlpack:fact:{key}"), value));
    }
    for step in node.children.iter().filter(|child| child.kind == NodeKind::Step) {
        let digest = step.sha256.map(|digest| digest.to_string()).unwrap_or_default();
        properties.push(property("mlpack:made-by", &format!("{} sha256:{digest} {}", step.name, step.state.name())));
    }
    component["properties"] = Value::Array(properties);
    Some(component)
}

fn run_properties(record: &RunRecord) -> Value {
    let mut properties =
        vec![property("mlpack:run", record.label()), property("mlpack:run:source", &record.source.uri)];
    properties.extend(record.experiment.as_deref().map(|text| property("mlpack:run:experiment", text)));
    properties.extend(record.status.as_deref().map(|text| property("mlpack:run:status", text)));
    for (key, value) in &record.params {
        properties.push(property(&format!("mlpack:run:param:{key}"), value));
    }
    Value::Array(properties)
}

fn property(name: &str, value: &str) -> Value {
    json!({"name": plain(name), "value": plain(value)})
}

fn plain(untrusted: &str) -> String {
    untrusted.split('`').map(|part| Escaped(part).to_string()).collect::<Vec<_>>().join("`")
}

/// What names a node in the document: its digest, or else its kind and name.
fn reference(node: &Node) -> String {
    match node.sha256 {
        Some(digest) => format!("sha256:{digest}"),
        None => format!("{}:{}", node.kind.name(), plain(&node.name)),
    }
}

/// A UUID of version 8 (RFC 9562), the first 122 free bits of the digest.
fn serial_number(digest: Option<Sha256>) -> String {
    let mut bytes = [0; 16];
    if let Some(digest) = digest {
        bytes.copy_from_slice(&digest.as_bytes()[..16]);
    }
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
