//! `{arch}.pooling_type` of sentence embedders (llama.cpp b11434, `conversion/base.py`, `_try_set_pooling_type`).

use crate::{Error, Model, json};
use mlpack_tensor::Metadata;
use serde_json::Value;
use std::path::{Component, Path, PathBuf};

/// Appends how a sentence-transformers model pools, when modules.json says that it does, and how a classifier pools.
pub(crate) fn append(metadata: &mut Metadata, model: &Model, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    if let Some(path) = pooling_config(model.dir(), files)? {
        let pooling = json::read_object(&path)?;
        let on = |field: &str| pooling.get(field).is_some_and(json::is_truthy);
        let number = if on("pooling_mode_mean_tokens") {
            1u32
        } else if on("pooling_mode_cls_token") {
            2
        } else if on("pooling_mode_lasttoken") {
            3
        } else {
            match pooling.get("pooling_mode").and_then(Value::as_str) {
                Some("mean") => 1,
                Some("cls") => 2,
                Some("lasttoken") => 3,
                _ => {
                    let found = pooling.get("pooling_mode").map_or("none of these".to_owned(), json::describe);
                    return Err(Error::UnknownPooling { path, found });
                }
            }
        };
        metadata.set(format!("{}.pooling_type", model.arch()), number.into());
        files.push(path);
    }
    let number = match model.config().field("classifier_pooling") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::String(s)) if s == "mean" => 1u32,
        Some(Value::String(s)) if s == "cls" => 2,
        Some(other) => return Err(model.config().wrong("classifier_pooling", "`mean` or `cls`", other)),
    };
    metadata.set(format!("{}.classifier.pooling_type", model.arch()), number.into());
    Ok(())
}

/// The config of the first pooling module.
pub(crate) fn pooling_config(dir: &Path, files: &mut Vec<PathBuf>) -> Result<Option<PathBuf>, Error> {
    let path = dir.join("modules.json");
    if !path.is_file() {
        return Ok(None);
    }
    let pooling = modules(&path)?.into_iter().find(|module| module.name.ends_with("Pooling"));
    let found = pooling.map(|module| module_folder(&path, &module.value)).transpose()?;
    files.push(path);
    Ok(found.map(|folder| dir.join(folder).join("config.json")))
}

/// A module of modules.json.
pub(crate) struct Module {
    name: String,
    pub value: Value,
}

impl Module {
    /// The last part of its type.
    pub fn kind(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }
}

/// The modules that a modules.json lists.
pub(crate) fn modules(path: &Path) -> Result<Vec<Module>, Error> {
    let modules = json::read(path)?;
    let Value::Array(list) = modules else {
        return Err(wrong(path, "(the whole file)", "a list of modules", &modules));
    };
    let module = |value: Value| {
        let kind = value.get("type").unwrap_or(&Value::Null);
        let name = kind.as_str().ok_or_else(|| wrong(path, "type", "a string", kind))?.to_owned();
        Ok(Module { name, value })
    };
    list.into_iter().map(module).collect()
}

/// The folder of a module. A path out of the model directory would read a file of someone else.
pub(crate) fn module_folder(path: &Path, module: &Value) -> Result<String, Error> {
    let folder = module.get("path").unwrap_or(&Value::Null);
    let name = folder.as_str().ok_or_else(|| wrong(path, "path", "a string", folder))?;
    if !Path::new(name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(wrong(path, "path", "a folder inside the model directory", folder));
    }
    Ok(name.to_owned())
}

fn wrong(path: &Path, field: &str, expected: &'static str, found: &Value) -> Error {
    Error::WrongValue { path: path.to_owned(), field: field.to_owned(), expected, found: json::describe(found) }
}
