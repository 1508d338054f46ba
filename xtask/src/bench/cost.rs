//! What a process costs: wall and CPU time, memory, and the files it leaves.
//!
//! Each process is measured by the kernel (`wait4`); its peak of resident memory counts mapped pages.

use crate::peers::Peers;
use crate::process::{output, shown};
use anyhow::{Context as _, Result};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What one process, or a chain of them, took.
#[derive(Clone, Copy, serde::Deserialize)]
pub struct Cost {
    pub wall_s: f64,
    pub cpu_s: f64,
    pub peak_rss: u64,
    /// The most bytes that lay in the output folder at one time.
    #[serde(skip)]
    pub peak_files: u64,
}

/// Runs one command under the kernel's accounting, and watches its output folder.
pub fn measure(peers: &Peers, command: &mut Command, folder: &Path) -> Result<Cost> {
    eprintln!("$ {}", shown(command));
    touch_memory(folder)?;
    // A small parent that does nothing but wait: resource usage of a child begins with that of its parent.
    let mut measured = peers.script("measure.py");
    measured.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    measured.arg(command.get_program()).args(command.get_args());
    let done = AtomicBool::new(false);
    let (printed, peak_files) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = allocated(folder).max(peak);
                std::thread::sleep(Duration::from_millis(50));
            }
            allocated(folder).max(peak)
        });
        let printed = output(&mut measured);
        done.store(true, Ordering::Relaxed);
        (printed, watcher.join().expect("the watcher does not panic"))
    });
    let printed = printed?;
    let line = printed.lines().last().unwrap_or_default();
    let cost: Cost = serde_json::from_str(line).with_context(|| format!("cannot parse the measurement `{line}`"))?;
    eprintln!("  {:.2} s, {} MB", cost.wall_s, megabytes(cost.peak_rss));
    Ok(Cost { peak_files, ..cost })
}

/// Fills that much of a memory file system and frees it again. The host of a virtual machine backs memory when it is first
/// touched and takes it back when it lies free, ten times slower than memory that is there: without this, whichever tool
/// runs first pays for pages that the other finds ready.
fn touch_memory(folder: &Path) -> Result<()> {
    const BYTES: usize = 3 << 30;
    const PIECE: usize = 1 << 20;
    let path = folder.join("touched");
    let failed = || format!("cannot write `{}`", path.display());
    let mut file = std::fs::File::create(&path).with_context(failed)?;
    let piece = vec![1; PIECE];
    (0..BYTES / PIECE).try_for_each(|_| file.write_all(&piece)).with_context(failed)?;
    std::fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))
}

/// Bytes allocated to the files below a folder. A file that goes away meanwhile counts as nothing.
fn allocated(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => allocated(&entry.path()),
            _ => entry.metadata().map_or(0, |metadata| metadata.blocks() * 512),
        })
        .sum()
}

impl Cost {
    /// One process after another.
    pub fn then(&self, next: &Cost) -> Cost {
        Cost {
            wall_s: self.wall_s + next.wall_s,
            cpu_s: self.cpu_s + next.cpu_s,
            peak_rss: self.peak_rss.max(next.peak_rss),
            peak_files: self.peak_files.max(next.peak_files),
        }
    }

    /// The median of each figure by itself.
    pub fn medians(costs: &[Cost]) -> Cost {
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

pub fn megabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_a_noisy_run_is_the_middle_one() {
        let cost = |wall_s, peak_rss, peak_files| Cost { wall_s, cpu_s: wall_s, peak_rss, peak_files };
        let costs = [cost(9.0, 1, 5), cost(1.0, 3, 6), cost(2.0, 2, 4)];
        let median = Cost::medians(&costs);
        assert_eq!((median.wall_s, median.peak_rss, median.peak_files), (2.0, 2, 5));
    }
}
