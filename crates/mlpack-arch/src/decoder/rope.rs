//! Rotation frequencies, as transformers 5.23.0 computes them (`modeling_rope_utils.py`), in float32.

use crate::extra::powers;
use crate::{Config, Error};
use serde_json::{Map, Value};
use std::f64::consts::PI;

/// A rotation of queries and keys: the first and the second half of a head's first elements are pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The angle between two positions, for each pair. Twice as many elements of a head are rotated.
    pub frequencies: Vec<f32>,
    /// What sines and cosines are multiplied by.
    pub scale: f32,
    /// Other frequencies for long texts.
    pub long: Option<LongRope>,
}

/// Frequencies of texts that are longer than those of the first training.
#[derive(Clone, Debug, PartialEq)]
pub struct LongRope {
    /// They count when there are more positions than this.
    pub after: u64,
    /// The frequencies.
    pub frequencies: Vec<f32>,
}

/// Elements of the largest head that is described.
const HEAD_SIZE_LIMIT: u64 = 1 << 16;

impl Rope {
    /// The rotation that rope parameters describe.
    pub(crate) fn new(config: &Config, parameters: &Map<String, Value>, head_dim: u64) -> Result<Rope, Error> {
        let reader = Parameters { config, parameters };
        let partial = reader.number("partial_rotary_factor")?.unwrap_or(1.0);
        let dim = (head_dim as f64 * partial).trunc();
        if !(2.0..=(head_dim.min(HEAD_SIZE_LIMIT)) as f64).contains(&dim) || dim % 2.0 != 0.0 {
            return Err(reader.wrong("partial_rotary_factor", "a share of the head with an even number of elements"));
        }
        let dim = dim as u64;
        let theta = reader.required("rope_theta")?;
        let exponents: Vec<f32> = (0..dim).step_by(2).map(|i| i as f32 / dim as f32).collect();
        let powers = powers(theta as f32, &exponents);
        let plain = || powers.iter().map(|power| 1.0 / power).collect::<Vec<f32>>();
        let rope = |frequencies, scale| Rope { frequencies, scale, long: None };
        let kind = match parameters.get("rope_type") {
            None | Some(Value::Null) => "default",
            Some(Value::String(kind)) => kind,
            Some(_) => return Err(reader.wrong("rope_type", "a string")),
        };
        match kind {
            "default" => Ok(rope(plain(), 1.0)),
            "linear" => {
                let factor = reader.required("factor")? as f32;
                Ok(rope(plain().into_iter().map(|f| f / factor).collect(), 1.0))
            }
            "llama3" => Ok(rope(reader.llama3(plain())?, 1.0)),
            "yarn" => reader.yarn(&powers, theta),
            "longrope" | "su" => reader.longrope(&powers),
            _ => Err(reader.wrong("rope_type", "`default`, `linear`, `llama3`, `yarn` or `longrope`")),
        }
    }
}

struct Parameters<'a> {
    config: &'a Config,
    parameters: &'a Map<String, Value>,
}

impl Parameters<'_> {
    fn llama3(&self, plain: Vec<f32>) -> Result<Vec<f32>, Error> {
        let factor = self.required("factor")? as f32;
        let (low, high) = (self.required("low_freq_factor")?, self.required("high_freq_factor")?);
        let original = self.required("original_max_position_embeddings")?;
        let (low_wavelength, high_wavelength) = ((original / low) as f32, (original / high) as f32);
        let scaled = |frequency: f32| {
            let wavelength = (1.0 / frequency) * (2.0 * PI) as f32;
            if wavelength < high_wavelength {
                frequency
            } else if wavelength > low_wavelength {
                frequency / factor
            } else {
                let smooth = ((1.0 / wavelength) * original as f32 - low as f32) / (high - low) as f32;
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        };
        Ok(plain.into_iter().map(scaled).collect())
    }

    fn yarn(&self, powers: &[f32], theta: f64) -> Result<Rope, Error> {
        let factor = self.required("factor")?;
        let original = self.required("original_max_position_embeddings")?;
        let magnitude = |scale: f64, by: f64| if scale <= 1.0 { 1.0 } else { 0.1 * by * scale.ln() + 1.0 };
        let given = |name: &str| Ok::<_, Error>(self.number(name)?.filter(|n| *n != 0.0));
        let scale = match (self.number("attention_factor")?, given("mscale")?, given("mscale_all_dim")?) {
            (Some(factor), ..) => factor,
            (None, Some(one), Some(all)) => magnitude(factor, one) / magnitude(factor, all),
            (None, ..) => magnitude(factor, 1.0),
        };
        let dim = (powers.len() * 2) as f64;
        let (fast, slow) = (given("beta_fast")?.unwrap_or(32.0), given("beta_slow")?.unwrap_or(1.0));
        let correction = |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (correction(fast), correction(slow));
        if !matches!(self.parameters.get("truncate"), Some(Value::Bool(false))) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let frequency = |(i, power): (usize, &f32)| {
            let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            1.0 / (factor as f32 * power) * (1.0 - keep) + 1.0 / power * keep
        };
        Ok(Rope { frequencies: powers.iter().enumerate().map(frequency).collect(), scale: scale as f32, long: None })
    }

    fn longrope(&self, powers: &[f32]) -> Result<Rope, Error> {
        let original = self.required("original_max_position_embeddings")?;
        let factor = match self.number("factor")? {
            Some(factor) => factor,
            None => {
                let longest = self.config.field("max_position_embeddings").unwrap_or(&Value::Null);
                self.config.f64("max_position_embeddings", longest)? / original
            }
        };
        let scale = match self.number("attention_factor")? {
            Some(factor) => factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let frequencies = |name: &'static str| {
            let value = self.parameters.get(name).unwrap_or(&Value::Null);
            let list = value.as_array().filter(|list| list.len() == powers.len());
            let factors: Option<Vec<f32>> =
                list.and_then(|list| list.iter().map(|v| v.as_f64().map(|n| n as f32)).collect());
            let factors = factors.ok_or_else(|| self.wrong(name, "one number for each pair of a head"))?;
            Ok::<_, Error>(factors.iter().zip(powers).map(|(factor, power)| 1.0 / (factor * power)).collect())
        };
        let long = LongRope { after: original as u64, frequencies: frequencies("long_factor")? };
        Ok(Rope { frequencies: frequencies("short_factor")?, scale: scale as f32, long: Some(long) })
    }

    fn required(&self, name: &'static str) -> Result<f64, Error> {
        let positive = self.number(name)?.filter(|n| *n > 0.0);
        positive.ok_or_else(|| self.wrong(name, "a number above zero"))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        match self.parameters.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Ok(Some(self.config.f64(&format!("rope_parameters.{name}"), value)?)),
        }
    }

    fn wrong(&self, name: &str, expected: &'static str) -> Error {
        let found = self.parameters.get(name).unwrap_or(&Value::Null);
        self.config.wrong(&format!("rope_parameters.{name}"), expected, found)
    }
}
