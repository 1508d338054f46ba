//! Tensors that are made from the config instead of read from the checkpoint.

mod power;

use crate::parameters::{full_attention, quotient, rope_parameters};
use crate::{Config, Error, json};
use mlpack_tensor::Shape;
pub(crate) use power::powers;
use serde_json::{Map, Value};

/// A tensor made from the config; written before all others, always as F32.
#[derive(Clone, Debug, PartialEq)]
pub struct ExtraTensor {
    /// The GGUF name.
    pub name: String,
    /// The shape.
    pub shape: Shape,
    /// The values, row by row.
    pub data: Vec<f32>,
}

/// Frequencies computed for a head of at most this size.
const HEAD_SIZE_LIMIT: u64 = 1 << 16;

/// `rope_freqs.weight` of a model with `rope_type` "llama3": by how much each rotation frequency is divided
/// (llama.cpp b11434, `conversion/llama.py`, `generate_extra_tensors`). Every step is rounded as torch rounds it.
pub(crate) fn llama3_rope_freqs(config: &Config) -> Result<Option<ExtraTensor>, Error> {
    let rope = rope_parameters(config)?;
    let parameters = full_attention(config, &rope)?;
    if parameters.is_empty() || !is_llama3(config, parameters)? {
        return Ok(None);
    }
    let number = |name: &str, default: f64| {
        let field = format!("rope_parameters.{name}");
        parameters.get(name).map_or(Ok(default), |value| config.f64(&field, value))
    };
    let theta = number("rope_theta", 10000.0)?;
    let factor = number("factor", 8.0)?;
    let low = number("low_freq_factor", 1.0)?;
    let high = number("high_freq_factor", 4.0)?;
    let original = number("original_max_position_embeddings", 8192.0)?;
    for (name, value) in [("low_freq_factor", low), ("high_freq_factor", high), ("factor", factor)] {
        if value == 0.0 {
            return Err(config.wrong(&format!("rope_parameters.{name}"), "a number other than zero", &Value::from(0)));
        }
    }
    let head_size = match config.field("head_dim") {
        None | Some(Value::Null) => quotient(config, "hidden_size", "num_attention_heads")?,
        Some(value) => config.u32("head_dim", value)?.into(),
    };
    if head_size == 0 || head_size > HEAD_SIZE_LIMIT {
        return Err(config.wrong("head_dim", "an integer from 1 to 65536", &head_size.into()));
    }

    let exponents: Vec<f32> = (0..head_size).step_by(2).map(|i| i as f32 / head_size as f32).collect();
    let low_wavelength = (original / low) as f32;
    let high_wavelength = (original / high) as f32;
    let divide = |base_power: f32| {
        let frequency = 1.0 / base_power;
        // torch divides a number by a tensor as the tensor's reciprocal times the number.
        let wavelength = (1.0 / frequency) * (2.0 * std::f64::consts::PI) as f32;
        if wavelength < high_wavelength {
            1.0
        } else if wavelength > low_wavelength {
            factor as f32
        } else {
            let smooth = ((1.0 / wavelength) * original as f32 - low as f32) / (high - low) as f32;
            1.0 / ((1.0 - smooth) / factor as f32 + smooth)
        }
    };
    let data: Vec<f32> = powers(theta as f32, &exponents).into_iter().map(divide).collect();
    let shape = Shape::new(vec![data.len() as u64]);
    Ok(Some(ExtraTensor { name: "rope_freqs.weight".to_owned(), shape, data }))
}

/// `rope_factors_long.weight` and `rope_factors_short.weight` of a model whose rope parameters have a `long_factor`
/// (llama.cpp b11434, `conversion/phi.py`, `Phi3MiniModel.generate_extra_tensors`), with the attention factor that the
/// converter writes as metadata at the same time.
pub(crate) fn longrope_factors(config: &Config) -> Result<Option<Longrope>, Error> {
    let rope = rope_parameters(config)?;
    let Some(long) = rope.get("long_factor").filter(|list| json::is_truthy(list)) else { return Ok(None) };
    let fail =
        |field: &str, expected, found: &Value| Err(config.wrong(&format!("rope_parameters.{field}"), expected, found));
    let factors = |field: &str, value: &Value| {
        let list: Option<Vec<f32>> = value.as_array().and_then(|l| l.iter().map(json::f32).collect());
        list.ok_or_else(|| config.wrong(&format!("rope_parameters.{field}"), "a list of numbers", value))
    };
    let short = rope.get("short_factor").unwrap_or(&Value::Null);
    let (long, short_list) = (factors("long_factor", long)?, factors("short_factor", short)?);
    let number = |names: &[&str]| -> Result<f64, Error> {
        let (name, value) = config.first_of(names).ok_or_else(|| config.missing(names))?;
        config.f64(name, value)
    };
    let original = rope.get("original_max_position_embeddings").unwrap_or(&Value::Null);
    let original = config.f64("rope_parameters.original_max_position_embeddings", original)?;
    let partial = rope.get("partial_rotary_factor").map_or(Ok(1.0), |v| config.f64("partial_rotary_factor", v))?;
    let dims = (partial * number(&["hidden_size", "n_embd"])?).trunc();
    let dims = (dims / number(&["num_attention_heads", "n_head"])?).floor();
    if long.len() != short_list.len() || long.len() as f64 != dims / 2.0 {
        return fail("short_factor", "half a head of numbers, as in `long_factor`", short);
    }
    let scale = number(&["n_positions", "max_position_embeddings"])? / original;
    let rope_type = rope.get("rope_type").unwrap_or(&Value::Null);
    let attention_factor = match rope_type.as_str().map(str::to_lowercase).as_deref() {
        Some("su" | "longrope") if scale > 1.0 => (1.0 + scale.ln() / original.ln()).sqrt(),
        Some("yarn") if scale > 1.0 => 0.1 * scale.ln() + 1.0,
        Some("su" | "longrope" | "yarn") => 1.0,
        _ => return fail("rope_type", "`longrope`, `su` or `yarn`", rope_type),
    };
    let tensor = |name: &str, data: Vec<f32>| {
        let shape = Shape::new(vec![data.len() as u64]);
        ExtraTensor { name: name.to_owned(), shape, data }
    };
    let tensors = [tensor("rope_factors_long.weight", long), tensor("rope_factors_short.weight", short_list)];
    Ok(Some(Longrope { tensors, attention_factor: attention_factor as f32 }))
}

/// What is made from longrope parameters.
pub(crate) struct Longrope {
    pub tensors: [ExtraTensor; 2],
    /// The value of `{arch}.rope.scaling.attn_factor`.
    pub attention_factor: f32,
}

fn is_llama3(config: &Config, parameters: &Map<String, Value>) -> Result<bool, Error> {
    match parameters.get("rope_type") {
        None => Ok(false),
        Some(Value::String(t)) => Ok(t.to_lowercase() == "llama3"),
        Some(other) => Err(Error::WrongValue {
            path: config.path().to_owned(),
            field: "rope_parameters.rope_type".to_owned(),
            expected: "a string",
            found: json::describe(other),
        }),
    }
}
