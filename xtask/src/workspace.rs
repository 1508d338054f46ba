//! This repository: its root, its files, and the mlpack binary built from it.

use crate::process;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// No text file of the repository is larger than this.
pub const TEXT_LIMIT: u64 = 16 << 20;

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root")
}

/// A cargo command that runs in the root, as a shell would run it: ring's build script watches what `cargo run` tells its
/// program, and would else run again each time, and everything that is above it would be built anew.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
}

/// Every file that is or would be committed, with `/` between components, sorted.
pub fn files() -> Result<Vec<String>> {
    let listed = process::output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut files: Vec<String> = listed.split_terminator('\0').map(str::to_owned).collect();
    files.retain(|file| root().join(file).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// A text file of the repository.
pub fn read(file: &str) -> Result<String> {
    Ok(mlpack_fs::read_to_string_bounded(&root().join(file), TEXT_LIMIT)?)
}

/// Writes a file of the repository and says so.
pub fn write(file: &str, text: &str) -> Result<()> {
    let path = root().join(file);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
    }
    std::fs::write(&path, text).with_context(|| format!("cannot write `{file}`"))?;
    eprintln!("wrote {file}");
    Ok(())
}

/// Builds mlpack and returns the path of the binary.
pub fn build_mlpack(release: bool) -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", "mlpack", "--bin", "mlpack"]);
    if release {
        build.arg("--release");
    }
    process::run(&mut build)?;
    let profile = if release { "release" } else { "debug" };
    Ok(target_dir()?.join(profile).join("mlpack"))
}

/// Where cargo puts what it builds.
pub fn target_dir() -> Result<PathBuf> {
    #[derive(serde::Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let text = process::output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("cannot parse what `cargo metadata` printed")?;
    Ok(metadata.target_directory)
}

/// Today's commit, short, with `+changes` when the work tree differs from it.
pub fn commit() -> Result<String> {
    let git = |arguments: &[&str]| process::output(Command::new("git").current_dir(root()).args(arguments));
    let mut commit = git(&["rev-parse", "--short=12", "HEAD"])?.trim().to_owned();
    if !git(&["status", "--porcelain", "--untracked-files=no"])?.trim().is_empty() {
        commit.push_str("+changes");
    }
    Ok(commit)
}

/// An empty folder.
pub fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))
}
