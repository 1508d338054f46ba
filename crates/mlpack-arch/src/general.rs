//! `general.*`: what the converter writes about a model before its parameters (llama.cpp b11434,
//! `gguf-py/gguf/metadata.py`).
//!
//! Priority: the model card, then `_name_or_path` of config.json, then the name of the directory.

mod card;
mod name;
mod sampling;
mod size;

use crate::yaml::Yaml;
use crate::{Error, MetadataRequest};
use card::Card;
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

pub use size::{ParameterCount, parameter_count};

/// Appends `general.type` to `general.languages` and records the files it read.
pub(crate) fn append(
    metadata: &mut Metadata,
    dir: &Path,
    config: (&Path, &Map<String, Value>),
    request: &MetadataRequest<'_>,
    files: &mut Vec<PathBuf>,
) -> Result<(), Error> {
    let MetadataRequest { name: directory_name, parameters, card, .. } = request;
    let total = i128::from(parameters.total);
    metadata.set("general.type", "model".into());
    sampling::append(metadata, dir, files)?;
    let card = if *card { Card::read(dir, files)? } else { Card::empty(dir) };
    let mut facts = Facts::from_card(&card);
    if let Some(id) = name_in_config(config)? {
        facts.fill(&name::components(id, total));
    }
    facts.fill(&name::components(directory_name, total));
    if facts.size_label.is_none() && parameters.total > 0 {
        facts.size_label = Some(Fact::Text(size::label(parameters)));
    }
    facts.append(metadata, &card, total)
}

/// The same for an adapter in `dir`, whose tensors would have so many parameters if they were multiplied out.
pub(crate) fn append_adapter(
    metadata: &mut Metadata,
    dir: &Path,
    directory_name: &str,
    parameters: u64,
    files: &mut Vec<PathBuf>,
) -> Result<(), Error> {
    let total = -i128::from(parameters);
    metadata.set("general.type", "adapter".into());
    metadata.set("adapter.type", "lora".into());
    sampling::append(metadata, dir, files)?;
    let card = Card::read(dir, files)?;
    let mut facts = Facts::from_card(&card);
    facts.fill(&name::components(directory_name, total));
    facts.append(metadata, &card, total)
}

/// `_name_or_path`, when it looks like a name and not like a path.
fn name_in_config<'a>((path, config): (&Path, &'a Map<String, Value>)) -> Result<Option<&'a str>, Error> {
    match config.get("_name_or_path") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) => Ok((id.matches('/').count() <= 1).then_some(id)),
        Some(other) => Err(Error::WrongValue {
            path: path.to_owned(),
            field: "_name_or_path".to_owned(),
            expected: "a string",
            found: crate::json::describe(other),
        }),
    }
}

/// A value of one of the keys below: text that was made here, or whatever a model card says.
#[derive(Clone, Debug)]
enum Fact {
    Text(String),
    Card { key: &'static str, value: Yaml },
}

/// The keys that more than one source can give. The first source that gives one counts, even with an empty value.
#[derive(Debug, Default)]
struct Facts {
    name: Option<Fact>,
    author: Option<Fact>,
    version: Option<Fact>,
    organization: Option<Fact>,
    finetune: Option<Fact>,
    basename: Option<Fact>,
    description: Option<Fact>,
    size_label: Option<Fact>,
    source_url: Option<Fact>,
    source_doi: Option<Fact>,
    source_uuid: Option<Fact>,
    source_repo_url: Option<Fact>,
}

impl Facts {
    fn from_card(card: &Card) -> Facts {
        Facts {
            name: card.first(&["name", "model_name"]),
            author: card.first(&["author", "model_author", "model_creator"]),
            version: card.first(&["version", "model_version"]),
            organization: card.first(&["organization", "model_organization"]),
            finetune: card.first(&["finetune", "model_finetune"]),
            basename: card.first(&["basename", "model_basename", "model_type"]),
            description: card.first(&["description", "model_description"]),
            size_label: card.first(&["size_label", "model_size_label"]),
            source_url: card.first(&["url", "model_url"]),
            source_doi: card.first(&["doi", "model_doi"]),
            source_uuid: card.first(&["uuid", "model_uuid"]),
            source_repo_url: card.first(&["repo_url", "model_repo_url"]),
        }
    }

    fn fill(&mut self, found: &name::Components) {
        let text = |s: &String| Fact::Text(s.clone());
        self.name = self.name.take().or(Some(Fact::Text(name::title(&found.full_name))));
        self.organization =
            self.organization.take().or(found.organization.as_ref().map(|o| Fact::Text(name::title(o))));
        self.basename = self.basename.take().or(found.basename.as_ref().map(text));
        self.finetune = self.finetune.take().or(found.finetune.as_ref().map(text));
        self.version = self.version.take().or(found.version.as_ref().map(text));
        self.size_label = self.size_label.take().or(found.size_label.as_ref().map(text));
    }

    /// Appends these, and between them what only a card can say.
    fn append(&self, metadata: &mut Metadata, card: &Card, parameter_count: i128) -> Result<(), Error> {
        set_fact(metadata, "general.name", &self.name, card)?;
        set_fact(metadata, "general.author", &self.author, card)?;
        set_fact(metadata, "general.version", &self.version, card)?;
        set_fact(metadata, "general.organization", &self.organization, card)?;
        set_fact(metadata, "general.finetune", &self.finetune, card)?;
        set_fact(metadata, "general.basename", &self.basename, card)?;
        set_fact(metadata, "general.description", &self.description, card)?;
        set_fact(metadata, "general.size_label", &self.size_label, card)?;
        card.append_license(metadata)?;
        set_fact(metadata, "general.source.url", &self.source_url, card)?;
        set_fact(metadata, "general.source.doi", &self.source_doi, card)?;
        set_fact(metadata, "general.source.uuid", &self.source_uuid, card)?;
        set_fact(metadata, "general.source.repo_url", &self.source_repo_url, card)?;
        card.append_lists(metadata, parameter_count)
    }
}

fn set_fact(metadata: &mut Metadata, key: &str, fact: &Option<Fact>, card: &Card) -> Result<(), Error> {
    match fact {
        None => {}
        Some(Fact::Text(text)) => set_text(metadata, key, text),
        Some(Fact::Card { key: field, value }) => {
            set_text(metadata, key, card.text(field, value)?.unwrap_or_default());
        }
    }
    Ok(())
}

/// Sets a string key; the empty string is not written.
fn set_text(metadata: &mut Metadata, key: &str, text: &str) {
    if !text.is_empty() {
        metadata.set(key, MetaValue::from(text));
    }
}
