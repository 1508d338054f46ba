//! ONNX: SmolLM2-135M against onnxruntime-genai's model builder and optimum, which load it through PyTorch; the large checkpoint to four
//! bits against the same to a GGUF file of eight; and how fast the graphs of both sides generate in ONNX Runtime.

use super::cost::{Cost, measure, megabytes};
use super::{Bench, Report, fresh};
use crate::process::output;
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::Command;

/// What is asked of the conversion of SmolLM2: a precision, how much faster than the builder, at most how many bytes resident.
const PRECISIONS: [(&str, &str, f64, u64); 2] =
    [("fp32", "onnx/model.onnx", 6.0, 300_000_000), ("int4", "onnx/model_q4.onnx", 5.0, 300_000_000)];
/// How much faster than optimum the float32 graph has to be made.
const THAN_OPTIMUM: f64 = 25.0;
/// What four bits of ONNX may take of the time of eight bits of GGUF.
const SHARE_OF_GGUF: f64 = 1.3;
/// How fast our graph has to be, as a part of the builder's.
const DECODE: f64 = 0.95;
/// Rounds of generating.
const ROUNDS: &str = "15";

/// How fast two graphs generate.
#[derive(serde::Deserialize)]
struct Decoded {
    /// Milliseconds of a token: ours, theirs.
    ms: [f64; 2],
    /// Ours as a part of theirs.
    speed: f64,
}

/// Measures all of it.
pub fn run(bench: &Bench) -> Result<Report> {
    bench.peers.onnx_runtimes()?;
    let mut report = Report { text: String::new(), missed: Vec::new() };
    small(bench, &mut report)?;
    large(bench, &mut report)?;
    Ok(report)
}

/// mlpack's conversion of a model.
fn convert(bench: &Bench, model: &Path, options: &[&str], out: &Path) -> Command {
    let mut convert = Command::new(&bench.mlpack);
    convert.args(["--quiet", "convert"]).arg(model).args(options).arg("-o").arg(out);
    convert
}

/// What optimum's exporter takes for the graph with a cache: minutes, so it runs once.
fn optimum(bench: &Bench, model: &Path, work: &Path) -> Result<Cost> {
    let mut export = bench.peers.optimum()?;
    export.args(["-m", "optimum.exporters.onnx", "--task", "text-generation-with-past", "--model"]).arg(model);
    let out = work.join("optimum");
    let cost = measure(&bench.peers, export.arg(&out), work)?;
    fresh(&out)?;
    Ok(cost)
}

fn small(bench: &Bench, report: &mut Report) -> Result<()> {
    let (work, model) = (bench.dir.join("work"), bench.peers.smollm2_dir());
    report.text.push_str("SmolLM2-135M | wall, s | CPU, s | MB resident | times faster\n--- | --- | --- | --- | ---\n");
    let mut decoded = Vec::new();
    for (precision, file, faster, peak_rss) in PRECISIONS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        fresh(&work)?;
        let (our_dir, their_dir) = (work.join("mlpack"), work.join("builder"));
        for run in 0..bench.runs {
            for builder in [run % 2 == 0, run % 2 == 1] {
                if builder {
                    fresh(&their_dir)?;
                    let mut build = bench.peers.python();
                    build.args(["-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision, "-m"]);
                    build.arg(&model).arg("-o").arg(&their_dir).arg("-c").arg(work.join("cache"));
                    theirs.push(measure(&bench.peers, &mut build, &work)?);
                } else {
                    // With its store, so that no digest is known from before.
                    fresh(&our_dir)?;
                    let options = ["--to", "onnx", "--precision", precision];
                    ours.push(measure(
                        &bench.peers,
                        &mut convert(bench, &model, &options, &our_dir.join("out")),
                        &work,
                    )?);
                }
            }
        }
        let (ours, theirs) = (Cost::medians(&ours), Cost::medians(&theirs));
        let ratio = theirs.wall_s / ours.wall_s;
        for (who, cost, ratio) in [("builder", &theirs, String::new()), ("mlpack", &ours, format!("{ratio:.1}"))] {
            let resident = megabytes(cost.peak_rss);
            let row = format!("{precision}, {who} | {:.2} | {:.2} | {resident} | {ratio}\n", cost.wall_s, cost.cpu_s);
            report.text.push_str(&row);
        }
        if precision == "fp32" {
            let theirs = optimum(bench, &model, &work)?;
            let ratio = theirs.wall_s / ours.wall_s;
            let resident = megabytes(theirs.peak_rss);
            let row = format!("fp32, optimum | {:.2} | {:.2} | {resident} | {ratio:.1}\n", theirs.wall_s, theirs.cpu_s);
            report.text.push_str(&row);
            if ratio < THAN_OPTIMUM {
                report.missed.push(format!("fp32 is {ratio:.1} times faster than optimum, not {THAN_OPTIMUM}"));
            }
        }
        if ratio < faster {
            report.missed.push(format!("{precision} is {ratio:.1} times faster than the builder, not {faster}"));
        }
        if ours.peak_rss > peak_rss {
            let resident = megabytes(ours.peak_rss);
            report.missed.push(format!("{precision} takes {resident} MB, not at most {}", megabytes(peak_rss)));
        }
        let mut script = bench.peers.script("onnx_decode.py");
        let times = output(script.arg(ROUNDS).arg(our_dir.join("out").join(file)).arg(their_dir.join("model.onnx")))?;
        let times: Decoded = serde_json::from_str(times.trim()).context("two times")?;
        decoded.push((precision, times));
    }
    report.text.push_str(
        "\nA token in ONNX Runtime, 64 before it | mlpack, ms | builder, ms | speed\n--- | --- | --- | ---\n",
    );
    for (precision, Decoded { ms: [ours, theirs], speed }) in decoded {
        report.text.push_str(&format!("{precision} | {ours:.2} | {theirs:.2} | {speed:.2}\n"));
        if speed < DECODE {
            report
                .missed
                .push(format!("our {precision} graph generates at {speed:.2} of the builder's speed, not {DECODE}"));
        }
    }
    Ok(())
}

fn large(bench: &Bench, report: &mut Report) -> Result<()> {
    let work = bench.dir.join("work");
    let ways = [
        ("int4 of ONNX", ["--to", "onnx", "--precision", "int4"]),
        ("Q8_0 of GGUF", ["--to", "gguf", "--quant", "Q8_0"]),
    ];
    let mut costs = [Vec::new(), Vec::new()];
    for run in 0..bench.runs {
        for at in [run % 2, 1 - run % 2] {
            fresh(&work)?;
            let mut command = convert(bench, &bench.base, &ways[at].1, &work.join("out"));
            costs[at].push(measure(&bench.peers, &mut command, &work)?);
        }
    }
    fresh(&work)?;
    report.text.push_str("\n1.07 B parameters | wall, s | CPU, s | MB resident\n--- | --- | --- | ---\n");
    let costs = costs.map(|costs| Cost::medians(&costs));
    for ((name, _), cost) in ways.iter().zip(&costs) {
        let row = format!("{name} | {:.2} | {:.2} | {}\n", cost.wall_s, cost.cpu_s, megabytes(cost.peak_rss));
        report.text.push_str(&row);
    }
    let share = costs[0].wall_s / costs[1].wall_s;
    report.text.push_str(&format!("\nFour bits of ONNX take {share:.2} of the time.\n"));
    if share > SHARE_OF_GGUF {
        report.missed.push(format!("int4 takes {share:.2} of the time of Q8_0, not at most {SHARE_OF_GGUF}"));
    }
    Ok(())
}
