//! Chat templates: `chat_template` of `tokenizer_config.json`, or the files `chat_template.jinja`,
//! `additional_chat_templates/*.jinja` and `chat_template.json` beside it (llama.cpp b11434, `gguf-py/gguf/vocab.py` and
//! `gguf_writer.py`, `add_chat_template`). A template that is not one is written all the same, with a warning.

use super::files::{Object, describe};
use super::{Error, Input};
use mlpack_fs::Operation;
use mlpack_tensor::{Escaped, MetaValue, Metadata};
use regex::Regex;
use serde_json::Value;
use std::sync::LazyLock;

/// Warns about chat templates that do not parse as Jinja. llama.cpp's short names of templates (`mistral-v1`) are words,
/// which parse. The tag `generation` is transformers' own: it marks text and changes nothing.
pub(super) fn check(metadata: &Metadata, warnings: &mut Vec<String>) {
    let templates = metadata.iter().filter(|(key, _)| key.starts_with(KEY));
    for (key, value) in templates {
        let MetaValue::String(template) = value else { continue };
        let template = GENERATION.replace_all(template, "");
        let environment = minijinja::Environment::new();
        if let Err(error) = environment.template_from_str(&template).map(drop) {
            let line = error.line().map_or(String::new(), |line| format!(" at line {line}"));
            let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
            warnings.push(format!(
                "the chat template `{}` does not parse{line}: {}; it is written as it is, and programs that use it will \
                 fail or fall back to another",
                Escaped(key),
                Escaped(&detail)
            ));
        }
    }
}

const KEY: &str = "tokenizer.chat_template";

static GENERATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}").expect("a fixed expression"));

/// What the files say: one template, or several by name.
pub(super) enum ChatTemplate {
    One(String),
    Named(Vec<(String, String)>),
}

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

impl ChatTemplate {
    /// The template of the configuration when it has the key, else that of the files beside it.
    pub(super) fn load(input: &mut Input<'_>, config: &Object) -> Result<Option<ChatTemplate>, Error> {
        let beside = match input.files.text("chat_template.jinja")? {
            Some(text) => Some(Self::with_additional(input, text)?),
            None => match input.files.object("chat_template.json")? {
                Some(json) => Self::parse(input, "chat_template.json", json.get("chat_template"))?,
                None => None,
            },
        };
        match config.get("chat_template") {
            None => Ok(beside),
            Some(value) => Self::parse(input, TOKENIZER_CONFIG, Some(value)),
        }
    }

    /// A name that a key can hold: what is not an ASCII letter or digit becomes `_`.
    fn key_name(name: &str) -> String {
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    }

    /// Writes the keys: the named templates, their names in sorted order, then the default one. Empty templates are
    /// passed over.
    pub(super) fn write(self, metadata: &mut Metadata) {
        let default = match self {
            ChatTemplate::One(template) => Some(template),
            ChatTemplate::Named(templates) => {
                let mut default = None;
                let mut names = Vec::new();
                for (name, template) in templates {
                    match Self::key_name(&name) {
                        name if name.is_empty() => {}
                        name if name == "default" => default = Some(template),
                        name => {
                            if !template.is_empty() {
                                metadata.set(format!("{KEY}.{name}"), template.into());
                            }
                            names.push(name);
                        }
                    }
                }
                names.sort();
                names.dedup();
                if !names.is_empty() {
                    metadata.set("tokenizer.chat_templates", names.into());
                }
                default
            }
        };
        if let Some(template) = default.filter(|t| !t.is_empty()) {
            metadata.set(KEY, template.into());
        }
    }

    /// `chat_template.jinja` with the templates of `additional_chat_templates/`, by file name.
    fn with_additional(input: &mut Input<'_>, default: String) -> Result<ChatTemplate, Error> {
        const FOLDER: &str = "additional_chat_templates";
        let folder = input.files.dir.join(FOLDER);
        if !folder.is_dir() {
            return Ok(ChatTemplate::One(default));
        }
        let failed = |e| Error::File(mlpack_fs::Error::io(Operation::List, &folder, e));
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if let Some(stem) = name.to_str().and_then(|n| n.strip_suffix(".jinja")).filter(|stem| !stem.is_empty()) {
                names.push(stem.to_owned());
            }
        }
        if names.is_empty() {
            return Ok(ChatTemplate::One(default));
        }
        names.sort();
        let mut templates = vec![("default".to_owned(), default)];
        for stem in names {
            if let Some(text) = input.files.text(&format!("{FOLDER}/{stem}.jinja"))? {
                templates.push((stem, text));
            }
        }
        Ok(ChatTemplate::Named(templates))
    }

    /// A template, or a list of objects with `name` and `template`. Anything else is passed over, with a warning, as
    /// llama.cpp does.
    fn parse(input: &mut Input<'_>, file: &str, value: Option<&Value>) -> Result<Option<ChatTemplate>, Error> {
        let wrong = |found: &Value| {
            let expected = "a template, or an array of objects with name and template";
            input.files.wrong_type(file, "chat_template", expected, found)
        };
        match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(template)) => Ok(Some(ChatTemplate::One(template.clone()))),
            Some(Value::Array(list)) => {
                let mut templates = Vec::new();
                for item in list {
                    let item = item.as_object().ok_or_else(|| wrong(item))?;
                    let name = item.get("name").map_or(Ok(""), |n| n.as_str().ok_or_else(|| wrong(n)))?;
                    match item.get("template") {
                        None | Some(Value::Null) => {}
                        Some(Value::String(template)) => templates.push((name.to_owned(), template.clone())),
                        Some(other) => return Err(wrong(other)),
                    }
                }
                Ok(Some(ChatTemplate::Named(templates)))
            }
            Some(other) => {
                let found = describe(other);
                input.warnings.push(format!("`chat_template` of `{file}` is left out: it is {found}, not a template"));
                Ok(None)
            }
        }
    }
}
