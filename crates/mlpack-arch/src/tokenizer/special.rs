//! Special tokens, `add_*` flags, merges and normalizer flags (llama.cpp b11434, `gguf-py/gguf/vocab.py`,
//! `SpecialVocab`).
//!
//! Ids are looked up by content in `added_tokens` of `tokenizer.json`, then taken from `*_token_id` of `config.json`;
//! the first that is found stands. Flags come from the post-processor, then from `tokenizer_config.json`.

use super::chat::ChatTemplate;
use super::files::{Object, describe};
use super::{Error, Input};
use crate::json::is_truthy;
use mlpack_tensor::{Escaped, MetaValue, Metadata};
use serde_json::Value;

/// What to load.
pub(super) struct Wanted<'a> {
    /// Whether to load BPE merges.
    pub(super) merges: bool,
    /// Kinds of special tokens, in the order in which their keys are written.
    pub(super) types: &'a [&'a str],
    /// Ids at or above it are left out; `None` for no limit.
    pub(super) vocab_size: Option<u64>,
}

/// The kinds that llama.cpp looks for.
pub(super) const STANDARD_TYPES: &[&str] = &["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// The rest of a vocabulary, in the order in which it is written.
#[derive(Default)]
pub(super) struct SpecialVocab {
    wants_merges: bool,
    merges: Vec<String>,
    ids: Vec<(String, u32)>,
    flags: Vec<(String, bool)>,
    chat_template: Option<ChatTemplate>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

/// Whether a token looks like a control token although the files do not say so (`does_token_look_special`).
pub(super) fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

impl SpecialVocab {
    pub(super) fn load(input: &mut Input<'_>, wanted: &Wanted<'_>) -> Result<SpecialVocab, Error> {
        let mut loader = Loader {
            vocab: SpecialVocab { wants_merges: wanted.merges, ..SpecialVocab::default() },
            types: wanted.types.iter().map(|t| (*t).to_owned()).collect(),
            vocab_size: wanted.vocab_size,
            config: input.files.tokenizer_config.clone().filter(|c| !c.is_empty()),
        };
        loader.tokenizer_json(input)?;
        loader.tokenizer_config(input)?;
        loader.config_json(input)?;
        if wanted.merges && loader.vocab.merges.is_empty() {
            loader.vocab.merges = merges_txt(input)?;
        }
        Ok(loader.vocab)
    }

    /// Sets the id of a kind that has none yet.
    pub(super) fn set_default_id(&mut self, kind: &str, id: u32) {
        if !self.ids.iter().any(|(k, _)| k == kind) {
            self.ids.push((kind.to_owned(), id));
        }
    }

    /// The id of a kind.
    pub(super) fn id(&self, kind: &str) -> Option<u32> {
        self.ids.iter().find(|(k, _)| k == kind).map(|(_, id)| *id)
    }

    /// Whether no special token has an id.
    pub(super) fn has_no_ids(&self) -> bool {
        self.ids.is_empty()
    }

    /// Changes the id of a kind that has one; the place of its key stays.
    pub(super) fn replace_id(&mut self, kind: &str, id: u32) {
        if let Some(entry) = self.ids.iter_mut().find(|(k, _)| k == kind) {
            entry.1 = id;
        }
    }

    /// Merges that were computed from ranks.
    pub(super) fn set_merges(&mut self, merges: Vec<String>) {
        self.merges = merges;
    }

    /// Leaves the chat template out: it is written already.
    pub(super) fn without_chat_template(mut self) -> SpecialVocab {
        self.chat_template = None;
        self
    }

    /// Writes the keys. A kind that GGUF has no key for (`cls`, `prefix`, …) is passed over, as llama.cpp does.
    pub(super) fn write(self, metadata: &mut Metadata, warnings: &mut Vec<String>) {
        if !self.merges.is_empty() {
            metadata.set("tokenizer.ggml.merges", self.merges.into());
        } else if self.wants_merges {
            warnings.push("the tokenizer has no merges: the model will not split text as it was trained to".to_owned());
        }
        for (kind, id) in &self.ids {
            if let Some(key) = id_key(kind) {
                metadata.set(key, MetaValue::U32(*id));
            }
        }
        for (kind, flag) in &self.flags {
            if let Some(key) = flag_key(kind) {
                metadata.set(key, MetaValue::Bool(*flag));
            }
        }
        if let Some(template) = self.chat_template {
            template.write(metadata);
        }
        if let Some(flag) = self.lowercase {
            metadata.set("tokenizer.ggml.normalizer.lowercase", MetaValue::Bool(flag));
        }
        if let Some(flag) = self.strip_accents {
            metadata.set("tokenizer.ggml.normalizer.strip_accents", MetaValue::Bool(flag));
        }
    }

    fn set_flag(&mut self, kind: &str, flag: bool) {
        match self.flags.iter_mut().find(|(k, _)| k == kind) {
            Some(entry) => entry.1 = flag,
            None => self.flags.push((kind.to_owned(), flag)),
        }
    }

    fn flag(&self, kind: &str) -> Option<bool> {
        self.flags.iter().find(|(k, _)| k == kind).map(|(_, flag)| *flag)
    }
}

/// GGUF's keys for special tokens (`gguf-py/gguf/constants.py`; the spelling "seperator" is GGUF's).
fn id_key(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "bos" => "tokenizer.ggml.bos_token_id",
        "eos" => "tokenizer.ggml.eos_token_id",
        "unk" => "tokenizer.ggml.unknown_token_id",
        "sep" => "tokenizer.ggml.seperator_token_id",
        "pad" => "tokenizer.ggml.padding_token_id",
        "mask" => "tokenizer.ggml.mask_token_id",
        "eot" => "tokenizer.ggml.eot_token_id",
        "eom" => "tokenizer.ggml.eom_token_id",
        _ => return None,
    })
}

fn flag_key(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "bos" => "tokenizer.ggml.add_bos_token",
        "eos" => "tokenizer.ggml.add_eos_token",
        "sep" => "tokenizer.ggml.add_sep_token",
        _ => return None,
    })
}

/// The state of loading: the configuration is changed on the way, as llama.cpp does, when the post-processor names
/// tokens that it lacks.
struct Loader {
    vocab: SpecialVocab,
    types: Vec<String>,
    vocab_size: Option<u64>,
    config: Option<Object>,
}

const TOKENIZER_JSON: &str = "tokenizer.json";

impl Loader {
    fn tokenizer_json(&mut self, input: &mut Input<'_>) -> Result<(), Error> {
        let Some(json) = input.files.tokenizer_json.as_ref().filter(|json| !json.is_empty()) else { return Ok(()) };
        if self.vocab.wants_merges {
            self.vocab.merges = merges(input, json)?;
        }
        if let Some(normalizer) = json.get("normalizer").filter(|v| is_truthy(v)) {
            self.normalizer(normalizer);
        }
        let mut roles = Roles {
            bos: self.configured("bos"),
            cls: self.configured("cls"),
            eos: self.configured("eos"),
            sep: self.configured("sep"),
        };
        if !is_truthy(&roles.bos) && is_truthy(&roles.cls) {
            roles.bos = roles.cls.clone();
            self.configure("bos", &roles.bos);
        }
        if !is_truthy(&roles.eos) && is_truthy(&roles.sep) {
            roles.eos = roles.sep.clone();
            self.configure("eos", &roles.eos);
        }
        if let Some(processor) = json.get("post_processor").filter(|v| is_truthy(v)) {
            let one = std::slice::from_ref(processor);
            let all = match processor.get("processors") {
                None => one,
                Some(list) => list.as_array().ok_or_else(|| {
                    input.files.wrong_type(TOKENIZER_JSON, "post_processor.processors", "an array", list)
                })?,
            };
            for processor in all {
                self.post_processor(processor, &mut roles, &mut input.warnings);
            }
        }
        Ok(())
    }

    /// A token of `tokenizer_config.json` as it stands there: a string, an object, or null when it is absent.
    fn configured(&self, kind: &str) -> Value {
        let config = self.config.as_ref();
        config.and_then(|c| c.get(&format!("{kind}_token"))).cloned().unwrap_or(Value::Null)
    }

    fn configure(&mut self, kind: &str, token: &Value) {
        if let Some(config) = &mut self.config {
            config.insert(format!("{kind}_token"), token.clone());
        }
    }

    fn normalizer(&mut self, normalizer: &Value) {
        match normalizer.get("type").and_then(Value::as_str) {
            Some("Lowercase") => self.vocab.lowercase = Some(true),
            Some("StripAccents") => self.vocab.strip_accents = Some(true),
            Some("BertNormalizer") => {
                let flag = |v: &Value| (!v.is_null()).then(|| is_truthy(v));
                if let Some(value) = normalizer.get("lowercase") {
                    self.vocab.lowercase = flag(value);
                }
                if let Some(value) = normalizer.get("strip_accents") {
                    self.vocab.strip_accents = flag(value);
                }
            }
            Some("Sequence") => {
                for nested in normalizer.get("normalizers").and_then(Value::as_array).into_iter().flatten() {
                    self.normalizer(nested);
                }
            }
            _ => {}
        }
    }

    fn post_processor(&mut self, processor: &Value, roles: &mut Roles, warnings: &mut Vec<String>) {
        match processor.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => {
                for kind in ["bos", "eos"] {
                    if self.vocab.flag(kind).is_none() {
                        self.vocab.set_flag(kind, false);
                    }
                }
            }
            Some("RobertaProcessing") => {
                for kind in ["bos", "eos", "sep"] {
                    self.vocab.set_flag(kind, true);
                }
                let named = |key: &str, other: &Value| match processor.get(key).and_then(|v| v.get(0)) {
                    Some(token) => token.clone(),
                    None => other.clone(),
                };
                if !is_truthy(&roles.cls) && self.config.is_some() {
                    roles.cls = named("cls", &roles.bos);
                    self.configure("cls", &roles.cls);
                }
                if !is_truthy(&roles.sep) && self.config.is_some() {
                    roles.sep = named("sep", &roles.eos);
                    self.configure("sep", &roles.sep);
                }
            }
            Some("TemplateProcessing") => self.template(processor, roles, warnings),
            _ => {}
        }
    }

    /// Whether the template adds a token at the start and at the end, and one between two sequences. Like llama.cpp,
    /// this understands simple templates only.
    fn template(&mut self, processor: &Value, roles: &mut Roles, warnings: &mut Vec<String>) {
        let array = |key| processor.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let (single, pair) = (array("single"), array("pair"));
        let (mut first, mut last) = (None, None);
        if let [start, .., end] = single {
            first = part(start, "SpecialToken");
            if let Some(token) = first {
                self.leading(token, roles, warnings);
            }
            last = part(end, "SpecialToken");
            if let Some(token) = last {
                self.trailing(token, roles, warnings);
            }
        }
        let mut inner = pair;
        if let ([start, rest @ ..], Some(token)) = (inner, first)
            && part(start, "SpecialToken") == Some(token)
        {
            inner = rest;
        }
        if let (Some(end), Some(token)) = (pair.last(), last)
            && part(end, "SpecialToken") == Some(token)
            && !inner.is_empty()
        {
            inner = &inner[..inner.len() - 1];
        }
        let [a, between @ .., b] = inner else { return };
        let is_sequence = |v: &Value, id: &str| part(v, "Sequence").and_then(Value::as_str) == Some(id);
        if !is_sequence(a, "A") || !is_sequence(b, "B") {
            return;
        }
        let Some(separator) = between.first() else { return };
        let separates = |v: &Value| part(v, "SpecialToken").is_some_and(|t| *t == roles.sep || *t == roles.eos);
        let mut adds = separates(separator) && last.is_none();
        if let [_, second] = between {
            adds |= separates(second);
        }
        self.vocab.set_flag("sep", adds);
        if adds && !is_truthy(&roles.sep) {
            let eos = roles.eos.clone();
            self.configure("sep", &eos);
        }
    }

    fn leading(&mut self, token: &Value, roles: &mut Roles, warnings: &mut Vec<String>) {
        if self.config.is_none() {
            roles.bos = token.clone();
        } else if *token != roles.bos && *token != roles.cls {
            if !is_truthy(&roles.bos) {
                roles.bos = token.clone();
                self.configure("bos", token);
            }
            if !is_truthy(&roles.cls) {
                roles.cls = token.clone();
                self.configure("cls", token);
            }
        }
        let known = *token == roles.bos || *token == roles.cls;
        self.vocab.set_flag("bos", known);
        if !known {
            warnings.push(format!(
                "the tokenizer puts {} at the start of a text, but its configuration names {} as the first token: \
                 add_bos_token is written as false",
                Escaped(&describe(token)),
                Escaped(&describe(&roles.bos))
            ));
        }
    }

    fn trailing(&mut self, token: &Value, roles: &mut Roles, warnings: &mut Vec<String>) {
        if self.config.is_none() {
            roles.eos = token.clone();
        } else if *token != roles.eos {
            let fallback = ["eot", "eom"].into_iter().find(|kind| !self.types.iter().any(|t| t == kind));
            match fallback {
                Some(kind) => {
                    self.types.push(kind.to_owned());
                    let eos = roles.eos.clone();
                    self.configure(kind, &eos);
                }
                None => warnings.push(format!(
                    "the end-of-sequence token {} is replaced by {}, which the tokenizer puts at the end of a text",
                    Escaped(&describe(&roles.eos)),
                    Escaped(&describe(token))
                )),
            }
            roles.eos = token.clone();
            self.configure("eos", token);
        }
        self.vocab.set_flag("eos", true);
    }

    fn tokenizer_config(&mut self, input: &mut Input<'_>) -> Result<(), Error> {
        let Some(config) = self.config.take() else { return Ok(()) };
        self.vocab.chat_template = ChatTemplate::load(input, &config)?;
        let added = input.files.tokenizer_json.as_ref().and_then(|json| json.get("added_tokens")).cloned();
        let added = added.as_ref().and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        for kind in self.types.clone() {
            if let Some(Value::Bool(flag)) = config.get(&format!("add_{kind}_token"))
                && self.vocab.flag(&kind).is_none()
            {
                self.vocab.set_flag(&kind, *flag);
            }
            let entry = config.get(&format!("{kind}_token"));
            let content = entry.and_then(|e| if e.is_object() { e.get("content") } else { Some(e) });
            let Some(content) = content.and_then(Value::as_str) else { continue };
            let token = added.iter().find(|t| t.get("content").and_then(Value::as_str) == Some(content));
            if let Some(id) = token.and_then(|t| t.get("id")) {
                self.set_id(input, TOKENIZER_JSON, &kind, id)?;
            }
        }
        self.config = Some(config);
        Ok(())
    }

    fn config_json(&mut self, input: &mut Input<'_>) -> Result<(), Error> {
        let Some(config) = input.files.config_json.clone() else { return Ok(()) };
        for kind in self.types.clone() {
            let key = format!("{kind}_token_id");
            let own = config.get(&key).filter(|v| !v.is_null());
            let nested = || config.get("text_config").and_then(|t| t.get(&key));
            if let Some(id) = own.or_else(nested) {
                self.set_id(input, "config.json", &kind, id)?;
            }
        }
        Ok(())
    }

    /// Sets the id of a kind unless it has one; what is not an integer is passed over.
    fn set_id(&mut self, input: &mut Input<'_>, file: &str, kind: &str, id: &Value) -> Result<(), Error> {
        let id = match id {
            Value::Bool(flag) => u64::from(*flag),
            Value::Number(number) if is_integer(number) => match number.as_u64() {
                Some(id) if id <= u64::from(u32::MAX) => id,
                _ => {
                    return Err(Error::BadTokenId {
                        path: input.files.dir.join(file),
                        token: format!("{kind}_token"),
                        max: u64::from(u32::MAX),
                        found: number.to_string(),
                    });
                }
            },
            _ => return Ok(()),
        };
        match self.vocab_size {
            Some(size) if id >= size => input
                .warnings
                .push(format!("the {kind} token's id {id} in `{file}` is left out: the vocabulary has {size} tokens")),
            _ => self.vocab.set_default_id(kind, u32::try_from(id).expect("checked above")),
        }
        Ok(())
    }
}

/// The tokens that the post-processor is compared with.
struct Roles {
    bos: Value,
    cls: Value,
    eos: Value,
    sep: Value,
}

/// The id of a template part of that kind, when it has one.
fn part<'v>(value: &'v Value, kind: &str) -> Option<&'v Value> {
    value.get(kind).and_then(|v| v.get("id")).filter(|id| is_truthy(id))
}

/// Whether Python reads the number as an `int`.
fn is_integer(number: &serde_json::Number) -> bool {
    !number.to_string().contains(['.', 'e', 'E'])
}

/// The merges of `tokenizer.json` as lines `left right`; a space inside a part becomes U+0120, as in GPT-2's byte
/// alphabet.
fn merges(input: &Input<'_>, json: &Object) -> Result<Vec<String>, Error> {
    let wrong = |found: &Value| {
        let expected = "an array of strings `left right`, or of pairs of strings";
        input.files.wrong_type(TOKENIZER_JSON, "model.merges", expected, found)
    };
    let Some(list) = json.get("model").and_then(|m| m.get("merges")).and_then(Value::as_array) else {
        return Ok(Vec::new());
    };
    let line = |merge: &Value| match merge {
        Value::String(line) => Ok(line.clone()),
        Value::Array(pair) if pair.len() == 2 => {
            let part = |v: &Value| v.as_str().map(|s| s.replace(' ', "\u{120}")).ok_or_else(|| wrong(v));
            Ok(format!("{} {}", part(&pair[0])?, part(&pair[1])?))
        }
        other => Err(wrong(other)),
    };
    let pairs = list.first().is_some_and(Value::is_array);
    list.iter().map(|merge| if merge.is_array() == pairs { line(merge) } else { Err(wrong(merge)) }).collect()
}

/// The merges of `merges.txt`: two parts a line, with a version line that starts with `#`.
fn merges_txt(input: &mut Input<'_>) -> Result<Vec<String>, Error> {
    const NAME: &str = "merges.txt";
    let Some(text) = input.files.text(NAME)? else { return Ok(Vec::new()) };
    let mut merges = Vec::new();
    for (i, line) in text.split('\n').enumerate() {
        if i == 0 && line.trim().starts_with('#') {
            continue;
        }
        let parts: Vec<&str> = line.split_whitespace().collect();
        match parts[..] {
            [] => {}
            [left, right] => merges.push(format!("{left} {right}")),
            _ => input.warnings.push(format!("`{NAME}` line {} is left out: it has {} parts", i + 1, parts.len())),
        }
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_look_like_control_tokens() {
        for token in ["<pad>", "<|im_end|>", "<｜User｜>", "<unused12>", "[@BOS@]", "<2mass>"] {
            assert!(looks_special(token), "{token}");
        }
        for token in ["<s>", "|>", "<|", "<unused12", "<tool_call>", ""] {
            assert!(!looks_special(token), "{token}");
        }
    }
}
