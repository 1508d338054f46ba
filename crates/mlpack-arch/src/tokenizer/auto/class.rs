//! The tokenizer class that transformers loads for a folder, and the tokenizer that the class makes of `tokenizer.json`.

use super::options::Options;
use super::{CONFIG, FILE, ModelKind};
use crate::json::is_truthy;
use crate::tokenizer::files::Object;
use crate::tokenizer::pre::rows;
use crate::tokenizer::{Error, Input};
use serde_json::{Value, json};

/// What transformers does with `tokenizer.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend` and the classes that add nothing: the file as it stands.
    File,
    /// `LlamaTokenizer` (`models/llama/tokenization_llama.py`).
    Llama,
    /// `Qwen2Tokenizer` (`models/qwen2/tokenization_qwen2.py`).
    Qwen2,
    /// `Qwen3_5Tokenizer` (`models/qwen3_5/tokenization_qwen3_5.py`).
    Qwen35,
    /// `GPT2Tokenizer` (`models/gpt2/tokenization_gpt2.py`), and `CodeGenTokenizer`, which builds the same.
    Gpt2,
    /// `GPTNeoXTokenizer` (`models/gpt_neox/tokenization_gpt_neox.py`).
    GptNeoX,
    /// `CohereTokenizer` (`models/cohere/tokenization_cohere.py`).
    Cohere,
    /// `GemmaTokenizer` (`models/gemma/tokenization_gemma.py`).
    Gemma,
    /// `RobertaTokenizer` (`models/roberta/tokenization_roberta.py`).
    Roberta,
    /// `BertTokenizer` (`models/bert/tokenization_bert.py`).
    Bert,
    /// `XLMRobertaTokenizer` (`models/xlm_roberta/tokenization_xlm_roberta.py`).
    XlmRoberta,
}

/// The class that a class name stands for, and whether it rebuilds; `None` when transformers has no such class.
fn class_of(name: &str) -> Option<(&'static str, &'static str)> {
    let find = |name: &str| {
        rows(include_str!("../data/transformers-classes.tsv")).find(|row| row[0] == name).map(|row| (row[1], row[2]))
    };
    find(name).or_else(|| name.strip_suffix("Fast").and_then(find))
}

/// The tokenizer class that is registered for a model type, and whether it overrules what a checkpoint says.
fn registered(model_type: &str) -> Option<(&'static str, bool)> {
    let row = rows(include_str!("../data/transformers-model-types.tsv")).find(|row| row[0] == model_type)?;
    Some((row[1], row.len() > 2))
}

fn without_fast(name: &str) -> &str {
    name.strip_suffix("Fast").unwrap_or(name)
}

/// Whether the name is one of the generic classes, which say nothing about the tokenizer.
fn is_generic(class: &str) -> bool {
    matches!(class, "TokenizersBackend" | "PythonBackend" | "PreTrainedTokenizerFast")
}

/// Chooses the class (`models/auto/tokenization_auto.py`, `AutoTokenizer.from_pretrained`).
///
/// A class that is for another kind of model than the file holds is passed over with a warning.
pub(super) fn resolve(input: &mut Input<'_>, kind: ModelKind) -> Class {
    let class = declared(input);
    if class.model().is_none_or(|model| model == kind) {
        return class;
    }
    input.warnings.push(format!(
        "`{CONFIG}` names a tokenizer class for another kind of model than that of `{FILE}`; mlpack reads the file as it \
         stands"
    ));
    Class::File
}

fn declared(input: &mut Input<'_>) -> Class {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
    let tokenizer_config = input.files.tokenizer_config.as_ref();
    let own = text(tokenizer_config.and_then(|c| c.get("tokenizer_class")));
    let of_model = text(input.config.get("tokenizer_class"));
    let remote_code = tokenizer_config.and_then(|c| c.get("auto_map")).is_some_and(is_truthy);
    let model_type = text(input.config.get("model_type")).unwrap_or_default();
    let model_name = text(input.config.get("model_name")).unwrap_or_default();
    let overrules = [&model_type, &model_name].into_iter().any(|t| registered(t).is_some_and(|(_, wrong)| wrong));
    let registered = registered(&model_type).map(|(class, _)| without_fast(class));
    let byte_level = input.files.tokenizer_json_text.contains("\"ByteLevel\"");
    if remote_code {
        input.warnings.push(format!(
            "`{CONFIG}` asks for a tokenizer class of its own code (`auto_map`); mlpack reads `{FILE}` as it stands"
        ));
    }
    if registered == Some("MistralCommonBackend") && input.files.has("tekken.json") {
        input.warnings.push(format!("`tekken.json` is not read; the tokenizer is taken from `{FILE}`"));
    }

    let declared = own.as_deref().or(of_model.as_deref());
    let name = match (declared, registered) {
        (Some(declared), registered)
            if !remote_code
                && without_fast(declared) == "LlamaTokenizer"
                && registered != Some("MistralCommonBackend")
                && !overrules
                && byte_level =>
        {
            "TokenizersBackend"
        }
        (Some(declared), Some(registered)) if !remote_code && registered != without_fast(declared) => {
            let name = if overrules { registered } else { declared };
            let specific = !is_generic(registered) && registered != "MistralCommonBackend";
            match class_of(name) {
                Some((class, _)) if specific && !is_generic(class) => name,
                _ => "TokenizersBackend",
            }
        }
        (Some(declared), _) => without_fast(declared),
        (None, Some("MistralCommonBackend") | None) => "TokenizersBackend",
        (None, Some(registered)) => registered,
    };
    match class_of(name) {
        None | Some(("PythonBackend" | "TokenizersBackend", _) | (_, "file")) => Class::File,
        Some(("LlamaTokenizer", _)) => Class::Llama,
        Some(("Qwen2Tokenizer", _)) => Class::Qwen2,
        Some(("Qwen3_5Tokenizer", _)) => Class::Qwen35,
        Some(("GPT2Tokenizer" | "CodeGenTokenizer", _)) => Class::Gpt2,
        Some(("GPTNeoXTokenizer", _)) => Class::GptNeoX,
        Some(("CohereTokenizer", _)) => Class::Cohere,
        Some(("GemmaTokenizer", _)) => Class::Gemma,
        Some(("RobertaTokenizer", _)) => Class::Roberta,
        Some(("BertTokenizer" | "DistilBertTokenizer", _)) => Class::Bert,
        Some(("XLMRobertaTokenizer", _)) => Class::XlmRoberta,
        Some((class, _)) => {
            input.warnings.push(format!(
                "transformers 5.23.0 loads this tokenizer as `{class}`, which changes what `{FILE}` says; mlpack uses \
                 the file as it stands, so the result may differ from llama.cpp's"
            ));
            Class::File
        }
    }
}

/// The `tokenizer.json` of a class that brings its own components.
pub(super) fn rebuild(class: Class, json: &Object, options: &Options, input: &Input<'_>) -> Result<Object, Error> {
    let byte_level = |prefix: bool, use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex});
    let split =
        |pattern, behavior: &str| json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": false});
    let sequence = |parts: [Value; 2]| json!({"type": "Sequence", "pretokenizers": parts});
    let by_regex =
        |regex: &str, prefix| sequence([split(json!({"Regex": regex}), "Isolated"), byte_level(prefix, false)]);
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split});
    let spaces = || {
        vec![
            json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ]
    };
    let nfc = json!({"type": "NFC"});
    let prefix = options.prefix_space(class);
    let (normalizer, pre_tokenizer, decoder) = match class {
        Class::Llama => {
            let scheme = match (options.add_prefix_space.unwrap_or(true), options.legacy) {
                (false, _) => "never",
                (true, true) => "always",
                (true, false) => "first",
            };
            let mut decoders = spaces();
            if options.add_prefix_space.unwrap_or(true) {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            (Value::Null, metaspace(scheme, false), json!({"type": "Sequence", "decoders": decoders}))
        }
        Class::Gemma => (
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}),
            split(json!({"String": " "}), "MergedWithPrevious"),
            json!({"type": "Sequence", "decoders": spaces()}),
        ),
        Class::Qwen2 => (nfc, by_regex(QWEN2, prefix), byte_level(true, true)),
        Class::Qwen35 => (nfc, by_regex(QWEN35, prefix), byte_level(true, true)),
        Class::Gpt2 | Class::Roberta => (Value::Null, byte_level(prefix, true), byte_level(true, true)),
        Class::GptNeoX => (nfc, byte_level(prefix, true), byte_level(true, true)),
        Class::Cohere => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (nfc, sequence([digits, byte_level(prefix, true)]), byte_level(prefix, true))
        }
        Class::Bert => (
            json!({
                "type": "BertNormalizer",
                "clean_text": true,
                "handle_chinese_chars": options.tokenize_chinese_chars,
                "strip_accents": options.strip_accents,
                "lowercase": options.do_lower_case,
            }),
            json!({"type": "BertPreTokenizer"}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        ),
        Class::XlmRoberta => {
            let scheme = if prefix { "always" } else { "never" };
            let normalizer = charsmap(json.get("normalizer")).cloned().unwrap_or(Value::Null);
            let words = json!({"type": "WhitespaceSplit"});
            (normalizer, sequence([words, metaspace(scheme, true)]), metaspace(scheme, true))
        }
        Class::File => unreachable!("a file that is used as it stands is not rebuilt"),
    };
    let model = json.get("model").and_then(Value::as_object).cloned().unwrap_or_default();
    let vocab = model.get("vocab").cloned().unwrap_or_else(|| json!({}));
    let model = match class.model() {
        Some(ModelKind::WordPiece) => json!({
            "type": "WordPiece",
            "unk_token": options.content("unk_token").unwrap_or("[UNK]"),
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        }),
        Some(ModelKind::Unigram) => json!({"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": false}),
        _ => {
            let pieces = matches!(class, Class::Llama | Class::Gemma);
            let affix = if pieces { Value::Null } else { "".into() };
            json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": if class == Class::Gemma { json!(options.content("unk_token")) } else { Value::Null },
                "continuing_subword_prefix": affix,
                "end_of_word_suffix": affix,
                "fuse_unk": pieces,
                "byte_fallback": pieces,
                "ignore_merges": false,
                "vocab": vocab,
                "merges": pairs(model.get("merges"), input)?,
            })
        }
    };
    let rebuilt = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": if class.own_processor() { Value::Null } else { json.get("post_processor").cloned().unwrap_or(Value::Null) },
        "decoder": decoder,
        "model": model,
    });
    match rebuilt {
        Value::Object(object) => Ok(object),
        _ => unreachable!("json! with braces makes an object"),
    }
}

/// The first `Precompiled` normalizer, at the top or in a sequence.
fn charsmap(normalizer: Option<&Value>) -> Option<&Value> {
    let normalizer = normalizer?;
    let own = std::slice::from_ref(normalizer);
    let list = normalizer.get("normalizers").and_then(Value::as_array).map_or(own, Vec::as_slice);
    list.iter().find(|n| n.get("type").and_then(Value::as_str) == Some("Precompiled"))
}

/// The regex of `Qwen2Tokenizer` (`PRETOKENIZE_REGEX`).
pub(in crate::tokenizer) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The regex of `Qwen3_5Tokenizer`.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Merges as pairs; lines are cut at their space.
fn pairs(merges: Option<&Value>, input: &Input<'_>) -> Result<Value, Error> {
    let list = merges.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let pair = |merge: &Value| match merge {
        Value::String(line) => match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => Ok(json!([left, right])),
            _ => Err(input.files.wrong_type(FILE, "model.merges", "lines of two parts", merge)),
        },
        other => Ok(other.clone()),
    };
    list.iter().map(pair).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

impl Class {
    /// The kind of model that the class builds; `None` for any.
    fn model(self) -> Option<ModelKind> {
        match self {
            Class::File => None,
            Class::Bert => Some(ModelKind::WordPiece),
            Class::XlmRoberta => Some(ModelKind::Unigram),
            _ => Some(ModelKind::Bpe),
        }
    }

    /// `add_prefix_space` of the class when the configuration does not say.
    pub(super) fn prefix_space(self) -> bool {
        self == Class::XlmRoberta
    }

    /// Whether the class replaces the post-processor of the file.
    fn own_processor(self) -> bool {
        matches!(self, Class::Bert | Class::Roberta | Class::XlmRoberta | Class::GptNeoX)
    }

    /// The post-processor that the class sets after its tokens are added, where it sets one. `GPTNeoXTokenizer` sets one
    /// that adds nothing: the flags that it looks at are dropped when there is a `tokenizer.json`.
    pub(super) fn post_processor(self, options: &Options, id: impl Fn(&str) -> Option<u32>) -> Option<Value> {
        let special = |token: &str, kind: u32| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let sequence = |name: &str, kind: u32| json!({"Sequence": {"id": name, "type_id": kind}});
        let entry = |token: &str, id: u32| json!({"id": token, "ids": [id], "tokens": [token]});
        let named = |key: &str| options.content(key).unwrap_or_default().to_owned();
        match self {
            Class::Bert => {
                let (cls, sep) = (named("cls_token"), named("sep_token"));
                Some(json!({
                    "type": "TemplateProcessing",
                    "single": [special(&cls, 0), sequence("A", 0), special(&sep, 0)],
                    "pair": [special(&cls, 0), sequence("A", 0), special(&sep, 0), sequence("B", 1), special(&sep, 1)],
                    "special_tokens": {
                        &cls: entry(&cls, id(&cls).unwrap_or(2)),
                        &sep: entry(&sep, id(&sep).unwrap_or(3)),
                    },
                }))
            }
            Class::Roberta => {
                let (cls, sep) = (named("cls_token"), named("sep_token"));
                Some(json!({
                    "type": "RobertaProcessing",
                    "sep": [sep, id(&sep)?],
                    "cls": [cls, id(&cls)?],
                    "trim_offsets": true,
                    "add_prefix_space": options.prefix_space(self),
                }))
            }
            Class::XlmRoberta => {
                let (bos, eos) = (named("bos_token"), named("eos_token"));
                let (start, end) = (special(&bos, 0), special(&eos, 0));
                Some(json!({
                    "type": "TemplateProcessing",
                    "single": [start, sequence("A", 0), end],
                    "pair": [start, sequence("A", 0), end, end, sequence("B", 0), end],
                    "special_tokens": {&bos: entry(&bos, id(&bos)?), &eos: entry(&eos, id(&eos)?)},
                }))
            }
            _ => None,
        }
    }

    /// Special tokens that the class has when the configuration does not say.
    pub(super) fn defaults(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Class::File => &[],
            Class::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Class::Gpt2 => &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
            Class::GptNeoX => {
                &[("bos_token", END), ("eos_token", END), ("unk_token", END), ("pad_token", "<|padding|>")]
            }
            Class::Qwen2 | Class::Qwen35 => &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
            Class::Cohere => &[
                ("bos_token", "<BOS_TOKEN>"),
                ("eos_token", "<|END_OF_TURN_TOKEN|>"),
                ("unk_token", "<UNK>"),
                ("sep_token", "<SEP>"),
                ("pad_token", "<PAD>"),
                ("cls_token", "<CLS>"),
                ("mask_token", "<MASK_TOKEN>"),
            ],
            Class::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Class::Roberta | Class::XlmRoberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
            Class::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
        }
    }
}
