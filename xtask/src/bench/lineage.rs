//! The trace of a graph of 1000 nodes, from a sidecar and from a store: no model, no peer.

use super::Report;
use crate::process::run_quiet;
use anyhow::{Context as _, Result};
use mlpack_fs::Sha256;
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// Steps of the graph; each reads three files, the first of them made by another step.
const STEPS: usize = 250;
/// Steps one after the other before the next chain begins.
const CHAIN: usize = 24;
/// Longest time for the trace, in milliseconds.
const TARGET_MS: u128 = 1000;

/// Measures the traces; the figure of each is the median of the runs.
pub fn run(mlpack: &Path, dir: &Path, runs: usize) -> Result<Report> {
    let dir = dir.join("lineage");
    super::fresh(&dir)?;
    let artifact = dir.join("a.gguf");
    std::fs::write(&artifact, "a").with_context(|| format!("cannot write `{}`", artifact.display()))?;
    let statements = statements();
    let nodes = 1 + statements.len() * 4;
    let mut text =
        format!("### trace\n\n{nodes} nodes, {} statements\n\n| from | ms |\n| --- | --- |\n", statements.len());
    let mut missed = Vec::new();
    for from in ["sidecar", "store"] {
        let sidecar = dir.join("a.gguf.claims.jsonl");
        if from == "sidecar" {
            std::fs::write(&sidecar, statements.iter().map(|(_, line)| format!("{line}\n")).collect::<String>())?;
        } else {
            std::fs::remove_file(&sidecar)?;
            for (subject, line) in &statements {
                let digest = Sha256::of(line.as_bytes()).to_string();
                let object = dir.join(".mlpack/objects/sha256").join(&digest[..2]);
                let index = dir.join(".mlpack/subjects").join(&subject[..2]).join(subject);
                std::fs::create_dir_all(&object)?;
                std::fs::create_dir_all(&index)?;
                std::fs::write(object.join(&digest), line)?;
                std::fs::write(index.join(&digest), "")?;
            }
        }
        let mut times = Vec::new();
        for _ in 0..runs {
            let started = Instant::now();
            run_quiet(Command::new(mlpack).args(["trace", "--json"]).arg(&artifact))?;
            times.push(started.elapsed().as_millis());
        }
        times.sort_unstable();
        let median = times[times.len() / 2];
        text.push_str(&format!("| {from} | {median} |\n"));
        if median > TARGET_MS {
            missed.push(format!("trace from a {from}: {median} ms, at most {TARGET_MS}"));
        }
    }
    Ok(Report { text, missed })
}

/// Subject and statement of each step.
fn statements() -> Vec<(String, String)> {
    let name = |i: usize, what: &str| Sha256::of(format!("{what} {i}").as_bytes()).to_string();
    // A step makes what the one before it in its chain reads; the first of each chain makes what the artifact's step reads.
    let made = |i: usize| if i == 0 { Sha256::of(b"a").to_string() } else { name(i, "made") };
    let statement = |i: usize| {
        let mut inputs: Vec<String> = ["x", "y"].map(|what| name(i, what)).to_vec();
        if i == 0 {
            inputs.extend((1..STEPS).step_by(CHAIN).map(made));
        } else if !i.is_multiple_of(CHAIN) && i + 1 < STEPS {
            inputs.push(made(i + 1));
        } else {
            inputs.push(name(i, "z"));
        }
        let inputs: Vec<_> = inputs
            .iter()
            .map(|hex| json!({"name": format!("d/{hex}"), "digest": {"sha256": hex}, "annotations": {"role": "model"}}))
            .collect();
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "m", "digest": {"sha256": made(i)}}],
            "predicateType": "https://slsa.dev/provenance/v1",
            "predicate": {
                "buildDefinition": {"buildType": "urn:bench", "externalParameters": {}, "resolvedDependencies": inputs},
                "runDetails": {"builder": {"id": "urn:bench"}},
            },
        });
        (made(i), statement.to_string())
    };
    (0..STEPS).map(statement).collect()
}
