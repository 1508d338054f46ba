//! Merging: a tiny model and an adapter of each kind, made by PEFT now, merged by mlpack and by PEFT in float64.
//!
//! `fixtures/lora/make.py` makes both and compares; it also says how far PEFT's own default merge is from the float64 one.

use crate::peers::Peers;
use crate::process::{output, run as run_command};
use crate::workspace;
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::Command;

/// Merges the cases with `only` in their name; returns how many differ.
pub fn run(only: &str, peers: &Peers, mlpack: &Path) -> Result<usize> {
    let work = workspace::root().join("target/parity/lora");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove `{}`", work.display()))?;
    }
    let script = workspace::root().join("fixtures/lora/make.py");
    let cases = output(peers.python().arg(&script).arg("--list"))?;
    let cases: Vec<&str> = cases.lines().filter(|case| case.contains(only)).collect();
    run_command(peers.python().arg(&script).arg(&work).args(&cases).arg("--files"))?;
    let mut differing = 0;
    for case in cases {
        let dir = work.join(case);
        let merged = dir.join("mlpack");
        output(
            Command::new(mlpack)
                .arg("merge")
                .arg(dir.join("base"))
                .arg("-a")
                .arg(dir.join("adapter"))
                .arg("-o")
                .arg(&merged),
        )?;
        let line = output(peers.python().arg(&script).arg("--compare").arg(&dir).arg(&merged))?;
        println!("  {case}: {}", line.trim());
        differing += usize::from(!line.starts_with("0 of"));
    }
    Ok(differing)
}
