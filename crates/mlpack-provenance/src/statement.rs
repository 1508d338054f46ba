//! in-toto Statement v1 (in-toto/attestation `spec/v1/statement.md`) with a SLSA Provenance v1 predicate
//! (`slsa.dev/provenance/v1`), as read: parsed once, checked, and kept with the exact bytes that it came in.

use crate::{Error, json};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use mlpack_fs::Sha256;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// `_type` of the statements that mlpack writes.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// cosign still writes this one; it is read as well.
const STATEMENT_TYPE_V01: &str = "https://in-toto.io/Statement/v0.1";
/// `predicateType` of the statements that mlpack writes.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// Most subjects that sigstore-go, and so cosign, accepts.
pub(crate) const MAX_SUBJECTS: usize = 1024;
/// Most digests of one descriptor that sigstore-go accepts.
const MAX_DIGESTS: usize = 32;

/// A statement about artifacts: who made them, how, from what. Nothing in it is believed for being stated; see
/// [`trace`](crate::trace()).
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub(crate) digest: Sha256,
    pub(crate) bytes: Vec<u8>,
    pub(crate) subjects: Vec<Descriptor>,
    pub(crate) predicate_type: String,
    pub(crate) build: Option<Box<Build>>,
}

/// What a SLSA provenance predicate says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Build {
    pub build_type: String,
    pub external: Map<String, Value>,
    pub internal: Map<String, Value>,
    pub dependencies: Vec<Descriptor>,
    pub builder_id: String,
    pub builder_version: BTreeMap<String, String>,
    /// `metadata.invocationId`; in a statement of mlpack's, the build id.
    pub invocation_id: Option<String>,
    /// sha256 of the canonical bytes of the `buildDefinition` that is there.
    pub definition: Option<Sha256>,
    /// By name; what is not JSON in base64 is null.
    pub byproducts: BTreeMap<String, Value>,
}

/// A ResourceDescriptor: the fields that tracing needs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Descriptor {
    pub name: String,
    pub uri: Option<String>,
    pub sha256: Option<Sha256>,
    pub media_type: Option<String>,
    pub annotations: Map<String, Value>,
}

impl Descriptor {
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).and_then(Value::as_str)
    }
}

impl Statement {
    /// Reads a statement. Unknown fields are ignored, and kept: the bytes are not written anew.
    pub fn parse(bytes: &[u8]) -> Result<Statement, Error> {
        let digest = Sha256::of(bytes);
        let json_error = |source| Error::Json { origin: format!("statement {digest}"), source };
        Statement::from_value(json::parse(bytes).map_err(json_error)?, bytes)
    }

    pub(crate) fn from_value(value: Value, bytes: &[u8]) -> Result<Statement, Error> {
        let digest = Sha256::of(bytes);
        let json_error = |source| Error::Json { origin: format!("statement {digest}"), source };
        let broken = |field, rule| Error::NotAStatement { digest, field, rule };
        let wire: WireStatement = serde_json::from_value(value).map_err(json_error)?;
        if wire.r#type != STATEMENT_TYPE && wire.r#type != STATEMENT_TYPE_V01 {
            return Err(broken("_type", "must be a statement type that mlpack knows (v1 or v0.1)"));
        }
        if wire.subject.is_empty() {
            return Err(broken("subject", "must name at least one artifact"));
        }
        if wire.subject.len() > MAX_SUBJECTS {
            return Err(broken("subject", "must name at most 1024 artifacts"));
        }
        if wire.predicate_type.is_empty() {
            return Err(broken("predicateType", "must not be empty"));
        }
        let mut subjects = Vec::with_capacity(wire.subject.len());
        for subject in wire.subject {
            if subject.digest.is_empty() {
                return Err(broken("subject.digest", "must not be empty"));
            }
            subjects.push(subject.check().map_err(|rule| broken("subject", rule))?);
        }
        let build = match (wire.predicate_type == PREDICATE_TYPE, wire.predicate) {
            (true, Some(predicate)) => Some(Box::new(Build::from_value(predicate, digest)?)),
            (true, None) => return Err(broken("predicate", "must be there")),
            (false, _) => None,
        };
        Ok(Statement { digest, bytes: bytes.to_vec(), subjects, predicate_type: wire.predicate_type, build })
    }

    /// What it says: the type URI of its predicate.
    pub fn predicate_type(&self) -> &str {
        &self.predicate_type
    }

    /// sha256 of the statement's bytes: its name in a store.
    pub fn digest(&self) -> Sha256 {
        self.digest
    }

    /// The exact bytes; for a statement of mlpack's, canonical JSON without a line break.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Name and digest of each subject.
    pub fn subjects(&self) -> impl Iterator<Item = (&str, Sha256)> {
        self.subjects.iter().filter_map(|s| Some((s.name.as_str(), s.sha256?)))
    }

    /// The build id that the statement gives: known before the outputs exist. `None` for a foreign predicate.
    pub fn build_id(&self) -> Option<&str> {
        self.build.as_ref()?.invocation_id.as_deref()
    }

    /// Whether the subject with that digest was only passed through: it is an input of the same step.
    pub(crate) fn passes_through(&self, digest: Sha256) -> bool {
        self.build.as_ref().is_some_and(|b| b.dependencies.iter().any(|d| d.sha256 == Some(digest)))
    }
}

impl Build {
    fn from_value(predicate: Value, digest: Sha256) -> Result<Build, Error> {
        let json_error = |source| Error::Json { origin: format!("statement {digest}"), source };
        let broken = |field, rule| Error::NotAStatement { digest, field, rule };
        let definition =
            predicate.get("buildDefinition").and_then(json::canonical_untrusted).map(|bytes| Sha256::of(&bytes));
        let wire: WireProvenance = serde_json::from_value(predicate).map_err(json_error)?;
        if wire.build_definition.build_type.is_empty() {
            return Err(broken("buildDefinition.buildType", "must not be empty"));
        }
        if wire.run_details.builder.id.is_empty() {
            return Err(broken("runDetails.builder.id", "must not be empty"));
        }
        let mut dependencies = Vec::with_capacity(wire.build_definition.resolved_dependencies.len());
        for dependency in wire.build_definition.resolved_dependencies {
            if dependency.uri.is_none() && dependency.digest.is_empty() && dependency.content.is_none() {
                return Err(broken("resolvedDependencies", "each must have a uri, a digest or a content"));
            }
            dependencies.push(dependency.check().map_err(|rule| broken("resolvedDependencies", rule))?);
        }
        Ok(Build {
            build_type: wire.build_definition.build_type,
            external: wire.build_definition.external_parameters,
            internal: wire.build_definition.internal_parameters,
            dependencies,
            builder_id: wire.run_details.builder.id,
            builder_version: wire.run_details.builder.version,
            invocation_id: wire.run_details.metadata.invocation_id,
            definition,
            byproducts: wire.run_details.byproducts.into_iter().map(|b| (b.name, content(b.content))).collect(),
        })
    }
}

/// The JSON in a descriptor's `content`.
fn content(base64: Option<String>) -> Value {
    let bytes = base64.and_then(|text| BASE64_STANDARD.decode(&text).ok());
    bytes.and_then(|bytes| json::parse(&bytes).ok()).unwrap_or(Value::Null)
}

#[derive(Deserialize)]
struct WireStatement {
    #[serde(rename = "_type")]
    r#type: String,
    subject: Vec<WireDescriptor>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireProvenance {
    build_definition: WireDefinition,
    run_details: WireDetails,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDefinition {
    build_type: String,
    external_parameters: Map<String, Value>,
    #[serde(default)]
    internal_parameters: Map<String, Value>,
    #[serde(default)]
    resolved_dependencies: Vec<WireDescriptor>,
}

#[derive(Deserialize)]
struct WireDetails {
    builder: WireBuilder,
    #[serde(default)]
    metadata: WireMetadata,
    #[serde(default)]
    byproducts: Vec<WireDescriptor>,
}

#[derive(Deserialize)]
struct WireBuilder {
    id: String,
    #[serde(default)]
    version: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct WireMetadata {
    invocation_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    #[serde(default)]
    name: String,
    uri: Option<String>,
    #[serde(default)]
    digest: BTreeMap<String, String>,
    content: Option<String>,
    media_type: Option<String>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

impl WireDescriptor {
    fn check(self) -> Result<Descriptor, &'static str> {
        if self.digest.len() > MAX_DIGESTS {
            return Err("each may have at most 32 digests");
        }
        let sha256 = match self.digest.get("sha256") {
            None => None,
            Some(hex) => Some(hex.parse().map_err(|_| "a sha256 digest must be 64 lowercase hexadecimal digits")?),
        };
        Ok(Descriptor {
            name: self.name,
            uri: self.uri,
            sha256,
            media_type: self.media_type,
            annotations: self.annotations,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: &Value) -> Result<Statement, Error> {
        Statement::parse(&json::canonical(value))
    }

    fn valid() -> Value {
        json!({
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "a", "digest": {"sha256": "0".repeat(64)}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {"buildType": "https://example.org/x", "externalParameters": {}, "unknown": 1},
                "runDetails": {"builder": {"id": "https://example.org/b"}},
                "unknown": {"kept": true},
            },
        })
    }

    #[test]
    fn unknown_fields_are_kept_in_the_bytes() {
        let statement = parse(&valid()).unwrap();
        assert!(String::from_utf8_lossy(statement.bytes()).contains(r#""unknown":{"kept":true}"#));
        assert_eq!(statement.digest(), Sha256::of(statement.bytes()));
        assert_eq!(statement.build_id(), None);
    }

    #[test]
    fn a_foreign_predicate_is_a_statement_without_a_build() {
        let mut value = valid();
        value["predicateType"] = json!("https://model_signing/signature/v1.0");
        value["predicate"] = json!({"resources": []});
        assert_eq!(parse(&value).unwrap().build, None);
    }

    #[test]
    fn each_broken_rule_is_named() {
        let digest = json!({"sha256": "0".repeat(64)});
        let many = vec![json!({"name": "a", "digest": digest}); 1025];
        let digests: Map<String, Value> = (0..33).map(|i| (format!("alg{i}"), json!("00"))).collect();
        for (pointer, value, expected) in [
            ("/_type", json!("https://in-toto.io/Statement/v2"), "field `_type`: must be a statement type"),
            ("/subject", json!([]), "field `subject`: must name at least one artifact"),
            ("/subject", json!(many), "field `subject`: must name at most 1024 artifacts"),
            ("/subject/0/digest", json!({}), "field `subject.digest`: must not be empty"),
            ("/subject/0/digest", json!({"sha256": "AB"}), "must be 64 lowercase hexadecimal digits"),
            ("/subject/0/digest", json!(digests), "at most 32 digests"),
            ("/predicateType", json!(""), "field `predicateType`: must not be empty"),
            ("/predicate/buildDefinition/buildType", json!(""), "field `buildDefinition.buildType`"),
            ("/predicate/buildDefinition/externalParameters", json!(null), "expected a map"),
            ("/predicate/buildDefinition/resolvedDependencies", json!([{"name": "x"}]), "a uri, a digest or a content"),
            ("/predicate/runDetails/builder/id", json!(""), "field `runDetails.builder.id`"),
            ("/subject/0/name", json!(7), "expected a string"),
        ] {
            let mut statement = valid();
            match statement.pointer_mut(pointer) {
                Some(place) => *place = value,
                None => statement["predicate"]["buildDefinition"]["resolvedDependencies"] = value,
            }
            let error = parse(&statement).unwrap_err().to_string();
            assert!(error.contains(expected), "{pointer}: {error}");
        }
    }
}
