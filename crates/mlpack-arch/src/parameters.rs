//! `{arch}.*`: the keys that every text model has, in the converter's order (llama.cpp b11434, `conversion/base.py`,
//! `TextModel.set_gguf_parameters`), and those that a family adds.

use crate::family::{Derived, Family, MetadataEntry, ValueKind};
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
    let mut writer = Writer { metadata, arch: &family.arch, config };
    let layers = config.layer_count()?;
    writer.set("{arch}.block_count", u32::try_from(layers).expect("layer_count checked it"));
    writer.entries(BEFORE_ROPE)?;
    if config.field("is_causal") == Some(&Value::Bool(false)) {
        writer.set("{arch}.attention.causal", false);
    }
    writer.rope(&rope_parameters(config)?)?;
    writer.entries(AFTER_ROPE)?;
    writer.gating()?;
    for key in ["{arch}.attention.key_length", "{arch}.attention.value_length"] {
        writer.entries(&[(key, ValueKind::U32, &["head_dim"])])?;
    }
    writer.metadata.set("general.file_type", file_type.into());
    for entry in &family.metadata {
        writer.family_entry(entry)?;
    }
    Ok(())
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
}

impl Writer<'_> {
    fn set(&mut self, key: &str, value: impl Into<MetaValue>) {
        self.metadata.set(key.replace("{arch}", self.arch), value.into());
    }

    fn entries(&mut self, entries: &[Entry]) -> Result<(), Error> {
        for (key, kind, fields) in entries {
            if let Some((field, value)) = self.config.first_of(fields)
                && !value.is_null()
            {
                let value = convert(self.config, field, *kind, value)?;
                self.set(key, value);
            }
        }
        Ok(())
    }

    fn family_entry(&mut self, entry: &MetadataEntry) -> Result<(), Error> {
        let fields: Vec<&str> = entry.from.iter().map(String::as_str).collect();
        let value = match (self.config.first_of(&fields), &entry.or) {
            (Some((field, value)), _) if !value.is_null() => convert(self.config, field, entry.kind, value)?,
            (_, Some(Derived::Quotient(dividend, divisor))) => {
                let quotient = quotient(self.config, dividend, divisor)?;
                convert(self.config, dividend, entry.kind, &quotient.into())?
            }
            (_, Some(Derived::Field(other))) => {
                let value = self.config.field(other).ok_or_else(|| self.config.missing(&[other]))?;
                convert(self.config, other, entry.kind, value)?
            }
            (_, Some(Derived::SlidingAfter(_)) | None) if entry.optional => return Ok(()),
            (_, Some(Derived::SlidingAfter(_)) | None) => return Err(self.config.missing(&fields)),
        };
        self.set(&entry.key, value);
        Ok(())
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

fn convert(config: &Config, field: &str, kind: ValueKind, value: &Value) -> Result<MetaValue, Error> {
    Ok(match (kind, value) {
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
