//! `cargo xtask bench`: mlpack's one command against the peers' chain, side by side on this machine.
//!
//! The chain is what people run today: PEFT merges the adapter and saves a second checkpoint, and
//! `convert_hf_to_gguf.py` reads that. Inputs and outputs lie on a memory file system, so that no disk is in the
//! figures. Each process is measured by the kernel (`wait4`); its peak of resident memory counts mapped pages.

use crate::bench_model;
use crate::peers::Peers;
use crate::process::{output, shown};
use crate::workspace::{self, build_mlpack};
use anyhow::{Context as _, Result, bail};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const FASTER: f64 = 5.0;
const PEAK_RSS: u64 = 700_000_000;
/// What may lie beside the model file while it is written: statements, a journal, the Modelfile.
const BESIDE_THE_RESULT: u64 = 1 << 20;

struct Options {
    dir: PathBuf,
    runs: usize,
    out: Option<PathBuf>,
    keep: bool,
}

/// What one process, or a chain of them, took.
#[derive(Clone, Copy, serde::Deserialize)]
struct Cost {
    wall_s: f64,
    cpu_s: f64,
    peak_rss: u64,
    /// The most bytes that lay in the output folder at one time.
    #[serde(skip)]
    peak_files: u64,
}

/// Measures, prints the table, and fails when a target is missed.
pub fn command(arguments: &[&str]) -> Result<()> {
    let options = parse(arguments)?;
    let peers = Peers::locate()?;
    peers.llama_tree()?;
    peers.smollm2()?;
    let mlpack = build_mlpack(true)?;
    let (base, lora) = bench_model::write(&options.dir, &peers.smollm2_dir())?;
    let work = options.dir.join("work");
    let mut all = Costs::default();
    for run in 0..options.runs {
        // Who goes first alternates, so that a machine that warms up or slows down favours nobody.
        let sides = if run % 2 == 0 { [Side::Peers, Side::Mlpack] } else { [Side::Mlpack, Side::Peers] };
        for side in sides {
            fresh(&work)?;
            match side {
                Side::Peers => {
                    let merged = work.join("merged");
                    let mut merge = peers.script("peer_merge.py");
                    all.merge.push(measure(&peers, merge.arg(&base).arg(&lora).arg(&merged), &work)?);
                    let mut convert = peers.python();
                    convert.arg(peers.llama_source().join("convert_hf_to_gguf.py")).arg(&merged);
                    convert.args(["--outtype", "f16", "--outfile"]).arg(work.join("merged-F16.gguf"));
                    all.convert.push(measure(&peers, &mut convert, &work)?);
                }
                Side::Mlpack => {
                    let mut convert = Command::new(&mlpack);
                    convert.arg("convert").arg(&base).arg("-a").arg(&lora).args(["--to", "gguf", "--quant", "F16"]);
                    all.mlpack.push(measure(&peers, convert.arg("-o").arg(work.join("out")), &work)?);
                    let file = work.join("out/bench-1b-lora-F16.gguf");
                    let metadata = file.metadata().with_context(|| format!("no result `{}`", file.display()))?;
                    all.result = metadata.blocks() * 512;
                }
            }
        }
    }
    fresh(&work)?;
    if !options.keep {
        std::fs::remove_dir_all(&options.dir).with_context(|| format!("cannot remove `{}`", options.dir.display()))?;
    }
    let (table, missed) = all.report()?;
    println!("{table}");
    if let Some(out) = &options.out {
        append(out, &table)?;
    }
    if !missed.is_empty() {
        bail!("targets missed: {}", missed.join("; "));
    }
    Ok(())
}

fn parse(arguments: &[&str]) -> Result<Options> {
    let mut options = Options { dir: "/dev/shm/mlpack-bench".into(), runs: 3, out: None, keep: false };
    let mut arguments = arguments.iter();
    while let Some(option) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("`{option}` needs a value"));
        match *option {
            "--dir" => options.dir = PathBuf::from(value()?).join("mlpack-bench"),
            "--runs" => {
                options.runs = value()?.parse().ok().filter(|n| *n > 0).context("`--runs` needs a number above 0")?
            }
            "--out" => options.out = Some(value()?.into()),
            "--keep" => options.keep = true,
            other => bail!("unknown option `{other}`\n  expected: one of --dir DIR, --runs N, --out FILE, --keep"),
        }
    }
    Ok(options)
}

#[derive(Clone, Copy)]
enum Side {
    Peers,
    Mlpack,
}

fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create `{}`", dir.display()))
}

/// Runs one command under the kernel's accounting, and watches its output folder.
fn measure(peers: &Peers, command: &mut Command, folder: &Path) -> Result<Cost> {
    eprintln!("$ {}", shown(command));
    // A small parent that does nothing but wait: resource usage of a child begins with that of its parent.
    let mut measured = peers.script("measure.py");
    measured.arg(command.get_program()).args(command.get_args());
    let done = AtomicBool::new(false);
    let (printed, peak_files) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = folder_bytes(folder).max(peak);
                std::thread::sleep(Duration::from_millis(50));
            }
            folder_bytes(folder).max(peak)
        });
        let printed = output(&mut measured);
        done.store(true, Ordering::Relaxed);
        (printed, watcher.join().expect("the watcher does not panic"))
    });
    let printed = printed?;
    let line = printed.lines().last().unwrap_or_default();
    let cost: Cost = serde_json::from_str(line).with_context(|| format!("cannot parse the measurement `{line}`"))?;
    eprintln!("  {:.1} s, {} MB", cost.wall_s, megabytes(cost.peak_rss));
    Ok(Cost { peak_files, ..cost })
}

/// Bytes allocated to the files below a folder. A file that goes away meanwhile counts as nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => folder_bytes(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.blocks() * 512),
        })
        .sum()
}

#[derive(Default)]
struct Costs {
    merge: Vec<Cost>,
    convert: Vec<Cost>,
    mlpack: Vec<Cost>,
    /// Bytes of the model file that mlpack made.
    result: u64,
}

impl Costs {
    /// The table in Markdown, and the targets that are missed.
    fn report(&self) -> Result<(String, Vec<String>)> {
        let chain: Vec<Cost> =
            self.merge.iter().zip(&self.convert).map(|(merge, convert)| merge.then(convert)).collect();
        let (chain, mlpack) = (Cost::medians(&chain), Cost::medians(&self.mlpack));
        let row = |name: &str, cost: Cost| {
            format!(
                "| {name} | {:.1} s | {:.1} s | {} MB | {} MB |\n",
                cost.wall_s,
                cost.cpu_s,
                megabytes(cost.peak_rss),
                megabytes(cost.peak_files)
            )
        };
        let wall = chain.wall_s / mlpack.wall_s;
        let mut table = format!(
            "{}\n\nRuns of each, alternating: {}; medians. Synthetic 1.07 B checkpoint and r = 16 LoRA, to F16.\n\n\
             | what | wall | CPU | peak RSS | peak size of output folder |\n| --- | --- | --- | --- | --- |\n",
            machine()?,
            self.mlpack.len()
        );
        table.push_str(&row("PEFT merge and save", Cost::medians(&self.merge)));
        table.push_str(&row("convert_hf_to_gguf.py --outtype f16", Cost::medians(&self.convert)));
        table.push_str(&row("the two, one after the other", chain));
        table.push_str(&row("mlpack convert -a LORA --quant F16", mlpack));
        table.push_str(&format!(
            "| **chain : mlpack** | **{wall:.1}** | **{:.1}** | **{:.1}** | **{:.1}** |\n",
            chain.cpu_s / mlpack.cpu_s,
            chain.peak_rss as f64 / mlpack.peak_rss as f64,
            chain.peak_files as f64 / mlpack.peak_files as f64,
        ));
        let mut missed = Vec::new();
        if wall < FASTER {
            missed.push(format!("expected at least {FASTER} times faster, found {wall:.1}"));
        }
        if mlpack.peak_rss > PEAK_RSS {
            let (limit, found) = (megabytes(PEAK_RSS), megabytes(mlpack.peak_rss));
            missed.push(format!("expected a peak RSS of at most {limit} MB, found {found} MB"));
        }
        if mlpack.peak_files > self.result + BESIDE_THE_RESULT {
            let (limit, found) = (megabytes(self.result), megabytes(mlpack.peak_files));
            missed.push(format!("expected no intermediate file beside {limit} MB of results, found {found} MB"));
        }
        Ok((table, missed))
    }
}

impl Cost {
    /// One process after another.
    fn then(&self, next: &Cost) -> Cost {
        Cost {
            wall_s: self.wall_s + next.wall_s,
            cpu_s: self.cpu_s + next.cpu_s,
            peak_rss: self.peak_rss.max(next.peak_rss),
            peak_files: self.peak_files.max(next.peak_files),
        }
    }

    fn medians(costs: &[Cost]) -> Cost {
        fn median<T: Copy + PartialOrd>(values: impl Iterator<Item = T>) -> T {
            let mut values: Vec<T> = values.collect();
            values.sort_by(|a, b| a.partial_cmp(b).expect("no measurement is NaN"));
            values[values.len() / 2]
        }
        Cost {
            wall_s: median(costs.iter().map(|cost| cost.wall_s)),
            cpu_s: median(costs.iter().map(|cost| cost.cpu_s)),
            peak_rss: median(costs.iter().map(|cost| cost.peak_rss)),
            peak_files: median(costs.iter().map(|cost| cost.peak_files)),
        }
    }
}

fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
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

    fn cost(wall_s: f64, peak_rss: u64, peak_files: u64) -> Cost {
        Cost { wall_s, cpu_s: wall_s, peak_rss, peak_files }
    }

    fn missed(mlpack: Cost) -> Vec<String> {
        let costs = Costs {
            merge: vec![cost(20.0, 3_000_000_000, 2_000_000_000); 3],
            convert: vec![cost(10.0, 1_000_000_000, 4_000_000_000); 3],
            mlpack: vec![mlpack; 3],
            result: 2_000_000_000,
        };
        costs.report().unwrap().1
    }

    #[test]
    fn each_target_is_judged_by_itself() {
        assert_eq!(missed(cost(6.0, 700_000_000, 2_000_000_000)), [""; 0]);
        assert!(missed(cost(6.1, 700_000_000, 2_000_000_000))[0].contains("times faster"));
        assert!(missed(cost(6.0, 700_000_001, 2_000_000_000))[0].contains("peak RSS"));
        assert!(missed(cost(6.0, 700_000_000, 4_000_000_000))[0].contains("no intermediate file"));
    }

    #[test]
    fn the_median_of_a_noisy_run_is_the_middle_one() {
        let costs = [cost(9.0, 1, 5), cost(1.0, 3, 6), cost(2.0, 2, 4)];
        let median = Cost::medians(&costs);
        assert_eq!((median.wall_s, median.peak_rss, median.peak_files), (2.0, 2, 5));
    }
}
