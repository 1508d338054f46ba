//! config.json as the converter sees it: completed with the defaults of transformers 5.23.0.
//!
//! llama.cpp reads a config through `AutoConfig.from_pretrained(dir).to_dict()`, so a field that is absent from the
//! file may have a value, and old spellings have new places. When transformers refuses the file (a field of the wrong
//! type, a missing `model_type`, …) llama.cpp goes on with the plain JSON; so does mlpack, with a warning.

mod complete;
mod rope;

use crate::{Error, Families, json};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A completed config.json.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    // Always an object.
    value: Value,
    raw: Map<String, Value>,
    warnings: Vec<String>,
}

impl Config {
    /// Reads `DIR/config.json` as it is.
    ///
    /// # Errors
    /// When there is no such file, or it is not a JSON object.
    pub(crate) fn open(dir: &Path) -> Result<Config, Error> {
        let path = dir.join("config.json");
        if !path.is_file() {
            if dir.join("params.json").is_file() {
                return Err(Error::MistralLayout { dir: dir.to_owned() });
            }
            if dir.join("adapter_config.json").is_file() {
                return Err(Error::AdapterInstead { dir: dir.to_owned() });
            }
        }
        let raw = json::read_object(&path)?;
        Ok(Config { path, value: Value::Object(raw.clone()), raw, warnings: Vec::new() })
    }

    /// Completes it with the defaults of its `model_type`.
    ///
    /// # Errors
    /// When the `model_type` is one without a table of defaults.
    pub(crate) fn complete(mut self, families: &Families) -> Result<Config, Error> {
        let completed = match self.model_type()? {
            None => Err("it has no `model_type`".to_owned()),
            Some(model_type) => match families.config_table(model_type) {
                Some(table) if table.plain => return Ok(self),
                Some(table) => complete::complete(&self.raw, table).map_err(|refusal| refusal.to_string()),
                None => {
                    let nearest = mlpack_tensor::nearest(model_type, families.model_types(), 3);
                    return Err(Error::UnknownModelType {
                        path: self.path.clone(),
                        model_type: model_type.to_owned(),
                        nearest: nearest.into_iter().map(str::to_owned).collect(),
                    });
                }
            },
        };
        match completed {
            Ok(value) => self.value = Value::Object(value),
            Err(reason) => self.warnings.push(format!(
                "transformers refuses `{}` ({reason}), so llama.cpp reads it without defaults; mlpack does the same",
                self.path.display()
            )),
        }
        Ok(self)
    }

    /// The config file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The completed config; an object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// A field of the completed config. A field with the value null is there.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.value.get(name)
    }

    /// The first of these fields that is there, even with the value null, with its name.
    pub fn first_of<'a>(&self, names: &[&'a str]) -> Option<(&'a str, &Value)> {
        names.iter().find_map(|name| Some((*name, self.field(name)?)))
    }

    /// The file as it is, without defaults.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// What the user should know about the file.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The same with values for fields that are missing or null.
    pub(crate) fn with_defaults(mut self, defaults: &Map<String, Value>) -> Config {
        if let Value::Object(value) = &mut self.value {
            for (field, default) in defaults {
                if value.get(field).is_none_or(Value::is_null) {
                    value.insert(field.clone(), default.clone());
                }
            }
        }
        self
    }

    /// The first of `architectures`.
    ///
    /// # Errors
    /// When there is none.
    pub fn class(&self) -> Result<&str, Error> {
        match self.field("architectures") {
            None | Some(Value::Null) => Err(self.missing(&["architectures"])),
            Some(Value::Array(classes)) if !classes.is_empty() => match &classes[0] {
                Value::String(class) => Ok(class),
                other => Err(self.wrong("architectures", "a list of class names", other)),
            },
            Some(other) => Err(self.wrong("architectures", "a list with at least one class name", other)),
        }
    }

    /// The number of layers.
    ///
    /// # Errors
    /// When it is missing or not a number that GGUF can hold.
    pub fn layer_count(&self) -> Result<u64, Error> {
        const FIELDS: [&str; 4] = ["n_layers", "num_hidden_layers", "n_layer", "num_layers"];
        let (name, value) = self.first_of(&FIELDS).ok_or_else(|| self.missing(&FIELDS))?;
        Ok(self.u32(name, value)?.into())
    }

    /// The value as a GGUF u32.
    pub(crate) fn u32(&self, field: &str, value: &Value) -> Result<u32, Error> {
        json::u32(value).ok_or_else(|| self.wrong(field, "an integer from 0 to 4294967295", value))
    }

    /// The value as a number.
    pub(crate) fn f64(&self, field: &str, value: &Value) -> Result<f64, Error> {
        json::finite(value).ok_or_else(|| self.wrong(field, "a number", value))
    }

    pub(crate) fn missing(&self, fields: &[&str]) -> Error {
        Error::MissingField { path: self.path.clone(), fields: fields.iter().map(|&f| f.to_owned()).collect() }
    }

    pub(crate) fn wrong(&self, field: &str, expected: &'static str, found: &Value) -> Error {
        Error::WrongValue { path: self.path.clone(), field: field.to_owned(), expected, found: json::describe(found) }
    }

    /// The `model_type` that transformers goes by.
    pub(crate) fn model_type(&self) -> Result<Option<&str>, Error> {
        match self.raw.get("model_type") {
            None => Ok(None),
            // AutoConfig reads a Mistral config with `layer_types` as one of Ministral.
            Some(Value::String(t)) if t == "mistral" && self.raw.contains_key("layer_types") => Ok(Some("ministral")),
            Some(Value::String(t)) => Ok(Some(t)),
            Some(other) => Err(self.wrong("model_type", "a string", other)),
        }
    }
}
