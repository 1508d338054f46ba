//! Architecture descriptions: the files of `archs/`, parsed and validated. docs/architectures.md describes the format.

mod raw;

use crate::Error;
use crate::tokenizer::VocabReader;
use mlpack_tensor::nearest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The descriptions that are part of the program.
const BUILTIN: &[(&str, &str)] = &[
    ("archs/llama.toml", include_str!("../archs/llama.toml")),
    ("archs/qwen2.toml", include_str!("../archs/qwen2.toml")),
];

/// Bytes of the largest description file that is read.
const FILE_LIMIT: u64 = 1 << 20;

/// The known architectures.
#[derive(Clone, Debug)]
pub struct Families {
    // Later ones were added at run time and are looked at first.
    families: Vec<Arc<Family>>,
}

impl Families {
    /// The architectures described in this version of mlpack.
    pub fn builtin() -> Families {
        let parse = |&(name, text): &(&str, &str)| {
            Arc::new(Family::parse(Path::new(name), text).expect("a unit test parses every built-in description"))
        };
        Families { families: BUILTIN.iter().map(parse).collect() }
    }

    /// Adds the description in `path`; what it says about a class or a model type goes before what is built in.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or breaks a rule of the format.
    pub fn with_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = mlpack_fs::read_to_string_bounded(path, FILE_LIMIT)?;
        self.families.push(Arc::new(Family::parse(path, &text)?));
        Ok(())
    }

    /// The family that serves this Hugging Face class name.
    pub fn find(&self, hf_class: &str) -> Option<&Family> {
        self.find_shared(hf_class).map(|f| &**f)
    }

    /// Every family: the built-in ones first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Family> {
        self.families.iter().map(|f| &**f)
    }

    /// The known class names that are most like `hf_class`.
    pub fn nearest_classes(&self, hf_class: &str) -> Vec<String> {
        let all = self.iter().flat_map(Family::classes);
        nearest(hf_class, all, 3).into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn find_shared(&self, hf_class: &str) -> Option<&Arc<Family>> {
        self.families.iter().rev().find(|f| f.classes.contains_key(hf_class))
    }

    pub(crate) fn config_table(&self, model_type: &str) -> Option<&ConfigTable> {
        self.families.iter().rev().find_map(|f| f.configs.get(model_type))
    }

    pub(crate) fn model_types(&self) -> impl Iterator<Item = &str> {
        self.families.iter().flat_map(|f| f.configs.keys()).map(String::as_str)
    }
}

/// One architecture: what its checkpoints' configs and tensors become in a GGUF file.
#[derive(Clone, Debug)]
pub struct Family {
    pub(crate) source: PathBuf,
    pub(crate) arch: String,
    pub(crate) description: String,
    pub(crate) tokenizer: VocabReader,
    pub(crate) pooling: bool,
    pub(crate) extra_tensors: Vec<ExtraKind>,
    pub(crate) remove_from_names: Vec<String>,
    pub(crate) classes: BTreeMap<String, Class>,
    pub(crate) metadata: Vec<MetadataEntry>,
    pub(crate) tensors: Vec<TensorEntry>,
    pub(crate) configs: BTreeMap<String, ConfigTable>,
}

impl Family {
    /// The value of `general.architecture`.
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// What it covers, in a few words for people.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The Hugging Face class names that it serves, sorted.
    pub fn classes(&self) -> impl Iterator<Item = &str> {
        self.classes.keys().map(String::as_str)
    }

    /// The `model_type`s whose config defaults it gives, sorted.
    pub fn model_types(&self) -> impl Iterator<Item = &str> {
        self.configs.keys().map(String::as_str)
    }

    /// The description file; a relative path for a built-in one.
    pub fn source(&self) -> &Path {
        &self.source
    }

    fn parse(source: &Path, text: &str) -> Result<Family, Error> {
        let raw: raw::RawFamily = toml::from_str(text).map_err(|e| Error::DescriptionSyntax {
            path: source.to_owned(),
            line: e.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count()),
            message: e.message().trim_end().replace('\n', ", "),
        })?;
        raw.validate(source).map_err(|(place, problem)| Error::Description { path: source.to_owned(), place, problem })
    }
}

/// What is special about one class of a family.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Class {
    /// Put before every tensor name.
    #[serde(default)]
    pub tensor_prefix: String,
}

/// A tensor that is made from the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExtraKind {
    /// `rope_freqs.weight` of models with `rope_type` "llama3".
    Llama3RopeFreqs,
}

/// One key that the family adds after the keys common to all text models.
#[derive(Clone, Debug)]
pub(crate) struct MetadataEntry {
    pub key: String,
    pub kind: ValueKind,
    pub from: Vec<String>,
    pub or: Option<Derived>,
    pub optional: bool,
}

/// The GGUF type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ValueKind {
    U32,
    /// One number, or an array of i32 when the config has a list.
    U32OrArray,
    F32,
    Bool,
    String,
}

/// One kind of tensor.
#[derive(Clone, Debug)]
pub(crate) struct TensorEntry {
    pub gguf: String,
    pub hf: Vec<Template>,
    pub transform: TransformEntry,
}

/// A tensor name without its suffix, with the layer number left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Template {
    Plain(String),
    Layer { before: String, after: String },
}

impl Template {
    fn parse(text: &str) -> Option<Template> {
        match text.split_once(LAYER) {
            None => Some(Template::Plain(text.to_owned())),
            Some((_, after)) if after.contains(LAYER) => None,
            Some((before, after)) => Some(Template::Layer { before: before.to_owned(), after: after.to_owned() }),
        }
    }

    fn is_layered(&self) -> bool {
        matches!(self, Template::Layer { .. })
    }

    /// The name for a layer.
    pub fn name(&self, layer: u64) -> String {
        match self {
            Template::Plain(name) => name.clone(),
            Template::Layer { before, after } => format!("{before}{layer}{after}"),
        }
    }

    /// `Some(None)` when `name` is the plain name, `Some(Some(layer))` when it is that of a layer.
    pub fn matches(&self, name: &str) -> Option<Option<u64>> {
        match self {
            Template::Plain(plain) => (plain == name).then_some(None),
            Template::Layer { before, after } => {
                let digits = name.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
                let layer: u64 = digits.parse().ok()?;
                // "01" and "+1" parse as numbers but are not how a layer is written.
                (layer.to_string() == digits).then_some(Some(layer))
            }
        }
    }
}

/// Stands for the layer number in names.
pub(crate) const LAYER: &str = "{bid}";

/// What is done to the values of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum TransformEntry {
    /// Nothing.
    #[default]
    Copy,
    /// Rows of each head go from "two halves" to "pairs".
    RopePermute {
        /// Config fields that hold the number of heads; the first that is there and not null.
        heads: Vec<String>,
    },
}

/// What transformers makes of a config.json of one `model_type`.
#[derive(Clone, Debug)]
pub(crate) struct ConfigTable {
    pub rope_theta: f64,
    pub checks: Vec<ConfigCheck>,
    pub fields: BTreeMap<String, Field>,
}

/// A rule of one config class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ConfigCheck {
    /// `hidden_size` is a multiple of `num_attention_heads`.
    HeadsDivideHiddenSize,
}

/// One declared field of a config class.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub types: Vec<FieldType>,
    pub default: serde_json::Value,
    pub or: Option<Derived>,
    pub only_if: Option<String>,
}

/// A type that a config field accepts; as strict as transformers is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FieldType {
    Int,
    Float,
    Bool,
    Str,
    Null,
    Dict,
    IntList,
    StrList,
}

impl FieldType {
    /// The word for it in messages.
    pub fn name(self) -> &'static str {
        match self {
            FieldType::Int => "an integer",
            FieldType::Float => "a number with a decimal point",
            FieldType::Bool => "true or false",
            FieldType::Str => "a string",
            FieldType::Null => "null",
            FieldType::Dict => "an object",
            FieldType::IntList => "a list of integers",
            FieldType::StrList => "a list of strings",
        }
    }
}

/// How a value comes from other fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Derived {
    /// The value of another field.
    Field(String),
    /// The integer quotient of two fields.
    Quotient(String, String),
    /// One layer type per layer: sliding from the layer in that field on, when there is a sliding window.
    SlidingAfter(String),
}

impl Derived {
    fn parse(text: &str) -> Option<Derived> {
        let word = |s: &str| {
            let s = s.trim();
            let ok = !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            ok.then(|| s.to_owned())
        };
        if let Some(argument) = text.strip_prefix("sliding_after(").and_then(|s| s.strip_suffix(')')) {
            return Some(Derived::SlidingAfter(word(argument)?));
        }
        match text.split_once('/') {
            Some((dividend, divisor)) => Some(Derived::Quotient(word(dividend)?, word(divisor)?)),
            None => Some(Derived::Field(word(text)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_built_in_description_parses_and_serves_classes_of_its_own() {
        let mut classes = HashSet::new();
        let mut model_types = HashSet::new();
        for (name, text) in BUILTIN {
            let family = Family::parse(Path::new(name), text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(format!("archs/{}.toml", family.arch()), *name, "a file is named like its arch");
            for class in family.classes() {
                assert!(classes.insert(class.to_owned()), "{class} is in two files");
            }
            for model_type in family.model_types() {
                assert!(model_types.insert(model_type.to_owned()), "{model_type} is in two files");
            }
        }
        assert!(classes.contains("LlamaForCausalLM") && classes.contains("Qwen2ForCausalLM"));
    }

    #[test]
    fn every_description_file_is_built_in() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("archs");
        let mut files: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| format!("archs/{}", e.unwrap().file_name().into_string().unwrap()))
            .collect();
        files.sort();
        assert_eq!(files, BUILTIN.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn a_template_matches_only_a_plainly_written_layer_number() {
        let template = Template::parse("model.layers.{bid}.mlp").unwrap();
        assert_eq!(template.matches("model.layers.12.mlp"), Some(Some(12)));
        for name in ["model.layers.01.mlp", "model.layers.+1.mlp", "model.layers..mlp", "model.layers.1.mlps"] {
            assert_eq!(template.matches(name), None, "{name}");
        }
        assert_eq!(template.name(3), "model.layers.3.mlp");
    }

    #[test]
    fn a_run_time_description_goes_before_the_built_in_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let text = BUILTIN[0].1.replace("arch = \"llama\"", "arch = \"mine\"");
        std::fs::write(&path, text).unwrap();
        let mut families = Families::builtin();
        families.with_file(&path).unwrap();
        let found = families.find("LlamaForCausalLM").unwrap();
        assert_eq!((found.arch(), found.source()), ("mine", path.as_path()));
        assert_eq!(families.find("Qwen2ForCausalLM").unwrap().arch(), "qwen2");
    }

    #[test]
    fn a_broken_description_is_refused_with_its_place() {
        let llama = BUILTIN[0].1;
        let broken = |from: &str, to: &str| {
            assert!(llama.contains(from), "{from}");
            Family::parse(Path::new("x.toml"), &llama.replacen(from, to, 1)).unwrap_err()
        };
        let line = llama.lines().position(|l| l == "tokenizer = \"llama\"").unwrap() + 1;
        match broken("tokenizer = \"llama\"", "tokenizer = \"wordpiece\"") {
            Error::DescriptionSyntax { line: found, message, .. } => {
                assert_eq!(found, line);
                assert!(message.contains("wordpiece") && message.contains("`llama`"), "{message}");
            }
            other => panic!("{other}"),
        }
        let places = [
            ("arch = \"llama\"", "arch = \"Lla ma\"", "arch"),
            ("\"{arch}.vocab_size\"", "\"vocab_size\"", "metadata `vocab_size`"),
            ("from = [\"head_dim\"]", "from = []", "metadata `{arch}.rope.dimension_count`"),
            ("\"hidden_size / num_attention_heads\"", "\"hidden_size * 2\"", "metadata `{arch}.rope.dimension_count`"),
            ("hf = [\"lm_head\"", "hf = [\"norm\"", "tensor `output`"),
            ("hf = [\"lm_head\"", "hf = [\"head.{bid}\"", "tensor `output`"),
            ("heads = [\"n_heads\", \"num_attention_heads\"]", "heads = []", "tensor `blk.{bid}.attn_q`"),
        ];
        for (from, to, place) in places {
            match broken(from, to) {
                Error::Description { place: found, .. } => assert_eq!(found, place, "{to}"),
                other => panic!("{to}: {other}"),
            }
        }
    }
}
