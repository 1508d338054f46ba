//! What lineage costs releases: the CPU time of hashing, against that of the whole command.
//!
//! Outputs are hashed from the buffers that are written, on the same threads as the work, so CPU time is what hashing takes away
//! from it. What hashing takes is measured apart, on one thread: one file after the other, as outputs are hashed whose tensors have
//! different orders, and two beside each other, as the others are. The base is hashed in the first release, and in one with
//! `--rehash`; later ones know its digest.

use super::cost::{Cost, measure};
use super::{Bench, Report};
use crate::workspace::fresh;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What is released: the variant that most people take, a set of k-quants, and one of the variants that are least work to make.
const RELEASES: [&[&str]; 3] = [&["Q4_K_M"], &["Q4_K_M", "Q5_K_M", "Q6_K"], &["Q8_0", "Q4_K_M"]];
/// The largest share of a release's CPU time, once the base's digest is known.
const TARGET_SHARE: f64 = 0.05;

/// Releases a base and an adapter, again and again into one folder; the base is hashed in every other run.
pub fn run(bench: &Bench) -> Result<Report> {
    let mut report = Report {
        text: "### lineage\n\nReleases of a base and an adapter, two threads.\n\n\
            | release | wall | CPU | of that hashing: one at a time, in pairs | share |\n| --- | --- | --- | --- | --- |\n"
            .to_owned(),
        missed: Vec::new(),
    };
    for quants in RELEASES {
        release(bench, quants, &mut report)?;
    }
    Ok(report)
}

fn release(bench: &Bench, quants: &[&str], report: &mut Report) -> Result<()> {
    let work = bench.dir.join("work");
    fresh(&work)?;
    let release = |more: &[&str]| -> Result<Cost> {
        let mut release = bench.release(&work, "", quants)?;
        measure(&bench.peers, release.args(more).arg("-o").arg(work.join("out")), &work)
    };
    // Notes the digest of the base.
    release(&[])?;
    let (mut known, mut hashed) = (Vec::new(), Vec::new());
    for _ in 0..bench.runs {
        known.push(release(&[])?);
        hashed.push(release(&["--rehash"])?);
    }
    let (known, hashed) = (Cost::medians(&known), Cost::medians(&hashed));
    let outputs = Hashing::of(&files(&work.join("out"), "gguf")?)?;
    let base = Hashing::of(&files(&bench.base, "safetensors")?)?;
    let names = quants.join(", ");
    let mut row = |name: &str, cost: &Cost, hashing: &Hashing| {
        let Hashing { alone_s, in_pairs_s } = hashing;
        let (most, least) = (alone_s / cost.cpu_s * 100.0, in_pairs_s / cost.cpu_s * 100.0);
        let (wall_s, cpu_s) = (cost.wall_s, cost.cpu_s);
        report.text.push_str(&format!(
            "| {name} | {wall_s:.1} s | {cpu_s:.1} s | {alone_s:.2} s, {in_pairs_s:.2} s | {least:.1} to {most:.1} % |\n"
        ));
    };
    row(&names, &known, &outputs);
    row(&format!("{names}, `--rehash`"), &hashed, &outputs.and(&base));
    let share = outputs.alone_s / known.cpu_s;
    if share > TARGET_SHARE {
        let (share, target) = (share * 100.0, TARGET_SHARE * 100.0);
        report.missed.push(format!("lineage: up to {share:.1} % of a release of {names}, at most {target:.0} %"));
    }
    Ok(())
}

/// What one thread takes to hash files from memory.
struct Hashing {
    alone_s: f64,
    in_pairs_s: f64,
}

impl Hashing {
    fn of(files: &[PathBuf]) -> Result<Hashing> {
        let at_a_time = |count| -> Result<f64> {
            let started = Instant::now();
            files.chunks(count).try_for_each(|files| mlpack_fs::hash_files(files).map(drop))?;
            Ok(started.elapsed().as_secs_f64())
        };
        Ok(Hashing { alone_s: at_a_time(1)?, in_pairs_s: at_a_time(2)? })
    }

    fn and(&self, other: &Hashing) -> Hashing {
        Hashing { alone_s: self.alone_s + other.alone_s, in_pairs_s: self.in_pairs_s + other.in_pairs_s }
    }
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
