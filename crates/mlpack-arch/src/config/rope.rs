//! Rope parameters: old and new spellings into one object, and what transformers requires of it
//! (transformers 5.23.0, `modeling_rope_utils.py`, `RotaryEmbeddingConfigMixin`).

use super::complete::Refusal;
use crate::family::ConfigTable;
use crate::json;
use serde_json::{Map, Value};

/// Makes `rope_parameters` an object (or an object per layer type) with `rope_theta` and `rope_type`.
///
/// `config` holds the declared fields only: layer types of a class that does not declare them do not count yet.
pub(super) fn standardize(
    config: &mut Map<String, Value>,
    raw: &Map<String, Value>,
    table: &ConfigTable,
) -> Result<(), Refusal> {
    let theta = raw.get("rope_theta").cloned().unwrap_or_else(|| table.rope_theta.into());
    let partial = raw.get("partial_rotary_factor").filter(|v| !v.is_null()).cloned();
    let partial = partial.or(table.partial_rotary_factor.map(Value::from));
    let max_positions = config.get("max_position_embeddings").cloned().unwrap_or(Value::Null);
    let mut parameters = match config.get("rope_parameters") {
        Some(Value::Object(parameters)) => parameters.clone(),
        _ => Map::new(),
    };
    let nested = nested_keys(config, &parameters);
    if nested.is_empty() {
        fill(&mut parameters, theta, partial, max_positions);
        // A class that declares the field has it whatever the parameters say.
        if let Some(original) = config.get("original_max_position_embeddings")
            && matches!(parameters.get("rope_type").and_then(Value::as_str), Some("llama3" | "yarn" | "longrope"))
        {
            parameters.insert("original_max_position_embeddings".to_owned(), original.clone());
        }
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

/// Rope parameters of a class that has them per layer type, with other defaults for sliding attention.
pub(super) fn per_layer_type(
    config: &mut Map<String, Value>,
    raw: &Map<String, Value>,
    table: &ConfigTable,
    local: f64,
) -> Result<(), Refusal> {
    const OBJECT: Refusal = Refusal::Rule("`rope_parameters` of a layer type is not an object");
    let given = match config.get("rope_parameters") {
        Some(Value::Object(parameters)) => Some(parameters.clone()),
        _ => None,
    };
    let is_new = given.is_none();
    let mut parameters = given.unwrap_or_default();
    let default = || Map::from_iter([("rope_type".to_owned(), Value::from("default"))]);
    if let Some(scaling) = raw.get("rope_scaling").filter(|v| !v.is_null()) {
        let Value::Object(scaling) = scaling else { return Err(OBJECT) };
        let scaled: &[&str] = match table.rope_theta_fields {
            Some(_) => &["full_attention", "sliding_attention"],
            None => &["full_attention"],
        };
        for key in scaled {
            if is_new {
                parameters.insert((*key).to_owned(), default().into());
            }
            let Some(Value::Object(inner)) = parameters.get_mut(*key) else { return Err(OBJECT) };
            inner.extend(scaling.clone());
        }
    }
    let theta = |name: &str, default: f64| raw.get(name).cloned().unwrap_or_else(|| default.into());
    let [full, sliding] = match &table.rope_theta_fields {
        Some([full, sliding]) => [full.as_str(), sliding.as_str()],
        None => ["rope_theta", "rope_local_base_freq"],
    };
    let thetas = [("full_attention", theta(full, table.rope_theta)), ("sliding_attention", theta(sliding, local))];
    for (key, theta) in thetas {
        let inner = parameters.entry(key).or_insert(Value::Null);
        if inner.is_null() {
            *inner = default().into();
        }
        let Value::Object(inner) = inner else { return Err(OBJECT) };
        inner.entry("rope_theta").or_insert(theta);
    }
    config.insert("rope_parameters".to_owned(), parameters.into());
    Ok(())
}

/// Phi-3's own rules: old names of `longrope`, and the lengths of its factors.
pub(super) fn check_phi3(config: &mut Map<String, Value>) -> Result<(), Refusal> {
    let size = |name: &str| config.get(name).and_then(Value::as_i64);
    let head = size("hidden_size").zip(size("num_attention_heads")).and_then(|(a, b)| a.checked_div_euclid(b));
    let Some(Value::Object(parameters)) = config.get_mut("rope_parameters") else { return Ok(()) };
    if matches!(parameters.get("rope_type").and_then(Value::as_str), Some("su" | "yarn")) {
        parameters.insert("rope_type".to_owned(), "longrope".into());
    }
    if !matches!(parameters.get("rope_type").and_then(Value::as_str), Some("default" | "longrope")) {
        return Err(Refusal::Rule("its rope type is not `default` or `longrope`"));
    }
    let partial = parameters.get("partial_rotary_factor").and_then(json::finite);
    let (Some(head), Some(partial)) = (head, partial) else {
        return Err(Refusal::Rule("a size is not a 64-bit integer"));
    };
    let half = (head as f64 * partial).trunc() as i64 / 2;
    for name in ["short_factor", "long_factor"] {
        let fits = match parameters.get(name) {
            None | Some(Value::Null) => true,
            Some(Value::Array(list)) => list.len() as i64 == half && list.iter().all(Value::is_number),
            Some(_) => false,
        };
        if !fits {
            return Err(Refusal::Rule("a list of rope factors has not one number for each pair of a head"));
        }
    }
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
