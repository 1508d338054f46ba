//! The nodes of training runs and their data.

use super::walk::Walk;
use super::{CheckStore, Node, NodeKind, State};
use crate::claims::FoundRecord;
use crate::run::{Dataset, RunStore};
use crate::{Error, RunRecord};
use mlpack_fs::Sha256;
use std::collections::BTreeSet;

/// Fields shown of a record that a store contradicts.
const SHOWN_DIFFERENCES: usize = 3;

impl Walk<'_> {
    pub fn record(&mut self, digest: Sha256, uri: Option<&str>, attested: Option<State>) -> Node {
        let name = uri.unwrap_or("a training run");
        let mut node = Node::new(NodeKind::Record, name, attested.unwrap_or(State::Claimed));
        node.sha256 = Some(digest);
        let record = match self.claims.record(digest, uri) {
            FoundRecord::Found(record, _) => record,
            FoundRecord::Damaged(what) => {
                node.state = State::Mismatch;
                node.note = Some(what);
                return node;
            }
            FoundRecord::Missing => {
                node.state = State::Missing;
                node.note = Some("the record is not here".to_owned());
                return node;
            }
        };
        if self.expanded.insert(digest) {
            let run = self.run(digest, record, attested);
            node.children.push(run);
        } else {
            node.repeated = true;
        }
        node
    }

    fn run(&mut self, digest: Sha256, record: Box<RunRecord>, attested: Option<State>) -> Node {
        let mut node = Node::new(NodeKind::Run, record.label(), attested.unwrap_or(State::Claimed));
        node.attested = attested;
        let (contradicted, note) = self.check_store(digest, &record);
        (node.state, node.note) = (contradicted.unwrap_or(node.state), Some(note));
        node.facts = run_facts(&record);
        if let Some(base) = &record.base_model {
            let mut child = Node::new(NodeKind::BaseModel, base.name.clone(), State::Claimed);
            child.facts.extend(base.revision.iter().map(|r| ("revision".to_owned(), r.clone())));
            child.note = Some(format!("named by {}", base.stated_by));
            node.children.push(child);
        }
        for dataset in &record.datasets {
            let child = self.dataset(dataset, attested);
            node.children.push(child);
        }
        for evidence in &record.evidence {
            let Ok(sha256) = evidence.sha256.parse() else { continue };
            let (state, checked, note) = self.find_bytes(&evidence.file, sha256, attested);
            let mut child = Node::new(NodeKind::Evidence, evidence.file.clone(), state);
            child.attested = attested;
            (child.sha256, child.checked, child.note) = (Some(sha256), checked, note);
            node.children.push(child);
        }
        node.record = Some(record);
        node
    }

    fn dataset(&mut self, dataset: &Dataset, attested: Option<State>) -> Node {
        let mut node = Node::new(NodeKind::Dataset, dataset.name.clone(), State::Claimed);
        match dataset.sha256.as_deref().map(str::parse::<Sha256>) {
            Some(Ok(digest)) => {
                let file = dataset.source.as_deref().unwrap_or(&dataset.name);
                (node.state, node.checked, node.note) = self.find_bytes(file, digest, attested);
                (node.sha256, node.attested) = (Some(digest), attested);
            }
            Some(Err(_)) => node.note = Some("its digest is not one".to_owned()),
            None => node.note = dataset.not_hashed.clone(),
        }
        node.facts.extend(dataset.source.iter().map(|s| ("file".to_owned(), s.clone())));
        node.facts.extend(dataset.context.iter().map(|c| ("used for".to_owned(), c.clone())));
        if let Some(claimed) = &dataset.claimed_digest {
            let algorithm = dataset.claimed_algorithm.as_deref().unwrap_or("unknown");
            node.facts.push((format!("{algorithm} claimed by {}", dataset.stated_by), claimed.clone()));
        }
        node
    }

    /// What the run's store says today: a state when it is worse than what the record says, and why.
    fn check_store(&self, digest: Sha256, record: &RunRecord) -> (Option<State>, String) {
        let said = format!("as `{}` said when the record was made", record.source.file);
        let run_id = match (&record.run_id, record.source.kind.as_str()) {
            (Some(run_id), "mlflow-sqlite" | "mlflow-files") => run_id,
            _ => return (None, said),
        };
        let db = match &self.options.check_store {
            CheckStore::No => return (None, said),
            CheckStore::At(db) => db.clone(),
            CheckStore::Remembered => match self.claims.sources(digest).into_iter().next() {
                Some(db) => db,
                None => return (None, format!("{said}; nobody noted where that is")),
            },
        };
        match RunStore::open(&db).and_then(|store| store.record(run_id)) {
            Ok(today) => match differences(record, &today).as_slice() {
                [] => (None, format!("`{}` says the same today", record.source.file)),
                all => {
                    let more = match all.len().saturating_sub(SHOWN_DIFFERENCES) {
                        0 => String::new(),
                        n => format!(" and {n} more"),
                    };
                    let shown = all[..all.len().min(SHOWN_DIFFERENCES)].join(", ");
                    let note = format!("`{}` says something else today: {shown}{more}", record.source.file);
                    (Some(State::Mismatch), note)
                }
            },
            Err(e @ Error::RunNotFound { .. }) => {
                let first = e.to_string();
                (Some(State::Mismatch), first.lines().next().unwrap_or_default().to_owned())
            }
            Err(e) => {
                let text = e.to_string();
                (Some(State::Missing), text.lines().map(str::trim).collect::<Vec<_>>().join("; "))
            }
        }
    }
}

fn run_facts(record: &RunRecord) -> Vec<(String, String)> {
    const TOLD: [&str; 8] = [
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "optim",
        "seed",
        "lr_scheduler_type",
        "weight_decay",
        "max_steps",
    ];
    let mut facts = Vec::new();
    let mut fact = |key: &str, value: Option<String>| facts.extend(value.map(|value| (key.to_owned(), value)));
    fact("experiment", record.experiment.clone());
    fact("name", record.name.clone());
    fact("status", record.status.clone());
    fact("lifecycle", record.lifecycle.clone());
    for key in ["train_loss", "loss", "eval_loss", "epoch"] {
        fact(key, record.metrics.get(key).cloned());
    }
    for key in TOLD {
        fact(key, record.params.get(key).cloned());
    }
    fact("steps", record.trainer.get("global_step").cloned());
    let counted = (record.params.len(), record.metrics.len());
    fact("recorded", Some(format!("{} parameters, {} metrics", counted.0, counted.1)));
    for (key, value) in &record.code {
        let key = match key.as_str() {
            "mlflow.source.name" => "script",
            "mlflow.source.type" => "started as",
            other => other.strip_prefix("mlflow.source.").unwrap_or(other),
        };
        fact(key, Some(value.clone()));
    }
    let versions = record.environment.iter().map(|(name, version)| format!("{name} {version}"));
    fact("trained with", Some(versions.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty()));
    if let Some(agreement) = &record.agreement {
        let text = format!("{} of {} loss values equal {}", agreement.equal, agreement.compared, agreement.file);
        fact("agreement", Some(text));
    }
    facts
}

/// Names of the fields in which a record and its store differ; fields that are not from the store are not compared.
fn differences(record: &RunRecord, today: &RunRecord) -> Vec<String> {
    let mut names = Vec::new();
    for (name, a, b) in [
        ("experiment", &record.experiment, &today.experiment),
        ("name", &record.name, &today.name),
        ("status", &record.status, &today.status),
        ("lifecycle", &record.lifecycle, &today.lifecycle),
        ("started_ms", &record.started_ms, &today.started_ms),
        ("ended_ms", &record.ended_ms, &today.ended_ms),
    ] {
        if a != b {
            names.push(name.to_owned());
        }
    }
    for (table, a, b) in [
        ("params", &record.params, &today.params),
        ("metrics", &record.metrics, &today.metrics),
        ("code", &record.code, &today.code),
    ] {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        names.extend(keys.into_iter().filter(|key| a.get(*key) != b.get(*key)).map(|key| format!("{table}.{key}")));
    }
    let curves: BTreeSet<&String> = record.curves.keys().chain(today.curves.keys()).collect();
    let changed = curves.into_iter().filter(|key| record.curves.get(*key) != today.curves.get(*key));
    names.extend(changed.map(|key| format!("curves.{key}")));
    let claims = |r: &RunRecord| -> Vec<(String, Option<String>)> {
        let from_store = r.datasets.iter().filter(|d| d.claimed_digest.is_some());
        from_store.map(|d| (d.name.clone(), d.claimed_digest.clone())).collect()
    };
    if claims(record) != claims(today) {
        names.push("datasets".to_owned());
    }
    if record.models != today.models {
        names.push("models".to_owned());
    }
    names
}
