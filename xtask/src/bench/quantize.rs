//! From one GGUF to another: mlpack against llama-quantize, file type by file type, and several types from one read.

use super::cost::{Cost, measure, megabytes};
use super::{Bench, Report, fresh, importance};
use crate::compare;
use crate::process::output;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Threads of either tool.
pub const THREADS: &str = "2";
/// The most memory that mlpack may use, mapped pages included.
pub const PEAK_RSS: u64 = 500_000_000;
/// How much longer Q8_0 and F16 may make a run to Q4_K_M.
const MORE_FOR_TWO: f64 = 0.35;

/// One file type, and how many times faster than llama-quantize it has to be.
struct Target {
    quant: &'static str,
    importance: bool,
    faster: f64,
}

const TARGETS: &[Target] = &[
    Target::of("Q4_K_M", 7.0),
    Target::of("Q5_K_M", 6.0),
    Target::of("Q6_K", 5.0),
    Target::of("Q3_K_M", 5.0),
    Target::of("IQ4_XS", 8.0),
    Target { quant: "IQ2_XXS", importance: true, faster: 3.0 },
    Target { quant: "IQ3_S", importance: true, faster: 3.0 },
    Target::of("Q8_0", 1.5),
];

impl Target {
    const fn of(quant: &'static str, faster: f64) -> Target {
        Target { quant, importance: false, faster }
    }
}

/// What `--only` calls several types from one read.
const FAN_OUT: &str = "fan-out";

/// Names of the file types that are measured, and of several at once.
pub fn measured() -> Vec<&'static str> {
    TARGETS.iter().map(|target| target.quant).chain([FAN_OUT]).collect()
}

/// Whether a file type is measured.
pub fn measures(quant: &str) -> bool {
    measured().contains(&quant)
}

/// Every file type, then several at once.
pub fn run(bench: &Bench) -> Result<Report> {
    let (model, imatrix) = (bench.dir.join("bench-1b-BF16.gguf"), bench.dir.join("imatrix.gguf"));
    if !model.is_file() {
        // A run that is stopped here leaves nothing under the final name.
        let partial = bench.dir.join("bench-1b-BF16.partial");
        let mut convert = bench.peers.python();
        convert.arg(bench.peers.llama_source().join("convert_hf_to_gguf.py")).arg(&bench.base);
        output(convert.args(["--outtype", "bf16", "--outfile"]).arg(&partial))?;
        std::fs::rename(&partial, &model).with_context(|| format!("cannot rename `{}`", partial.display()))?;
    }
    importance::write(&imatrix)?;
    let mut rows = Vec::new();
    let wanted = |name: &str| bench.only.is_empty() || bench.only.iter().any(|only| only == name);
    for target in TARGETS.iter().filter(|target| wanted(target.quant)) {
        rows.push(Row { target, costs: file_type(bench, target, &model, &imatrix)? });
    }
    let (mut text, mut missed) = if rows.is_empty() { Default::default() } else { table(&rows) };
    if wanted(FAN_OUT) {
        let (one, three) = several(bench, &model)?;
        let report = several_report(one, three);
        text.push_str(&report.text);
        missed.extend(report.missed);
    }
    fresh(&bench.dir.join("work"))?;
    Ok(Report { text, missed })
}

/// What each side took, run by run.
#[derive(Default)]
struct Costs {
    reference: Vec<Cost>,
    mlpack: Vec<Cost>,
}

struct Row<'a> {
    target: &'a Target,
    costs: Costs,
}

/// Runs both tools and checks that they made the same file.
fn file_type(bench: &Bench, target: &Target, model: &Path, imatrix: &Path) -> Result<Costs> {
    let work = bench.dir.join("work");
    let outputs: [PathBuf; 2] = ["llama.cpp.gguf", "mlpack.gguf"].map(|name| work.join(name));
    let mut costs = Costs::default();
    for run in 0..bench.runs {
        fresh(&work)?;
        let reference_first = run % 2 == 0;
        for reference in [reference_first, !reference_first] {
            if reference {
                let mut quantize = Command::new(bench.peers.llama_bin().join("llama-quantize"));
                if target.importance {
                    quantize.arg("--imatrix").arg(imatrix);
                }
                quantize.arg(model).arg(&outputs[0]).args([target.quant, THREADS]);
                costs.reference.push(measure(&bench.peers, &mut quantize, &work)?);
            } else {
                let mut quantize = ours(bench, model, target.quant);
                if target.importance {
                    quantize.arg("--imatrix").arg(imatrix);
                }
                costs.mlpack.push(measure(&bench.peers, quantize.arg("-o").arg(&outputs[1]), &work)?);
            }
        }
        if let Some(differences) = compare::gguf(&outputs[1], &outputs[0])? {
            bail!(
                "{} differs from llama-quantize's, so its time says nothing\n  {}",
                target.quant,
                differences.join("\n  ")
            );
        }
    }
    Ok(costs)
}

fn ours(bench: &Bench, model: &Path, quants: &str) -> Command {
    let mut quantize = Command::new(&bench.mlpack);
    quantize.arg("quantize").arg(model).args(["--quant", quants, "--threads", THREADS]);
    quantize
}

/// One type, and the same one with two more from the same read.
fn several(bench: &Bench, model: &Path) -> Result<(Vec<Cost>, Vec<Cost>)> {
    let work = bench.dir.join("work");
    let (mut one, mut three) = (Vec::new(), Vec::new());
    for run in 0..bench.runs {
        let one_first = run % 2 == 0;
        for alone in [one_first, !one_first] {
            fresh(&work)?;
            let (quants, costs) = if alone { ("Q4_K_M", &mut one) } else { ("Q4_K_M,Q8_0,F16", &mut three) };
            costs.push(measure(&bench.peers, ours(bench, model, quants).arg("-o").arg(work.join("out")), &work)?);
        }
    }
    Ok((one, three))
}

/// The table of file types in Markdown, and the targets that are missed.
fn table(rows: &[Row]) -> (String, Vec<String>) {
    let mut missed = Vec::new();
    let mut text = format!(
        "Synthetic 1.07 B model, from a BF16 GGUF; {THREADS} threads. Every output equals llama-quantize's to the byte.\n\n\
         | to | llama-quantize: wall | CPU | peak RSS | mlpack: wall | CPU | peak RSS | times faster | at least |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for Row { target, costs } in rows {
        let (reference, mlpack) = (Cost::medians(&costs.reference), Cost::medians(&costs.mlpack));
        let figures =
            |cost: Cost| format!("{:.2} s | {:.2} s | {} MB", cost.wall_s, cost.cpu_s, megabytes(cost.peak_rss));
        let faster = reference.wall_s / mlpack.wall_s;
        let with = if target.importance { ", importance matrix" } else { "" };
        text.push_str(&format!(
            "| {}{with} | {} | {} | **{faster:.1}** | {} |\n",
            target.quant,
            figures(reference),
            figures(mlpack),
            target.faster
        ));
        if faster < target.faster {
            let (quant, wanted) = (target.quant, target.faster);
            missed.push(format!("{quant}: expected at least {wanted} times faster, found {faster:.2}"));
        }
        missed.extend(too_much_memory(target.quant, mlpack));
    }
    (text, missed)
}

fn too_much_memory(quant: &str, cost: Cost) -> Option<String> {
    let (limit, found) = (megabytes(PEAK_RSS), megabytes(cost.peak_rss));
    (cost.peak_rss > PEAK_RSS).then(|| format!("{quant}: expected a peak RSS of at most {limit} MB, found {found} MB"))
}

fn several_report(one: Vec<Cost>, three: Vec<Cost>) -> Report {
    let (one, three) = (Cost::medians(&one), Cost::medians(&three));
    let row = |quants: &str, cost: Cost| {
        format!("| {quants} | {:.2} s | {:.2} s | {} MB |\n", cost.wall_s, cost.cpu_s, megabytes(cost.peak_rss))
    };
    let more = three.wall_s / one.wall_s - 1.0;
    let text = format!(
        "\n| mlpack quantize --quant | wall | CPU | peak RSS |\n| --- | --- | --- | --- |\n{}{}\
         | **more for two more** | **{:.0} %** (at most {:.0} %) | | |\n",
        row("Q4_K_M", one),
        row("Q4_K_M,Q8_0,F16", three),
        more * 100.0,
        MORE_FOR_TWO * 100.0
    );
    let mut missed = Vec::new();
    if more > MORE_FOR_TWO {
        missed.push(format!("expected at most {MORE_FOR_TWO} more wall time for Q8_0 and F16, found {more:.2}"));
    }
    missed.extend(too_much_memory("Q4_K_M,Q8_0,F16", three));
    Report { text, missed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(wall_s: f64, peak_rss: u64) -> Vec<Cost> {
        vec![Cost { wall_s, cpu_s: 2.0 * wall_s, peak_rss, peak_files: 0 }; 3]
    }

    #[test]
    fn a_type_has_to_be_fast_enough_and_small_enough() {
        let missed = |mlpack| {
            let costs = Costs { reference: costs(21.0, 1), mlpack };
            table(&[Row { target: &TARGETS[0], costs }]).1
        };
        assert_eq!(missed(costs(3.0, PEAK_RSS)), [""; 0]);
        assert!(missed(costs(3.1, PEAK_RSS))[0].contains("Q4_K_M: expected at least 7 times faster, found 6.77"));
        assert!(missed(costs(3.0, PEAK_RSS + 1))[0].contains("peak RSS"));
    }

    #[test]
    fn two_more_types_may_cost_a_third_more() {
        assert_eq!(several_report(costs(10.0, 1), costs(13.4, 1)).missed, [""; 0]);
        assert!(several_report(costs(10.0, 1), costs(13.6, 1)).missed[0].contains("found 0.36"));
    }
}
