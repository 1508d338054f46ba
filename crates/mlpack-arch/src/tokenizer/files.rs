//! The tokenizer's files in a model folder: each read once, with a limit, and remembered as an input.

use super::Error;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A JSON object in file order.
pub(super) type Object = Map<String, Value>;

/// The folder and the three JSON files that every reader needs.
pub(super) struct Files<'a> {
    pub(super) dir: &'a Path,
    /// Files read so far.
    pub(super) read: Vec<PathBuf>,
    /// `tokenizer.json`, parsed.
    pub(super) tokenizer_json: Option<Object>,
    /// The same as text, for the tokenizers library.
    pub(super) tokenizer_json_text: String,
    /// `tokenizer_config.json`.
    pub(super) tokenizer_config: Option<Object>,
    /// `config.json` as it stands in the folder.
    pub(super) config_json: Option<Object>,
}

/// Bytes of the largest `tokenizer.json` that is read (Gemma 3: 33 MB).
const MAX_TOKENIZER_JSON: u64 = 64 << 20;
/// Bytes of the largest other text file that is read.
const MAX_TEXT: u64 = 16 << 20;

impl<'a> Files<'a> {
    pub(super) fn open(dir: &'a Path) -> Result<Files<'a>, Error> {
        let mut files = Files {
            dir,
            read: Vec::new(),
            tokenizer_json: None,
            tokenizer_json_text: String::new(),
            tokenizer_config: None,
            config_json: None,
        };
        if let Some(bytes) = files.bytes("tokenizer.json", MAX_TOKENIZER_JSON)? {
            let path = dir.join("tokenizer.json");
            files.tokenizer_json_text = utf8(&path, bytes)?;
            files.tokenizer_json = Some(object(&path, &files.tokenizer_json_text)?);
        }
        files.tokenizer_config = files.object("tokenizer_config.json")?;
        files.config_json = files.object("config.json")?;
        Ok(files)
    }

    /// Whether the folder has such a file.
    pub(super) fn has(&self, name: &str) -> bool {
        self.dir.join(name).is_file()
    }

    /// A binary file, if it is there.
    pub(super) fn bytes(&mut self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        if !self.has(name) {
            return Ok(None);
        }
        let path = self.dir.join(name);
        let bytes = mlpack_fs::read_bounded(&path, limit)?;
        if !self.read.contains(&path) {
            self.read.push(path);
        }
        Ok(Some(bytes))
    }

    /// A text file, if it is there, with line ends as Python's text mode gives them: `\r\n` and `\r` become `\n`.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Error> {
        let Some(bytes) = self.bytes(name, MAX_TEXT)? else { return Ok(None) };
        let text = utf8(&self.dir.join(name), bytes)?;
        Ok(Some(if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text }))
    }

    /// A JSON file that holds an object, if it is there.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Object>, Error> {
        let Some(bytes) = self.bytes(name, MAX_TEXT)? else { return Ok(None) };
        self.parse_object(name, bytes).map(Some)
    }

    /// The bytes of a JSON file that holds an object.
    pub(super) fn parse_object(&self, name: &str, bytes: Vec<u8>) -> Result<Object, Error> {
        let path = self.dir.join(name);
        let text = utf8(&path, bytes)?;
        object(&path, &text)
    }

    /// Checks that the added tokens of `tokenizer.json` have ids of their own: the library would move the second of two
    /// tokens with one id, and the file would no longer mean what it says.
    pub(super) fn check_added_tokens(&self) -> Result<(), Error> {
        let tokens = self.tokenizer_json.as_ref().and_then(|json| json.get("added_tokens")).and_then(Value::as_array);
        let mut by_id: BTreeMap<u64, &str> = BTreeMap::new();
        for token in tokens.into_iter().flatten() {
            let (Some(id), Some(content)) =
                (token.get("id").and_then(Value::as_u64), token.get("content").and_then(Value::as_str))
            else {
                continue;
            };
            if let Some(first) = by_id.insert(id, content).filter(|first| *first != content) {
                let (path, second) = (self.dir.join("tokenizer.json"), content.to_owned());
                return Err(Error::SharedId { path, id, first: first.to_owned(), second });
            }
        }
        Ok(())
    }

    /// An error about one value of one of the files.
    pub(super) fn wrong_type(
        &self,
        name: &str,
        key: impl Into<String>,
        expected: &'static str,
        found: &Value,
    ) -> Error {
        Error::WrongType { path: self.dir.join(name), key: key.into(), expected, found: describe(found) }
    }
}

/// A value in a message: scalars as they are, containers by their kind.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Array(a) => format!("an array of {}", a.len()),
        Value::Object(o) => format!("an object of {}", o.len()),
        scalar => scalar.to_string(),
    }
}

fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|e| {
        let offset = e.utf8_error().valid_up_to() as u64;
        Error::File(mlpack_fs::Error::NotUtf8 { path: path.to_owned(), offset })
    })
}

fn object(path: &Path, text: &str) -> Result<Object, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let value: Value = serde_json::from_str(text).map_err(|e| {
        let (line, column) = (e.line(), e.column());
        let reason = e.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        Error::NotJson { path: path.to_owned(), line, column, reason }
    })?;
    match value {
        Value::Object(map) => Ok(map),
        other => Err(Error::WrongType {
            path: path.to_owned(),
            key: String::new(),
            expected: "an object",
            found: describe(&other),
        }),
    }
}
