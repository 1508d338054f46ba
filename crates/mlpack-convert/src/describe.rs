//! What adapters change in the files that describe a model: its config, its tokenizer, its chat template.
//!
//! - `config.json` gets the vocabulary size of a resized embedding, and is untied where an adapter gives the head values of
//!   its own.
//! - An adapter's tokenizer is used where training added tokens to it that the embedding has rows for.
//! - An adapter's chat template is used where it is another than the base's: it is the one that was trained.
//!
//! Everything else stays the base's. Every choice is told as a warning, and the files are inputs on record.

use crate::Error;
use mlpack_fs::{read_bounded, read_to_string_bounded};
use mlpack_lora::{Adapter, Overlay};
use mlpack_safetensors::Checkpoint;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The largest file that is read: tokenizers reach some tens of megabytes.
const MAX_LEN: u64 = 512 << 20;

const CONFIG: &str = "config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Files that are a tokenizer together.
const TOKENIZER: &[&str] = &[
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
];

/// A file that is not the base's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Its name.
    pub name: String,
    /// The file that it is, or that it was made from.
    pub from: PathBuf,
    /// Its text, where it is not a copy.
    pub text: Option<String>,
}

/// The files that adapters change, and what to say about it.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub files: Vec<Change>,
    pub notes: Vec<String>,
}

impl Changes {
    /// Compares the files beside each adapter with the base's.
    pub(crate) fn new(base: &Checkpoint, overlay: &Overlay) -> Result<Changes, Error> {
        let mut changes = Changes::default();
        changes.config(base, overlay)?;
        for (adapter, _) in overlay.adapters() {
            changes.identity(base.dir(), adapter)?;
            changes.tokenizer(base, overlay, adapter)?;
            changes.template(base.dir(), adapter)?;
        }
        Ok(changes)
    }

    fn set(&mut self, change: Change) {
        self.files.retain(|other| other.name != change.name);
        self.files.push(change);
    }

    fn config(&mut self, base: &Checkpoint, overlay: &Overlay) -> Result<(), Error> {
        let path = base.dir().join(CONFIG);
        if !path.is_file() {
            return Ok(());
        }
        let resized = resized_vocabulary(base, overlay);
        if resized.is_none() && overlay.tied().is_none() {
            return Ok(());
        }
        let mut config = read_json(&path)?;
        let mut said = Vec::new();
        let mut set = |config: &mut Value, key: &str, value: Value, even_if_absent: bool| {
            let Some(object) = config.as_object_mut() else { return };
            if let Some(old) = object.get(key).cloned().or_else(|| even_if_absent.then_some(Value::Null))
                && old != value
            {
                said.push(format!("{key} from {old} to {value}"));
                object.insert(key.to_owned(), value);
            }
        };
        if let Some(rows) = resized {
            set(&mut config, "vocab_size", rows.into(), false);
            if let Some(text) = config.get_mut("text_config") {
                set(text, "vocab_size", rows.into(), false);
            }
        }
        if let Some(tied) = overlay.tied() {
            set(&mut config, "tie_word_embeddings", tied.into(), true);
            if let Some(text) = config.get_mut("text_config") {
                set(text, "tie_word_embeddings", tied.into(), false);
            }
        }
        if !said.is_empty() {
            self.notes.push(format!("config.json: the adapters change {}", said.join(", ")));
            self.set(Change { name: CONFIG.to_owned(), from: path, text: Some(format!("{config:#}\n")) });
        }
        Ok(())
    }

    /// Compares the name that the adapter has for its base with the base's own: that of its directory, or that in its
    /// config.
    fn identity(&mut self, base: &Path, adapter: &Adapter) -> Result<(), Error> {
        let Some(recorded) = adapter.config().base_model.as_deref().filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let last = |name: &str| name.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
        let real = base.canonicalize().unwrap_or_else(|_| base.to_owned());
        // The hub's cache has `models--OWNER--NAME/snapshots/REVISION`.
        let wanted = last(recorded);
        let in_path = real.iter().any(|part| {
            let part = part.to_string_lossy().to_lowercase();
            part == wanted || part.ends_with(&format!("--{wanted}"))
        });
        let config = base.join(CONFIG);
        let named = if config.is_file() { read_json(&config)? } else { Value::Null };
        let in_config = named.get("_name_or_path").and_then(Value::as_str).is_some_and(|name| last(name) == wanted);
        // A path of the hub's cache says which revision it is, and so may the adapter.
        let of_base = real.iter().skip_while(|part| *part != "snapshots").nth(1).and_then(|part| part.to_str());
        let is_commit = |text: &&str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let recorded_revision = adapter.config().revision.as_deref();
        if let (Some(theirs), Some(ours)) = (recorded_revision.filter(is_commit), of_base.filter(is_commit))
            && !theirs.eq_ignore_ascii_case(ours)
        {
            self.notes.push(format!(
                "adapter `{}` was trained on revision {theirs} of `{}`; it is merged into revision {ours}",
                adapter.path().display(),
                mlpack_tensor::Escaped(recorded),
            ));
        }
        if !in_path && !in_config {
            let revision = adapter.config().revision.as_deref().map(|r| format!(", revision {r}")).unwrap_or_default();
            self.notes.push(format!(
                "adapter `{}` says that its base is `{}`{revision}; it is merged into `{}`",
                adapter.path().display(),
                mlpack_tensor::Escaped(recorded),
                base.display()
            ));
        }
        Ok(())
    }

    fn tokenizer(&mut self, base: &Checkpoint, overlay: &Overlay, adapter: &Adapter) -> Result<(), Error> {
        let (theirs, ours) = (adapter.dir(), base.dir());
        let mut differing = Vec::new();
        for name in TOKENIZER {
            if theirs.join(name).is_file() && !same(&theirs.join(name), &ours.join(name))? {
                differing.push(*name);
            }
        }
        if differing.is_empty() {
            return Ok(());
        }
        let known: BTreeSet<String> = tokens(ours)?.into_iter().map(|(token, _)| token).collect();
        let added: Vec<(String, u64)> =
            tokens(theirs)?.into_iter().filter(|(token, _)| !known.contains(token)).collect();
        let rows = resized_vocabulary(base, overlay).or_else(|| vocabulary(base));
        let last = added.iter().map(|(_, id)| *id).max();
        let (whose, list) = (theirs.display(), differing.join(", "));
        match last {
            None => self.notes.push(format!(
                "adapter `{whose}` carries {list} that differ from the base's but add no token; the base's are used"
            )),
            Some(last) if rows.is_some_and(|rows| last >= rows) => self.notes.push(format!(
                "adapter `{whose}` carries {list} with {} tokens more, up to number {last}, but the embedding has {} rows: the rows \
                 that training added were not saved with the adapter; the base's files are used",
                added.len(),
                rows.unwrap_or(0)
            )),
            Some(_) => {
                self.notes.push(format!(
                    "{list}: those of adapter `{whose}` are used; training added {} tokens",
                    added.len()
                ));
                for name in differing {
                    self.set(Change { name: name.to_owned(), from: theirs.join(name), text: None });
                }
            }
        }
        Ok(())
    }

    fn template(&mut self, base: &Path, adapter: &Adapter) -> Result<(), Error> {
        let Some((theirs, from)) = template(adapter.dir())? else { return Ok(()) };
        let ours = template(base)?;
        if ours.as_ref().is_some_and(|(ours, _)| *ours == theirs) {
            return Ok(());
        }
        self.notes.push(format!(
            "the chat template of adapter `{}` is used; the base {}",
            adapter.dir().display(),
            if ours.is_some() { "has another one" } else { "has none" }
        ));
        let config = self
            .files
            .iter()
            .find(|file| file.name == TOKENIZER_CONFIG)
            .map_or_else(|| base.join(TOKENIZER_CONFIG), |file| file.from.clone());
        let in_config = config.is_file() && read_json(&config)?.get("chat_template").is_some_and(|t| !t.is_null());
        if in_config {
            let mut value = read_json(&config)?;
            if let Some(object) = value.as_object_mut() {
                object.insert("chat_template".to_owned(), theirs.clone().into());
            }
            let text = Some(format!("{value:#}\n"));
            self.set(Change { name: TOKENIZER_CONFIG.to_owned(), from: from.clone(), text });
        }
        if !in_config || base.join(TEMPLATE).is_file() {
            self.set(Change { name: TEMPLATE.to_owned(), from, text: Some(theirs) });
        }
        Ok(())
    }
}

fn read_json(path: &Path) -> Result<Value, Error> {
    let bytes = read_bounded(path, MAX_LEN)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Json { path: path.to_owned(), reason: e.to_string() })
}

fn same(a: &Path, b: &Path) -> Result<bool, Error> {
    Ok(b.is_file() && read_bounded(a, MAX_LEN)? == read_bounded(b, MAX_LEN)?)
}

/// The tokens that were added to a vocabulary, with their numbers.
fn tokens(dir: &Path) -> Result<Vec<(String, u64)>, Error> {
    let path = dir.join("tokenizer.json");
    if path.is_file() {
        let tokenizer = read_json(&path)?;
        let listed = tokenizer.get("added_tokens").and_then(Value::as_array);
        let token = |t: &Value| Some((t.get("content")?.as_str()?.to_owned(), t.get("id")?.as_u64()?));
        return Ok(listed.into_iter().flatten().filter_map(token).collect());
    }
    let path = dir.join("added_tokens.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let added = read_json(&path)?;
    let token = |(token, id): (&String, &Value)| Some((token.clone(), id.as_u64()?));
    Ok(added.as_object().into_iter().flatten().filter_map(token).collect())
}

/// The chat template of a directory and the file that has it.
fn template(dir: &Path) -> Result<Option<(String, PathBuf)>, Error> {
    let path = dir.join(TEMPLATE);
    if path.is_file() {
        return Ok(Some((read_to_string_bounded(&path, MAX_LEN)?, path)));
    }
    let path = dir.join(TOKENIZER_CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    let config = read_json(&path)?;
    Ok(config.get("chat_template").and_then(Value::as_str).map(|text| (text.to_owned(), path)))
}

/// The rows of the base's embedding.
fn vocabulary(base: &Checkpoint) -> Option<u64> {
    let embedding = mlpack_lora::embedding(base)?;
    base.tensors()[embedding].shape.dims().first().copied()
}

/// The rows of the embedding where adapters change them.
fn resized_vocabulary(base: &Checkpoint, overlay: &Overlay) -> Option<u64> {
    let embedding = mlpack_lora::embedding(base)?;
    let target = &overlay.targets()[overlay.target_of(embedding)?];
    target.shape.dims().first().copied().filter(|rows| Some(*rows) != vocabulary(base))
}
