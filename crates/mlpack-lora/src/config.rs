//! `adapter_config.json`, as PEFT 0.21 writes it (`src/peft/tuners/lora/config.py`, `LoraConfig`).

use crate::Error;
use mlpack_fs::read_bounded;
use regex::Regex;
use serde_json::{Map, Value};
use std::path::Path;

/// The largest config that is read.
const MAX_CONFIG_LEN: u64 = 16 << 20;

/// The settings of a LoRA adapter that decide the merged values.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// `r`: the rank of modules that no pattern names.
    pub rank: u64,
    /// `lora_alpha` of modules that no pattern names.
    pub alpha: f64,
    /// `use_rslora`: scale by alpha/sqrt(r) instead of alpha/r.
    pub rank_stabilized: bool,
    /// `base_model_name_or_path`: what the trainer called the base.
    pub base_model: Option<String>,
    rank_pattern: Vec<(Regex, u64)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

/// Whether a value is the one of a plain LoRA.
type IsPlain = fn(&Value) -> bool;

/// What PEFT writes for a plain LoRA, per key; any other value changes the result in a way that is not handled.
const PLAIN: &[(&str, &str, IsPlain)] = &[
    ("use_dora", "false", is_off),
    ("lora_bias", "false", is_off),
    ("fan_in_fan_out", "false", is_off),
    ("bias", "\"none\"", |v| v == "none"),
    ("modules_to_save", "null", is_off),
    ("trainable_token_indices", "null", is_off),
    ("target_parameters", "null", is_off),
    ("layer_replication", "null", is_off),
    ("alora_invocation_tokens", "null", is_off),
    ("arrow_config", "null", is_off),
    ("use_qalora", "false", is_off),
    ("use_bdlora", "null", is_off),
    ("kasa_config", "null", is_off),
    ("velora_config", "null", is_off),
    ("monteclora_config", "null", is_off),
    ("init_lora_weights", "an initialisation that leaves the base as it is", leaves_base),
];

fn is_off(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

/// PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ change the base when training starts; their adapters fit only that base.
fn leaves_base(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(_) => true,
        Value::String(s) => matches!(s.as_str(), "gaussian" | "eva" | "orthogonal"),
        _ => false,
    }
}

impl AdapterConfig {
    /// Reads a config file.
    pub fn open(path: &Path) -> Result<AdapterConfig, Error> {
        let bytes = read_bounded(path, MAX_CONFIG_LEN)?;
        let invalid = |reason: String| Error::Config { path: path.to_owned(), reason };
        let config: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|e| invalid(e.to_string()))?;
        let peft_type = config.get("peft_type").and_then(Value::as_str).unwrap_or_default();
        if peft_type != "LORA" {
            return Err(Error::PeftType { path: path.to_owned(), found: peft_type.to_owned() });
        }
        for (key, expected, is_plain) in PLAIN {
            if let Some(value) = config.get(*key).filter(|v| !is_plain(v)) {
                return Err(Error::Setting { path: path.to_owned(), key, expected, found: value.to_string() });
            }
        }
        let number = |key: &str| config.get(key).and_then(Value::as_f64).filter(|n| n.is_finite());
        let rank = config.get("r").and_then(Value::as_u64).filter(|r| *r > 0);
        let base_model = config.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
        Ok(AdapterConfig {
            rank: rank.ok_or_else(|| invalid("no positive integer `r`".to_owned()))?,
            alpha: number("lora_alpha").ok_or_else(|| invalid("no number `lora_alpha`".to_owned()))?,
            rank_stabilized: config.get("use_rslora") == Some(&Value::Bool(true)),
            base_model,
            rank_pattern: patterns(path, &config, "rank_pattern", |v| v.as_u64().filter(|r| *r > 0))?,
            alpha_pattern: patterns(path, &config, "alpha_pattern", Value::as_f64)?,
        })
    }

    /// The rank that the config gives a module (its name without prefix and suffix).
    pub fn rank_of(&self, module: &str) -> u64 {
        first_match(&self.rank_pattern, module).unwrap_or(self.rank)
    }

    /// The factor of B·A for a module.
    pub fn scale_of(&self, module: &str) -> f64 {
        let rank = self.rank_of(module) as f64;
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        if self.rank_stabilized { alpha / rank.sqrt() } else { alpha / rank }
    }
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
}

/// Keys of a pattern map are regular expressions that match a whole module name or its end after a dot
/// (`peft/utils/other.py`, `get_pattern_key`); the first match in file order counts.
fn patterns<T>(
    path: &Path,
    config: &Map<String, Value>,
    key: &'static str,
    parse: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Regex, T)>, Error> {
    let entries = match config.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => {
            return Err(Error::Config { path: path.to_owned(), reason: format!("`{key}` is not an object: {other}") });
        }
    };
    entries
        .iter()
        .map(|(pattern, value)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(|e| Error::Pattern {
                path: path.to_owned(),
                key,
                pattern: pattern.clone(),
                reason: e.to_string().lines().last().unwrap_or_default().to_owned(),
            })?;
            let value = parse(value).ok_or_else(|| Error::Config {
                path: path.to_owned(),
                reason: format!("`{key}` maps `{pattern}` to {value}"),
            })?;
            Ok((regex, value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<AdapterConfig, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_config.json");
        std::fs::write(&path, format!(r#"{{"peft_type":"LORA","r":8,"lora_alpha":16{extra}}}"#)).unwrap();
        AdapterConfig::open(&path)
    }

    #[test]
    fn scale_is_alpha_over_r_or_over_its_root() {
        assert_eq!(parse("").unwrap().scale_of("m"), 2.0);
        assert_eq!(parse(r#","use_rslora":true"#).unwrap().scale_of("m"), 16.0 / 8f64.sqrt());
    }

    #[test]
    fn patterns_are_anchored_regexes_and_the_first_match_counts() {
        let extra = r#","rank_pattern":{"q_proj":4,".*proj":2},"alpha_pattern":{"layers\\.1\\..*":32}"#;
        let config = parse(extra).unwrap();
        assert_eq!(config.rank_of("model.layers.0.q_proj"), 4);
        assert_eq!(config.rank_of("model.layers.0.v_proj"), 2);
        assert_eq!(config.rank_of("model.layers.0.q_proj2"), 8);
        assert_eq!(config.scale_of("model.layers.1.q_proj"), 8.0);
    }

    #[test]
    fn refuses_what_would_change_the_result() {
        for (extra, key) in [
            (r#","use_dora":true"#, "use_dora"),
            (r#","bias":"all""#, "bias"),
            (r#","modules_to_save":["lm_head"]"#, "modules_to_save"),
            (r#","init_lora_weights":"pissa_niter_4""#, "init_lora_weights"),
        ] {
            match parse(extra) {
                Err(Error::Setting { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{other:?}"),
            }
        }
        assert!(parse(r#","init_lora_weights":"gaussian","loftq_config":{}"#).is_ok());
    }
}
