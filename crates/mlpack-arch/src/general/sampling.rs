//! `general.sampling.*` from generation_config.json.

use crate::{Error, json};
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

enum Kind {
    Integer,
    Float,
    Text,
}

/// Field of the file, key, type. Order is the order of the keys.
const FIELDS: &[(&[&str], &str, Kind)] = &[
    (&["sequence"], "general.sampling.sequence", Kind::Text),
    (&["top_k"], "general.sampling.top_k", Kind::Integer),
    (&["top_p"], "general.sampling.top_p", Kind::Float),
    (&["min_p"], "general.sampling.min_p", Kind::Float),
    (&["xtc_probability"], "general.sampling.xtc_probability", Kind::Float),
    (&["xtc_threshold"], "general.sampling.xtc_threshold", Kind::Float),
    (&["temperature"], "general.sampling.temp", Kind::Float),
    (&["penalty_last_n"], "general.sampling.penalty_last_n", Kind::Integer),
    (&["penalty_repeat", "repetition_penalty"], "general.sampling.penalty_repeat", Kind::Float),
    (&["mirostat"], "general.sampling.mirostat", Kind::Integer),
    (&["mirostat_tau"], "general.sampling.mirostat_tau", Kind::Float),
    (&["mirostat_eta"], "general.sampling.mirostat_eta", Kind::Float),
];

/// Appends what `DIR/generation_config.json` recommends. A file that is not JSON is passed over, as the converter does.
pub(super) fn append(metadata: &mut Metadata, dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    let path = dir.join("generation_config.json");
    if !path.is_file() {
        return Ok(());
    }
    let config = match json::read(&path) {
        Ok(Value::Object(config)) => config,
        Ok(other) if !json::is_truthy(&other) => Map::new(),
        Ok(other) => return Err(Error::NotAnObject { found: json::describe(&other), path }),
        Err(Error::Json { .. }) => Map::new(),
        Err(e) => return Err(e),
    };
    for (fields, key, kind) in FIELDS {
        let Some((field, value)) = fields.iter().find_map(|f| Some((*f, config.get(*f)?))) else { continue };
        let wrong = |expected| Error::WrongValue {
            path: path.clone(),
            field: field.to_owned(),
            expected,
            found: json::describe(value),
        };
        let value: MetaValue = match (kind, value) {
            (_, Value::Null) => continue,
            (Kind::Integer, v) => json::i32(v).ok_or_else(|| wrong("a 32-bit integer"))?.into(),
            (Kind::Float, v) => json::f32(v).ok_or_else(|| wrong("a number"))?.into(),
            (Kind::Text, Value::String(s)) if s.is_empty() => continue,
            (Kind::Text, Value::String(s)) => s.as_str().into(),
            (Kind::Text, _) => return Err(wrong("a string")),
        };
        metadata.set(*key, value);
    }
    files.push(path);
    Ok(())
}
