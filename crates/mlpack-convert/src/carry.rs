//! Files that go along with merged weights: the base's, with what the adapters changed.

use crate::{Error, SealedFile, Source};
use mlpack_fs::{Operation, read_bounded, write_atomic};
use mlpack_safetensors::{Checkpoint, INDEX_NAME};
use std::path::{Path, PathBuf};

/// The largest file that is carried over: tokenizers reach some tens of megabytes.
const MAX_CARRIED_LEN: u64 = 512 << 20;

/// A file beside the weights.
#[derive(Clone, Debug)]
pub struct Carried {
    name: String,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Copied(PathBuf),
    /// New text, and the file that it was made from.
    Text(String, Option<PathBuf>),
}

impl Carried {
    /// The files beside a checkpoint's weights. `index` is the new index, or that there is none any more.
    pub(crate) fn beside(
        source: &Source,
        checkpoint: &Checkpoint,
        index: Option<Option<String>>,
    ) -> Result<Vec<Carried>, Error> {
        let mut files: Vec<Carried> = carried_files(checkpoint.dir())?
            .into_iter()
            .map(|path| Carried {
                name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                content: Content::Copied(path),
            })
            .collect();
        for change in source.changed_files() {
            let name = change.name.clone();
            files.retain(|file| file.name != name);
            let from = change.from.clone();
            let content = match &change.text {
                None => Content::Copied(from),
                Some(text) => Content::Text(text.clone(), Some(from)),
            };
            files.push(Carried { name, content });
        }
        if let Some(index) = index {
            files.retain(|file| file.name != INDEX_NAME);
            files.extend(index.map(|text| Carried { name: INDEX_NAME.to_owned(), content: Content::Text(text, None) }));
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that it is, or was made from.
    pub fn from(&self) -> Option<&Path> {
        match &self.content {
            Content::Copied(path) => Some(path),
            Content::Text(_, from) => from.as_deref(),
        }
    }

    /// New text.
    pub(crate) fn text(name: &str, text: String) -> Carried {
        Carried { name: name.to_owned(), content: Content::Text(text, None) }
    }

    /// Its JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value, Error> {
        let bytes = self.read()?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Json {
            path: self.from().unwrap_or(Path::new(&self.name)).to_owned(),
            reason: e.to_string(),
        })
    }

    /// Gives it new text, made from what it was.
    pub(crate) fn replace(&mut self, text: String) {
        let from = self.from().map(Path::to_owned);
        self.content = Content::Text(text, from);
    }

    fn read(&self) -> Result<Vec<u8>, Error> {
        Ok(match &self.content {
            Content::Copied(from) => read_bounded(from, MAX_CARRIED_LEN)?,
            Content::Text(text, _) => text.clone().into_bytes(),
        })
    }

    /// Writes it into a directory.
    pub(crate) fn write(&self, to: &Path) -> Result<SealedFile, Error> {
        let path = to.join(&self.name);
        let bytes = self.read()?;
        let sha256 = write_atomic(&path, &bytes)?;
        Ok(SealedFile { path, sha256, byte_len: bytes.len() as u64 })
    }
}

/// The files of a model directory that describe the model and its tokenizer, and its licence, by name: `*.json` (the
/// index with them), `*.model`, `*.txt`, `*.jinja`, LICENSE, NOTICE and USE_POLICY in any spelling. The model card stays behind: it
/// describes the base.
fn carried_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let list_error = |e| mlpack_fs::Error::io(Operation::List, dir, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(list_error)? {
        let path = entry.map_err(list_error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let upper = name.to_uppercase();
        let described = [".json", ".model", ".txt", ".jinja"].iter().any(|ext| name.ends_with(ext));
        let licence = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|start| upper.starts_with(start));
        if path.is_file() && !name.starts_with('.') && (described || licence) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
