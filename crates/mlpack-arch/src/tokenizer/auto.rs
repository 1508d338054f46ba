//! The tokenizer that `AutoTokenizer.from_pretrained` of transformers 5.23.0 makes of a folder with a `tokenizer.json`.
//!
//! Since version 5 a class may rebuild the tokenizer: it takes vocabulary, merges and post-processor from the file and
//! brings its own normalizer, pre-tokenizer and decoder. Which class is loaded depends on `tokenizer_config.json`, on
//! the model type and on two tables (`data/transformers-classes.tsv`, `data/transformers-model-types.tsv`). The classes
//! of [`Class`] are rebuilt here as they are there; any other class that rebuilds is warned about and the file is used
//! as it stands. Afterwards both add the tokens that the configuration names.

use super::files::Object;
use super::pre::{Structure, rows};
use super::{Error, Input};
use crate::json::is_truthy;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

/// A tokenizer as transformers runs it.
pub(super) struct Loaded {
    pub(super) tokenizer: Tokenizer,
    /// `all_special_tokens`: the named special tokens, then the extra ones, each once.
    pub(super) specials: Vec<String>,
    pub(super) structure: Structure,
}

/// Loads the folder's tokenizer. `tokenizer.json` must be there and hold a BPE model.
pub(super) fn load(input: &mut Input<'_>) -> Result<Loaded, Error> {
    let path = input.files.dir.join(FILE);
    let json = input.files.tokenizer_json.as_ref().ok_or_else(|| Error::NoVocabulary {
        dir: input.files.dir.to_owned(),
        looked_for: vec!["tokenizer.model", FILE],
    })?;
    let kind = json.get("model").and_then(|m| m.get("type")).unwrap_or(&Value::Null);
    if kind.as_str() != Some("BPE") {
        let found = super::files::describe(kind);
        return Err(Error::NotBpe { path, found });
    }
    let class = resolve(input);
    let options = Options::read(input, class)?;
    let json = input.files.tokenizer_json.as_ref().expect("checked above");
    let rebuilt = match class {
        Class::File => None,
        class => Some(rebuild(class, json, &options, input)?),
    };
    let structure = Structure::of(rebuilt.as_ref().unwrap_or(json));
    let text = match &rebuilt {
        None => &input.files.tokenizer_json_text,
        Some(json) => &serde_json::to_string(json).expect("a JSON value is always text"),
    };
    let specials = options.all_special_tokens();
    let tokenizer = guarded(&path, || {
        let mut tokenizer: Tokenizer = text.parse()?;
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        tokenizer.set_encode_special_tokens(options.split_special_tokens);
        let tokens = options.tokens_to_add(&tokenizer);
        tokenizer.add_tokens(tokens)?;
        if class == Class::Qwen2 {
            tokenizer.add_tokens(specials.iter().map(|s| AddedToken::from(s.clone(), true)))?;
        }
        Ok(tokenizer)
    })?;
    Ok(Loaded { tokenizer, specials, structure })
}

/// Runs the tokenizers library. It panics on some malformed files (a template that uses a token it does not define, a
/// truncated charsmap, …); such a panic is the file's fault and becomes an error. The tokenizer at work is given up.
pub(super) fn guarded<T>(path: &Path, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, Error> {
    let refused = |reason| Err(Error::Refused { path: path.to_owned(), reason });
    match std::panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => refused(error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            refused(format!("a panic: {text}"))
        }
    }
}

const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";

/// What transformers does with `tokenizer.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// `TokenizersBackend` and the classes that add nothing: the file as it stands.
    File,
    /// `LlamaTokenizer` (`models/llama/tokenization_llama.py`).
    Llama,
    /// `Qwen2Tokenizer` (`models/qwen2/tokenization_qwen2.py`).
    Qwen2,
    /// `Qwen3_5Tokenizer` (`models/qwen3_5/tokenization_qwen3_5.py`).
    Qwen35,
    /// `GPT2Tokenizer` (`models/gpt2/tokenization_gpt2.py`).
    Gpt2,
}

/// The class that a class name stands for, and whether it rebuilds; `None` when transformers has no such class.
fn class_of(name: &str) -> Option<(&'static str, &'static str)> {
    let find = |name: &str| {
        rows(include_str!("data/transformers-classes.tsv")).find(|row| row[0] == name).map(|row| (row[1], row[2]))
    };
    find(name).or_else(|| name.strip_suffix("Fast").and_then(find))
}

/// The tokenizer class that is registered for a model type, and whether it overrules what a checkpoint says.
fn registered(model_type: &str) -> Option<(&'static str, bool)> {
    let row = rows(include_str!("data/transformers-model-types.tsv")).find(|row| row[0] == model_type)?;
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
fn resolve(input: &mut Input<'_>) -> Class {
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
        Some(("GPT2Tokenizer", _)) => Class::Gpt2,
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
fn rebuild(class: Class, json: &Object, options: &Options, input: &Input<'_>) -> Result<Object, Error> {
    let byte_level = |prefix: bool, use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": use_regex});
    let by_regex = |regex: &str, prefix| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, byte_level(prefix, false)]})
    };
    let nfc = json!({"type": "NFC"});
    let prefix = options.add_prefix_space;
    let (normalizer, pre_tokenizer, decoder) = match class {
        Class::Llama => {
            let scheme = match (prefix.unwrap_or(true), options.legacy) {
                (false, _) => "never",
                (true, true) => "always",
                (true, false) => "first",
            };
            let metaspace =
                json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false});
            let mut decoders = vec![
                json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            if prefix.unwrap_or(true) {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            (Value::Null, metaspace, json!({"type": "Sequence", "decoders": decoders}))
        }
        Class::Qwen2 => (nfc, by_regex(QWEN2, prefix.unwrap_or(false)), byte_level(true, true)),
        Class::Qwen35 => (nfc, by_regex(QWEN35, prefix.unwrap_or(false)), byte_level(true, true)),
        Class::Gpt2 => (Value::Null, byte_level(prefix.unwrap_or(false), true), byte_level(true, true)),
        Class::File => unreachable!("a file that is used as it stands is not rebuilt"),
    };
    let llama = class == Class::Llama;
    let model = json.get("model").and_then(Value::as_object).cloned().unwrap_or_default();
    let affix = if llama { Value::Null } else { "".into() };
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": affix,
        "end_of_word_suffix": affix,
        "fuse_unk": llama,
        "byte_fallback": llama,
        "ignore_merges": false,
        "vocab": model.get("vocab").cloned().unwrap_or_else(|| json!({})),
        "merges": pairs(model.get("merges"), input)?,
    });
    let rebuilt = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": json.get("post_processor").cloned().unwrap_or(Value::Null),
        "decoder": decoder,
        "model": model,
    });
    match rebuilt {
        Value::Object(object) => Ok(object),
        _ => unreachable!("json! with braces makes an object"),
    }
}

/// The regex of `Qwen2Tokenizer` (`PRETOKENIZE_REGEX`).
pub(super) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The regex of `Qwen3_5Tokenizer`.
pub(super) const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

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

/// A token that the configuration names: a plain string, or a token with properties.
#[derive(Clone, Debug, PartialEq)]
enum Named {
    Plain(String),
    Token(Properties),
}

/// `AddedToken` of the Python library, where `normalized` defaults to "not special".
#[derive(Clone, Debug, PartialEq)]
struct Properties {
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: Option<bool>,
    special: bool,
}

impl Properties {
    fn parse(value: &Value) -> Option<Properties> {
        let flag = |key| value.get(key).is_some_and(is_truthy);
        Some(Properties {
            content: value.get("content")?.as_str()?.to_owned(),
            single_word: flag("single_word"),
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            normalized: value.get("normalized").filter(|v| !v.is_null()).map(is_truthy),
            special: flag("special"),
        })
    }

    fn to_token(&self, special: bool) -> AddedToken {
        AddedToken::from(self.content.clone(), special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!special))
    }
}

impl Named {
    fn parse(value: &Value) -> Option<Named> {
        match value {
            Value::String(text) => Some(Named::Plain(text.clone())),
            other => Properties::parse(other).map(Named::Token),
        }
    }

    fn content(&self) -> &str {
        match self {
            Named::Plain(text) => text,
            Named::Token(token) => &token.content,
        }
    }
}

/// The named special tokens that every class knows, in the order of transformers.
const STANDARD: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the configuration says about a tokenizer (`tokenization_utils_base.py`, `_from_pretrained`).
struct Options {
    add_prefix_space: Option<bool>,
    legacy: bool,
    split_special_tokens: bool,
    /// `added_tokens_decoder`, by id.
    added: BTreeMap<i64, Properties>,
    /// Named special tokens: the seven standard names, then those of the model.
    named: Vec<(String, Named)>,
    extra: Vec<Named>,
}

impl Options {
    fn read(input: &mut Input<'_>, class: Class) -> Result<Options, Error> {
        let mut config = input.files.tokenizer_config.clone().unwrap_or_default();
        if config.get("fix_mistral_regex").is_some_and(is_truthy) {
            input.warnings.push(format!("`fix_mistral_regex` of `{CONFIG}` is not applied"));
        }
        if !config.get("extra_special_tokens").is_some_and(is_truthy)
            && let Some(extra) = config.remove("additional_special_tokens")
        {
            config.insert("extra_special_tokens".to_owned(), extra);
        }
        let mut added = BTreeMap::new();
        match config.get("added_tokens_decoder").cloned() {
            Some(decoder) => {
                let Some(decoder) = decoder.as_object() else {
                    return Err(input.files.wrong_type(CONFIG, "added_tokens_decoder", "an object", &decoder));
                };
                for (key, value) in decoder {
                    let (Ok(id), Some(token)) = (key.trim().parse(), Properties::parse(value)) else {
                        let key = format!("added_tokens_decoder.{key}");
                        return Err(input.files.wrong_type(CONFIG, key, "an id and a token", value));
                    };
                    added.insert(id, token);
                }
            }
            None => legacy_files(input, &mut config, &mut added)?,
        }
        if let Some(pad) = input.files.tokenizer_json.as_ref().and_then(|json| json.get("padding")?.get("pad_token"))
            && matches!(class, Class::File | Class::Llama)
        {
            config.entry("pad_token").or_insert_with(|| pad.clone());
        }
        for (key, default) in class.defaults() {
            config.entry(*key).or_insert_with(|| Value::from(*default));
        }
        let by_content: BTreeMap<&str, &Properties> = added.values().map(|t| (t.content.as_str(), t)).collect();
        let mut named = Vec::new();
        let specific = config.keys().filter(|k| k.ends_with("_token") && !STANDARD.contains(&k.as_str()));
        for key in STANDARD.into_iter().chain(specific.map(String::as_str)) {
            let Some(token) = config.get(key).and_then(Named::parse) else { continue };
            let full = by_content.get(token.content()).filter(|_| STANDARD.contains(&key));
            named.push((key.to_owned(), full.map_or(token, |full| Named::Token((*full).clone()))));
        }
        let mut extra = Vec::new();
        match config.get("extra_special_tokens") {
            Some(Value::Array(list)) => extra.extend(list.iter().filter_map(Named::parse)),
            Some(Value::Object(by_name)) => {
                named.extend(by_name.iter().filter_map(|(key, value)| Some((key.clone(), Named::parse(value)?))));
            }
            _ => {}
        }
        Ok(Options {
            add_prefix_space: config.get("add_prefix_space").filter(|v| !v.is_null()).map(is_truthy),
            legacy: config.get("legacy").is_some_and(is_truthy),
            split_special_tokens: config.get("split_special_tokens").is_some_and(is_truthy),
            added,
            named,
            extra,
        })
    }

    /// The tokens that are added after the backend is built, in order (`tokenization_utils_tokenizers.py`).
    fn tokens_to_add(&self, tokenizer: &Tokenizer) -> Vec<AddedToken> {
        let mut known: Vec<String> = tokenizer.get_added_tokens_decoder().into_values().map(|t| t.content).collect();
        known.extend(self.added.values().map(|t| t.content.clone()));
        let mut add: Vec<Named> = self.added.values().cloned().map(Named::Token).collect();
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !known.iter().any(|k| k == token.content()) && !add.contains(token) {
                add.push(token.clone());
            }
        }
        add.iter()
            .map(|token| match token {
                Named::Plain(text) => AddedToken::from(text.clone(), true),
                Named::Token(token) => {
                    let is_named = self.named.iter().any(|(_, named)| named.content() == token.content);
                    token.to_token(token.special || is_named)
                }
            })
            .collect()
    }

    fn all_special_tokens(&self) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !all.iter().any(|seen| seen == token.content()) {
                all.push(token.content().to_owned());
            }
        }
        all
    }
}

impl Class {
    /// Special tokens that the class has when the configuration does not say.
    fn defaults(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Class::File => &[],
            Class::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Class::Gpt2 => {
                &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")]
            }
            Class::Qwen2 | Class::Qwen35 => {
                &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")]
            }
        }
    }
}

/// Folders without `added_tokens_decoder`: `special_tokens_map.json`, `added_tokens.json`, and `added_tokens` of
/// `tokenizer.json`.
fn legacy_files(
    input: &mut Input<'_>,
    config: &mut Object,
    added: &mut BTreeMap<i64, Properties>,
) -> Result<(), Error> {
    if let Some(map) = input.files.object("special_tokens_map.json")? {
        for (key, mut value) in map {
            if key == "extra_special_tokens"
                && let Value::Array(new) = &value
            {
                let mut list = config.get(&key).and_then(Value::as_array).cloned().unwrap_or_default();
                for token in new {
                    let token = as_special(token.clone());
                    if !list.contains(&token) {
                        list.push(token);
                    }
                }
                value = Value::Array(list);
            } else if value.is_object() {
                value = as_special(value);
            }
            config.insert(key, value);
        }
    }
    if let Some(file) = input.files.object("added_tokens.json")? {
        let named = STANDARD.iter().filter_map(|key| Named::parse(config.get(*key)?));
        let extra = config.get("extra_special_tokens").and_then(Value::as_array);
        let extra = extra.into_iter().flatten().filter_map(Named::parse);
        let specials: Vec<String> = named.chain(extra).map(|t| t.content().to_owned()).collect();
        for (content, id) in file {
            let Some(id) = id.as_i64() else {
                return Err(input.files.wrong_type("added_tokens.json", content, "a token id", &id));
            };
            let special = specials.contains(&content);
            let normalized = Some(!special);
            let token = Properties { content, single_word: false, lstrip: false, rstrip: false, normalized, special };
            added.insert(id, token);
        }
    }
    let tokens = input.files.tokenizer_json.as_ref().and_then(|json| json.get("added_tokens"));
    for token in tokens.and_then(Value::as_array).into_iter().flatten() {
        match (token.get("id").and_then(Value::as_i64), Properties::parse(token)) {
            (Some(id), Some(token)) => added.insert(id, token),
            _ => return Err(input.files.wrong_type(FILE, "added_tokens", "tokens with id and content", token)),
        };
    }
    Ok(())
}

/// A token object of `special_tokens_map.json`, which is special whatever it says.
fn as_special(mut value: Value) -> Value {
    if let Value::Object(token) = &mut value {
        token.insert("special".to_owned(), Value::Bool(true));
    }
    value
}
