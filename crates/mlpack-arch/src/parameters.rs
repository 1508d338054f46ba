//! `{arch}.*`: the keys that every text model has, in the converter's order (llama.cpp b11434, `conversion/base.py`,
//! `TextModel.set_gguf_parameters`), and those that a family adds.

use crate::family::{Constant, Family, MetadataEntry, NoValue, Number, ValueKind};
use crate::{Config, Error, json};
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::{Map, Value};

/// A key and the config fields that it comes from: the first that is there counts, and null means no key.
type Entry = (&'static str, ValueKind, &'static [&'static str]);

const BEFORE_ROPE: &[Entry] = &[
    (
        "{arch}.context_length",
        ValueKind::U32,
        &["max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length"],
    ),
    ("{arch}.embedding_length", ValueKind::U32, &["hidden_size", "n_embd", "dim"]),
    (
        "{arch}.feed_forward_length",
        ValueKind::U32OrArray,
        &["prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim"],
    ),
    ("{arch}.attention.head_count", ValueKind::U32OrArray, &["num_attention_heads", "n_head", "n_heads"]),
    ("{arch}.attention.head_count_kv", ValueKind::U32OrArray, &["num_key_value_heads", "n_kv_heads"]),
];

const AFTER_ROPE: &[Entry] = &[
    ("{arch}.attention.layer_norm_rms_epsilon", ValueKind::F32, &["rms_norm_eps", "norm_eps"]),
    ("{arch}.attention.layer_norm_epsilon", ValueKind::F32, &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]),
    ("{arch}.expert_count", ValueKind::U32, &["num_local_experts", "num_experts", "n_routed_experts"]),
    (
        "{arch}.expert_used_count",
        ValueKind::U32OrArray,
        &["num_experts_per_tok", "num_experts_per_token", "top_k_experts"],
    ),
    ("{arch}.expert_group_count", ValueKind::U32, &["n_group"]),
    ("{arch}.expert_group_used_count", ValueKind::U32, &["topk_group"]),
];

const GATING_FIELDS: &[&str] = &[
    "score_function",
    "scoring_func",
    "score_func",
    "moe_router_activation",
    "moe_router_activation_func",
    "expert_selection_fn",
];

/// Appends `{arch}.block_count` to `general.file_type`, then the family's keys.
pub(crate) fn append(metadata: &mut Metadata, family: &Family, config: &Config, file_type: u32) -> Result<(), Error> {
    let mut writer = Writer { metadata, arch: &family.arch, config, ignored: &family.ignored_fields, file_type };
    if family.common_metadata {
        writer.common()?;
    }
    family.metadata.iter().filter(|entry| !entry.after_pooling).try_for_each(|entry| writer.family_entry(entry))
}

/// Appends those of the family's keys that come after the keys of the pooling.
pub(crate) fn append_after_pooling(metadata: &mut Metadata, family: &Family, config: &Config) -> Result<(), Error> {
    let mut writer = Writer { metadata, arch: &family.arch, config, ignored: &family.ignored_fields, file_type: 0 };
    family.metadata.iter().filter(|entry| entry.after_pooling).try_for_each(|entry| writer.family_entry(entry))
}

/// The rope parameters, with what older configs say outside of them.
pub(crate) fn rope_parameters(config: &Config) -> Result<Map<String, Value>, Error> {
    let found = config.field("rope_parameters").map(|v| ("rope_parameters", v));
    let found = found.or_else(|| Some(("rope_scaling", config.field("rope_scaling")?)));
    let mut rope = match found {
        Some((_, Value::Object(rope))) => rope.clone(),
        Some((name, other)) if json::is_truthy(other) => return Err(config.wrong(name, "an object", other)),
        _ => Map::new(),
    };
    if rope.contains_key("full_attention") || rope.contains_key("sliding_attention") {
        return Ok(rope);
    }
    let outside = |names: &[&str]| config.first_of(names).map(|(_, v)| v).filter(|v| !v.is_null()).cloned();
    let local = ["local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq"];
    if let Some(theta) = outside(&local) {
        rope.insert("sliding_attention".to_owned(), Map::from_iter([("rope_theta".to_owned(), theta)]).into());
    }
    let global = ["global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"];
    let old_type = rope.get("type").filter(|t| !t.is_null()).cloned();
    let inside = [
        ("rope_theta", outside(&global)),
        ("rope_type", old_type),
        ("partial_rotary_factor", outside(&["partial_rotary_factor", "rope_pct", "rope_percent"])),
        ("original_max_position_embeddings", outside(&["original_max_position_embeddings"])),
    ];
    for (name, value) in inside {
        if let Some(value) = value {
            rope.entry(name).or_insert(value);
        }
    }
    Ok(rope)
}

/// The rope parameters of layers with full attention.
pub(crate) fn full_attention<'a>(
    config: &Config,
    rope: &'a Map<String, Value>,
) -> Result<&'a Map<String, Value>, Error> {
    match rope.get("full_attention") {
        None => Ok(rope),
        Some(Value::Object(inner)) => Ok(inner),
        Some(other) => Err(config.wrong("rope_parameters.full_attention", "an object", other)),
    }
}

/// `field`, or what is derived from other fields when it is null or not there.
pub(crate) fn quotient(config: &Config, dividend: &str, divisor: &str) -> Result<u64, Error> {
    let number = |name| {
        let value = config.field(name).ok_or_else(|| config.missing(&[name]))?;
        Ok::<u64, Error>(config.u32(name, value)?.into())
    };
    number(dividend)?
        .checked_div(number(divisor)?)
        .ok_or_else(|| config.wrong(divisor, "a number above zero", &Value::from(0)))
}

struct Writer<'a> {
    metadata: &'a mut Metadata,
    arch: &'a str,
    config: &'a Config,
    /// Fields that the family's class takes out of the config before the common keys are made.
    ignored: &'a [String],
    file_type: u32,
}

impl Writer<'_> {
    fn set(&mut self, key: &str, value: impl Into<MetaValue>) {
        self.metadata.set(key.replace("{arch}", self.arch), value.into());
    }

    /// The keys that every class has that does not replace them.
    fn common(&mut self) -> Result<(), Error> {
        let config = self.config;
        self.layer_count("{arch}.block_count")?;
        self.entries(BEFORE_ROPE)?;
        if config.field("is_causal") == Some(&Value::Bool(false)) {
            self.set("{arch}.attention.causal", false);
        }
        self.rope(&rope_parameters(config)?)?;
        self.entries(AFTER_ROPE)?;
        self.gating()?;
        for key in ["{arch}.attention.key_length", "{arch}.attention.value_length"] {
            self.entries(&[(key, ValueKind::U32, &["head_dim"])])?;
        }
        self.set("general.file_type", self.file_type);
        Ok(())
    }

    fn layer_count(&mut self, key: &str) -> Result<(), Error> {
        let layers = self.config.layer_count()?;
        self.set(key, u32::try_from(layers).expect("layer_count checked it"));
        Ok(())
    }

    fn entries(&mut self, entries: &[Entry]) -> Result<(), Error> {
        for (key, kind, fields) in entries {
            let given = fields.iter().filter(|field| !self.ignored.iter().any(|i| i == *field));
            let found = given.copied().find_map(|field| Some((field, self.config.field(field)?)));
            if let Some((field, value)) = found
                && !value.is_null()
            {
                let value = convert(self.config, field, *kind, value)?;
                self.set(key, value);
            }
        }
        Ok(())
    }

    fn family_entry(&mut self, entry: &MetadataEntry) -> Result<(), Error> {
        let present = |name: &String| self.config.field(name).is_some_and(|v| !v.is_null());
        if !entry.only_with.as_ref().is_none_or(present) {
            return Ok(());
        }
        match (entry.kind, &entry.value) {
            (ValueKind::LayerCount, _) => return self.layer_count(&entry.key),
            (ValueKind::FileType, _) => self.set(&entry.key, self.file_type),
            (ValueKind::ClassLabels, _) => {
                if let Some(labels) = class_labels(self.config)? {
                    self.set(&entry.key, labels);
                }
            }
            (_, Some(Constant::Bool(value))) => self.set(&entry.key, *value),
            (_, Some(Constant::Integer(value))) => self.set(&entry.key, *value),
            (_, Some(Constant::Float(value))) => self.set(&entry.key, *value as f32),
            (_, Some(Constant::Text(value))) => self.set(&entry.key, value.as_str()),
            (_, None) => {
                let rope = rope_parameters(self.config)?;
                let rope = full_attention(self.config, &rope)?;
                if let Some((field, value)) = self.given(entry, rope)?
                    && (!entry.unless_zero || json::is_truthy(&value))
                {
                    let value = convert(self.config, &field, entry.kind, &value)?;
                    self.set(&entry.key, value);
                }
            }
        }
        Ok(())
    }

    /// The value of an entry, with the field that it is known by; `None` where it may be missing.
    fn given(&self, entry: &MetadataEntry, rope: &Map<String, Value>) -> Result<Option<(String, Value)>, Error> {
        let config = self.config;
        let field = |name: &str| match name.strip_prefix("rope.") {
            Some(name) => rope.get(name),
            None if self.ignored.iter().any(|i| i == name) => None,
            None => config.field(name),
        };
        let found = entry.from.iter().find_map(|name| Some((name, field(name)?)));
        if let Some((name, value)) = found.filter(|(_, value)| !value.is_null()) {
            return Ok(Some((name.clone(), value.clone())));
        }
        let Some(expression) = &entry.or else {
            let names: Vec<&str> = entry.from.iter().map(String::as_str).collect();
            return if entry.optional { Ok(None) } else { Err(config.missing(&names)) };
        };
        if let Some(name) = expression.as_field() {
            let value = field(name).ok_or_else(|| config.missing(&[name]))?;
            return Ok(Some((name.to_owned(), value.clone())));
        }
        match expression.value(&|name| json::number(field(name)?)) {
            Ok(Number::Integer(n)) => Ok(Some((entry.key.clone(), n.into()))),
            Ok(Number::Float(n)) => Ok(Some((entry.key.clone(), n.into()))),
            Err(NoValue::Field(_)) if entry.optional => Ok(None),
            Err(NoValue::Field(name)) => Err(match field(&name) {
                Some(found) => config.wrong(&name, "a number", found),
                None => config.missing(&[&name]),
            }),
            Err(NoValue::Arithmetic) => {
                Err(config.wrong(&entry.key, "fields whose product or quotient is a number", &Value::Null))
            }
        }
    }

    fn rope(&mut self, rope: &Map<String, Value>) -> Result<(), Error> {
        let config = self.config;
        let full = full_attention(config, rope)?;
        let given = |name: &str| full.get(name).filter(|v| !v.is_null());
        let float =
            |name: &str, value: &Value| convert(config, &format!("rope_parameters.{name}"), ValueKind::F32, value);
        let factor = given("factor");
        let rope_type = match given("rope_type") {
            None => None,
            Some(Value::String(t)) => Some(t.as_str()),
            Some(other) => return Err(config.wrong("rope_parameters.rope_type", "a string", other)),
        };
        match (rope_type, factor) {
            (Some("linear"), Some(factor)) => {
                self.set("{arch}.rope.scaling.type", "linear");
                self.set("{arch}.rope.scaling.factor", float("factor", factor)?);
            }
            (Some("yarn"), Some(factor)) => {
                const ORIGINAL: &str = "rope_parameters.original_max_position_embeddings";
                self.set("{arch}.rope.scaling.type", "yarn");
                self.set("{arch}.rope.scaling.factor", float("factor", factor)?);
                let original =
                    full.get("original_max_position_embeddings").ok_or_else(|| config.missing(&[ORIGINAL]))?;
                self.set("{arch}.rope.scaling.original_context_length", config.u32(ORIGINAL, original)?);
                let attention = full.get("attention_factor").or(full.get("attn_factor")).filter(|v| !v.is_null());
                for (key, name, value) in [
                    ("{arch}.rope.scaling.yarn_ext_factor", "extrapolation_factor", given("extrapolation_factor")),
                    ("{arch}.rope.scaling.yarn_attn_factor", "attention_factor", attention),
                    ("{arch}.rope.scaling.yarn_beta_fast", "beta_fast", given("beta_fast")),
                    ("{arch}.rope.scaling.yarn_beta_slow", "beta_slow", given("beta_slow")),
                ] {
                    if let Some(value) = value {
                        self.set(key, float(name, value)?);
                    }
                }
            }
            (Some("su" | "longrope"), _) => self.set("{arch}.rope.scaling.type", "longrope"),
            // The others have no key: "llama3" becomes a tensor, and the rest is the runtime's default.
            _ => {}
        }
        if let Some(sections) = rope.get("mrope_section") {
            const FIELD: &str = "rope_parameters.mrope_section";
            let list = sections.as_array().ok_or_else(|| config.wrong(FIELD, "a list of integers", sections))?;
            let parsed: Option<Vec<i32>> = list.iter().take(4).map(json::i32).collect();
            let mut parsed = parsed.ok_or_else(|| config.wrong(FIELD, "a list of integers", sections))?;
            parsed.resize(4, 0);
            self.set("{arch}.rope.dimension_sections", parsed);
        }
        if let Some(theta) = given("rope_theta") {
            self.set("{arch}.rope.freq_base", float("rope_theta", theta)?);
        }
        match rope.get("sliding_attention") {
            None => {}
            Some(Value::Object(sliding)) => {
                if let Some(theta) = sliding.get("rope_theta").filter(|v| !v.is_null()) {
                    self.set("{arch}.rope.freq_base_swa", float("sliding_attention.rope_theta", theta)?);
                }
            }
            Some(other) => return Err(config.wrong("rope_parameters.sliding_attention", "an object", other)),
        }
        Ok(())
    }

    fn gating(&mut self) -> Result<(), Error> {
        let Some((field, value)) = self.config.first_of(GATING_FIELDS) else { return Ok(()) };
        let number: u32 = match value {
            Value::Null => return Ok(()),
            Value::String(name) if name == "softmax" => 1,
            Value::String(name) if name == "sigmoid" => 2,
            Value::String(name) if name == "sqrtsoftplus" => 4,
            other => return Err(self.config.wrong(field, "`softmax`, `sigmoid` or `sqrtsoftplus`", other)),
        };
        self.set("{arch}.expert_gating_func", number);
        Ok(())
    }
}

/// The names of a classifier's labels by number; `None` where they are the two that transformers makes up.
pub(crate) fn class_labels(config: &Config) -> Result<Option<Vec<String>>, Error> {
    const FIELD: &str = "id2label";
    let mut labels: Vec<(i64, String)> = match config.field(FIELD).filter(|v| !v.is_null()) {
        None => {
            let count = config.field("num_labels").map_or(Ok(2), |count| config.u32("num_labels", count))?;
            (0..i64::from(count.min(1 << 16))).map(|i| (i, format!("LABEL_{i}"))).collect()
        }
        Some(Value::Object(labels)) => {
            let label = |(number, name): (&String, &Value)| Some((number.parse().ok()?, name.as_str()?.to_owned()));
            let parsed: Option<Vec<_>> = labels.iter().map(label).collect();
            parsed.ok_or_else(|| config.wrong(FIELD, "names by number", &config.value()[FIELD]))?
        }
        Some(other) => return Err(config.wrong(FIELD, "names by number", other)),
    };
    labels.sort();
    let made_up = labels.len() == 2 && labels.first().is_some_and(|(number, name)| *number == 0 && name == "LABEL_0");
    Ok((!made_up && !labels.is_empty()).then(|| labels.into_iter().map(|(_, name)| name).collect()))
}

/// `block_multiple_of` rounded up from two thirds of the size, scaled by `block_ffn_dim_multiplier`.
fn adjusted_feed_forward(config: &Config, size: u32) -> Result<u32, Error> {
    let field = |name: &'static str| config.field(name).ok_or_else(|| config.missing(&[name]));
    if !json::is_truthy(field("block_auto_adjust_ff_dim")?) {
        return Ok(size);
    }
    let mut size = (f64::from(size) * 2.0 / 3.0).trunc();
    let multiplier = field("block_ffn_dim_multiplier")?;
    if !multiplier.is_null() {
        size = (config.f64("block_ffn_dim_multiplier", multiplier)? * size).trunc();
    }
    let multiple = config.u32("block_multiple_of", field("block_multiple_of")?)?;
    let rounded = (size as u64).div_ceil(u64::from(multiple.max(1))).saturating_mul(multiple.into());
    let fits = u32::try_from(rounded).ok().filter(|_| multiple > 0);
    fits.ok_or_else(|| config.wrong("block_multiple_of", "a number above zero that gives a size", &multiple.into()))
}

fn convert(config: &Config, field: &str, kind: ValueKind, value: &Value) -> Result<MetaValue, Error> {
    Ok(match (kind, value) {
        (ValueKind::LayerCount | ValueKind::FileType | ValueKind::ClassLabels, _) => {
            unreachable!("these come from no field")
        }
        (ValueKind::SlidingPattern, Value::Array(types)) if !types.is_empty() => {
            let sliding: Vec<bool> = types.iter().map(|t| t.as_str() == Some("sliding_attention")).collect();
            sliding.into()
        }
        (ValueKind::HeadsOfAttention, _) => {
            let heads = json::i32(value).ok_or_else(|| config.wrong(field, "an integer", value))?;
            let types = config.field("layer_types").unwrap_or(&Value::Null);
            let list = types.as_array().filter(|list| !list.is_empty());
            let list = list.ok_or_else(|| config.wrong("layer_types", "a list of layer types", types))?;
            list.iter().map(|t| if t.as_str() == Some("conv") { 0 } else { heads }).collect::<Vec<i32>>().into()
        }
        (ValueKind::AdjustedFeedForward, _) => adjusted_feed_forward(config, config.u32(field, value)?)?.into(),
        (ValueKind::SlidingPattern, _) => return Err(config.wrong(field, "a list of layer types", value)),
        (ValueKind::U32OrArray, Value::Array(list)) => {
            let numbers: Option<Vec<i32>> = list.iter().map(json::i32).collect();
            match numbers {
                Some(numbers) if !numbers.is_empty() => numbers.into(),
                _ => return Err(config.wrong(field, "an integer or a list of integers", value)),
            }
        }
        (ValueKind::U32 | ValueKind::U32OrArray, _) => config.u32(field, value)?.into(),
        (ValueKind::F32, _) => json::f32(value).ok_or_else(|| config.wrong(field, "a number", value))?.into(),
        (ValueKind::Bool, Value::Bool(b)) => (*b).into(),
        (ValueKind::Bool, _) => return Err(config.wrong(field, "true or false", value)),
        (ValueKind::String, Value::String(s)) => s.as_str().into(),
        (ValueKind::String, _) => return Err(config.wrong(field, "a string", value)),
    })
}
