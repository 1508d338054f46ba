//! `cargo xtask demo`: the main job on the legal-qa fixture, as the README shows it.

use crate::process::run;
use crate::workspace::{self, build_mlpack};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Releases the legal-qa fine-tune and traces one of the files.
pub fn command() -> Result<()> {
    let mlpack = build_mlpack(true)?;
    let root = workspace::root();
    run(Command::new(&mlpack).current_dir(root).args(["release", "fixtures/legal-qa/mlpack.toml"]))?;
    let file = newest_gguf(root)?.context("`mlpack release` wrote no .gguf file below the repository's root")?;
    run(Command::new(&mlpack).current_dir(root).arg("trace").arg(file))
}

/// The GGUF file written last, where releases may write: `out` in the root, or next to mlpack.toml.
fn newest_gguf(root: &Path) -> Result<Option<PathBuf>> {
    let mut folders: Vec<PathBuf> = ["out", "fixtures/legal-qa"].into_iter().map(PathBuf::from).collect();
    let mut newest = None;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(root.join(&folder)) else { continue };
        for entry in entries {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "gguf") {
                newest = newest.max(Some((entry.metadata()?.modified()?, path)));
            }
        }
    }
    Ok(newest.map(|(_, path)| path))
}
