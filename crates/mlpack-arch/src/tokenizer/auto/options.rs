//! What the configuration says about a tokenizer's special and added tokens (transformers 5.23.0,
//! `tokenization_utils_base.py`, `_from_pretrained`).

use super::class::Class;
use super::{CONFIG, FILE};
use crate::json::is_truthy;
use crate::tokenizer::files::Object;
use crate::tokenizer::{Error, Input};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use tokenizers::{AddedToken, Tokenizer};

/// A token that the configuration names: a plain string, or a token with properties.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Named {
    Plain(String),
    Token(Properties),
}

/// `AddedToken` of the Python library, where `normalized` defaults to "not special".
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Properties {
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

/// What the configuration says.
pub(super) struct Options {
    pub(super) add_prefix_space: Option<bool>,
    pub(super) legacy: bool,
    pub(super) split_special_tokens: bool,
    /// `do_lower_case`, `tokenize_chinese_chars` and `strip_accents` of `BertTokenizer`.
    pub(super) do_lower_case: bool,
    pub(super) tokenize_chinese_chars: bool,
    pub(super) strip_accents: Option<bool>,
    /// `added_tokens_decoder`, by id.
    added: BTreeMap<i64, Properties>,
    /// Named special tokens: the seven standard names, then those of the model.
    named: Vec<(String, Named)>,
    extra: Vec<Named>,
}

impl Options {
    pub(super) fn read(input: &mut Input<'_>, class: Class) -> Result<Options, Error> {
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
            do_lower_case: config.get("do_lower_case").is_none_or(is_truthy),
            tokenize_chinese_chars: config.get("tokenize_chinese_chars").is_none_or(is_truthy),
            strip_accents: config.get("strip_accents").filter(|v| !v.is_null()).map(is_truthy),
            added,
            named,
            extra,
        })
    }

    /// The text of a named special token.
    pub(super) fn content(&self, key: &str) -> Option<&str> {
        self.named.iter().find(|(k, _)| k == key).map(|(_, token)| token.content())
    }

    /// `add_prefix_space`, from the configuration or the class.
    pub(super) fn prefix_space(&self, class: Class) -> bool {
        self.add_prefix_space.unwrap_or(class.prefix_space())
    }

    /// The tokens that are added after the backend is built, in order (`tokenization_utils_tokenizers.py`).
    pub(super) fn tokens_to_add(&self, tokenizer: &Tokenizer) -> Vec<AddedToken> {
        let in_backend = tokenizer.get_added_tokens_decoder().into_values().map(|t| t.content);
        let known: HashSet<String> = in_backend.chain(self.added.values().map(|t| t.content.clone())).collect();
        let mut add: Vec<Named> = self.added.values().cloned().map(Named::Token).collect();
        let first_new = add.len();
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !known.contains(token.content()) && !add[first_new..].contains(token) {
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

    pub(super) fn all_special_tokens(&self) -> Vec<String> {
        let mut seen = HashSet::new();
        let all = self.named.iter().map(|(_, token)| token.content()).chain(self.extra.iter().map(Named::content));
        all.filter(|content| seen.insert(*content)).map(str::to_owned).collect()
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
