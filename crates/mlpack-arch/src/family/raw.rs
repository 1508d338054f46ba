//! A description as TOML gives it, and the rules that make it a [`Family`].

use super::{
    Class, ConfigCheck, ConfigTable, Constant, Derived, Expression, ExtraKind, Family, Field, FieldType, MetadataEntry,
    RefusedField, Template, TensorEntry, TransformEntry, ValueChange, ValueKind,
};
use crate::decoder::DecoderEntry;
use crate::tokenizer::VocabReader;
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFamily {
    arch: String,
    /// Where it is not `arch`.
    name: Option<String>,
    description: String,
    tokenizer: VocabReader,
    #[serde(default)]
    pooling: bool,
    #[serde(default = "yes")]
    common_metadata: bool,
    #[serde(default)]
    extra_tensors: Vec<ExtraKind>,
    #[serde(default)]
    remove_from_names: Vec<String>,
    #[serde(default)]
    ignored_fields: Vec<String>,
    #[serde(default)]
    dropped_tensors: Vec<String>,
    #[serde(default)]
    tied_head_dropped: bool,
    #[serde(default)]
    extra_layers_dropped: bool,
    #[serde(default)]
    refused: Vec<RefusedField>,
    #[serde(default)]
    refused_names: Vec<String>,
    classes: BTreeMap<String, Class>,
    #[serde(default)]
    metadata: Vec<RawMetadata>,
    tensors: Vec<RawTensor>,
    decoder: Option<DecoderEntry>,
    #[serde(default)]
    config: BTreeMap<String, RawConfig>,
}

fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetadata {
    key: String,
    #[serde(rename = "type")]
    kind: ValueKind,
    #[serde(default)]
    from: Vec<String>,
    or: Option<Expression>,
    value: Option<Constant>,
    #[serde(default)]
    optional: bool,
    only_with: Option<String>,
    #[serde(default)]
    unless_zero: bool,
    #[serde(default)]
    after_pooling: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    gguf: OneOrMore,
    hf: Vec<String>,
    #[serde(default)]
    suffix: String,
    #[serde(default)]
    transform: TransformEntry,
    #[serde(default)]
    values: ValueChange,
    #[serde(default)]
    first_only: bool,
    labels: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    rope_theta: f64,
    partial_rotary_factor: Option<f64>,
    sliding_rope_theta: Option<f64>,
    rope_theta_fields: Option<[String; 2]>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    checks: Vec<ConfigCheck>,
    #[serde(default)]
    fields: BTreeMap<String, RawField>,
    #[serde(default)]
    plain: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawField {
    #[serde(rename = "type")]
    types: Vec<FieldType>,
    default: Option<toml::Value>,
    or: Option<String>,
    always: Option<Expression>,
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
            name: self.name.unwrap_or_else(|| self.arch.clone()),
            arch: self.arch,
            description: self.description,
            tokenizer: self.tokenizer,
            pooling: self.pooling,
            common_metadata: self.common_metadata,
            extra_tensors: self.extra_tensors,
            remove_from_names: self.remove_from_names,
            ignored_fields: self.ignored_fields,
            dropped_tensors: self.dropped_tensors,
            tied_head_dropped: self.tied_head_dropped,
            extra_layers_dropped: self.extra_layers_dropped,
            refused: self.refused,
            refused_names: self.refused_names,
            classes: self.classes,
            metadata: self.metadata.into_iter().map(RawMetadata::validate).collect::<Result<_, _>>()?,
            tensors: validate_tensors(self.tensors)?,
            decoder: self.decoder,
            configs: validate_configs(self.config)?,
        })
    }
}

impl RawMetadata {
    fn validate(self) -> Result<MetadataEntry, Broken> {
        let place = format!("metadata `{}`", self.key);
        let RawMetadata { key, kind, from, or, value, optional, only_with, unless_zero, after_pooling } = self;
        if !key.starts_with("{arch}.") && !key.starts_with("general.") && !key.starts_with("tokenizer.") {
            return Err((place, "a key that starts with `{arch}.`, `general.` or `tokenizer.`"));
        }
        let made = matches!(kind, ValueKind::LayerCount | ValueKind::FileType | ValueKind::ClassLabels);
        let sources = usize::from(value.is_some()) + usize::from(!from.is_empty() || or.is_some());
        if sources != usize::from(!made) {
            return Err((place, "config fields in `from`, an expression in `or`, or a `value`"));
        }
        let fits = match (&value, kind) {
            (None, _) | (Some(Constant::Bool(_)), ValueKind::Bool) | (Some(Constant::Text(_)), ValueKind::String) => {
                true
            }
            (Some(Constant::Integer(_)), ValueKind::U32) | (Some(Constant::Float(_)), ValueKind::F32) => true,
            (Some(_), _) => false,
        };
        if !fits {
            return Err((place, "a `value` of its `type`"));
        }
        Ok(MetadataEntry { key, kind, from, or, value, optional, only_with, unless_zero, after_pooling })
    }
}

fn validate_tensors(raw: Vec<RawTensor>) -> Result<Vec<TensorEntry>, Broken> {
    let mut seen = HashSet::new();
    let mut tensors = Vec::with_capacity(raw.len());
    for tensor in raw {
        let RawTensor { gguf, hf: names, suffix, transform, values, first_only, labels } = tensor;
        let gguf = match gguf {
            OneOrMore::One(name) => vec![name],
            OneOrMore::More(names) => names,
        };
        let place = format!("tensor `{}`", gguf.first().map_or("", String::as_str));
        let outputs: Option<Vec<Template>> = gguf.iter().map(|name| Template::parse(name)).collect();
        let outputs = outputs.ok_or((place.clone(), "`{bid}` at most once"))?;
        let layered = outputs.first().is_some_and(Template::is_layered);
        if outputs.iter().any(|output| output.is_member() || output.is_layered() != layered) {
            return Err((place, "`{bid}` in every GGUF name or in none"));
        }
        let stacked = matches!(transform, TransformEntry::Stack { .. });
        let mut hf = Vec::with_capacity(names.len());
        for name in names {
            let template = Template::parse(&name).ok_or((place.clone(), "`{bid}` at most once, then `{xid}`"))?;
            if template.is_layered() != layered {
                return Err((place, "`{bid}` in every name or in none"));
            }
            if template.is_member() != stacked {
                return Err((place, "`{xid}` in every name of a stack and in no other"));
            }
            if !seen.insert((name, labels)) {
                return Err((place, "a Hugging Face name only once in the file"));
            }
            hf.push(template);
        }
        if hf.is_empty() {
            return Err((place, "at least one Hugging Face name"));
        }
        if let Some(problem) = broken_transform(&transform, gguf.len()) {
            return Err((place, problem));
        }
        tensors.push(TensorEntry { gguf, hf, suffix, transform, values, first_only, labels });
    }
    Ok(tensors)
}

/// The rule that a transform with so many outputs breaks.
fn broken_transform(transform: &TransformEntry, outputs: usize) -> Option<&'static str> {
    match transform {
        TransformEntry::Split { sizes } => {
            let wrong = outputs < 2 || !sizes.is_empty() && sizes.len() != outputs;
            wrong.then_some("a GGUF name for each part, and as many `sizes` or none")
        }
        TransformEntry::PermutedParts { heads } | TransformEntry::PermutedGroups { heads, .. } => {
            let wrong = outputs != 3 || heads.is_empty();
            wrong.then_some("GGUF names for queries, keys and values, and at least one config field in `heads`")
        }
        TransformEntry::Interleaved { .. } | TransformEntry::Mxfp4 { interleaved: true } => {
            (outputs != 2).then_some("two GGUF names")
        }
        TransformEntry::LatentHeads { .. } => (outputs != 2).then_some("a GGUF name for keys and one for values"),
        _ if outputs != 1 => Some("one GGUF name"),
        TransformEntry::RopePermute { heads } | TransformEntry::PartsOfHeads { heads } if heads.is_empty() => {
            Some("at least one config field in `heads`")
        }
        TransformEntry::HeadsOfGroups { heads, .. } if heads.is_empty() => Some("at least one config field in `heads`"),
        TransformEntry::Stack { count, .. } if count.is_empty() => Some("at least one config field in `count`"),
        _ => None,
    }
}

fn validate_configs(raw: BTreeMap<String, RawConfig>) -> Result<BTreeMap<String, ConfigTable>, Broken> {
    let table = |(model_type, config): (String, RawConfig)| {
        let RawConfig { rope_theta, partial_rotary_factor, sliding_rope_theta, rope_theta_fields, .. } = config;
        let RawConfig { aliases, checks, fields: raw, plain, .. } = config;
        if plain != raw.is_empty() {
            return Err((format!("config `{model_type}`"), "`fields`, or `plain = true`"));
        }
        let mut fields = BTreeMap::new();
        for (name, field) in raw {
            let place = format!("config `{model_type}`, field `{name}`");
            let default = match field.default {
                None => serde_json::Value::Null,
                Some(toml::Value::Integer(n)) => n.into(),
                Some(toml::Value::Float(n)) => n.into(),
                Some(toml::Value::Boolean(b)) => b.into(),
                Some(toml::Value::String(s)) => s.into(),
                Some(toml::Value::Array(list)) if list.iter().all(toml::Value::is_integer) => {
                    list.iter().filter_map(toml::Value::as_integer).collect()
                }
                Some(toml::Value::Table(table)) => {
                    let json = serde_json::to_value(table);
                    json.map_err(|_| (place.clone(), "a default that JSON can hold"))?
                }
                Some(_) => return Err((place, "a default that is a number, a string, integers, true or false")),
            };
            const FORMS: &str = "`or` as an expression, `sliding_after(field)`, `full_every(field, number)`, …";
            let or = field.or.map(|text| Derived::parse(&text).ok_or((place, FORMS))).transpose()?;
            fields
                .insert(name, Field { types: field.types, default, or, always: field.always, only_if: field.only_if });
        }
        let table = ConfigTable {
            rope_theta,
            partial_rotary_factor,
            sliding_rope_theta,
            rope_theta_fields,
            aliases,
            checks,
            fields,
            plain,
        };
        Ok((model_type, table))
    };
    raw.into_iter().map(table).collect()
}
