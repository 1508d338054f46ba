//! Open: a checkpoint with adapters laid over it, and the model that it is.

use crate::Error;
use mlpack_arch::{Families, Model};
use mlpack_fs::hash_file;
use mlpack_lora::{Adapter, Overlay};
use mlpack_safetensors::Checkpoint;
use std::path::{Path, PathBuf};

/// What is read: a checkpoint and the adapters over it. Only headers are in memory.
#[derive(Debug)]
pub struct Source {
    /// The base checkpoint.
    pub checkpoint: Checkpoint,
    /// The adapters, paired with the base.
    pub overlay: Overlay,
    /// What a person should know before relying on the result.
    pub warnings: Vec<String>,
}

impl Source {
    /// Opens a checkpoint directory and lays adapters over it, each with its weight (1 for a plain merge).
    pub fn open(base: &Path, adapters: &[(PathBuf, f64)]) -> Result<Source, Error> {
        let checkpoint = Checkpoint::open(base)?;
        let adapters = adapters
            .iter()
            .map(|(dir, weight)| Ok((Adapter::open(dir)?, *weight)))
            .collect::<Result<Vec<_>, mlpack_lora::Error>>()?;
        let overlay = Overlay::new(adapters, &checkpoint)?;
        let mut warnings = Vec::new();
        for (adapter, _) in overlay.adapters() {
            warnings.extend(tokenizer_differences(base, adapter)?);
        }
        Ok(Source { checkpoint, overlay, warnings })
    }
}

/// Opens the model that a source is: its architecture, config and tokenizer.
pub fn open_model(source: &Source, families: &Families) -> Result<Model, Error> {
    Ok(Model::open(source.checkpoint.dir(), families)?)
}

/// Tokenizer files that an adapter carries and that differ from the base's: the base's are used, so say so.
fn tokenizer_differences(base: &Path, adapter: &Adapter) -> Result<Vec<String>, Error> {
    const FILES: &[&str] = &["tokenizer.json", "tokenizer.model", "chat_template.jinja", "added_tokens.json"];
    let mut warnings = Vec::new();
    for name in FILES {
        let theirs = adapter.dir().join(name);
        if !theirs.is_file() {
            continue;
        }
        let ours = base.join(name);
        if !ours.is_file() || hash_file(&ours)?.0 != hash_file(&theirs)?.0 {
            warnings.push(format!(
                "adapter `{}` carries a {name} that differs from the base's; the base's is used",
                adapter.dir().display()
            ));
        }
    }
    Ok(warnings)
}
