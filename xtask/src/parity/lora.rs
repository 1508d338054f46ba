//! Merging: a tiny model and an adapter of each kind, made by PEFT now, merged by mlpack and by PEFT in float64; and a real
//! merged model in transformers.
//!
//! `fixtures/lora/make.py` makes both and compares; it also says how far PEFT's own default merge is from the float64 one.

use crate::peers::Peers;
use crate::process::{output, run as run_command};
use crate::workspace;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Merges the cases with `only` in their name; returns how many differ.
pub fn run(only: &str, peers: &Peers, mlpack: &Path) -> Result<usize> {
    let work = workspace::root().join("target/parity/lora");
    workspace::fresh(&work)?;
    let script = workspace::root().join("fixtures/lora/make.py");
    let cases = output(peers.python().arg(&script).arg("--list"))?;
    let cases: Vec<&str> = cases.lines().filter(|case| case.contains(only)).collect();
    run_command(peers.python().arg(&script).arg(&work).args(&cases).arg("--files"))?;
    for case in &cases {
        let dir = work.join(case);
        let arguments = mlpack_fs::read_to_string_bounded(&dir.join("arguments"), workspace::TEXT_LIMIT)?;
        output(Command::new(mlpack).current_dir(&dir).args(["merge", "base", "-o", "mlpack"]).args(arguments.lines()))?;
    }
    let lines = output(peers.python().arg(&script).arg("--compare").arg(&work).args(&cases))?;
    lines.lines().for_each(|line| println!("  {line}"));
    let same = cases.iter().filter(|case| lines.lines().any(|line| line.starts_with(&format!("{case}: 0 of")))).count();
    Ok(cases.len() - same)
}

/// Opens the merged legal-qa model with transformers, in one file and in shards; returns how many of them do not generate
/// the golden's tokens.
pub fn opens(peers: &Peers, mlpack: &Path) -> Result<usize> {
    let work = workspace::root().join("target/parity/opens");
    workspace::fresh(&work)?;
    let fixtures = workspace::root().join("fixtures/legal-qa");
    let mut differing = 0;
    for (case, options) in [("one-file", &[][..]), ("shards", &["--max-shard-size", "1MB"])] {
        let merged = work.join(case);
        let mut merge = Command::new(mlpack);
        merge.arg("merge").arg(fixtures.join("kjv-llama")).arg("-a").arg(fixtures.join("legal-qa-lora"));
        output(merge.args(options).arg("-o").arg(&merged))?;
        let mut greedy = peers.script("greedy.py");
        let line = output(greedy.arg(&merged).arg(fixtures.join("golden/transformers-greedy.json")))?;
        println!("  {case}: {}", line.trim());
        differing += usize::from(!line.trim().starts_with("0 of"));
    }
    Ok(differing)
}
