//! MLflow's file store (MLflow 2 and 3; read with the layout of 3.17), read-only.
//!
//! ```text
//! mlruns/<experiment>/meta.yaml                 name
//! mlruns/<experiment>/<run>/meta.yaml           run_name, status 1-5, start_time, end_time, artifact_uri
//!                         /params/<key>         the value; a key may have `/`
//!                         /metrics/<key>        lines of: milliseconds, value, step
//!                         /tags/<key>           the value
//!                         /inputs/<id>/meta.yaml    source_id: a dataset, tags
//! mlruns/<experiment>/datasets/<id>/meta.yaml   name, digest, source
//! mlruns/<experiment>/models/<id>/meta.yaml     name, source_run_id
//! mlruns/models/<name>/version-<n>/meta.yaml    run_id
//! ```

use super::curve::Logged;
use super::mlflow::number;
use super::record::LinkedModel;
use super::store::{Contents, LoggedDataset, Runs};
use super::yaml;
use crate::Error;
use mlpack_fs::{Operation, read_to_string_bounded};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest `meta.yaml`, and longest value.
const MAX_TEXT_LEN: u64 = 1 << 20;
/// Longest file of a metric: a million values.
const MAX_METRIC_LEN: u64 = 64 << 20;
/// Most entries of a folder.
const MAX_ENTRIES: usize = 20_000;
/// Most runs looked at for a suggestion.
const MAX_LISTED_RUNS: usize = 1000;
/// Deepest nesting of keys with `/`.
const MAX_DEPTH: usize = 8;
/// What the numbers of `status` mean (MLflow's `RunStatus`).
const STATUS: [&str; 5] = ["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"];

/// An open file store.
pub(crate) struct FileStore {
    root: PathBuf,
    /// Experiments by their folders: the name of each.
    experiments: BTreeMap<String, Option<String>>,
}

impl FileStore {
    pub fn open(root: &Path) -> Result<FileStore, Error> {
        let mut experiments = BTreeMap::new();
        for name in folders(root)? {
            if name == "models" || name == ".trash" {
                continue;
            }
            if let Some(meta) = meta(&root.join(&name))?
                && meta.contains_key("experiment_id")
            {
                experiments.insert(name, meta.get("name").cloned());
            }
        }
        if experiments.is_empty() {
            return Err(Error::NotAFileStore { path: root.to_owned() });
        }
        Ok(FileStore { root: root.to_owned(), experiments })
    }

    pub fn path(&self) -> &Path {
        &self.root
    }

    pub fn read(&self, run_id: &str) -> Result<Option<Contents>, Error> {
        // The id is typed by people and becomes a part of a path.
        if run_id.is_empty() || !run_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            return Ok(None);
        }
        for (folder, experiment) in &self.experiments {
            let dir = self.root.join(folder).join(run_id);
            if let Some(meta) = meta(&dir)?
                && meta.contains_key("run_id")
            {
                return Ok(Some(self.contents(folder, experiment.clone(), run_id, &dir, &meta)?));
            }
        }
        Ok(None)
    }

    fn contents(
        &self,
        folder: &str,
        experiment: Option<String>,
        run_id: &str,
        dir: &Path,
        meta: &BTreeMap<String, String>,
    ) -> Result<Contents, Error> {
        let tags = values(&dir.join("tags"))?;
        let field = |key: &str| meta.get(key).filter(|value| !value.is_empty() && *value != "null").cloned();
        let status = field("status").map(|status| {
            let name = status.parse::<usize>().ok().and_then(|n| STATUS.get(n.checked_sub(1)?));
            name.map_or(status, |name| (*name).to_owned())
        });
        let (metrics, logged) = metrics(&dir.join("metrics"))?;
        let artifacts = Some(dir.join("artifacts")).filter(|path| path.is_dir());
        Ok(Contents {
            experiment,
            name: field("run_name").or_else(|| tags.get("mlflow.runName").cloned()),
            status,
            lifecycle: field("lifecycle_stage"),
            started_ms: field("start_time"),
            ended_ms: field("end_time"),
            params: values(&dir.join("params"))?,
            metrics,
            tags,
            logged,
            datasets: self.datasets(folder, &dir.join("inputs"))?,
            models: self.models(folder, run_id)?,
            artifacts,
        })
    }

    fn datasets(&self, experiment: &str, inputs: &Path) -> Result<Vec<LoggedDataset>, Error> {
        let mut datasets = Vec::new();
        for input in folders(inputs)? {
            let Some(input) = meta(&inputs.join(input))? else { continue };
            let of_a_run = input.get("source_type").is_some_and(|kind| kind == "DATASET");
            let id = input.get("source_id").filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric()));
            let (true, Some(id)) = (of_a_run, id) else { continue };
            let Some(meta) = meta(&self.root.join(experiment).join("datasets").join(id))? else { continue };
            let field = |key: &str| meta.get(key).cloned().unwrap_or_default();
            datasets.push(LoggedDataset {
                name: field("name"),
                digest: field("digest"),
                source: field("source"),
                context: input.get("tags.mlflow.data.context").cloned(),
            });
        }
        datasets.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
        Ok(datasets)
    }

    fn models(&self, experiment: &str, run_id: &str) -> Result<Vec<LinkedModel>, Error> {
        let mut models = Vec::new();
        let logged = self.root.join(experiment).join("models");
        for id in folders(&logged)? {
            let Some(meta) = meta(&logged.join(&id))? else { continue };
            if meta.get("source_run_id").is_some_and(|run| run == run_id) {
                let name = meta.get("name").cloned().unwrap_or_default();
                models.push(LinkedModel { kind: "logged".to_owned(), name, version: id });
            }
        }
        let registered = self.root.join("models");
        for name in folders(&registered)? {
            for version in folders(&registered.join(&name))? {
                let Some(number) = version.strip_prefix("version-") else { continue };
                let Some(meta) = meta(&registered.join(&name).join(&version))? else { continue };
                if meta.get("run_id").is_some_and(|run| run == run_id) {
                    let (name, version) = (name.clone(), number.to_owned());
                    models.push(LinkedModel { kind: "registered".to_owned(), name, version });
                }
            }
        }
        Ok(models)
    }

    pub fn runs(&self) -> Result<Runs, Error> {
        let mut runs = Vec::new();
        let mut total = 0;
        for (folder, experiment) in &self.experiments {
            for id in folders(&self.root.join(folder))? {
                if matches!(id.as_str(), "datasets" | "models" | "tags" | "traces") {
                    continue;
                }
                let dir = self.root.join(folder).join(&id);
                if !dir.join("params").is_dir() && !dir.join("tags").is_dir() {
                    continue;
                }
                total += 1;
                if runs.len() < MAX_LISTED_RUNS {
                    let meta = meta(&dir)?.unwrap_or_default();
                    let field = |key: &str| meta.get(key).cloned().unwrap_or_default();
                    let started: i64 = field("start_time").parse().unwrap_or(0);
                    let what = format!("{} / {}", experiment.as_deref().unwrap_or_default(), field("run_name"));
                    runs.push((-started, id, what));
                }
            }
        }
        runs.sort();
        Ok((runs.into_iter().map(|(_, id, what)| (id, what)).collect(), total))
    }
}

/// Names of the folders in a folder, sorted; none when it is not there.
fn folders(dir: &Path) -> Result<Vec<String>, Error> {
    Ok(entries(dir)?.into_iter().filter(|(_, is_dir)| *is_dir).map(|(name, _)| name).collect())
}

/// Names in a folder, sorted, each with whether it is a folder; none when it is not there.
fn entries(dir: &Path) -> Result<Vec<(String, bool)>, Error> {
    let error = |e| mlpack_fs::Error::io(Operation::List, dir, e);
    let listed = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(error)?,
    };
    let mut entries = Vec::new();
    for entry in listed {
        let entry = entry.map_err(error)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        entries.push((name, entry.file_type().map_err(error)?.is_dir()));
        if entries.len() > MAX_ENTRIES {
            return Err(Error::TooMany { path: dir.to_owned(), what: "entries", limit: MAX_ENTRIES });
        }
    }
    entries.sort();
    Ok(entries)
}

/// The scalars of a `meta.yaml`; `None` when there is none.
fn meta(dir: &Path) -> Result<Option<BTreeMap<String, String>>, Error> {
    let path = dir.join("meta.yaml");
    if !path.is_file() {
        return Ok(None);
    }
    let text = read_to_string_bounded(&path, MAX_TEXT_LEN)?;
    yaml::scalars(&text).map(Some).map_err(|rule| Error::BadMeta { path, rule })
}

/// One value a file, with the keys of nested folders joined by `/`.
fn values(dir: &Path) -> Result<BTreeMap<String, String>, Error> {
    let mut values = BTreeMap::new();
    for (key, path) in keys(dir)? {
        values.insert(key, read_to_string_bounded(&path, MAX_TEXT_LEN)?);
    }
    Ok(values)
}

fn keys(dir: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    fn walk(dir: &Path, prefix: &str, depth: usize, found: &mut Vec<(String, PathBuf)>) -> Result<(), Error> {
        for (name, is_dir) in entries(dir)? {
            let key = format!("{prefix}{name}");
            let path = dir.join(&name);
            if !is_dir && path.is_file() {
                found.push((key, path));
            } else if is_dir && depth < MAX_DEPTH {
                walk(&path, &format!("{key}/"), depth + 1, found)?;
            }
            if found.len() > MAX_ENTRIES {
                return Err(Error::TooMany { path: dir.to_owned(), what: "keys", limit: MAX_ENTRIES });
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(dir, "", 0, &mut found)?;
    Ok(found)
}

/// The last value of each metric, and all of them.
fn metrics(dir: &Path) -> Result<(BTreeMap<String, String>, Logged), Error> {
    let (mut last, mut logged) = (BTreeMap::new(), Logged::new());
    for (key, path) in keys(dir)? {
        let text = read_to_string_bounded(&path, MAX_METRIC_LEN)?;
        let mut points: Vec<(i64, i64, String)> = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let mut parts = line.split_ascii_whitespace();
            let (time, value) = (parts.next().and_then(|t| t.parse().ok()), parts.next().and_then(|v| v.parse().ok()));
            let step = parts.next().map_or(Some(0), |step| step.parse().ok());
            let (Some(time), Some(value), Some(step)) = (time, value, step) else {
                return Err(Error::BadMetric { path, line: i + 1 });
            };
            points.push((step, time, number(value)));
        }
        points.sort();
        if let Some((_, _, value)) = points.last() {
            last.insert(key.clone(), value.clone());
        }
        logged.insert(key, points.into_iter().map(|(step, _, value)| (step, value)).collect());
    }
    Ok((last, logged))
}
