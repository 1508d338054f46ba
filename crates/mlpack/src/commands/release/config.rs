//! `mlpack.toml`: a release, declared for people.
//!
//! ```toml
//! name = "legal-qa"                 # outputs are legal-qa-Q4_K_M.gguf, …
//! base = "kjv-llama"                # paths start at this file's folder
//! run = "mlflow/mlflow.db#4c421e9ce91a40368c786c2f89e8fc82"
//!
//! [[adapter]]
//! path = "legal-qa-lora"
//!
//! [gguf]
//! quant = ["F16", "Q8_0", "Q4_K_M"]
//! ```

use crate::cli::{MergingArgs, QuantizerArgs};
use mlpack_fs::{ErrorKind, read_to_string_bounded};
use mlpack_tensor::{Escaped, nearest};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The largest release file that is read.
const MAX_LEN: u64 = 1 << 20;

/// A release file. Every key is documented in docs/release.md.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The start of every output's name.
    pub name: String,
    /// The base model's directory.
    pub base: PathBuf,
    /// The output directory.
    #[serde(default = "default_output")]
    pub output: PathBuf,
    /// The training run of the adapters.
    pub run: Option<String>,
    /// The training data, to be hashed and compared with what the run says.
    pub dataset: Option<PathBuf>,
    /// Whether the files say what they are made from.
    #[serde(default)]
    pub embed_provenance: bool,
    /// The adapters.
    #[serde(default)]
    pub adapter: Vec<AdapterConfig>,
    /// How the adapters are merged, and where the merged checkpoint goes, if one is wanted.
    #[serde(default)]
    pub merge: MergeConfig,
    /// The GGUF variants.
    pub gguf: GgufConfig,
    /// How they are quantized: the options of `mlpack convert`, with underscores.
    #[serde(default)]
    pub quantize: QuantizerArgs,
    /// What Modelfiles say beyond the model.
    #[serde(default)]
    pub modelfile: ModelfileConfig,
    /// Where to publish.
    pub publish: Option<PublishConfig>,
    /// Who signs what is stated.
    pub sign: Option<SignConfig>,
    #[serde(skip)]
    folder: PathBuf,
}

/// An adapter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// Its directory.
    pub path: PathBuf,
    /// Its weight.
    #[serde(default = "one")]
    pub weight: f64,
}

/// How adapters are merged, for the merged checkpoint and for every variant: the options of `mlpack merge`, with underscores.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MergeConfig {
    /// The merged checkpoint's directory, within the output directory; without it there is none.
    pub output: Option<PathBuf>,
    /// The most bytes of weights in one of its files.
    pub max_shard_size: Option<String>,
    /// How several adapters become one.
    pub combine: Option<String>,
    /// The share of each delta that stays.
    pub density: Option<f64>,
    /// Where the coins of DARE begin.
    pub seed: Option<u64>,
    /// Whether adapters may change nothing.
    pub allow_empty: bool,
}

impl MergeConfig {
    /// The same as the command line says it.
    pub fn merging(&self) -> MergingArgs {
        let default = MergingArgs::default();
        MergingArgs {
            allow_empty: self.allow_empty,
            combine: self.combine.clone().unwrap_or(default.combine),
            density: self.density.unwrap_or(default.density),
            seed: self.seed.unwrap_or(default.seed),
            report: None,
        }
    }
}

/// The GGUF variants.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GgufConfig {
    /// Their names.
    pub quant: Vec<String>,
    /// The pre-tokenizer, where it cannot be recognised.
    pub pre: Option<String>,
    /// Architecture descriptions that are not built in.
    #[serde(default)]
    pub arch_file: Vec<PathBuf>,
}

/// What Modelfiles say beyond the model.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelfileConfig {
    /// The system message.
    pub system: Option<String>,
    /// A file with a Go template, instead of the translated chat template.
    pub template: Option<PathBuf>,
    /// Licence texts.
    #[serde(default)]
    pub license: Vec<PathBuf>,
    /// Parameters that Ollama knows.
    #[serde(default)]
    pub parameters: BTreeMap<String, ParameterValue>,
}

/// Where to publish.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishConfig {
    /// `oci:DIR:TAG`; a relative DIR starts at the output directory.
    pub to: String,
}

/// Who signs what is stated about the outputs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignConfig {
    /// A PEM file, or `env:NAME` for a variable that holds the PEM text.
    pub key: String,
    /// A file whose first line is the passphrase.
    pub passphrase_file: Option<PathBuf>,
}

/// A parameter's value in its natural TOML type.
#[derive(Debug, Deserialize)]
#[serde(from = "toml::Value")]
pub struct ParameterValue(toml::Value);

impl From<toml::Value> for ParameterValue {
    fn from(value: toml::Value) -> ParameterValue {
        ParameterValue(value)
    }
}

impl ParameterValue {
    /// The value, or each value of a list, as text.
    pub fn texts(&self) -> Vec<String> {
        let text = |value: &toml::Value| match value {
            toml::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match &self.0 {
            toml::Value::Array(values) => values.iter().map(text).collect(),
            value => vec![text(value)],
        }
    }
}

fn default_output() -> PathBuf {
    PathBuf::from("dist")
}

fn one() -> f64 {
    1.0
}

/// What is wrong with a release file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The system refused.
    #[error(transparent)]
    Fs(#[from] mlpack_fs::Error),
    /// A key that mlpack does not know.
    #[error("cannot read `{}`\n  key `{}`: unknown (line {line})\n  expected: one of {}\n  found:    `{}`", path.display(), Escaped(key), expected.join(", "), Escaped(key))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Where it is.
        line: usize,
        /// The keys that are known there.
        expected: Vec<String>,
    },
    /// TOML that does not parse, a missing key, or a value of another type.
    #[error("cannot read `{}`\n  line {line}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Where it is.
        line: usize,
        /// What the parser said.
        message: String,
    },
}

impl ConfigError {
    /// Whose fault it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ConfigError::Fs(e) => e.kind(),
            ConfigError::UnknownKey { .. } | ConfigError::Invalid { .. } => ErrorKind::Misuse,
        }
    }

    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            ConfigError::Fs(e) => e.hint().map(str::to_owned),
            ConfigError::UnknownKey { key, expected, .. } => {
                let nearest = nearest(key, expected.iter().map(String::as_str), 1);
                nearest.first().map(|key| format!("did you mean `{key}`?"))
            }
            ConfigError::Invalid { .. } => None,
        }
    }
}

impl Config {
    /// Reads a release file.
    pub fn open(path: &Path) -> Result<Config, ConfigError> {
        let text = read_to_string_bounded(path, MAX_LEN)?;
        let mut config = Config::parse(path, &text)?;
        config.folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(config)
    }

    /// The folder at which the file's paths start.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        toml::from_str(text).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
            let path = path.to_owned();
            // serde says: unknown field `quants`, expected one of `quant`, `pre`, …
            match e.message().strip_prefix("unknown field ") {
                Some(rest) => {
                    let mut quoted = rest.split('`').skip(1).step_by(2).map(str::to_owned);
                    let key = quoted.next().unwrap_or_default();
                    ConfigError::UnknownKey { path, key, line, expected: quoted.collect() }
                }
                None => ConfigError::Invalid { path, line, message: e.message().trim_end().to_owned() },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("mlpack.toml"), text)
    }

    const LEAST: &str = "name = \"m\"\nbase = \"b\"\n[gguf]\nquant = [\"F16\"]\n";

    #[test]
    fn defaults_are_filled_in() {
        let config = parse(&format!("{LEAST}[[adapter]]\npath = \"a\"\n")).unwrap();
        assert_eq!((config.output, config.adapter[0].weight), (PathBuf::from("dist"), 1.0));
    }

    #[test]
    fn merging_has_the_defaults_of_the_command_line_and_its_options() {
        let merging = |text: &str| format!("{:?}", parse(&format!("{LEAST}{text}")).unwrap().merge.merging());
        assert_eq!(merging(""), format!("{:?}", MergingArgs::default()));
        let ties = MergingArgs { combine: "ties".to_owned(), density: 0.25, ..MergingArgs::default() };
        assert_eq!(merging("[merge]\ncombine = \"ties\"\ndensity = 0.25\n"), format!("{ties:?}"));
        let error = parse(&format!("{LEAST}[merge]\ncombined = \"ties\"\n")).unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean `combine`?");
    }

    #[test]
    fn an_unknown_key_names_its_line_and_the_nearest() {
        let error = parse(&LEAST.replace("quant", "quants")).unwrap_err();
        assert_eq!(error.hint().unwrap(), "did you mean `quant`?");
        assert!(matches!(error, ConfigError::UnknownKey { line: 4, .. }), "{error}");
    }

    #[test]
    fn a_missing_key_and_a_wrong_type_are_named() {
        assert!(parse("name = \"m\"\n").unwrap_err().to_string().contains("`base`"));
        assert!(parse(&LEAST.replace("\"m\"", "3")).unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn parameters_keep_their_type() {
        let config =
            parse(&format!("{LEAST}[modelfile.parameters]\ntemperature = 0.2\nnum_ctx = 512\nstop = [\"a\", \"b\"]\n"));
        let texts: Vec<_> = config.unwrap().modelfile.parameters.values().map(ParameterValue::texts).collect();
        assert_eq!(texts, [vec!["512"], vec!["a", "b"], vec!["0.2"]]);
    }
}
