//! What lineage costs a release: the CPU time of hashing, against that of the whole command.
//!
//! Outputs are hashed from the buffers that are written, on the same threads as the work, so CPU time is what hashing takes away
//! from it. What hashing takes is measured apart: two files beside each other on one thread, as the outputs are. The base is hashed in the first release, and in
//! one with `--rehash`; later ones know its digest.

use super::cost::{Cost, measure};
use super::{Bench, Report, quantize};
use crate::workspace::fresh;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const QUANTS: [&str; 2] = ["Q8_0", "Q4_K_M"];
/// The largest share of a release's CPU time, once the base's digest is known.
const TARGET_SHARE: f64 = 0.05;

/// Releases a base and an adapter, again and again into one folder; the base is hashed in every other run.
pub fn run(bench: &Bench) -> Result<Report> {
    let work = bench.dir.join("work");
    fresh(&work)?;
    let file = work.join("mlpack.toml");
    let quants = QUANTS.map(|quant| format!("{quant:?}")).join(", ");
    let text = format!(
        "name = \"m\"\nbase = {:?}\n[[adapter]]\npath = {:?}\n[gguf]\nquant = [{quants}]\n",
        bench.base, bench.lora
    );
    std::fs::write(&file, text).with_context(|| format!("cannot write `{}`", file.display()))?;
    let release = |more: &[&str]| -> Result<Cost> {
        let mut release = Command::new(&bench.mlpack);
        release.arg("release").arg(&file).args(["--threads", quantize::THREADS]).args(more).arg("-o");
        measure(&bench.peers, release.arg(work.join("out")), &work)
    };
    // Notes the digest of the base.
    release(&[])?;
    let (mut known, mut hashed) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs {
        known.push(release(&[])?);
        hashed.push(release(&["--rehash"])?);
    }
    let (known, hashed) = (Cost::medians(&known), Cost::medians(&hashed));
    let outputs = hash_seconds(&files(&work.join("out"), "gguf")?)?;
    let base = hash_seconds(&files(&bench.base, "safetensors")?)?;
    let row = |name: &str, cost: &Cost, hashing: f64| {
        let share = hashing / cost.cpu_s;
        format!("| {name} | {:.1} s | {:.1} s | {hashing:.2} s | {:.1} % |\n", cost.wall_s, cost.cpu_s, share * 100.0)
    };
    let mut text = format!(
        "### lineage\n\nA release of {} from the base and an adapter, two threads.\n\n\
         | release | wall | CPU | of that hashing | share |\n| --- | --- | --- | --- | --- |\n",
        QUANTS.join(" and ")
    );
    text.push_str(&row("the base's digest is known", &known, outputs));
    text.push_str(&row("`--rehash`", &hashed, outputs + base));
    let share = outputs / known.cpu_s;
    let missed = match share > TARGET_SHARE {
        true => vec![format!("lineage: {:.1} % of a release, at most {:.0} %", share * 100.0, TARGET_SHARE * 100.0)],
        false => Vec::new(),
    };
    Ok(Report { text, missed })
}

fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list `{}`", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    if files.is_empty() {
        bail!("no .{extension} file in `{}`", dir.display());
    }
    Ok(files)
}

/// The time that one thread takes to hash the files from memory, two beside each other.
fn hash_seconds(files: &[PathBuf]) -> Result<f64> {
    let started = Instant::now();
    for pair in files.chunks(2) {
        mlpack_fs::hash_files(pair)?;
    }
    Ok(started.elapsed().as_secs_f64())
}
