//! Any MLflow tracking store: a sqlite file, a folder of files, or a server; and the one run of it that is asked for.

use super::curve::{self, Logged};
use super::files::FileStore;
use super::mlflow::MlflowStore;
use super::record::{LinkedModel, RunRecord, Source};
use super::redact::{redact, redact_table};
use super::rest::RestStore;
use super::{Fetch, RunSource};
use crate::Error;
use mlpack_tensor::nearest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tags that say which code ran. Others may hold user names and host folders.
const CODE_TAGS: [&str; 6] = [
    "mlflow.parentRunId",
    "mlflow.source.git.branch",
    "mlflow.source.git.commit",
    "mlflow.source.git.repoURL",
    "mlflow.source.name",
    "mlflow.source.type",
];
/// The metrics that a trainer state has as well.
const LOSSES: [&str; 3] = ["loss", "eval_loss", "train_loss"];

/// Runs of a store: id and a description of each, newest first where that is known, and how many there are.
pub(super) type Runs = (Vec<(String, String)>, u64);

/// An open tracking store.
pub(crate) enum RunStore<'a> {
    Sqlite(MlflowStore),
    Files(FileStore),
    Server(RestStore<'a>),
}

/// What a store says about a run, before anything is left out.
#[derive(Default)]
pub(crate) struct Contents {
    pub experiment: Option<String>,
    pub name: Option<String>,
    pub status: Option<String>,
    pub lifecycle: Option<String>,
    pub started_ms: Option<String>,
    pub ended_ms: Option<String>,
    pub params: BTreeMap<String, String>,
    /// The last value of each metric.
    pub metrics: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
    pub logged: Logged,
    pub datasets: Vec<LoggedDataset>,
    pub models: Vec<LinkedModel>,
    /// Where the run's artifacts are on this machine, where they are.
    pub artifacts: Option<PathBuf>,
}

/// A dataset as a store has it.
#[derive(Default)]
pub(crate) struct LoggedDataset {
    pub name: String,
    pub digest: String,
    /// JSON with an address, or text.
    pub source: String,
    pub context: Option<String>,
}

impl<'a> RunStore<'a> {
    /// Opens the store that a source names; `None` for a source that is no store.
    pub fn of_source(source: &RunSource, fetch: Option<Fetch<'a>>) -> Result<Option<RunStore<'a>>, Error> {
        Ok(match source {
            RunSource::Mlflow { db, .. } => Some(RunStore::open(db)?),
            RunSource::MlflowServer { url, .. } => match fetch {
                Some(fetch) => Some(RunStore::Server(RestStore::new(url, fetch))),
                None => return Err(Error::NoNetwork { url: url.clone() }),
            },
            RunSource::TrainerState(_) => None,
        })
    }

    /// Opens a store on this machine.
    pub fn open(path: &Path) -> Result<RunStore<'a>, Error> {
        Ok(if path.is_dir() {
            RunStore::Files(FileStore::open(path)?)
        } else {
            RunStore::Sqlite(MlflowStore::open(path)?)
        })
    }

    /// Where the store is, for messages.
    pub fn place(&self) -> PathBuf {
        match self {
            RunStore::Sqlite(store) => store.path().to_owned(),
            RunStore::Files(store) => store.path().to_owned(),
            RunStore::Server(store) => PathBuf::from(store.url()),
        }
    }

    /// What the store says about a run.
    pub fn read(&self, run_id: &str) -> Result<Contents, Error> {
        let found = match self {
            RunStore::Sqlite(store) => store.read(run_id)?,
            RunStore::Files(store) => store.read(run_id)?,
            RunStore::Server(store) => store.read(run_id)?,
        };
        match found {
            Some(contents) => Ok(contents),
            None => Err(self.run_not_found(run_id)?),
        }
    }

    /// The runs that there are.
    pub fn runs(&self) -> Result<Runs, Error> {
        match self {
            RunStore::Sqlite(store) => store.runs(),
            RunStore::Files(store) => store.runs(),
            RunStore::Server(store) => store.runs(),
        }
    }

    /// The record of a run as this store alone tells it.
    pub fn record(&self, run_id: &str) -> Result<RunRecord, Error> {
        Ok(self.read(run_id)?.record(run_id, self.kind(), &self.file()))
    }

    fn kind(&self) -> &'static str {
        match self {
            RunStore::Sqlite(_) => "mlflow-sqlite",
            RunStore::Files(_) => "mlflow-files",
            RunStore::Server(_) => "mlflow-server",
        }
    }

    /// What a record calls the store: no folder, no host.
    fn file(&self) -> String {
        match self {
            RunStore::Sqlite(_) | RunStore::Files(_) => super::mlflow::file_name(&self.place()),
            RunStore::Server(_) => "MLflow server".to_owned(),
        }
    }

    pub fn record_of(&self, run_id: &str, contents: &Contents) -> RunRecord {
        contents.record(run_id, self.kind(), &self.file())
    }

    /// The error that lists the runs there are, for a source without a run id.
    pub fn run_not_named(&self) -> Result<Error, Error> {
        let (runs, total) = self.runs()?;
        Ok(Error::RunNotNamed { path: self.place(), runs, total })
    }

    fn run_not_found(&self, run_id: &str) -> Result<Error, Error> {
        let (runs, total) = self.runs()?;
        let prefixed = runs.iter().map(|(id, _)| id.as_str()).filter(|id| run_id.len() >= 4 && id.starts_with(run_id));
        let alike = nearest(run_id, runs.iter().map(|(id, _)| id.as_str()), 3);
        let mut ids: Vec<&str> = Vec::new();
        for id in prefixed.take(3).chain(alike) {
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        let named = runs.iter().filter(|(id, what)| !ids.contains(&id.as_str()) && what.contains(run_id));
        let mut suggested: Vec<(String, String)> =
            ids.iter().filter_map(|id| runs.iter().find(|(other, _)| other == id)).chain(named).cloned().collect();
        if suggested.is_empty() {
            suggested = runs.into_iter().take(5).collect();
        }
        Ok(Error::RunNotFound { path: self.place(), run_id: run_id.to_owned(), nearest: suggested, total })
    }
}

impl Contents {
    fn record(&self, run_id: &str, kind: &str, file: &str) -> RunRecord {
        let experiment = self.experiment.as_deref().unwrap_or("");
        let uri = format!("mlflow:{}/{}", percent_encode(experiment), percent_encode(run_id));
        let mut record = RunRecord::new(Source { kind: kind.to_owned(), uri, file: file.to_owned() });
        record.run_id = Some(run_id.to_owned());
        record.experiment = self.experiment.clone();
        record.name = self.name.clone();
        record.status = self.status.clone();
        record.lifecycle = self.lifecycle.clone().filter(|stage| stage != "active");
        record.started_ms = self.started_ms.clone();
        record.ended_ms = self.ended_ms.clone();
        record.params = self.params.clone();
        redact_table(&mut record.params, &mut record.redacted);
        record.metrics = self.metrics.clone();
        curve::keep(&mut record, self.logged.clone());
        record.code = self.tags.clone();
        record.code.retain(|key, value| CODE_TAGS.contains(&key.as_str()) && !value.is_empty());
        redact_table(&mut record.code, &mut record.redacted);
        record.datasets = self
            .datasets
            .iter()
            .map(|dataset| super::Dataset {
                name: redact(&dataset.name),
                context: dataset.context.clone(),
                source: source_location(&dataset.source).map(|s| redact(&s)),
                claimed_digest: Some(dataset.digest.clone()),
                claimed_algorithm: Some("mlflow-md5-8".to_owned()),
                sha256: None,
                not_hashed: None,
                stated_by: file.to_owned(),
            })
            .collect();
        record.models = self.models.clone();
        record
    }

    /// Where each dataset was when it was logged, in the record's order; for looking it up on this machine, not for a record.
    pub fn dataset_locations(&self) -> Vec<Option<String>> {
        self.datasets.iter().map(|dataset| source_location(&dataset.source)).collect()
    }

    /// The logged losses by metric and step.
    pub fn losses(&self) -> BTreeMap<(String, i64), Vec<f64>> {
        let mut losses: BTreeMap<(String, i64), Vec<f64>> = BTreeMap::new();
        for (key, points) in self.logged.iter().filter(|(key, _)| LOSSES.contains(&key.as_str())) {
            for (step, value) in points {
                if let Ok(value) = value.parse() {
                    losses.entry((key.clone(), *step)).or_default().push(value);
                }
            }
        }
        losses
    }
}

/// The address in MLflow's `dataset_source`: JSON with `uri`, `path`, `url` or `source`, or plain text.
fn source_location(source: &str) -> Option<String> {
    match crate::json::parse(source.as_bytes()) {
        Ok(value) => ["uri", "url", "path", "source"].iter().find_map(|key| Some(value.get(key)?.as_str()?.to_owned())),
        Err(_) if source.is_empty() => None,
        Err(_) => Some(source.to_owned()),
    }
}

/// Everything but letters, digits and `-._~` as `%XX`.
pub(super) fn percent_encode(text: &str) -> String {
    text.bytes().map(|b| encode_byte(b, b"")).collect()
}

pub(super) fn encode_byte(byte: u8, also_plain: &[u8]) -> String {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => (byte as char).to_string(),
        b if also_plain.contains(&b) => (b as char).to_string(),
        b => format!("%{b:02X}"),
    }
}
