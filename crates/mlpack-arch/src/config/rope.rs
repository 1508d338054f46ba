//! Rope parameters: old and new spellings into one object, and what transformers requires of it
//! (transformers 5.23.0, `modeling_rope_utils.py`, `RotaryEmbeddingConfigMixin`).

use super::complete::Refusal;
use crate::json;
use serde_json::{Map, Value};

/// Makes `rope_parameters` an object (or an object per layer type) with `rope_theta` and `rope_type`.
///
/// `config` holds the declared fields only: layer types of a class that does not declare them do not count yet.
pub(super) fn standardize(
    config: &mut Map<String, Value>,
    raw: &Map<String, Value>,
    default_theta: f64,
) -> Result<(), Refusal> {
    let theta = raw.get("rope_theta").cloned().unwrap_or_else(|| default_theta.into());
    let partial = raw.get("partial_rotary_factor").filter(|v| !v.is_null()).cloned();
    let max_positions = config.get("max_position_embeddings").cloned().unwrap_or(Value::Null);
    let mut parameters = match config.get("rope_parameters") {
        Some(Value::Object(parameters)) => parameters.clone(),
        _ => Map::new(),
    };
    let nested = nested_keys(config, &parameters);
    if nested.is_empty() {
        fill(&mut parameters, theta, partial, max_positions);
    } else {
        for key in nested {
            match parameters.get_mut(&key) {
                Some(Value::Object(inner)) => fill(inner, theta.clone(), partial.clone(), max_positions.clone()),
                Some(Value::Null) => {}
                _ => return Err(Refusal::Rule("`rope_parameters` of a layer type is not an object")),
            }
        }
    }
    config.insert("rope_parameters".to_owned(), Value::Object(parameters));
    Ok(())
}

/// Refuses what transformers refuses; a missing `rope_type` is set on the way.
pub(super) fn validate(config: &mut Map<String, Value>) -> Result<(), Refusal> {
    let Some(Value::Object(mut parameters)) = config.get("rope_parameters").cloned() else { return Ok(()) };
    let head_dim = config.get("head_dim").and_then(Value::as_i64);
    let nested = nested_keys(config, &parameters);
    if nested.is_empty() {
        validate_one(&mut parameters, head_dim)?;
    } else {
        for key in nested {
            match parameters.get_mut(&key) {
                Some(Value::Object(inner)) => validate_one(inner, head_dim)?,
                Some(Value::Null) => {}
                _ => return Err(Refusal::Rule("`rope_parameters` of a layer type is not an object")),
            }
        }
    }
    config.insert("rope_parameters".to_owned(), Value::Object(parameters));
    Ok(())
}

fn fill(parameters: &mut Map<String, Value>, theta: Value, partial: Option<Value>, max_positions: Value) {
    parameters.entry("rope_theta").or_insert(theta);
    if let Some(partial) = partial {
        parameters.entry("partial_rotary_factor").or_insert(partial);
    }
    let rope_type = set_rope_type(parameters);
    if matches!(rope_type.as_deref(), Some("llama3" | "yarn" | "longrope")) {
        parameters.entry("original_max_position_embeddings").or_insert(max_positions);
    }
}

/// Sets `rope_type` from its old name when it is missing, and returns it when it is a string.
fn set_rope_type(parameters: &mut Map<String, Value>) -> Option<String> {
    let old_name = parameters.get("type").cloned().unwrap_or_else(|| "default".into());
    parameters.entry("rope_type").or_insert(old_name).as_str().map(str::to_owned)
}

fn validate_one(parameters: &mut Map<String, Value>, head_dim: Option<i64>) -> Result<(), Refusal> {
    let Some(rope_type) = set_rope_type(parameters) else { return Ok(()) };
    let required: &[&'static str] = match rope_type.as_str() {
        "linear" | "dynamic" => &["factor"],
        "yarn" => &["factor", "original_max_position_embeddings"],
        "longrope" => &["short_factor", "long_factor", "original_max_position_embeddings"],
        "llama3" => {
            &["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "rope_theta"]
        }
        _ => &[],
    };
    let refuse = |parameter| Err(Refusal::RopeParameter { rope_type: rope_type.clone(), parameter });
    if let Some(&missing) = required.iter().find(|&&name| !parameters.contains_key(name)) {
        return refuse(missing);
    }
    // These are compared or divided without a look at their type.
    let number = |name: &str| parameters.get(name).and_then(json::finite);
    match rope_type.as_str() {
        "yarn" if number("original_max_position_embeddings").is_none_or(|n| n == 0.0) => {
            return refuse("original_max_position_embeddings");
        }
        "llama3" => {
            let compared = ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
            if let Some(name) = compared.into_iter().find(|name| number(name).is_none()) {
                return refuse(name);
            }
        }
        _ => {}
    }
    let partial = parameters.get("partial_rotary_factor").map_or(Some(1.0), json::finite);
    let Some(partial) = partial else { return refuse("partial_rotary_factor") };
    match head_dim {
        Some(dim) if dim > 4 && dim % 2 == 1 && (dim as f64 * partial).trunc() == dim as f64 => {
            Err(Refusal::Rule("`head_dim` is odd"))
        }
        _ => Ok(()),
    }
}

/// The keys of `parameters` that are layer types of the model.
fn nested_keys(config: &Map<String, Value>, parameters: &Map<String, Value>) -> Vec<String> {
    let Some(Value::Array(types)) = config.get("layer_types") else { return Vec::new() };
    parameters.keys().filter(|key| types.iter().any(|t| t.as_str() == Some(key))).cloned().collect()
}
