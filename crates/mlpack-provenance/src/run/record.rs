//! The record of a training run: a canonical JSON document (media type `application/vnd.mlpack.run.v1+json`).

use super::curve::Curve;
use crate::json;
use mlpack_fs::Sha256;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// `schema` of the records that this version writes and reads.
pub(crate) const SCHEMA: &str = "mlpack.run/v1";

/// What a store or a trainer's files say about a training run. Numbers are strings, as logged. User names, host folders
/// and credentials are not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    schema: String,
    /// Where the record comes from.
    pub source: Source,
    /// The run's id in its store; a trainer's files know none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The experiment's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// The run's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `FINISHED`, `FAILED`, … as the store spells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// `deleted` when the store's trash holds the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<String>,
    /// Start, milliseconds since 1970, as the store says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<String>,
    /// End, milliseconds since 1970, as the store says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<String>,
    /// Parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
    /// The last value of each metric.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, String>,
    /// Metrics over the steps: pairs of step and value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub curves: BTreeMap<String, Curve>,
    /// Curves of which not every value is kept, with the number of values that there were.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub thinned: BTreeMap<String, String>,
    /// The tags that say which code ran.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub code: BTreeMap<String, String>,
    /// The software that ran, in lower case, with its versions: `peft`, `transformers`, `pytorch`, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// What it was trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub datasets: Vec<Dataset>,
    /// What it started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<BaseModel>,
    /// Models that the store links with the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<LinkedModel>,
    /// What `trainer_state.json` says about progress.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub trainer: BTreeMap<String, String>,
    /// How far the store's curve and the trainer state agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Files beside the adapter that were read or hashed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Evidence>,
    /// Fields that come from files beside the adapter and not from the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inferred: Vec<String>,
    /// Fields from which a host folder or a credential was taken out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redacted: Vec<String>,
}

/// Where a record comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// `mlflow-sqlite` or `hf-trainer`.
    pub kind: String,
    /// The run as a URI: `mlflow:EXPERIMENT/RUN_ID` or `trainer-state:sha256:HEX`.
    pub uri: String,
    /// The file's name, without its folder.
    pub file: String,
}

/// A dataset of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dataset {
    /// Its name.
    pub name: String,
    /// What it was used for, such as `training`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<String>,
    /// Where it was, as logged, without host folders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The digest that the store claims; MLflow's is eight hexadecimal digits of an MD5 over a part of the rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_digest: Option<String>,
    /// How the claimed digest was made: `mlflow-md5-8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_algorithm: Option<String>,
    /// sha256 of the file, taken when the record was made; absent when the file was not found, or not alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Why there is no sha256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_hashed: Option<String>,
    /// Who says that it was used.
    pub stated_by: String,
}

/// The model that a run started from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseModel {
    /// Its name or path as logged, without host folders.
    pub name: String,
    /// Its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Who says so: a file or a parameter.
    pub stated_by: String,
}

/// A model that a store links with the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkedModel {
    /// `logged` or `registered`.
    pub kind: String,
    /// The model's name.
    pub name: String,
    /// Its id, or its version.
    pub version: String,
}

/// A comparison of the store's curve with the trainer state beside the adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The trainer state's name.
    pub file: String,
    /// Values of the same metric and step in both.
    pub compared: String,
    /// Of those, how many are the same number.
    pub equal: String,
}

/// A file that was read or hashed for the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// `DIR/FILE`.
    pub file: String,
    /// Its digest.
    pub sha256: String,
}

impl RunRecord {
    pub(super) fn new(source: Source) -> RunRecord {
        RunRecord {
            schema: SCHEMA.to_owned(),
            source,
            run_id: None,
            experiment: None,
            name: None,
            status: None,
            lifecycle: None,
            started_ms: None,
            ended_ms: None,
            params: BTreeMap::new(),
            metrics: BTreeMap::new(),
            curves: BTreeMap::new(),
            thinned: BTreeMap::new(),
            code: BTreeMap::new(),
            environment: BTreeMap::new(),
            datasets: Vec::new(),
            base_model: None,
            models: Vec::new(),
            trainer: BTreeMap::new(),
            agreement: None,
            evidence: Vec::new(),
            inferred: Vec::new(),
            redacted: Vec::new(),
        }
    }

    /// Canonical bytes, without a line break.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::canonical(self)
    }

    /// sha256 of the canonical bytes.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(&self.to_bytes())
    }

    /// The record in a JSON value; `None` when the value is not one of this version.
    pub(crate) fn from_value(value: Value) -> Option<RunRecord> {
        if value.get("schema").and_then(Value::as_str) != Some(SCHEMA) {
            return None;
        }
        serde_json::from_value(value).ok()
    }

    /// How people know the run: its id, or where it was read.
    pub fn label(&self) -> &str {
        self.run_id.as_deref().unwrap_or(&self.source.uri)
    }
}
