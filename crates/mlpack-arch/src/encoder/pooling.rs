//! How sentence-transformers makes one vector of a text: modules.json and the configs that it names.

use crate::{Error, json, pooling::pooling_config};
use serde_json::Value;
use std::path::Path;

/// How the vectors of a text become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Which of them count.
    pub mode: PoolingMode,
    /// Whether the vector is divided by its length.
    pub normalize: bool,
}

/// Which vectors of a text count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolingMode {
    /// Their mean.
    Mean,
    /// The first.
    First,
    /// The largest of each element.
    Max,
}

impl Pooling {
    /// What modules.json says; `None` without that file or a pooling module in it.
    pub(super) fn open(dir: &Path) -> Result<Option<Pooling>, Error> {
        let Some(path) = pooling_config(dir, &mut Vec::new())? else { return Ok(None) };
        let modules_path = dir.join("modules.json");
        let modules = json::read(&modules_path)?;
        let kinds = modules.as_array().into_iter().flatten().filter_map(|module| module["type"].as_str());
        let mut normalize = false;
        for kind in kinds {
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" | "Pooling" => {}
                "Normalize" => normalize = true,
                _ => {
                    return Err(Error::WrongValue {
                        path: modules_path,
                        field: "type".to_owned(),
                        expected: "a Transformer, a Pooling and perhaps a Normalize module",
                        found: json::describe(&Value::from(kind)),
                    });
                }
            }
        }
        let pooling = json::read_object(&path)?;
        let on = |field: &str| pooling.get(field).is_some_and(json::is_truthy);
        let modes = [
            ("pooling_mode_mean_tokens", "mean", PoolingMode::Mean),
            ("pooling_mode_cls_token", "cls", PoolingMode::First),
            ("pooling_mode_max_tokens", "max", PoolingMode::Max),
        ];
        let others =
            ["pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken"];
        let mut found = modes.iter().filter(|(field, ..)| on(field));
        let named = pooling.get("pooling_mode").and_then(Value::as_str);
        let mode = match (found.next(), found.next(), others.iter().any(|field| on(field))) {
            (Some((.., mode)), None, false) => *mode,
            (None, None, false) => match modes.iter().find(|(_, name, _)| Some(*name) == named) {
                Some((.., mode)) => *mode,
                None => {
                    let found = pooling.get("pooling_mode").map_or("none of these".to_owned(), json::describe);
                    return Err(Error::UnknownPooling { path, found });
                }
            },
            _ => return Err(Error::UnknownPooling { path, found: "another one, or several together".to_owned() }),
        };
        Ok(Some(Pooling { mode, normalize }))
    }
}
