//! `cargo xtask bench`: mlpack against the peers, side by side on this machine.
//!
//! Inputs and outputs lie on a memory file system, so that no disk is in the figures. Who goes first alternates, so that
//! a machine that warms up or slows down favours nobody; a figure is the median of the runs.

mod adapt;
mod cost;
mod importance;
mod lineage;
mod merge;
mod model;
mod onnx;
mod quantize;
mod registry;
mod release;

use crate::peers::Peers;
use crate::process::output;
use crate::workspace::{self, build_mlpack, fresh};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is measured, by name.
const PARTS: &[&str] = &["f16", "merge", "convert", "quantize", "chain", "registry", "lineage", "trace", "onnx"];

struct Options {
    parts: Vec<String>,
    dir: PathBuf,
    runs: usize,
    only: Vec<String>,
    out: Option<PathBuf>,
    keep: bool,
}

/// The programs, the inputs, and how often to run.
struct Bench {
    peers: Peers,
    mlpack: PathBuf,
    /// A checkpoint of 1.07 billion parameters.
    base: PathBuf,
    /// An adapter of it.
    lora: PathBuf,
    /// The folder of the inputs.
    dir: PathBuf,
    runs: usize,
    /// The file types to measure; none means all.
    only: Vec<String>,
}

impl Bench {
    /// A release of the base with the adapter, of its file in `work` but for where it goes. `merge` is what the file says of merging.
    fn release(&self, work: &Path, merge: &str, quants: &[&str]) -> Result<Command> {
        let file = work.join("mlpack.toml");
        let text = format!(
            "name = \"m\"\nbase = {:?}\n[[adapter]]\npath = {:?}\n{merge}[gguf]\nquant = {quants:?}\n",
            self.base, self.lora
        );
        std::fs::write(&file, text).with_context(|| format!("cannot write `{}`", file.display()))?;
        let mut release = Command::new(&self.mlpack);
        release.arg("release").arg(&file).args(["--threads", quantize::THREADS]);
        Ok(release)
    }
}

/// The figures of one part in Markdown, and the targets that it missed.
struct Report {
    text: String,
    missed: Vec<String>,
}

/// Measures, prints the tables, and fails when a target is missed.
pub fn command(arguments: &[&str]) -> Result<()> {
    let options = parse(arguments)?;
    if options.parts.iter().all(|part| part == "trace") {
        let Report { text, missed } = lineage::run(&build_mlpack(true)?, &options.dir, options.runs)?;
        return finish(&options, Report { text: format!("{}\n\n{text}", machine()?), missed });
    }
    let peers = Peers::locate()?;
    let any_but = |names: &[&str]| options.parts.iter().any(|part| !names.contains(&part.as_str()));
    if any_but(&["f16", "merge", "convert", "registry", "lineage", "trace", "onnx"]) {
        peers.llama_cpp()?;
    }
    let mlpack = build_mlpack(true)?;
    // The registry's bytes are noise; the other parts need a model.
    let (base, lora) = if any_but(&["registry"]) {
        peers.llama_tree()?;
        peers.smollm2()?;
        model::write(&options.dir, &peers.smollm2_dir())?
    } else {
        fresh(&options.dir)?;
        Default::default()
    };
    let dir = options.dir.clone();
    let bench = Bench { peers, mlpack, base, lora, dir, runs: options.runs, only: options.only.clone() };
    let mut text = format!("{}\n\nRuns of each, alternating: {}; medians.\n", machine()?, bench.runs);
    let mut missed = Vec::new();
    for part in &options.parts {
        let report = match part.as_str() {
            "f16" => adapt::base_to_f16(&bench)?,
            "merge" => merge::run(&bench)?,
            "convert" => adapt::to_f16(&bench)?,
            "quantize" => quantize::run(&bench)?,
            "chain" => adapt::to_q4_k_m(&bench)?,
            "registry" => registry::run(&bench)?,
            "lineage" => release::run(&bench)?,
            "onnx" => onnx::run(&bench)?,
            "trace" => lineage::run(&bench.mlpack, &bench.dir, bench.runs)?,
            other => unreachable!("`{other}` was refused"),
        };
        text.push('\n');
        text.push_str(&report.text);
        missed.extend(report.missed);
    }
    finish(&options, Report { text, missed })
}

/// Takes the inputs away, prints the figures, and fails when a target is missed.
fn finish(options: &Options, Report { text, missed }: Report) -> Result<()> {
    if !options.keep {
        std::fs::remove_dir_all(&options.dir).with_context(|| format!("cannot remove `{}`", options.dir.display()))?;
    }
    println!("{text}");
    if let Some(out) = &options.out {
        append(out, &text)?;
    }
    if !missed.is_empty() {
        bail!("targets missed: {}", missed.join("; "));
    }
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<Options> {
    let dir = "/dev/shm/mlpack-bench".into();
    let mut options = Options { parts: Vec::new(), dir, runs: 3, only: Vec::new(), out: None, keep: false };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("`{argument}` needs a value"));
        match *argument {
            "--dir" => options.dir = PathBuf::from(value()?).join("mlpack-bench"),
            "--runs" => {
                options.runs = value()?.parse().ok().filter(|n| *n > 0).context("`--runs` needs a number above 0")?
            }
            "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
            "--out" => options.out = Some(value()?.into()),
            "--keep" => options.keep = true,
            "--onnx" => options.parts.push("onnx".to_owned()),
            part if PARTS.contains(&part) => options.parts.push(part.to_owned()),
            other => bail!(
                "unknown argument `{other}`\n  expected: one of {}, --dir DIR, --runs N, --only TYPES, --out FILE, --keep",
                PARTS.join(", ")
            ),
        }
    }
    if let Some(unknown) = options.only.iter().find(|name| !quantize::measures(name)) {
        bail!("`--only {unknown}` is not measured\n  expected: some of {}", quantize::measured().join(","));
    }
    if options.parts.is_empty() {
        options.parts = PARTS.iter().map(|part| (*part).to_owned()).collect();
    }
    Ok(options)
}

/// Date, commit and machine: a figure without them says nothing.
fn machine() -> Result<String> {
    let read =
        |file: &str| mlpack_fs::read_to_string_bounded(Path::new(file), workspace::TEXT_LIMIT).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    Ok(format!(
        "{}, commit {}, {}, {} cores, Linux {}",
        date.trim(),
        workspace::commit()?,
        model.map_or("unknown CPU", |(_, name)| name.trim()),
        std::thread::available_parallelism()?,
        read("/proc/sys/kernel/osrelease").trim(),
    ))
}

fn append(file: &Path, table: &str) -> Result<()> {
    use std::io::Write as _;
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create `{}`", parent.display()))?;
    }
    let mut note = std::fs::OpenOptions::new().create(true).append(true).open(file);
    note.as_mut()
        .map_err(|error| std::io::Error::new(error.kind(), error.to_string()))
        .and_then(|note| writeln!(note, "## {table}"))
        .with_context(|| format!("cannot append to `{}`", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_part_all_are_measured_and_a_wrong_one_is_named() {
        assert_eq!(parse(&["--runs", "1"]).unwrap().parts, PARTS);
        let options = parse(&["quantize", "--only", "Q4_K_M,Q8_0"]).unwrap();
        assert_eq!(
            (options.parts, options.only),
            (vec!["quantize".to_owned()], vec!["Q4_K_M".to_owned(), "Q8_0".to_owned()])
        );
        assert_eq!(parse(&["--onnx"]).unwrap().parts, ["onnx"]);
        assert!(parse(&["quantise"]).err().unwrap().to_string().contains("unknown argument `quantise`"));
        assert!(parse(&["--only", "Q4_K_X"]).err().unwrap().to_string().contains("Q4_K_M,"));
    }
}
