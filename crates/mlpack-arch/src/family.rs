//! Architecture descriptions: the files of `archs/`, parsed and validated. docs/architectures.md describes the format.

mod expression;
mod raw;

use crate::Error;
use crate::decoder::DecoderEntry;
pub(crate) use expression::{Expression, NoValue, Number};

use crate::tokenizer::VocabReader;
use mlpack_tensor::nearest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The descriptions that are part of the program.
const BUILTIN: &[(&str, &str)] = &[
    ("archs/baichuan.toml", include_str!("../archs/baichuan.toml")),
    ("archs/bert.toml", include_str!("../archs/bert.toml")),
    ("archs/cohere2.toml", include_str!("../archs/cohere2.toml")),
    ("archs/command-r.toml", include_str!("../archs/command-r.toml")),
    ("archs/deepseek.toml", include_str!("../archs/deepseek.toml")),
    ("archs/deepseek2.toml", include_str!("../archs/deepseek2.toml")),
    ("archs/ernie4_5.toml", include_str!("../archs/ernie4_5.toml")),
    ("archs/exaone4.toml", include_str!("../archs/exaone4.toml")),
    ("archs/falcon.toml", include_str!("../archs/falcon.toml")),
    ("archs/gemma.toml", include_str!("../archs/gemma.toml")),
    ("archs/gemma2.toml", include_str!("../archs/gemma2.toml")),
    ("archs/gemma3.toml", include_str!("../archs/gemma3.toml")),
    ("archs/glm4.toml", include_str!("../archs/glm4.toml")),
    ("archs/gpt-oss.toml", include_str!("../archs/gpt-oss.toml")),
    ("archs/gpt2.toml", include_str!("../archs/gpt2.toml")),
    ("archs/gptneox.toml", include_str!("../archs/gptneox.toml")),
    ("archs/granite.toml", include_str!("../archs/granite.toml")),
    ("archs/granitemoe.toml", include_str!("../archs/granitemoe.toml")),
    ("archs/hunyuan-dense.toml", include_str!("../archs/hunyuan-dense.toml")),
    ("archs/internlm2.toml", include_str!("../archs/internlm2.toml")),
    ("archs/lfm2.toml", include_str!("../archs/lfm2.toml")),
    ("archs/llama.toml", include_str!("../archs/llama.toml")),
    ("archs/mamba.toml", include_str!("../archs/mamba.toml")),
    ("archs/minimax-m2.toml", include_str!("../archs/minimax-m2.toml")),
    ("archs/modern-bert.toml", include_str!("../archs/modern-bert.toml")),
    ("archs/nomic-bert.toml", include_str!("../archs/nomic-bert.toml")),
    ("archs/olmo.toml", include_str!("../archs/olmo.toml")),
    ("archs/olmo2.toml", include_str!("../archs/olmo2.toml")),
    ("archs/olmoe.toml", include_str!("../archs/olmoe.toml")),
    ("archs/phi2.toml", include_str!("../archs/phi2.toml")),
    ("archs/phi3.toml", include_str!("../archs/phi3.toml")),
    ("archs/qwen2.toml", include_str!("../archs/qwen2.toml")),
    ("archs/qwen2moe.toml", include_str!("../archs/qwen2moe.toml")),
    ("archs/qwen3.toml", include_str!("../archs/qwen3.toml")),
    ("archs/qwen3moe.toml", include_str!("../archs/qwen3moe.toml")),
    ("archs/roberta.toml", include_str!("../archs/roberta.toml")),
    ("archs/seed_oss.toml", include_str!("../archs/seed_oss.toml")),
    ("archs/smollm3.toml", include_str!("../archs/smollm3.toml")),
    ("archs/stablelm.toml", include_str!("../archs/stablelm.toml")),
    ("archs/starcoder2.toml", include_str!("../archs/starcoder2.toml")),
    ("archs/t5.toml", include_str!("../archs/t5.toml")),
    ("archs/t5encoder.toml", include_str!("../archs/t5encoder.toml")),
    ("archs/xlm-roberta.toml", include_str!("../archs/xlm-roberta.toml")),
];

/// Bytes of the largest description file that is read.
const FILE_LIMIT: u64 = 1 << 20;

/// The known architectures.
#[derive(Clone, Debug)]
pub struct Families {
    // Later ones were added at run time and are looked at first.
    families: Vec<Arc<Family>>,
    added: Vec<PathBuf>,
}

impl Families {
    /// The architectures described in this version of mlpack.
    pub fn builtin() -> Families {
        let parse = |&(name, text): &(&str, &str)| {
            Arc::new(Family::parse(Path::new(name), text).expect("a unit test parses every built-in description"))
        };
        Families { families: BUILTIN.iter().map(parse).collect(), added: Vec::new() }
    }

    /// Adds the description in `path`; what it says about a class or a model type goes before what is built in.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or breaks a rule of the format.
    pub fn with_file(&mut self, path: &Path) -> Result<(), Error> {
        let text = mlpack_fs::read_to_string_bounded(path, FILE_LIMIT)?;
        self.families.push(Arc::new(Family::parse(path, &text)?));
        self.added.push(path.to_owned());
        Ok(())
    }

    /// The files that were added, in that order.
    pub fn files(&self) -> &[PathBuf] {
        &self.added
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
    pub(crate) name: String,
    pub(crate) arch: String,
    pub(crate) description: String,
    pub(crate) tokenizer: VocabReader,
    pub(crate) pooling: bool,
    pub(crate) common_metadata: bool,
    pub(crate) extra_tensors: Vec<ExtraKind>,
    pub(crate) remove_from_names: Vec<String>,
    pub(crate) ignored_fields: Vec<String>,
    pub(crate) dropped_tensors: Vec<String>,
    pub(crate) tied_head_dropped: bool,
    pub(crate) extra_layers_dropped: bool,
    pub(crate) refused: Vec<RefusedField>,
    pub(crate) refused_names: Vec<String>,
    pub(crate) classes: BTreeMap<String, Class>,
    pub(crate) metadata: Vec<MetadataEntry>,
    pub(crate) tensors: Vec<TensorEntry>,
    pub(crate) decoder: Option<DecoderEntry>,
    pub(crate) configs: BTreeMap<String, ConfigTable>,
}

impl Family {
    /// Its name: the value of `general.architecture`, or another where several families share that one.
    pub fn name(&self) -> &str {
        &self.name
    }

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

/// A config that the converter treats in a way of its own, and mlpack not.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RefusedField {
    /// A field; `rope.NAME` is one of the rope parameters.
    pub field: String,
    /// Refused with one of these values; with none of them, with every value that Python takes for true.
    #[serde(default)]
    pub values: Vec<String>,
    /// Refused when it is missing or Python takes it for false.
    #[serde(default)]
    pub when_false: bool,
}

/// A tensor that is made from the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ExtraKind {
    /// `rope_freqs.weight` of models with `rope_type` "llama3".
    Llama3RopeFreqs,
    /// `rope_factors_long.weight` and `rope_factors_short.weight` of models with a `long_factor`.
    LongropeFactors,
}

/// One key that the family adds after the keys common to all text models.
#[derive(Clone, Debug)]
pub(crate) struct MetadataEntry {
    pub key: String,
    pub kind: ValueKind,
    /// Config fields; the first that is there counts.
    pub from: Vec<String>,
    /// Where the value comes from else.
    pub or: Option<Expression>,
    /// A value that is always the same.
    pub value: Option<Constant>,
    pub optional: bool,
    /// No key when this field is missing or null.
    pub only_with: Option<String>,
    /// No key for a value that Python takes for false.
    pub unless_zero: bool,
    /// It comes after the keys of the pooling.
    pub after_pooling: bool,
}

/// A value of a description.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum Constant {
    Bool(bool),
    Integer(u32),
    Float(f64),
    Text(String),
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
    /// The number of layers, wherever the config has it.
    LayerCount,
    /// The file type asked for.
    FileType,
    /// One truth value per layer: whether its type is `sliding_attention`.
    SlidingPattern,
    /// One number per layer: that of the field in layers of attention, 0 in layers of type `conv`.
    HeadsOfAttention,
    /// The size of the field, with `block_auto_adjust_ff_dim` two thirds of it, scaled and rounded up as the other
    /// `block_*` fields say.
    AdjustedFeedForward,
    /// The names of a classifier's labels in the order of their numbers, where they are not the ones that transformers
    /// makes up for two.
    ClassLabels,
}

/// One kind of tensor.
#[derive(Clone, Debug)]
pub(crate) struct TensorEntry {
    /// GGUF names; more than one only for a tensor that is split.
    pub gguf: Vec<String>,
    pub hf: Vec<Template>,
    /// Put behind the GGUF name of a tensor whose own name has no suffix.
    pub suffix: String,
    pub transform: TransformEntry,
    pub values: ValueChange,
    /// Of several such tensors in a checkpoint, the first alone is written: they are the same.
    pub first_only: bool,
    /// It is there for classifiers with named labels alone, or for all others alone.
    pub labels: Option<bool>,
}

/// What is done to the values of a tensor, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueChange {
    /// Nothing.
    #[default]
    None,
    /// One is added, in float16 for a float16 tensor and in float32 for every other.
    AddOne,
    /// `-exp(v)`, with the exponential rounded to float16 for a float16 tensor and to float32 for every other.
    NegativeExp,
}

/// A tensor name without its suffix, with the layer number left open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Template {
    Plain(String),
    Layer {
        before: String,
        after: String,
    },
    /// A member of a stack, such as the matrix of one expert.
    Member {
        before: String,
        between: String,
        after: String,
    },
}

/// The numbers in a tensor's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Numbers {
    pub layer: Option<u64>,
    pub member: Option<u64>,
}

impl Template {
    fn parse(text: &str) -> Option<Template> {
        let Some((before, rest)) = text.split_once(LAYER) else {
            return (!text.contains(MEMBER)).then(|| Template::Plain(text.to_owned()));
        };
        if before.contains(MEMBER) || rest.contains(LAYER) {
            return None;
        }
        let before = before.to_owned();
        match rest.split_once(MEMBER) {
            None => Some(Template::Layer { before, after: rest.to_owned() }),
            Some((_, after)) if after.contains(MEMBER) => None,
            Some((between, after)) => {
                Some(Template::Member { before, between: between.to_owned(), after: after.to_owned() })
            }
        }
    }

    fn is_layered(&self) -> bool {
        !matches!(self, Template::Plain(_))
    }

    fn is_member(&self) -> bool {
        matches!(self, Template::Member { .. })
    }

    /// The name for a layer, and for a member of a stack.
    pub fn name(&self, layer: u64, member: u64) -> String {
        match self {
            Template::Plain(name) => name.clone(),
            Template::Layer { before, after } => format!("{before}{layer}{after}"),
            Template::Member { before, between, after } => format!("{before}{layer}{between}{member}{after}"),
        }
    }

    /// The numbers in `name`, when it is a name of this kind.
    pub fn matches(&self, name: &str) -> Option<Numbers> {
        match self {
            Template::Plain(plain) => (plain == name).then_some(Numbers::default()),
            Template::Layer { before, after } => {
                let layer = number(name.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?)?;
                Some(Numbers { layer: Some(layer), member: None })
            }
            Template::Member { before, between, after } => {
                let numbers = name.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
                let (layer, member) = numbers.split_once(between.as_str())?;
                Some(Numbers { layer: Some(number(layer)?), member: Some(number(member)?) })
            }
        }
    }
}

/// A number as it is written in names: "01" and "+1" parse as numbers but are not.
fn number(digits: &str) -> Option<u64> {
    digits.parse().ok().filter(|n: &u64| n.to_string() == digits)
}

/// Stands for the layer number in names.
pub(crate) const LAYER: &str = "{bid}";

/// Stands for the number of a member of a stack in names.
pub(crate) const MEMBER: &str = "{xid}";

/// What is done to the order of a tensor's values.
#[derive(Clone, Debug, PartialEq, Default, Deserialize)]
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
    /// Tensors of one shape become the outermost dimension of one tensor.
    Stack {
        /// Config fields that hold their number.
        count: Vec<String>,
        /// Stacks of a layer with the same word are written together, when the last of their members is there.
        #[serde(default)]
        group: String,
    },
    /// The rows of every matrix are divided among the outputs: equally, or as the sizes say.
    Split {
        #[serde(default)]
        sizes: Vec<Expression>,
    },
    /// Rows and columns of every matrix change places.
    Transpose,
    /// Rows stored as (head, query or key or value, row) become queries, keys, values.
    PartsOfHeads {
        /// Config fields that hold the number of heads.
        heads: Vec<String>,
    },
    /// Rows stored as groups of query heads, a key head and a value head become queries, keys, values.
    HeadsOfGroups {
        /// Config fields that hold the number of query heads.
        heads: Vec<String>,
        /// Config fields that hold the number of groups; 1 when none is there.
        groups: Vec<String>,
    },
    /// Three equal parts, queries, keys and values, each with the rows of every head; those of queries and keys go from
    /// "two halves" to "pairs".
    PermutedParts {
        /// Config fields that hold the number of heads.
        heads: Vec<String>,
    },
    /// Groups of query heads, a key head and a value head are divided among queries, keys and values; rows of heads of
    /// queries and keys go from "two halves" to "pairs".
    PermutedGroups {
        /// Config fields that hold the number of query heads.
        heads: Vec<String>,
        /// Config fields that hold the number of groups.
        groups: Vec<String>,
    },
    /// MXFP4 with scales beside it, as gpt-oss stores its experts: blocks of 16 bytes are the innermost dimension.
    Mxfp4 {
        /// Rows belong to two tensors in turn.
        #[serde(default)]
        interleaved: bool,
    },
    /// The elements of every row belong to two tensors in turn.
    Interleaved {
        /// Rows and columns of every matrix change places.
        #[serde(default)]
        transposed: bool,
    },
    /// The first rows go away; none where a field is missing.
    SkipRows {
        /// How many.
        count: Expression,
    },
    /// Rows stored as (head, key or value, row) become keys, each head transposed, and values.
    LatentHeads {
        /// Config fields that hold the number of heads.
        heads: Vec<String>,
        /// The rows of a key.
        keys: Expression,
        /// The rows of a value.
        values: Expression,
    },
    /// Rows beyond the vocabulary of the tokenizer go away.
    VocabularyRows,
    /// A dimension of one element goes away.
    Squeeze {
        /// Its place.
        dim: usize,
    },
}

/// What transformers makes of a config.json of one `model_type`.
#[derive(Clone, Debug)]
pub(crate) struct ConfigTable {
    pub rope_theta: f64,
    /// The default of `partial_rotary_factor` in the rope parameters.
    pub partial_rotary_factor: Option<f64>,
    /// The rope parameters are an object per layer type; `rope_theta` is that of full attention, this the other.
    pub sliding_rope_theta: Option<f64>,
    /// The fields with the theta of full and of sliding attention; a `rope_scaling` counts for both then.
    pub rope_theta_fields: Option<[String; 2]>,
    /// Other names of fields.
    pub aliases: BTreeMap<String, String>,
    pub checks: Vec<ConfigCheck>,
    pub fields: BTreeMap<String, Field>,
    /// The converter reads the config without transformers: there are no defaults.
    pub plain: bool,
}

/// A rule of one config class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ConfigCheck {
    /// `hidden_size` is a multiple of `num_attention_heads`.
    HeadsDivideHiddenSize,
    /// The rope type is `default` or `longrope`, by that name or an older one.
    Phi3Rope,
}

/// One declared field of a config class.
#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub types: Vec<FieldType>,
    pub default: serde_json::Value,
    pub or: Option<Derived>,
    /// What it is whatever the file says.
    pub always: Option<Expression>,
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

/// What a null field of a config becomes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Derived {
    /// A value computed from other fields.
    Expression(Expression),
    /// One layer type per layer: sliding from the layer in that field on, when there is a sliding window.
    SlidingAfter(String),
    /// One layer type per layer: full attention in every layer whose number, counted from 1, is a multiple of that.
    SlidingUnlessEvery(Expression),
    /// One layer type per layer: full attention in every layer whose number, counted from 0, is a multiple of that field,
    /// which the class does not declare, or else of the number.
    FullEvery(String, i64),
    /// One layer type per layer: attention in the layers that the field lists (all when it is null), else `conv`.
    AttentionIn(String),
}

impl Derived {
    fn parse(text: &str) -> Option<Derived> {
        let call = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
        let word = |argument: &str| {
            let ok = !argument.is_empty() && argument.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            ok.then(|| argument.to_owned())
        };
        if let Some(argument) = call("sliding_after") {
            return word(argument).map(Derived::SlidingAfter);
        }
        if let Some(argument) = call("attention_in") {
            return word(argument).map(Derived::AttentionIn);
        }
        if let Some((field, default)) = call("full_every").and_then(|arguments| arguments.split_once(',')) {
            return Some(Derived::FullEvery(word(field)?, default.trim().parse().ok()?));
        }
        if let Some(argument) = call("sliding_unless_every") {
            return Some(Derived::SlidingUnlessEvery(Expression::parse(argument)?));
        }
        Some(Derived::Expression(Expression::parse(text)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const LLAMA: &str = include_str!("../archs/llama.toml");

    #[test]
    fn every_built_in_description_parses_and_serves_classes_of_its_own() {
        let mut classes = HashSet::new();
        let mut model_types = HashSet::new();
        for (name, text) in BUILTIN {
            let family = Family::parse(Path::new(name), text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(format!("archs/{}.toml", family.name()), *name, "a file is named like its family");
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
        assert_eq!(template.matches("model.layers.12.mlp"), Some(Numbers { layer: Some(12), member: None }));
        for name in ["model.layers.01.mlp", "model.layers.+1.mlp", "model.layers..mlp", "model.layers.1.mlps"] {
            assert_eq!(template.matches(name), None, "{name}");
        }
        assert_eq!(template.name(3, 0), "model.layers.3.mlp");
        let member = Template::parse("layers.{bid}.experts.{xid}.w1").unwrap();
        assert_eq!(member.matches("layers.2.experts.10.w1"), Some(Numbers { layer: Some(2), member: Some(10) }));
        assert_eq!(
            (member.matches("layers.2.experts.w1"), member.name(1, 7)),
            (None, "layers.1.experts.7.w1".to_owned())
        );
        assert_eq!((Template::parse("{xid}.{bid}"), Template::parse("a.{xid}")), (None, None));
    }

    #[test]
    fn a_run_time_description_goes_before_the_built_in_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.toml");
        let text = LLAMA.replace("arch = \"llama\"", "arch = \"mine\"");
        std::fs::write(&path, text).unwrap();
        let mut families = Families::builtin();
        families.with_file(&path).unwrap();
        let found = families.find("LlamaForCausalLM").unwrap();
        assert_eq!((found.arch(), found.source()), ("mine", path.as_path()));
        assert_eq!(families.find("Qwen2ForCausalLM").unwrap().arch(), "qwen2");
    }

    #[test]
    fn a_broken_description_is_refused_with_its_place() {
        let llama = LLAMA;
        let broken = |from: &str, to: &str| {
            assert!(llama.contains(from), "{from}");
            Family::parse(Path::new("x.toml"), &llama.replacen(from, to, 1)).unwrap_err()
        };
        let line = llama.lines().position(|l| l == "tokenizer = \"llama\"").unwrap() + 1;
        match broken("tokenizer = \"llama\"", "tokenizer = \"whitespace\"") {
            Error::DescriptionSyntax { line: found, message, .. } => {
                assert_eq!(found, line);
                assert!(message.contains("whitespace") && message.contains("`llama`"), "{message}");
            }
            other => panic!("{other}"),
        }
        let places = [
            ("arch = \"llama\"", "arch = \"Lla ma\"", "arch"),
            ("\"{arch}.vocab_size\"", "\"vocab_size\"", "metadata `vocab_size`"),
            ("from = [\"vocab_size\"]", "from = []", "metadata `{arch}.vocab_size`"),
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
