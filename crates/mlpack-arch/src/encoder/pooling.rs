//! How sentence-transformers makes one vector of a text: modules.json and the configs that it names.

use super::HeadActivation;
use crate::pooling::{module_folder, modules};
use crate::{Activation, Error, json, pooling::pooling_config};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How the vectors of a text become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Which of them count.
    pub mode: PoolingMode,
    /// What is done to the vector, one after the other.
    pub after: Vec<AfterPooling>,
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

/// What is done to the vector of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AfterPooling {
    /// It is divided by its length.
    Normalize,
    /// It is multiplied by a matrix that lies in a folder of its own.
    Dense(Dense),
}

/// A matrix after pooling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dense {
    /// The name of its tensors: the folder, and `linear`.
    pub name: String,
    /// The width of the vector before it.
    pub inputs: u64,
    /// The width of the vector after it.
    pub outputs: u64,
    /// The nonlinearity after it, if there is one.
    pub activation: Option<HeadActivation>,
}

impl Pooling {
    /// What modules.json says; `None` without that file or a pooling module in it.
    pub(super) fn open(dir: &Path) -> Result<Option<Pooling>, Error> {
        let Some(path) = pooling_config(dir, &mut Vec::new())? else { return Ok(None) };
        let modules_path = dir.join("modules.json");
        let mut after = Vec::new();
        for module in modules(&modules_path)? {
            match module.kind() {
                "Transformer" | "Pooling" => {}
                "Normalize" => after.push(AfterPooling::Normalize),
                "Dense" => after.push(AfterPooling::Dense(dense(dir, &module_folder(&modules_path, &module.value)?)?)),
                kind => {
                    return Err(Error::WrongValue {
                        path: modules_path,
                        field: "type".to_owned(),
                        expected: "a Transformer, a Pooling and perhaps Dense and Normalize modules",
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
        Ok(Some(Pooling { mode, after }))
    }

    /// The matrices after pooling.
    pub fn dense(&self) -> impl Iterator<Item = &Dense> {
        self.after.iter().filter_map(|step| match step {
            AfterPooling::Dense(dense) => Some(dense),
            AfterPooling::Normalize => None,
        })
    }
}

/// The folders, within the model's, of the matrices that modules.json puts after pooling.
///
/// # Errors
/// When modules.json is no list of modules.
pub fn dense_folders(dir: &Path) -> Result<Vec<String>, Error> {
    let path = dir.join("modules.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let dense = modules(&path)?.into_iter().filter(|module| module.kind() == "Dense");
    dense.map(|module| module_folder(&path, &module.value)).collect()
}

/// The files that say how a sentence embedder pools: modules.json and the configs that it names.
///
/// # Errors
/// When modules.json is no list of modules.
pub fn embedder_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let path = dir.join("modules.json");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for module in modules(&path)?.into_iter().filter(|module| matches!(module.kind(), "Dense" | "Pooling")) {
        files.push(dir.join(module_folder(&path, &module.value)?).join("config.json"));
    }
    Ok(files)
}

/// What the config of a Dense module says (sentence-transformers 5, `models/Dense.py`).
fn dense(dir: &Path, folder: &str) -> Result<Dense, Error> {
    let path = dir.join(folder).join("config.json");
    let config = json::read_object(&path)?;
    let wrong = |field: &str, expected, found: &Value| Error::WrongValue {
        path: path.clone(),
        field: field.to_owned(),
        expected,
        found: json::describe(found),
    };
    let field = |name: &str| config.get(name).unwrap_or(&Value::Null);
    let size = |name: &str| {
        let found = field(name);
        found
            .as_u64()
            .filter(|size| (1..=u64::from(u32::MAX)).contains(size))
            .ok_or_else(|| wrong(name, "a size", found))
    };
    for (name, own) in [("module_input_name", "sentence_embedding"), ("module_output_name", "sentence_embedding")] {
        if !matches!(field(name), Value::Null) && field(name) != own {
            return Err(wrong(name, "`sentence_embedding`", field(name)));
        }
    }
    let activation = match field("activation_function") {
        Value::Null => Some(HeadActivation::Tanh),
        Value::String(name) => match name.rsplit('.').next().unwrap_or_default() {
            "Identity" => None,
            "Tanh" => Some(HeadActivation::Tanh),
            "ReLU" => Some(HeadActivation::Of(Activation::Relu)),
            "GELU" => Some(HeadActivation::Of(Activation::Gelu)),
            "SiLU" => Some(HeadActivation::Of(Activation::Silu)),
            _ => {
                return Err(wrong(
                    "activation_function",
                    "Identity, Tanh, ReLU, GELU or SiLU of torch",
                    field("activation_function"),
                ));
            }
        },
        other => return Err(wrong("activation_function", "the name of a class", other)),
    };
    Ok(Dense {
        name: format!("{folder}.linear"),
        inputs: size("in_features")?,
        outputs: size("out_features")?,
        activation,
    })
}
