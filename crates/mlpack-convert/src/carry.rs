//! Files that go along with merged weights.

use crate::{Error, SealedFile};
use mlpack_fs::{Operation, read_bounded, write_atomic};
use std::path::{Path, PathBuf};

/// The largest file that is carried over: tokenizers reach some tens of megabytes.
const MAX_CARRIED_LEN: u64 = 512 << 20;

/// The files of a model directory that describe the model and its tokenizer, and its licence, by name: `*.json` (the
/// index with them), `*.model`, `*.txt`, `*.jinja`, LICENSE, NOTICE and USE_POLICY in any spelling. The model card stays behind: it
/// describes the base.
pub fn carried_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
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

/// Copies those files into an output directory.
pub(crate) fn carry(from: &Path, to: &Path) -> Result<Vec<SealedFile>, Error> {
    let mut sealed = Vec::new();
    for file in carried_files(from)? {
        let bytes = read_bounded(&file, MAX_CARRIED_LEN)?;
        let path = to.join(file.file_name().unwrap_or_default());
        let sha256 = write_atomic(&path, &bytes)?;
        sealed.push(SealedFile { path, sha256, byte_len: bytes.len() as u64 });
    }
    Ok(sealed)
}
