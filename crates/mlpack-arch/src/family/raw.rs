//! A description as TOML gives it, and the rules that make it a [`Family`].

use super::{
    Class, ConfigCheck, ConfigTable, Derived, ExtraKind, Family, Field, FieldType, MetadataEntry, Template,
    TensorEntry, TransformEntry, ValueKind,
};
use crate::tokenizer::VocabReader;
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFamily {
    arch: String,
    description: String,
    tokenizer: RawReader,
    #[serde(default)]
    pooling: bool,
    #[serde(default)]
    extra_tensors: Vec<ExtraKind>,
    #[serde(default)]
    remove_from_names: Vec<String>,
    classes: BTreeMap<String, Class>,
    #[serde(default)]
    metadata: Vec<RawMetadata>,
    tensors: Vec<RawTensor>,
    #[serde(default)]
    config: BTreeMap<String, RawConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawReader {
    Llama,
    Qwen,
    Bpe,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetadata {
    key: String,
    #[serde(rename = "type")]
    kind: ValueKind,
    from: Vec<String>,
    or: Option<String>,
    #[serde(default)]
    optional: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    gguf: String,
    hf: Vec<String>,
    #[serde(default)]
    transform: TransformEntry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    rope_theta: f64,
    #[serde(default)]
    checks: Vec<ConfigCheck>,
    fields: BTreeMap<String, RawField>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawField {
    #[serde(rename = "type")]
    types: Vec<FieldType>,
    default: Option<toml::Value>,
    or: Option<String>,
    only_if: Option<String>,
}

/// Where a rule is broken, and which.
type Broken = (String, &'static str);

impl RawFamily {
    /// Checks the rules that the types do not carry.
    pub fn validate(self, source: &Path) -> Result<Family, Broken> {
        if self.arch.is_empty() || !self.arch.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(("arch".into(), "a name of letters, digits, `-`, `_` and `.`"));
        }
        if self.classes.is_empty() {
            return Err(("classes".into(), "at least one class name"));
        }
        Ok(Family {
            source: source.to_owned(),
            arch: self.arch,
            description: self.description,
            tokenizer: match self.tokenizer {
                RawReader::Llama => VocabReader::Llama,
                RawReader::Qwen => VocabReader::Qwen,
                RawReader::Bpe => VocabReader::Bpe,
            },
            pooling: self.pooling,
            extra_tensors: self.extra_tensors,
            remove_from_names: self.remove_from_names,
            classes: self.classes,
            metadata: self.metadata.into_iter().map(RawMetadata::validate).collect::<Result<_, _>>()?,
            tensors: validate_tensors(self.tensors)?,
            configs: validate_configs(self.config)?,
        })
    }
}

impl RawMetadata {
    fn validate(self) -> Result<MetadataEntry, Broken> {
        let place = format!("metadata `{}`", self.key);
        if !self.key.starts_with("{arch}.") {
            return Err((place, "a key that starts with `{arch}.`"));
        }
        if self.from.is_empty() {
            return Err((place, "at least one config field in `from`"));
        }
        let or = parse_derived(self.or, &place)?;
        Ok(MetadataEntry { key: self.key, kind: self.kind, from: self.from, or, optional: self.optional })
    }
}

fn parse_derived(text: Option<String>, place: &str) -> Result<Option<Derived>, Broken> {
    const FORMS: &str = "`or` as `field`, `field / field` or `sliding_after(field)`";
    text.map(|t| Derived::parse(&t).ok_or((place.to_owned(), FORMS))).transpose()
}

fn validate_tensors(raw: Vec<RawTensor>) -> Result<Vec<TensorEntry>, Broken> {
    let mut seen = HashSet::new();
    let mut tensors = Vec::with_capacity(raw.len());
    for tensor in raw {
        let place = format!("tensor `{}`", tensor.gguf);
        let gguf = Template::parse(&tensor.gguf).ok_or((place.clone(), "`{bid}` at most once"))?;
        let mut hf = Vec::with_capacity(tensor.hf.len());
        for name in tensor.hf {
            let template = Template::parse(&name).ok_or((place.clone(), "`{bid}` at most once"))?;
            if template.is_layered() != gguf.is_layered() {
                return Err((place, "`{bid}` in every name or in none"));
            }
            if !seen.insert(name) {
                return Err((place, "a Hugging Face name only once in the file"));
            }
            hf.push(template);
        }
        if hf.is_empty() {
            return Err((place, "at least one Hugging Face name"));
        }
        if matches!(&tensor.transform, TransformEntry::RopePermute { heads } if heads.is_empty()) {
            return Err((place, "at least one config field in `heads`"));
        }
        tensors.push(TensorEntry { gguf: tensor.gguf, hf, transform: tensor.transform });
    }
    Ok(tensors)
}

fn validate_configs(raw: BTreeMap<String, RawConfig>) -> Result<BTreeMap<String, ConfigTable>, Broken> {
    let table = |(model_type, config): (String, RawConfig)| {
        let mut fields = BTreeMap::new();
        for (name, field) in config.fields {
            let place = format!("config `{model_type}`, field `{name}`");
            let default = match field.default {
                None => serde_json::Value::Null,
                Some(toml::Value::Integer(n)) => n.into(),
                Some(toml::Value::Float(n)) => n.into(),
                Some(toml::Value::Boolean(b)) => b.into(),
                Some(toml::Value::String(s)) => s.into(),
                Some(_) => return Err((place, "a default that is a number, a string, true or false")),
            };
            let or = parse_derived(field.or, &place)?;
            fields.insert(name, Field { types: field.types, default, or, only_if: field.only_if });
        }
        Ok((model_type, ConfigTable { rope_theta: config.rope_theta, checks: config.checks, fields }))
    };
    raw.into_iter().map(table).collect()
}
