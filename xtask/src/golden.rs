//! `cargo xtask golden`: digests of our own outputs, so that a change of any byte is a decision.

use crate::fixtures::{differences, format_sums, parse_sums};
use crate::process::run;
use crate::workspace::{self, build_mlpack};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const GOLDEN: &str = "fixtures/golden.sha256";
const QUANTS: &str = "F32,F16,BF16,Q8_0,Q4_0,Q4_K_M";

/// Writes fixtures/golden.sha256.
pub fn write() -> Result<()> {
    workspace::write(GOLDEN, &format_sums(&digests()?))
}

/// Compares what mlpack makes now with fixtures/golden.sha256.
pub fn check() -> Result<()> {
    let differences = differences(&parse_sums(&workspace::read(GOLDEN)?), &digests()?);
    if !differences.is_empty() {
        bail!(
            "outputs differ from `{GOLDEN}`\n  {}\nif that is meant, run `cargo xtask golden` and say why in the commit",
            differences.join("\n  ")
        );
    }
    Ok(())
}

fn digests() -> Result<BTreeMap<String, String>> {
    let mlpack = build_mlpack(true)?;
    let out = workspace::root().join("target/golden");
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("cannot remove `{}`", out.display()))?;
    }
    let mlpack = || {
        let mut command = Command::new(&mlpack);
        command.current_dir(workspace::root());
        command
    };
    let (base, adapter) = ("fixtures/legal-qa/kjv-llama", "fixtures/legal-qa/legal-qa-lora");
    let to_gguf = ["--to", "gguf", "--quant", QUANTS, "-o"];
    run(mlpack().args(["convert", base]).args(to_gguf).arg(out.join("base")))?;
    run(mlpack().args(["convert", base, "-a", adapter]).args(to_gguf).arg(out.join("adapted")))?;
    run(mlpack().args(["merge", base, "-a", adapter, "-o"]).arg(out.join("merged")))?;
    let mut digests = BTreeMap::new();
    for (folder, end) in [("base", ".gguf"), ("adapted", ".gguf"), ("merged", ".safetensors")] {
        add(&mut digests, &out, folder, end)?;
    }
    Ok(digests)
}

/// Adds the files of one folder whose names end in `end`.
fn add(digests: &mut BTreeMap<String, String>, out: &Path, folder: &str, end: &str) -> Result<()> {
    let path = out.join(folder);
    let entries = std::fs::read_dir(&path).with_context(|| format!("cannot list `{}`", path.display()))?;
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(end) {
            digests.insert(format!("{folder}/{name}"), mlpack_fs::hash_file(&path.join(&name))?.0.to_string());
        }
    }
    Ok(())
}
