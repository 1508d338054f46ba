//! What Hugging Face's Trainer and PEFT leave beside an adapter: `trainer_state.json` (transformers 5,
//! `TrainerState.save_to_json`), `adapter_config.json`, the model card, `training_args.bin` (a pickle: hashed, never
//! loaded).

use super::curve::Logged;
use super::mlflow::{file_name, number};
use super::record::{BaseModel, Dataset, Evidence};
use super::redact::redact;
use crate::{Error, json};
use mlpack_fs::{hash_file, read_bounded, read_to_string_bounded};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest trainer state; a state with 100 000 log entries has about 20 MB.
const MAX_STATE_LEN: u64 = 64 << 20;
/// Longest adapter configuration.
const MAX_CONFIG_LEN: u64 = 4 << 20;
/// Longest model card.
const MAX_CARD_LEN: u64 = 4 << 20;
/// Longest value taken from a model card, in bytes.
const MAX_CARD_VALUE_LEN: usize = 1024;
/// Most datasets of a model card.
const MAX_CARD_DATASETS: usize = 64;
/// Most versions of a model card.
const MAX_CARD_VERSIONS: usize = 64;
/// The fields of the state that say how far the training went.
const PROGRESS: [&str; 6] = ["epoch", "global_step", "max_steps", "num_train_epochs", "total_flos", "train_batch_size"];

/// A trainer state, read.
pub(super) struct TrainerState {
    pub path: PathBuf,
    pub evidence: Evidence,
    pub progress: BTreeMap<String, String>,
    /// The last value of each logged metric.
    pub metrics: BTreeMap<String, String>,
    /// Every logged value by metric.
    pub logged: Logged,
    /// The loss curves by metric and step.
    pub curve: Vec<(String, i64, f64)>,
}

impl TrainerState {
    pub fn open(path: &Path) -> Result<TrainerState, Error> {
        let bytes = read_bounded(path, MAX_STATE_LEN)?;
        let state = json::parse(&bytes).map_err(|source| Error::Json { origin: path.display().to_string(), source })?;
        let history = state.get("log_history").and_then(Value::as_array);
        let (Some(history), true) = (history, state.get("global_step").is_some_and(Value::is_number)) else {
            return Err(Error::NotATrainerState { path: path.to_owned() });
        };
        let progress =
            PROGRESS.into_iter().filter_map(|key| Some((key.to_owned(), plain_number(state.get(key)?)?))).collect();
        let mut metrics = BTreeMap::new();
        let mut curve = Vec::new();
        let mut logged = Logged::new();
        for entry in history.iter().filter_map(Value::as_object) {
            let step = entry.get("step").and_then(Value::as_i64);
            for (key, value) in entry {
                let Some(text) = plain_number(value).filter(|_| key != "step") else { continue };
                if let (Some(step), Some(value), "loss" | "eval_loss" | "train_loss") =
                    (step, value.as_f64(), key.as_str())
                {
                    curve.push((key.clone(), step, value));
                }
                if let Some(step) = step {
                    logged.entry(key.clone()).or_default().push((step, text.clone()));
                }
                metrics.insert(key.clone(), text);
            }
        }
        let evidence = evidence(path, mlpack_fs::Sha256::of(&bytes));
        Ok(TrainerState { path: path.to_owned(), evidence, progress, metrics, logged, curve })
    }
}

/// A JSON number as text: integers as they are, others as shortest round-trip text. Other values are `None`.
fn plain_number(value: &Value) -> Option<String> {
    match value {
        Value::Number(n) if n.is_i64() || n.is_u64() => Some(n.to_string()),
        Value::Number(n) => n.as_f64().map(number),
        _ => None,
    }
}

/// Files beside the adapter that back a record without being read into it.
pub(super) fn other_evidence(dir: &Path) -> Result<Vec<(Evidence, PathBuf)>, Error> {
    let mut found = Vec::new();
    for name in ["adapter_config.json", "training_args.bin"] {
        let path = dir.join(name);
        if path.is_file() {
            found.push((evidence(&path, hash_file(&path)?.0), path));
        }
    }
    Ok(found)
}

fn evidence(path: &Path, sha256: mlpack_fs::Sha256) -> Evidence {
    let file = match path.parent().and_then(Path::file_name) {
        Some(dir) => format!("{}/{}", dir.to_string_lossy(), file_name(path)),
        None => file_name(path),
    };
    Evidence { file, sha256: sha256.to_string() }
}

/// What is said about its training beside an adapter.
pub(super) struct Beside {
    config: Option<Value>,
    card: Card,
}

impl Beside {
    /// Reads `adapter_config.json` and the model card of a folder, where they are there.
    pub fn open(dir: &Path) -> Result<Beside, Error> {
        Ok(Beside { config: adapter_config(dir)?, card: card(dir)?.unwrap_or_default() })
    }

    fn configured(&self, key: &str) -> Option<String> {
        self.config.as_ref()?.get(key)?.as_str().map(redact)
    }

    /// The versions of the software that trained: of the model card, and PEFT's of `adapter_config.json`.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let mut versions = self.card.versions.clone();
        versions.extend(self.configured("peft_version").map(|version| ("peft".to_owned(), version)));
        versions
    }

    /// The base model that `adapter_config.json` names, else the one of the model card.
    pub fn base_model(&self) -> Option<BaseModel> {
        if let Some(name) = self.configured("base_model_name_or_path") {
            let stated_by = "adapter_config.json".to_owned();
            return Some(BaseModel { name, revision: self.configured("revision"), stated_by });
        }
        let name = self.card.base_model.clone()?;
        Some(BaseModel { name, revision: None, stated_by: "README.md".to_owned() })
    }

    /// The datasets that the model card names.
    pub fn card_datasets(&self) -> Vec<Dataset> {
        let claim = |name: &String| Dataset {
            name: name.clone(),
            context: None,
            source: None,
            claimed_digest: None,
            claimed_algorithm: None,
            sha256: None,
            not_hashed: Some("named by a model card only".to_owned()),
            stated_by: "README.md".to_owned(),
        };
        self.card.datasets.iter().map(claim).collect()
    }
}

fn adapter_config(dir: &Path) -> Result<Option<Value>, Error> {
    let path = dir.join("adapter_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = read_bounded(&path, MAX_CONFIG_LEN)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| Error::Json { origin: path.display().to_string(), source })
}

#[derive(Debug, PartialEq, Default)]
struct Card {
    base_model: Option<String>,
    datasets: Vec<String>,
    versions: BTreeMap<String, String>,
}

fn card(dir: &Path) -> Result<Option<Card>, Error> {
    let path = dir.join("README.md");
    if !path.is_file() {
        return Ok(None);
    }
    Ok(Some(parse_card(&read_to_string_bounded(&path, MAX_CARD_LEN)?)))
}

/// The two fields of a model card's front matter, in the forms that PEFT and the Trainer write: `key: value` and a list
/// of `- value` lines; and the versions that they list under a heading of their own. Anything else there is not read.
fn parse_card(text: &str) -> Card {
    let mut card = Card { versions: versions(text), ..Card::default() };
    let mut lines = text.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return card;
    }
    let mut key = "";
    for line in lines.take_while(|line| line.trim_end() != "---") {
        let value = match line.strip_prefix("- ").or_else(|| line.strip_prefix("  - ")) {
            Some(item) => item,
            None => match line.split_once(':') {
                Some((name, value)) if !line.starts_with(' ') => {
                    key = name;
                    value
                }
                _ => continue,
            },
        };
        let value = value.trim().trim_matches(['"', '\'']);
        if value.is_empty() || value.len() > MAX_CARD_VALUE_LEN {
            continue;
        }
        match key {
            "base_model" if card.base_model.is_none() => card.base_model = Some(redact(value)),
            "datasets" if card.datasets.len() < MAX_CARD_DATASETS => card.datasets.push(redact(value)),
            _ => {}
        }
    }
    card
}

/// Lines of the form `- NAME VERSION`, or `- NAME: VERSION` as TRL writes them, below `### Framework versions`.
fn versions(card: &str) -> BTreeMap<String, String> {
    let section = card.lines().skip_while(|line| line.trim_end() != "### Framework versions").skip(1);
    let version = |line: &str| {
        let (name, version) = line.strip_prefix("- ")?.trim_end().rsplit_once(' ')?;
        let name = name.trim_end_matches(':').to_lowercase();
        let is_one =
            version.starts_with(|c: char| c.is_ascii_digit()) && name.len() + version.len() < MAX_CARD_VALUE_LEN;
        is_one.then(|| (redact(&name), redact(version)))
    };
    section.take_while(|line| !line.starts_with('#')).filter_map(version).take(MAX_CARD_VERSIONS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_gives_its_base_model_and_datasets() {
        let card = parse_card(
            "---\nbase_model: org/base\nlibrary_name: peft\ndatasets:\n- org/data\n- /srv/joe/x.jsonl\ntags:\n- lora\n---\n\
             base_model: not front matter\n",
        );
        assert_eq!(card.base_model.as_deref(), Some("org/base"));
        assert_eq!(card.datasets, ["org/data", "x.jsonl"]);
        let card = parse_card(
            "# m\n- PEFT 1\n### Framework versions\n\n- PEFT 0.13.2\n- TRL: 0.12.0\n- Pytorch 2.4.1+cu121\n- none\n## more\n- x 1\n",
        );
        let expected = [("peft", "0.13.2"), ("pytorch", "2.4.1+cu121"), ("trl", "0.12.0")];
        assert_eq!(card.versions.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
        assert_eq!(parse_card("# no front matter\nbase_model: x\n"), Card::default());
    }

    #[test]
    fn a_state_without_its_fields_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trainer_state.json");
        for bad in ["{}", "[]", r#"{"global_step": 3}"#, r#"{"global_step": "3", "log_history": []}"#] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(TrainerState::open(&path), Err(Error::NotATrainerState { .. })), "{bad}");
        }
        std::fs::write(&path, r#"{"global_step": 1, "global_step": 2, "log_history": []}"#).unwrap();
        assert!(TrainerState::open(&path).err().unwrap().to_string().contains("duplicate key"));
        std::fs::write(&path, r#"{"global_step": 2, "epoch": NaN, "log_history": []}"#).unwrap();
        assert!(matches!(TrainerState::open(&path), Err(Error::Json { .. })));
    }
}
