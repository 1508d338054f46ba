//! The files under `encoders/`.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    pub model_type: String,
    /// What a class with a head puts before the names of the encoder's tensors.
    pub prefix: String,
    pub placement: Placement,
    pub positions: Positions,
    pub token_types: Option<TokenTypes>,
    #[serde(default)]
    pub gated: bool,
    /// Tensors that the outputs do without; `*` at the end is any ending.
    #[serde(default)]
    pub unused: Vec<String>,
    /// Fields that change the computation in a way that is not described.
    #[serde(default)]
    pub refused: Vec<String>,
    pub fields: Fields,
    /// What transformers takes for a field that is missing.
    pub defaults: Map<String, Value>,
    pub tensors: TensorNames,
    pub classes: BTreeMap<String, ClassEntry>,
}

/// The fields of config.json with the numbers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fields {
    pub hidden: String,
    pub feed_forward: String,
    pub layers: String,
    pub heads: String,
    pub epsilon: String,
    pub activation: String,
    pub head_activation: Option<String>,
    pub classifier_pooling: Option<String>,
}

/// The names of tensors, without `.weight` and `.bias`; `{}` is the layer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each is the tensor of its name")]
pub struct TensorNames {
    pub word: String,
    pub position: Option<String>,
    pub token_type: Option<String>,
    pub embedding_norm: String,
    pub relative_bias: Option<String>,
    pub query: Option<String>,
    pub key: Option<String>,
    pub value: Option<String>,
    pub qkv: Option<String>,
    pub attention_output: String,
    pub attention_norm: String,
    pub up: String,
    pub down: String,
    pub output_norm: String,
    pub final_norm: Option<String>,
}

/// Where the norms of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Of what goes into attention and feed-forward network; the first layer's attention has none.
    Before,
    /// Of the sums after them.
    After,
}

/// How positions are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// By a table, from its first row on.
    Sequence,
    /// By a table: tokens that are not padding count on from the row after the padding's.
    Unpadded,
    /// By rotation.
    Rotary,
}

/// How token types are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenTypes {
    /// By an input.
    Input,
    /// There is one.
    First,
}

/// A class and its head.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClassEntry {
    pub task: TaskKind,
    pub dense: Option<String>,
    /// `tanh`, `relu` or `gelu`; that of the layers where it is not said.
    pub activation: Option<String>,
    pub norm: Option<String>,
    pub out: Option<String>,
    pub bias: Option<String>,
}

/// What a class is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum TaskKind {
    FeatureExtraction,
    FillMask,
    TextClassification,
    TokenClassification,
    QuestionAnswering,
}

impl TaskKind {
    /// Its name, as transformers' pipelines have it.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::FeatureExtraction => "feature-extraction",
            TaskKind::FillMask => "fill-mask",
            TaskKind::TextClassification => "text-classification",
            TaskKind::TokenClassification => "token-classification",
            TaskKind::QuestionAnswering => "question-answering",
        }
    }
}

const FILES: &[(&str, &str)] = &[
    ("bert", include_str!("../../encoders/bert.toml")),
    ("distilbert", include_str!("../../encoders/distilbert.toml")),
    ("modernbert", include_str!("../../encoders/modernbert.toml")),
    ("mpnet", include_str!("../../encoders/mpnet.toml")),
    ("roberta", include_str!("../../encoders/roberta.toml")),
    ("xlm-roberta", include_str!("../../encoders/xlm-roberta.toml")),
];

/// The descriptions that are built in.
pub(super) fn descriptions() -> &'static [Description] {
    static DESCRIPTIONS: LazyLock<Vec<Description>> = LazyLock::new(|| {
        let read = |(name, text): &(&str, &str)| {
            toml::from_str(text).unwrap_or_else(|e| panic!("encoders/{name}.toml is tested: {e}"))
        };
        FILES.iter().map(read).collect()
    });
    &DESCRIPTIONS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_read_and_every_head_has_an_output() {
        for description in descriptions() {
            for (class, entry) in &description.classes {
                let has_head = entry.task != TaskKind::FeatureExtraction;
                assert_eq!(entry.out.is_some(), has_head, "{class}");
            }
            let tensors = &description.tensors;
            assert_eq!(tensors.qkv.is_some(), tensors.query.is_none(), "{}", description.model_type);
            assert_eq!(tensors.position.is_none(), description.positions == Positions::Rotary);
        }
    }
}
