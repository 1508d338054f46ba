//! The steps of transformers' `PreTrainedConfig` from JSON to `to_dict()`, for a config class described by a table
//! (transformers 5.23.0, `configuration_utils.py`).

use super::rope;
use crate::family::{ConfigCheck, ConfigTable, Derived, Expression, Field, FieldType, NoValue, Number};
use crate::json;
use serde_json::{Map, Value};
use std::fmt;

/// Fields for text generation: dropped from a model config unless the class declares them
/// (`GenerationConfig._get_default_generation_params`).
const GENERATION_FIELDS: &[&str] = &[
    "max_length",
    "min_length",
    "do_sample",
    "use_cache",
    "early_stopping",
    "num_beams",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "epsilon_cutoff",
    "eta_cutoff",
    "encoder_repetition_penalty",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_lookbehind",
    "target_lookbehind",
    "num_beam_groups",
    "diversity_penalty",
];

/// Fields that are taken out on the way because they have a new place or none.
const MOVED_FIELDS: &[&str] = &[
    "torch_dtype",
    "name_or_path",
    "_commit_hash",
    "attn_implementation",
    "experts_implementation",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
];

/// The same, for a class with rope parameters.
const MOVED_ROPE_FIELDS: &[&str] = &["rope_scaling", "rope_theta", "partial_rotary_factor"];

/// Names of torch dtypes that occur in configs; another name is refused, as `getattr(torch, name)` fails.
const DTYPES: &[&str] = &[
    "float32",
    "float",
    "float64",
    "double",
    "float16",
    "half",
    "bfloat16",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
    "bool",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e8m0fnu",
];

/// Layer types that transformers accepts (`ALLOWED_ATTN_LAYER_TYPES`), in the spelling of this version.
const LAYER_TYPES: &[&str] = &[
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "window_attention",
    "indexed_attention",
    "compressed_sparse_attention",
    "heavily_compressed_attention",
    "minimax_m3_sparse",
    "conv",
    "moe",
    "hybrid",
    "hybrid_sliding",
    "reference_sliding_attention",
    "linear_attention",
];

/// Why transformers does not accept a config.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A field has another type than its class declares.
    Type { field: String, types: Vec<FieldType>, found: String },
    /// A rope type needs a parameter that is not there or not a number.
    RopeParameter { rope_type: String, parameter: &'static str },
    /// A rule of the class is broken.
    Rule(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Type { field, types, found } => {
                let types: Vec<&str> = types.iter().map(|t| t.name()).collect();
                write!(f, "field `{field}`: expected {}, found {found}", types.join(" or "))
            }
            Refusal::RopeParameter { rope_type, parameter } => {
                write!(f, "rope type `{}` without a usable `{parameter}`", mlpack_tensor::Escaped(rope_type))
            }
            Refusal::Rule(rule) => f.write_str(rule),
        }
    }
}

/// The completed config, or why transformers would not make one.
pub(super) fn complete(raw: &Map<String, Value>, table: &ConfigTable) -> Result<Map<String, Value>, Refusal> {
    let mut named = raw.clone();
    for (alias, name) in &table.aliases {
        if let Some(value) = named.remove(alias) {
            named.insert(name.clone(), value);
        }
    }
    let raw = &named;
    let mut config = Map::new();
    let classes = raw.get("architectures").unwrap_or(&Value::Null);
    check_type("architectures", classes, &[FieldType::StrList, FieldType::Null])?;
    for (name, field) in &table.fields {
        let value = raw.get(name).unwrap_or(&field.default);
        check_type(name, value, &field.types)?;
        config.insert(name.clone(), value.clone());
    }
    // A condition first: a field that depends on another must see what is left of it.
    for (name, field) in &table.fields {
        if field.only_if.as_ref().is_some_and(|condition| config.get(condition) != Some(&Value::Bool(true))) {
            config.insert(name.clone(), Value::Null);
        }
    }
    for (name, field) in &table.fields {
        if let Some(value) = derive(&config, raw, name, field)? {
            config.insert(name.clone(), value);
        }
    }
    for (name, field) in &table.fields {
        if let Some(always) = &field.always {
            let value = match always.as_field() {
                Some(other) => config.get(other).cloned().unwrap_or(Value::Null),
                None => computed(&config, always)?,
            };
            config.insert(name.clone(), value);
        }
    }
    check_dtype(raw)?;
    let has_rope = table.fields.contains_key("rope_parameters");
    if has_rope {
        if let Some(local) = table.sliding_rope_theta {
            rope::per_layer_type(&mut config, raw, table, local)?;
        } else if let Some(scaling) = raw.get("rope_scaling").filter(|v| json::is_truthy(v)) {
            check_type("rope_scaling", scaling, &[FieldType::Dict])?;
            config.insert("rope_parameters".to_owned(), scaling.clone());
        }
        rope::standardize(&mut config, raw, table)?;
    }
    for (name, value) in raw {
        let name = name.as_str();
        let moved = match &table.rope_theta_fields {
            Some(fields) => fields.iter().any(|field| field == name),
            None => table.sliding_rope_theta.is_some() && name == "rope_local_base_freq",
        };
        let moved = moved || MOVED_FIELDS.contains(&name) || has_rope && MOVED_ROPE_FIELDS.contains(&name);
        if !moved && !GENERATION_FIELDS.contains(&name) && !table.fields.contains_key(name) {
            config.insert(name.to_owned(), value.clone());
        }
    }
    check_layer_types(&mut config)?;
    if table.checks.contains(&ConfigCheck::Phi3Rope) {
        rope::check_phi3(&mut config)?;
    }
    if has_rope {
        rope::validate(&mut config)?;
    }
    for check in &table.checks {
        match check {
            // It changes what the rope rules see, so it came before them.
            ConfigCheck::Phi3Rope => {}
            ConfigCheck::HeadsDivideHiddenSize => {
                let size = integer(&config, "hidden_size")?;
                if size.checked_rem(integer(&config, "num_attention_heads")?) != Some(0) {
                    return Err(Refusal::Rule("`hidden_size` is not a multiple of `num_attention_heads`"));
                }
            }
        }
    }
    Ok(config)
}

fn check_type(name: &str, value: &Value, types: &[FieldType]) -> Result<(), Refusal> {
    let fits = |t: &FieldType| match t {
        FieldType::Int => json::is_integer(value),
        FieldType::Float => value.is_number() && !json::is_integer(value),
        FieldType::Bool => value.is_boolean(),
        FieldType::Str => value.is_string(),
        FieldType::Null => value.is_null(),
        FieldType::Dict => value.is_object(),
        FieldType::IntList => value.as_array().is_some_and(|l| l.iter().all(json::is_integer)),
        FieldType::StrList => value.as_array().is_some_and(|l| l.iter().all(Value::is_string)),
    };
    if types.iter().any(fits) {
        return Ok(());
    }
    Err(Refusal::Type { field: name.to_owned(), types: types.to_vec(), found: json::describe(value) })
}

fn derive(
    config: &Map<String, Value>,
    raw: &Map<String, Value>,
    name: &str,
    field: &Field,
) -> Result<Option<Value>, Refusal> {
    let (Some(Value::Null), Some(derived)) = (config.get(name), &field.or) else { return Ok(None) };
    Ok(Some(match derived {
        Derived::Expression(expression) => match expression.as_field() {
            Some(other) => config.get(other).cloned().unwrap_or(Value::Null),
            None => computed(config, expression)?,
        },
        Derived::SlidingAfter(first) => {
            let sliding = config.get("sliding_window").is_some_and(|w| !w.is_null());
            let first = integer(config, first)?;
            layer_types(config, |i| sliding && i >= first)?
        }
        Derived::FullEvery(field, default) => {
            let every = raw.get(field).map_or(Some(*default), Value::as_i64).filter(|n| *n != 0);
            let every = every.ok_or(Refusal::Rule("a size is divided by zero"))?;
            layer_types(config, |i| i % every != 0)?
        }
        Derived::AttentionIn(field) => {
            let layers = integer(config, "num_hidden_layers")?.min(1 << 16);
            let listed = config.get(field).and_then(Value::as_array);
            let attention = |i: i64| listed.is_none_or(|list| list.iter().any(|l| l.as_i64() == Some(i)));
            let layer = |i| if attention(i) { "full_attention" } else { "conv" };
            (0..layers).map(layer).collect::<Vec<_>>().into()
        }
        Derived::SlidingUnlessEvery(every) => {
            let every = computed(config, every)?.as_i64().filter(|n| *n != 0);
            let every = every.ok_or(Refusal::Rule("a size is divided by zero"))?;
            layer_types(config, |i| (i + 1) % every != 0)?
        }
    }))
}

fn computed(config: &Map<String, Value>, expression: &Expression) -> Result<Value, Refusal> {
    let field = |name: &str| json::number(config.get(name)?);
    match expression.value(&field) {
        Ok(Number::Integer(n)) => Ok(n.into()),
        Ok(Number::Float(n)) => Ok(n.into()),
        Err(NoValue::Field(_)) => Err(Refusal::Rule("a size is not a 64-bit integer")),
        Err(NoValue::Arithmetic) => Err(Refusal::Rule("a size is divided by zero")),
    }
}

fn layer_types(config: &Map<String, Value>, sliding: impl Fn(i64) -> bool) -> Result<Value, Refusal> {
    // No list of untrusted length is made: a model with more layers is refused by its tensors.
    let layers = integer(config, "num_hidden_layers")?.min(1 << 16);
    let layer = |i| if sliding(i) { "sliding_attention" } else { "full_attention" };
    Ok((0..layers).map(layer).collect::<Vec<_>>().into())
}

fn integer(config: &Map<String, Value>, name: &str) -> Result<i64, Refusal> {
    config.get(name).and_then(Value::as_i64).ok_or(Refusal::Rule("a size is not a 64-bit integer"))
}

fn check_dtype(raw: &Map<String, Value>) -> Result<(), Refusal> {
    let given = |name| raw.get(name).filter(|v| !v.is_null());
    match given("dtype").or(given("torch_dtype")) {
        Some(Value::String(name)) if !DTYPES.contains(&name.as_str()) => {
            Err(Refusal::Rule("its dtype is not one of torch's"))
        }
        _ => Ok(()),
    }
}

/// Renames old layer types, then checks their spelling and number.
fn check_layer_types(config: &mut Map<String, Value>) -> Result<(), Refusal> {
    let layers = config.get("num_hidden_layers").and_then(Value::as_u64);
    let Some(Value::Array(types)) = config.get_mut("layer_types") else { return Ok(()) };
    for layer_type in types.iter_mut() {
        let renamed = match layer_type.as_str() {
            Some("mamba") => "linear_attention",
            Some("attention") => "full_attention",
            Some("deepseek_sparse_attention" | "qwen_sparse_attention") => "indexed_attention",
            Some(name) if LAYER_TYPES.contains(&name) => continue,
            _ => return Err(Refusal::Rule("`layer_types` has a type that is not known")),
        };
        *layer_type = renamed.into();
    }
    match layers {
        Some(layers) if layers != types.len() as u64 => {
            Err(Refusal::Rule("`layer_types` has another length than `num_hidden_layers`"))
        }
        _ => Ok(()),
    }
}
