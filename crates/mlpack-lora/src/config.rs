//! `adapter_config.json`, as PEFT 0.21 writes it (`src/peft/tuners/*/config.py`) and as MLX writes it.

use crate::Error;
use mlpack_fs::read_bounded;
use regex::Regex;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The largest config that is read.
const MAX_CONFIG_LEN: u64 = 16 << 20;

/// How an adapter changes a module: PEFT's `peft_type`, and who wrote the file where that shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// LoRA and what PEFT counts as such: DoRA, rsLoRA, embeddings, convolutions, expert stacks.
    Lora,
    /// The product of two low-rank products, element by element.
    Loha,
    /// A Kronecker product.
    Lokr,
    /// Factors for rows or columns.
    Ia3,
    /// Rows of the embedding alone.
    TrainableTokens,
    /// MLX: the same as LoRA with transposed factors and a scale of its own.
    Mlx,
    /// kohya and LyCORIS: no config; every module has its alpha.
    Kohya,
}

/// The settings of an adapter that decide the merged values.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// How it changes a module.
    pub method: Method,
    /// `r`: the rank of modules that no pattern names; 0 where the tensors tell it.
    pub rank: u64,
    /// `lora_alpha` or `alpha` of modules that no pattern names.
    pub alpha: f64,
    /// `use_rslora`: scale by alpha/sqrt(r) instead of alpha/r.
    pub rank_stabilized: bool,
    /// `use_dora`: magnitudes are trained apart from directions.
    pub dora: bool,
    /// `fan_in_fan_out`: linear layers store their weight as `[in, out]`.
    pub fan_in_fan_out: bool,
    /// `base_model_name_or_path`: what the trainer called the base.
    pub base_model: Option<String>,
    /// `revision`: which revision of the base.
    pub revision: Option<String>,
    /// `modules_to_save`: modules that were trained whole.
    pub modules_to_save: Vec<String>,
    /// `trainable_token_indices`: the rows that were trained, for modules with this name or ending in it.
    pub token_indices: Vec<(String, Vec<u64>)>,
    /// `target_parameters`: parameters, not modules, that were adapted.
    pub target_parameters: Vec<String>,
    /// `feedforward_modules` of IA3.
    pub feedforward: Option<Vec<String>>,
    /// The first two parts of `peft_version`.
    pub peft_version: Option<(u64, u64)>,
    rank_pattern: Vec<(Regex, u64)>,
    alpha_pattern: Vec<(Regex, f64)>,
}

/// Whether a value is the one of an adapter that is handled.
type IsHandled = fn(&Value) -> bool;

/// What PEFT writes per key for a LoRA that is handled; any other value changes the result in a way that is not.
const HANDLED: &[(&str, &str, IsHandled)] = &[
    ("layer_replication", "null: the base has other layers than the adapter was trained on", is_off),
    ("alora_invocation_tokens", "null: an aLoRA is active from a token on, which no merged weight can be", is_off),
    ("arrow_config", "null: a router chooses adapters for each token, which no merged weight can do", is_off),
    ("use_qalora", "false: the adapter's input is pooled in groups of a quantized base", is_off),
    ("use_bdlora", "null: factors are block-diagonal", is_off),
    ("kasa_config", "null: the base was truncated when training started", is_off),
    ("velora_config", "null", is_off),
    ("monteclora_config", "null", is_off),
    (
        "init_lora_weights",
        "an initialisation that leaves the base as it is; PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ take the adapter's start out \
         of the base, and an adapter saved without converting it back fits only that residual base",
        leaves_base,
    ),
];

fn is_off(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(false) => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        _ => false,
    }
}

fn leaves_base(v: &Value) -> bool {
    match v {
        Value::Null | Value::Bool(_) => true,
        Value::String(s) => matches!(s.to_lowercase().as_str(), "gaussian" | "eva" | "orthogonal"),
        _ => false,
    }
}

impl AdapterConfig {
    /// Reads a config file.
    ///
    /// # Errors
    /// [`Error::PeftType`] for a method that cannot be merged, [`Error::Setting`] for a setting that changes the base or
    /// the result in a way that is not handled, [`Error::Config`] and [`Error::Pattern`] for what PEFT does not write.
    pub fn open(path: &Path) -> Result<AdapterConfig, Error> {
        let bytes = read_bounded(path, MAX_CONFIG_LEN)?;
        let config: Map<String, Value> = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Config { path: path.to_owned(), reason: e.to_string() })?;
        let file = File { path: path.to_owned(), config };
        if !file.config.contains_key("peft_type") && file.config.contains_key("lora_parameters") {
            return file.mlx();
        }
        let peft_type = file.text("peft_type").unwrap_or_default();
        let method = match peft_type.as_str() {
            "LORA" => Method::Lora,
            "LOHA" => Method::Loha,
            "LOKR" => Method::Lokr,
            "IA3" => Method::Ia3,
            "TRAINABLE_TOKENS" => Method::TrainableTokens,
            _ => return Err(Error::PeftType { path: path.to_owned(), found: peft_type }),
        };
        for (key, expected, is_handled) in HANDLED {
            if let Some(value) = file.config.get(*key).filter(|v| !is_handled(v)) {
                return Err(Error::Setting { path: path.to_owned(), key, expected, found: value.to_string() });
            }
        }
        let has_rank = matches!(method, Method::Lora | Method::Loha | Method::Lokr);
        let alpha = if method == Method::Lora { "lora_alpha" } else { "alpha" };
        Ok(AdapterConfig {
            method,
            rank: if has_rank { file.rank("r")? } else { 0 },
            alpha: if has_rank { file.number(alpha)? } else { 0.0 },
            rank_stabilized: file.flag("use_rslora"),
            dora: file.flag("use_dora"),
            fan_in_fan_out: file.flag("fan_in_fan_out"),
            base_model: file.text("base_model_name_or_path"),
            revision: file.text("revision"),
            modules_to_save: file.names("modules_to_save"),
            token_indices: file.token_indices(method)?,
            target_parameters: file.names("target_parameters"),
            feedforward: file.config.get("feedforward_modules").filter(|v| !v.is_null()).map(names),
            peft_version: file.text("peft_version").and_then(|v| {
                let mut parts = v.split('.').map(str::parse);
                Some((parts.next()?.ok()?, parts.next()?.ok()?))
            }),
            rank_pattern: file.patterns("rank_pattern", |v| v.as_u64().filter(|r| *r > 0))?,
            alpha_pattern: file.patterns("alpha_pattern", Value::as_f64)?,
        })
    }

    /// What a file without a config is: kohya's, which tells rank and alpha with its tensors.
    pub(crate) fn kohya() -> AdapterConfig {
        AdapterConfig {
            method: Method::Kohya,
            rank: 0,
            alpha: 0.0,
            rank_stabilized: false,
            dora: false,
            fan_in_fan_out: false,
            base_model: None,
            revision: None,
            modules_to_save: Vec::new(),
            token_indices: Vec::new(),
            target_parameters: Vec::new(),
            feedforward: None,
            peft_version: None,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }

    /// The rank that the config gives a module (its name without prefix and suffix); `None` where the tensors tell it.
    pub fn rank_of(&self, module: &str) -> Option<u64> {
        first_match(&self.rank_pattern, module).or((self.rank > 0).then_some(self.rank))
    }

    /// The factor of B·A for a module whose factors have that rank.
    pub fn scale_of(&self, module: &str, rank: u64) -> f64 {
        let rank = self.rank_of(module).unwrap_or(rank) as f64;
        let alpha = first_match(&self.alpha_pattern, module).unwrap_or(self.alpha);
        match self.method {
            Method::Mlx => self.alpha,
            // Without an alpha of its own a module is scaled by one.
            Method::Kohya | Method::Ia3 | Method::TrainableTokens => 1.0,
            Method::Lora | Method::Loha | Method::Lokr if self.rank_stabilized => alpha / rank.sqrt(),
            Method::Lora | Method::Loha | Method::Lokr => alpha / rank,
        }
    }

    /// The trained rows of an embedding or head.
    pub(crate) fn tokens_of(&self, module: &str) -> Option<&[u64]> {
        let names = |name: &str| module == name || module.ends_with(&format!(".{name}"));
        let found = self.token_indices.iter().find(|(name, _)| name.is_empty() || names(name));
        found.map(|(_, rows)| rows.as_slice())
    }
}

fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
}

fn names(value: &Value) -> Vec<String> {
    match value {
        Value::String(name) => vec![name.clone()],
        Value::Array(all) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// A config as parsed, with the path for its errors.
struct File {
    path: PathBuf,
    config: Map<String, Value>,
}

impl File {
    fn invalid(&self, reason: String) -> Error {
        Error::Config { path: self.path.clone(), reason }
    }

    fn text(&self, key: &str) -> Option<String> {
        self.config.get(key).and_then(Value::as_str).map(str::to_owned)
    }

    fn flag(&self, key: &str) -> bool {
        self.config.get(key) == Some(&Value::Bool(true))
    }

    fn names(&self, key: &str) -> Vec<String> {
        self.config.get(key).map(names).unwrap_or_default()
    }

    fn rank(&self, key: &str) -> Result<u64, Error> {
        let rank = self.config.get(key).and_then(Value::as_u64).filter(|r| *r > 0);
        rank.ok_or_else(|| self.invalid(format!("no positive integer `{key}`")))
    }

    fn number(&self, key: &str) -> Result<f64, Error> {
        let number = self.config.get(key).and_then(Value::as_f64).filter(|n| n.is_finite());
        number.ok_or_else(|| self.invalid(format!("no number `{key}`")))
    }

    /// A list belongs to the embedding, whatever it is called; a map names modules.
    fn token_indices(&self, method: Method) -> Result<Vec<(String, Vec<u64>)>, Error> {
        let key = if method == Method::TrainableTokens { "token_indices" } else { "trainable_token_indices" };
        let rows = |value: &Value| {
            let rows = value.as_array().and_then(|all| all.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>());
            rows.ok_or_else(|| self.invalid(format!("`{key}` is not a list of rows, or a map of such: {value}")))
        };
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Object(modules)) => modules.iter().map(|(name, v)| Ok((name.clone(), rows(v)?))).collect(),
            Some(list) => Ok(vec![(String::new(), rows(list)?)]),
        }
    }

    /// MLX says `fine_tune_type`, and the scale itself.
    fn mlx(&self) -> Result<AdapterConfig, Error> {
        let Some(Value::Object(parameters)) = self.config.get("lora_parameters") else {
            return Err(self.invalid("`lora_parameters` is not an object".to_owned()));
        };
        let inner = File { path: self.path.clone(), config: parameters.clone() };
        let kind = self.text("fine_tune_type").unwrap_or_else(|| "lora".to_owned());
        if !["lora", "dora", "full"].contains(&kind.as_str()) {
            return Err(Error::PeftType { path: self.path.clone(), found: kind });
        }
        let full = kind == "full";
        Ok(AdapterConfig {
            method: Method::Mlx,
            rank: if full { 0 } else { inner.rank("rank")? },
            alpha: if full { 1.0 } else { inner.number("scale")? },
            dora: kind == "dora",
            base_model: self.text("model"),
            ..AdapterConfig::kohya()
        })
    }

    /// Keys of a pattern map are regular expressions that match a whole module name or its end after a dot
    /// (`peft/utils/other.py`, `get_pattern_key`); the first match in file order counts.
    fn patterns<T>(&self, key: &'static str, parse: impl Fn(&Value) -> Option<T>) -> Result<Vec<(Regex, T)>, Error> {
        let entries = match self.config.get(key) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Object(entries)) => entries,
            Some(other) => return Err(self.invalid(format!("`{key}` is not an object: {other}"))),
        };
        let entry = |(pattern, value): (&String, &Value)| {
            let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(|e| Error::Pattern {
                path: self.path.clone(),
                key,
                pattern: pattern.clone(),
                reason: e.to_string().lines().last().unwrap_or_default().to_owned(),
            })?;
            let value = parse(value).ok_or_else(|| self.invalid(format!("`{key}` maps `{pattern}` to {value}")))?;
            Ok((regex, value))
        };
        entries.iter().map(entry).collect()
    }
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
        assert_eq!(parse("").unwrap().scale_of("m", 8), 2.0);
        assert_eq!(parse(r#","use_rslora":true"#).unwrap().scale_of("m", 8), 16.0 / 8f64.sqrt());
    }

    #[test]
    fn patterns_are_anchored_regexes_and_the_first_match_counts() {
        let extra = r#","rank_pattern":{"q_proj":4,".*proj":2},"alpha_pattern":{"layers\\.1\\..*":32}"#;
        let config = parse(extra).unwrap();
        assert_eq!(config.rank_of("model.layers.0.q_proj"), Some(4));
        assert_eq!(config.rank_of("model.layers.0.v_proj"), Some(2));
        assert_eq!(config.rank_of("model.layers.0.q_proj2"), Some(8));
        assert_eq!(config.scale_of("model.layers.1.q_proj", 4), 8.0);
    }

    #[test]
    fn refuses_what_would_change_the_result() {
        for (extra, key) in [
            (r#","layer_replication":[[0,1],[0,1]]"#, "layer_replication"),
            (r#","alora_invocation_tokens":[1]"#, "alora_invocation_tokens"),
            (r#","init_lora_weights":"pissa_niter_4""#, "init_lora_weights"),
            (r#","init_lora_weights":"olora""#, "init_lora_weights"),
            (r#","init_lora_weights":"corda""#, "init_lora_weights"),
            (r#","init_lora_weights":"lora_ga""#, "init_lora_weights"),
        ] {
            match parse(extra) {
                Err(Error::Setting { key: found, .. }) => assert_eq!(found, key),
                other => panic!("{other:?}"),
            }
        }
        assert!(parse(r#","init_lora_weights":"gaussian","loftq_config":{}"#).is_ok());
    }

    #[test]
    fn trained_tokens_are_a_list_or_a_map() {
        let list = parse(r#","trainable_token_indices":[3,1]"#).unwrap();
        assert_eq!(list.tokens_of("model.embed_tokens"), Some(&[3, 1][..]));
        let map = parse(r#","trainable_token_indices":{"embed_tokens":[1],"lm_head":[2]}"#).unwrap();
        assert_eq!(map.tokens_of("lm_head"), Some(&[2][..]));
        assert_eq!(map.tokens_of("model.embed_tokens"), Some(&[1][..]));
        assert_eq!(map.tokens_of("model.my_embed_tokens"), None);
        assert!(matches!(parse(r#","trainable_token_indices":[-1]"#), Err(Error::Config { .. })));
    }

    #[test]
    fn mlx_gives_the_scale_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_config.json");
        let text = r#"{"fine_tune_type":"dora","lora_parameters":{"rank":4,"scale":20.0,"dropout":0.0}}"#;
        std::fs::write(&path, text).unwrap();
        let config = AdapterConfig::open(&path).unwrap();
        assert_eq!((config.method, config.dora, config.scale_of("m", 4)), (Method::Mlx, true, 20.0));
    }
}
