//! MLflow's REST API, version 2.0 (MLflow 2 and 3). The bytes come through a function that the caller gives: this room has
//! no network.

use super::Fetch;
use super::curve::Logged;
use super::record::LinkedModel;
use super::store::{Contents, LoggedDataset, Runs, percent_encode};
use crate::{Error, json};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Longest answer.
pub const MAX_ANSWER_LEN: usize = 64 << 20;
/// Values of a metric for each request, and most of one metric.
const PAGE: usize = 25_000;
const MAX_POINTS: usize = 1_000_000;
/// Most experiments, and most runs of them, looked at for a suggestion.
const MAX_LISTED: usize = 1000;

/// A request to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The address.
    pub url: String,
    /// The JSON body of a POST; `None` for a GET.
    pub body: Option<String>,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A server.
pub(crate) struct RestStore<'a> {
    url: String,
    fetch: Fetch<'a>,
}

impl<'a> RestStore<'a> {
    pub fn new(url: &str, fetch: Fetch<'a>) -> RestStore<'a> {
        RestStore { url: url.trim_end_matches('/').to_owned(), fetch }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn read(&self, run_id: &str) -> Result<Option<Contents>, Error> {
        let id = percent_encode(run_id);
        let Some(answer) = self.get(&format!("runs/get?run_id={id}"))? else { return Ok(None) };
        let Some(run) = answer.get("run") else { return Err(self.unexpected("no `run` in the answer")) };
        let info = |key: &str| run.pointer(&format!("/info/{key}")).and_then(plain);
        let pairs = |pointer: &str| -> BTreeMap<String, String> {
            let list = run.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(|pair| Some((plain(pair.get("key")?)?, plain(pair.get("value")?)?))).collect()
        };
        let metrics: BTreeMap<String, String> = {
            let list = run.pointer("/data/metrics").and_then(Value::as_array).into_iter().flatten();
            list.filter_map(|m| Some((plain(m.get("key")?)?, metric_value(m.get("value")?)?))).collect()
        };
        let mut logged = Logged::new();
        for key in metrics.keys() {
            logged.insert(key.clone(), self.history(&id, key)?);
        }
        let experiment = match info("experiment_id") {
            None => None,
            Some(experiment) => self
                .get(&format!("experiments/get?experiment_id={}", percent_encode(&experiment)))?
                .and_then(|answer| answer.pointer("/experiment/name").and_then(plain)),
        };
        Ok(Some(Contents {
            experiment,
            name: info("run_name"),
            status: info("status"),
            lifecycle: info("lifecycle_stage"),
            started_ms: info("start_time"),
            ended_ms: info("end_time"),
            params: pairs("/data/params"),
            metrics,
            tags: pairs("/data/tags"),
            logged,
            datasets: datasets(run),
            models: self.models(run_id, run)?,
            artifacts: None,
        }))
    }

    fn history(&self, id: &str, key: &str) -> Result<Vec<(i64, String)>, Error> {
        let mut points: Vec<(i64, i64, String)> = Vec::new();
        let mut token = String::new();
        loop {
            let mut path =
                format!("metrics/get-history?run_id={id}&metric_key={}&max_results={PAGE}", percent_encode(key));
            if !token.is_empty() {
                path.push_str(&format!("&page_token={}", percent_encode(&token)));
            }
            let answer = self.get(&path)?.unwrap_or_default();
            for point in answer.get("metrics").and_then(Value::as_array).into_iter().flatten() {
                let number = |key: &str| plain(point.get(key)?)?.parse::<i64>().ok();
                let value = point.get("value").and_then(metric_value);
                if let (Some(step), Some(value)) = (number("step").or(Some(0)), value) {
                    points.push((step, number("timestamp").unwrap_or(0), value));
                }
            }
            if points.len() > MAX_POINTS {
                return Err(self.unexpected("a metric with more than 1000000 values"));
            }
            match answer.get("next_page_token").and_then(plain).filter(|next| !next.is_empty() && *next != token) {
                Some(next) => token = next,
                None => break,
            }
        }
        points.sort();
        Ok(points.into_iter().map(|(step, _, value)| (step, value)).collect())
    }

    /// Models that the run says it logged, and registered versions that name the run.
    fn models(&self, run_id: &str, run: &Value) -> Result<Vec<LinkedModel>, Error> {
        let mut models = Vec::new();
        let outputs = run.pointer("/outputs/model_outputs").and_then(Value::as_array);
        for id in outputs.into_iter().flatten().filter_map(|output| plain(output.get("model_id")?)) {
            let answer = self.get(&format!("logged-models/{}", percent_encode(&id)))?.unwrap_or_default();
            let name = answer.pointer("/model/info/name").and_then(plain).unwrap_or_default();
            models.push(LinkedModel { kind: "logged".to_owned(), name, version: id });
        }
        let filter = percent_encode(&format!("run_id='{run_id}'"));
        let answer = self.get(&format!("model-versions/search?filter={filter}"))?.unwrap_or_default();
        for version in answer.get("model_versions").and_then(Value::as_array).into_iter().flatten() {
            let field = |key: &str| version.get(key).and_then(plain).unwrap_or_default();
            let (name, version) = (field("name"), field("version"));
            models.push(LinkedModel { kind: "registered".to_owned(), name, version });
        }
        models.sort_by(|a, b| (&a.kind, &a.name, &a.version).cmp(&(&b.kind, &b.name, &b.version)));
        Ok(models)
    }

    pub fn runs(&self) -> Result<Runs, Error> {
        let answer = self.get(&format!("experiments/search?max_results={MAX_LISTED}"))?.unwrap_or_default();
        let mut names = BTreeMap::new();
        for experiment in answer.get("experiments").and_then(Value::as_array).into_iter().flatten() {
            if let Some(id) = experiment.get("experiment_id").and_then(plain) {
                names.insert(id, experiment.get("name").and_then(plain).unwrap_or_default());
            }
        }
        let ids: Vec<&String> = names.keys().collect();
        let body =
            json!({"experiment_ids": ids, "max_results": MAX_LISTED, "order_by": ["attributes.start_time DESC"]});
        let answer = self.ask("runs/search", Some(body.to_string()))?.unwrap_or_default();
        let mut runs = Vec::new();
        for run in answer.get("runs").and_then(Value::as_array).into_iter().flatten() {
            let info = |key: &str| run.pointer(&format!("/info/{key}")).and_then(plain).unwrap_or_default();
            let experiment = names.get(&info("experiment_id")).cloned().unwrap_or_default();
            runs.push((info("run_id"), format!("{experiment} / {}, {}", info("run_name"), info("status"))));
        }
        let total = runs.len() as u64;
        Ok((runs, total))
    }

    fn get(&self, path: &str) -> Result<Option<Value>, Error> {
        self.ask(path, None)
    }

    /// The answer; `None` when the server says that there is no such thing.
    fn ask(&self, path: &str, body: Option<String>) -> Result<Option<Value>, Error> {
        let url = format!("{}/api/2.0/mlflow/{path}", self.url);
        let answer =
            (self.fetch)(&Request { url, body }).map_err(|reason| Error::Server { url: self.url.clone(), reason })?;
        if answer.body.len() > MAX_ANSWER_LEN {
            return Err(self.unexpected("an answer of more than 64 MiB"));
        }
        let value = json::parse(&answer.body);
        match (answer.status, value) {
            (200, Ok(value)) => Ok(Some(value)),
            (200, Err(_)) => Err(self.unexpected("an answer that is not JSON")),
            (404, Ok(value)) if value.get("error_code").is_some_and(|code| code == "RESOURCE_DOES_NOT_EXIST") => {
                Ok(None)
            }
            (status, value) => {
                let message = value.ok().and_then(|value| plain(value.get("message")?)).unwrap_or_default();
                Err(self.unexpected(format!("HTTP status {status} {message}").trim_end()))
            }
        }
    }

    fn unexpected(&self, found: &str) -> Error {
        Error::Server { url: self.url.clone(), reason: found.to_owned() }
    }
}

fn datasets(run: &Value) -> Vec<LoggedDataset> {
    let inputs = run.pointer("/inputs/dataset_inputs").and_then(Value::as_array);
    let mut datasets: Vec<LoggedDataset> = Vec::new();
    for input in inputs.into_iter().flatten() {
        let field = |key: &str| input.pointer(&format!("/dataset/{key}")).and_then(plain).unwrap_or_default();
        let mut tags = input.get("tags").and_then(Value::as_array).into_iter().flatten();
        let context = tags.find(|tag| tag.get("key").is_some_and(|key| key == "mlflow.data.context"));
        datasets.push(LoggedDataset {
            name: field("name"),
            digest: field("digest"),
            source: field("source"),
            context: context.and_then(|tag| plain(tag.get("value")?)),
        });
    }
    datasets.sort_by(|a, b| (&a.name, &a.digest).cmp(&(&b.name, &b.digest)));
    datasets
}

/// Text, or a number as text.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A metric's value as records spell it; protobuf's JSON has `"NaN"` and `"Infinity"` as text.
fn metric_value(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => number.as_f64().map(super::mlflow::number),
        Value::String(text) => Some(match text.as_str() {
            "Infinity" => "inf".to_owned(),
            "-Infinity" => "-inf".to_owned(),
            other => other.to_owned(),
        }),
        _ => None,
    }
}
