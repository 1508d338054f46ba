//! Pushing and pulling 2 GB over loopback, against skopeo and oras.
//!
//! Every run has a docker-registry of its own with nothing in it, on the memory file system. For a push the other side of the
//! same layout is skopeo, and of the same file oras; a pull ends in a directory, with every digest checked.

use super::cost::{Cost, measure, megabytes};
use super::{Bench, Report, fresh};
use crate::peers::GoTool;
use crate::process::{self, ensure};
use crate::registry::Registry;
use anyhow::{Context as _, Result};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of the file.
const BYTES: usize = 2_000_000_000;
/// The most resident memory that mlpack may take.
const RSS_LIMIT: u64 = 100_000_000;

/// One tool's way of doing the work.
struct Way {
    name: &'static str,
    push: fn(&Work<'_>, &str) -> Command,
    pull: fn(&Work<'_>, &str, &Path) -> Command,
}

struct Work<'a> {
    mlpack: &'a Path,
    oras: PathBuf,
    layout: PathBuf,
    model: PathBuf,
}

fn mlpack_push(work: &Work<'_>, host: &str) -> Command {
    let mut command = Command::new(work.mlpack);
    let layout = format!("oci:{}:v1", work.layout.display());
    command.args(["--quiet", "publish", &layout, &format!("{host}/bench/model:v1"), "--plain-http"]);
    command
}

fn mlpack_pull(work: &Work<'_>, host: &str, out: &Path) -> Command {
    let mut command = Command::new(work.mlpack);
    command.args(["--quiet", "pull", &format!("{host}/bench/model:v1"), "--plain-http", "-o"]).arg(out);
    command
}

fn skopeo_push(work: &Work<'_>, host: &str) -> Command {
    let mut command = Command::new("skopeo");
    let layout = format!("oci:{}:v1", work.layout.display());
    let target = format!("docker://{host}/bench/model:v1");
    command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", &layout, &target]);
    command
}

fn skopeo_pull(_: &Work<'_>, host: &str, out: &Path) -> Command {
    let mut command = Command::new("skopeo");
    let source = format!("docker://{host}/bench/model:v1");
    let target = format!("dir:{}", out.display());
    command.args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &source, &target]);
    command
}

fn oras_push(work: &Work<'_>, host: &str) -> Command {
    let mut command = Command::new(&work.oras);
    command.args(["push", "--plain-http", "--no-tty", "--disable-path-validation", &format!("{host}/bench/model:v1")]);
    command.arg(work.model.join("model.safetensors"));
    command
}

fn oras_pull(work: &Work<'_>, host: &str, out: &Path) -> Command {
    let mut command = Command::new(&work.oras);
    command.args([
        "pull",
        "--plain-http",
        "--no-tty",
        "--allow-path-traversal",
        &format!("{host}/bench/model:v1"),
        "-o",
    ]);
    command.arg(out);
    command
}

/// Measures pushes and pulls.
pub fn run(bench: &Bench) -> Result<Report> {
    ensure("skopeo", "skopeo")?;
    let dir = bench.dir.join("registry");
    fresh(&dir)?;
    let oras = bench.peers.go_tool(GoTool::Oras)?;
    let work = Work { mlpack: &bench.mlpack, oras, layout: dir.join("layout"), model: dir.join("model") };
    write_noise(&work.model)?;
    let layout = format!("oci:{}:v1", work.layout.display());
    process::run(Command::new(&bench.mlpack).arg("publish").arg(&work.model).arg(&layout))?;
    let ways = [
        Way { name: "mlpack", push: mlpack_push, pull: mlpack_pull },
        Way { name: "skopeo", push: skopeo_push, pull: skopeo_pull },
        Way { name: "oras", push: oras_push, pull: oras_pull },
    ];
    let mut pushes: Vec<Vec<Cost>> = ways.iter().map(|_| Vec::new()).collect();
    let mut pulls = pushes.clone();
    for round in 0..bench.runs {
        for at in 0..ways.len() {
            let at = (at + round) % ways.len();
            let registry = Registry::debian(&dir.join("data"))?;
            let out = dir.join("out");
            fresh(&out)?;
            pushes[at].push(measure(&bench.peers, &mut (ways[at].push)(&work, &registry.host), &out)?);
            let target = out.join("pulled");
            pulls[at].push(measure(&bench.peers, &mut (ways[at].pull)(&work, &registry.host, &target), &out)?);
        }
    }
    let mut text = "| | push, s | MB resident | pull, s | MB resident |\n| --- | --- | --- | --- | --- |\n".to_owned();
    let figures: Vec<(Cost, Cost)> =
        pushes.iter().zip(&pulls).map(|(push, pull)| (Cost::medians(push), Cost::medians(pull))).collect();
    for (way, (push, pull)) in ways.iter().zip(&figures) {
        text.push_str(&format!(
            "| {} | {:.2} | {} | {:.2} | {} |\n",
            way.name,
            push.wall_s,
            megabytes(push.peak_rss),
            pull.wall_s,
            megabytes(pull.peak_rss)
        ));
    }
    let mut missed = Vec::new();
    let (push, pull) = &figures[0];
    for (way, (other_push, other_pull)) in ways.iter().zip(&figures).skip(1) {
        for (what, ours, theirs) in [("push", push, other_push), ("pull", pull, other_pull)] {
            let ratio = ours.wall_s / theirs.wall_s;
            text.push_str(&format!("\n{what} against {}: {ratio:.2} of its time.", way.name));
            if ratio > 1.0 {
                missed.push(format!("{what} takes {ratio:.2} of {}'s time, not at most 1.0", way.name));
            }
        }
    }
    for (what, cost) in [("push", push), ("pull", pull)] {
        if cost.peak_rss > RSS_LIMIT {
            missed.push(format!("{what} takes {} MB, not at most 100", megabytes(cost.peak_rss)));
        }
    }
    text.push('\n');
    Ok(Report { text, missed })
}

/// A model directory with one file of noise; nobody reads its header on the way.
fn write_noise(dir: &Path) -> Result<()> {
    fresh(dir)?;
    let path = dir.join("model.safetensors");
    let failed = || format!("cannot write `{}`", path.display());
    let mut file = std::fs::File::create(&path).with_context(failed)?;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut piece = vec![0u8; 1 << 20];
    let mut left = BYTES;
    while left > 0 {
        for word in piece.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let len = left.min(piece.len());
        file.write_all(&piece[..len]).with_context(failed)?;
        left -= len;
    }
    Ok(())
}
