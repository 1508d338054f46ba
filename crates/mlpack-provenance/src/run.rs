//! The training run of an adapter: which one, and what is known about it.

mod base;
mod curve;
mod discover;
mod files;
mod mlflow;
mod record;
mod redact;
mod rest;
mod store;
mod trainer;
mod yaml;

pub(crate) use base::says_more;
pub use base::{OtherBase, other_bases};
pub use curve::Curve;
pub use record::{Agreement, BaseModel, Dataset, Evidence, LinkedModel, RunRecord, Source};
pub use rest::{Answer, MAX_ANSWER_LEN, Request};
pub(crate) use store::RunStore;

use crate::error::Disagreement;
use crate::{Dependency, Error};
use mlpack_fs::{Sha256, hash_file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::{Beside, TrainerState};

/// Where a training run is told about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunSource {
    /// A run of an MLflow tracking store on this machine.
    Mlflow {
        /// The sqlite database, or the folder of a file store.
        db: PathBuf,
        /// The run's id; without it [`find_run`] lists the runs in an error.
        run_id: Option<String>,
    },
    /// A run of an MLflow tracking server.
    MlflowServer {
        /// Its address.
        url: String,
        /// The run's id; without it [`find_run`] lists the runs in an error.
        run_id: Option<String>,
    },
    /// A `trainer_state.json`.
    TrainerState(PathBuf),
}

/// How bytes come from a server: a request to an answer, or the reason why there is none.
pub type Fetch<'a> = &'a dyn Fn(&Request) -> Result<Answer, String>;

impl RunSource {
    /// Parses `mlflow.db#RUN_ID`, `mlruns#RUN_ID`, `http://HOST#RUN_ID` or the path of a trainer state. A relative path
    /// starts at `folder`.
    ///
    /// ```
    /// use mlpack_provenance::RunSource;
    /// let source = RunSource::parse("mlflow/mlflow.db#4c42", "release".as_ref()).unwrap();
    /// assert_eq!(source, RunSource::Mlflow { db: "release/mlflow/mlflow.db".into(), run_id: Some("4c42".to_owned()) });
    /// ```
    pub fn parse(text: &str, folder: &Path) -> Result<RunSource, Error> {
        if text.starts_with("http://") || text.starts_with("https://") {
            let (url, rest) = text.split_once('#').unwrap_or((text, ""));
            // An address as a browser shows it: `http://HOST/#/experiments/1/runs/RUN_ID`.
            let run_id = rest.trim_end_matches('/').rsplit('/').next().filter(|id| !id.is_empty()).map(str::to_owned);
            return Ok(RunSource::MlflowServer { url: url.trim_end_matches('/').to_owned(), run_id });
        }
        let ends_with = |path: &str, endings: &[&str]| endings.iter().any(|ending| path.ends_with(ending));
        if let Some((path, run_id)) = text.rsplit_once('#')
            && !path.is_empty()
        {
            let run_id = Some(run_id.to_owned()).filter(|id| !id.is_empty());
            return Ok(RunSource::Mlflow { db: folder.join(path), run_id });
        }
        if ends_with(text, &[".db", ".sqlite", ".sqlite3"]) || folder.join(text).is_dir() {
            return Ok(RunSource::Mlflow { db: folder.join(text), run_id: None });
        }
        if ends_with(text, &[".json"]) {
            return Ok(RunSource::TrainerState(folder.join(text)));
        }
        Err(Error::UnknownRunSource { text: text.to_owned() })
    }
}

/// A training run, or the reason why it is not known.
#[derive(Clone, Debug, PartialEq)]
pub enum FoundRun {
    /// A run with a record.
    Known(Box<Run>),
    /// No run, and why.
    Unknown {
        /// The reason, as it is stated.
        reason: String,
    },
}

/// A run record, and where on this machine the bytes that it names were seen; the latter is never stated.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The record.
    pub record: RunRecord,
    /// Whether the caller named the run, or the files beside the adapter did.
    pub named_by_caller: bool,
    pub(crate) seen: Vec<(Sha256, PathBuf)>,
    pub(crate) store: Option<PathBuf>,
}

impl FoundRun {
    /// A run whose record was made before.
    pub fn recorded(record: RunRecord) -> FoundRun {
        let named_by_caller = !record.inferred.iter().any(|field| field == "run_id");
        FoundRun::Known(Box::new(Run { record, named_by_caller, seen: Vec::new(), store: None }))
    }

    /// The dependency that a step on the adapter states.
    pub fn dependency(&self) -> Dependency {
        match self {
            FoundRun::Known(run) => Dependency::run(&run.record),
            FoundRun::Unknown { reason } => Dependency::unknown_run(reason),
        }
    }
}

/// The training run of the adapter in `adapter_dir`: the one that `source` names, else the one that a store near the
/// adapter has by the same loss curve or the same weights, else what a `trainer_state.json` in the directory tells, else
/// unknown. Store and trainer state are combined when both are there; a named run whose loss curve has nothing in common
/// with the trainer state is refused.
///
/// A dataset that the run names is hashed when its file is found: `dataset` when given, else the logged place relative to
/// the store's or the adapter's folder, or to the folder above.
pub fn find_run(adapter_dir: &Path, source: Option<&RunSource>, dataset: Option<&Path>) -> Result<FoundRun, Error> {
    find_run_with(adapter_dir, source, dataset, None)
}

/// [`find_run`] with a way to ask servers.
pub fn find_run_with(
    adapter_dir: &Path,
    source: Option<&RunSource>,
    dataset: Option<&Path>,
    fetch: Option<Fetch<'_>>,
) -> Result<FoundRun, Error> {
    let beside = adapter_dir.join("trainer_state.json");
    let state = match source {
        Some(RunSource::TrainerState(path)) => Some(TrainerState::open(path)?),
        _ if beside.is_file() => Some(TrainerState::open(&beside)?),
        _ => None,
    };
    let found = match source {
        None => discover::run(adapter_dir, state.as_ref())?,
        Some(source) => match RunStore::of_source(source, fetch)? {
            None => None,
            Some(store) => {
                let (RunSource::Mlflow { run_id, .. } | RunSource::MlflowServer { run_id, .. }) = source else {
                    unreachable!("only these sources are stores")
                };
                let Some(run_id) = run_id else { return Err(store.run_not_named()?) };
                Some((store, run_id.clone()))
            }
        },
    };
    let mut run = match (found, &state) {
        (Some((store, run_id)), _) => {
            let contents = store.read(&run_id)?;
            let local = !matches!(store, RunStore::Server(_));
            let mut run = Run {
                record: store.record_of(&run_id, &contents),
                named_by_caller: source.is_some(),
                seen: Vec::new(),
                store: local.then(|| store.place()),
            };
            if let Some(state) = &state {
                run.record.agreement = compare(&contents.losses(), &run_id, state)?;
            }
            if source.is_none() {
                run.record.inferred.push("run_id".to_owned());
            }
            let place = local.then(|| store.place());
            let folders = folders_around(&[place.as_deref().and_then(Path::parent), Some(adapter_dir)]);
            hash_datasets(&mut run, &contents.dataset_locations(), dataset, &folders)?;
            run
        }
        (None, Some(state)) => state_alone(state, source.is_some()),
        (None, None) => {
            let reason = "no run was given and no trainer_state.json is beside the adapter".to_owned();
            return Ok(FoundRun::Unknown { reason });
        }
    };
    if let Some(state) = state {
        run.seen.extend(state.evidence.sha256.parse().ok().map(|digest: Sha256| (digest, state.path.clone())));
        run.record.trainer = state.progress;
        run.record.evidence.push(state.evidence);
        if run.record.metrics.is_empty() {
            run.record.metrics = state.metrics;
        }
        if run.record.curves.is_empty() {
            curve::keep(&mut run.record, state.logged);
        }
        if run.record.source.kind != "hf-trainer" {
            run.record.inferred.push("trainer".to_owned());
        }
    }
    for (evidence, path) in trainer::other_evidence(adapter_dir)? {
        run.seen.extend(evidence.sha256.parse().ok().map(|digest: Sha256| (digest, path)));
        run.record.evidence.push(evidence);
    }
    let beside = Beside::open(adapter_dir)?;
    run.record.base_model = beside.base_model();
    if run.record.base_model.is_some() {
        run.record.inferred.push("base_model".to_owned());
    }
    run.record.environment = beside.environment();
    if !run.record.environment.is_empty() {
        run.record.inferred.push("environment".to_owned());
    }
    if let Some(version) = run.record.params.get("transformers_version") {
        run.record.environment.entry("transformers".to_owned()).or_insert_with(|| version.clone());
    }
    if run.record.datasets.is_empty() {
        run.record.datasets = beside.card_datasets();
        if let Some(dataset) = dataset {
            add_given_dataset(&mut run, dataset)?;
        }
        if !run.record.datasets.is_empty() {
            run.record.inferred.push("datasets".to_owned());
        }
    }
    run.record.inferred.sort();
    run.record.redacted.sort();
    run.record.evidence.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(FoundRun::Known(Box::new(run)))
}

fn state_alone(state: &TrainerState, named_by_caller: bool) -> Run {
    let source = Source {
        kind: "hf-trainer".to_owned(),
        uri: format!("trainer-state:sha256:{}", state.evidence.sha256),
        file: mlflow::file_name(&state.path),
    };
    Run { record: RunRecord::new(source), named_by_caller, seen: Vec::new(), store: None }
}

/// A loss that differs: its metric and step, the trainer state's value and the store's.
type Difference = (String, i64, f64, f64);

/// How many of the trainer state's losses a store has with the same value, of those that it has at all, and the first
/// that differs.
fn agreement(logged: &BTreeMap<(String, i64), Vec<f64>>, state: &TrainerState) -> (u64, u64, Option<Difference>) {
    let (mut compared, mut equal, mut first_difference) = (0u64, 0u64, None);
    for (metric, step, expected) in &state.curve {
        let Some(values) = logged.get(&(metric.clone(), *step)) else { continue };
        compared += 1;
        if values.contains(expected) {
            equal += 1;
        } else if first_difference.is_none() {
            first_difference = Some((metric.clone(), *step, *expected, values[0]));
        }
    }
    (compared, equal, first_difference)
}

fn compare(
    logged: &BTreeMap<(String, i64), Vec<f64>>,
    run_id: &str,
    state: &TrainerState,
) -> Result<Option<Agreement>, Error> {
    let (compared, equal, first_difference) = agreement(logged, state);
    match first_difference {
        Some((metric, step, expected, found)) if equal == 0 => Err(Error::RunDisagrees(Box::new(Disagreement {
            run_id: run_id.to_owned(),
            path: state.path.clone(),
            compared,
            metric,
            step,
            expected,
            found,
        }))),
        _ if compared == 0 => Ok(None),
        _ => Ok(Some(Agreement {
            file: state.evidence.file.clone(),
            compared: compared.to_string(),
            equal: equal.to_string(),
        })),
    }
}

/// Each folder and the one above it, once.
fn folders_around(folders: &[Option<&Path>]) -> Vec<PathBuf> {
    let mut around: Vec<PathBuf> = Vec::new();
    for folder in folders.iter().flatten() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        for candidate in [folder.to_owned(), folder.join("..")] {
            if !around.contains(&candidate) {
                around.push(candidate);
            }
        }
    }
    around
}

fn hash_datasets(
    run: &mut Run,
    logged: &[Option<String>],
    given: Option<&Path>,
    folders: &[PathBuf],
) -> Result<(), Error> {
    let alone = run.record.datasets.len() == 1;
    for (dataset, place) in run.record.datasets.iter_mut().zip(logged) {
        let place = place.as_deref().unwrap_or_default();
        let place = Path::new(place.strip_prefix("file://").unwrap_or(place));
        let candidates = match given {
            Some(path) if alone || path.file_name() == place.file_name() => vec![path.to_owned()],
            _ if place.as_os_str().is_empty() => Vec::new(),
            _ => folders.iter().map(|folder| folder.join(place)).filter(|path| path.is_file()).collect(),
        };
        let mut digests: Vec<(Sha256, PathBuf)> = Vec::new();
        for path in candidates {
            let (digest, _) = hash_file(&path)?;
            if !digests.iter().any(|(other, _)| *other == digest) {
                digests.push((digest, path));
            }
        }
        match digests.as_slice() {
            [(digest, _)] => {
                dataset.sha256 = Some(digest.to_string());
                run.seen.append(&mut digests);
            }
            [] => dataset.not_hashed = Some("the file was not found".to_owned()),
            more => dataset.not_hashed = Some(format!("{} different files have its name", more.len())),
        }
    }
    Ok(())
}

fn add_given_dataset(run: &mut Run, path: &Path) -> Result<(), Error> {
    let (digest, _) = hash_file(path)?;
    run.seen.push((digest, path.to_owned()));
    let name = mlflow::file_name(path);
    run.record.datasets.push(Dataset {
        name: name.clone(),
        context: None,
        source: Some(name),
        claimed_digest: None,
        claimed_algorithm: None,
        sha256: Some(digest.to_string()),
        not_hashed: None,
        stated_by: "caller".to_owned(),
    });
    Ok(())
}

#[cfg(test)]
mod tests;
