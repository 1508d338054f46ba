//! From a base, or a base and an adapter, to one GGUF: mlpack's one command against the peers' chain.
//!
//! The chain is what people run today: PEFT merges the adapter and saves a second checkpoint, `convert_hf_to_gguf.py`
//! reads that, and for the small types llama-quantize reads the result.

use super::cost::{Cost, measure, megabytes};
use super::{Bench, Report, fresh, quantize};
use anyhow::{Context as _, Result};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

/// What may lie beside the model file while it is written: statements, a journal, the Modelfile.
const BESIDE_THE_RESULT: u64 = 1 << 20;

/// What is asked of mlpack.
struct Targets {
    quant: &'static str,
    /// Whether there is an adapter to merge.
    adapted: bool,
    faster: f64,
    peak_rss: u64,
}

/// The converter alone.
pub fn base_to_f16(bench: &Bench) -> Result<Report> {
    run(bench, &Targets { quant: "F16", adapted: false, faster: 8.0, peak_rss: 400_000_000 })
}

/// PEFT and the converter.
pub fn to_f16(bench: &Bench) -> Result<Report> {
    run(bench, &Targets { quant: "F16", adapted: true, faster: 5.0, peak_rss: 700_000_000 })
}

/// PEFT, the converter and the quantizer.
pub fn to_q4_k_m(bench: &Bench) -> Result<Report> {
    run(bench, &Targets { quant: "Q4_K_M", adapted: true, faster: 10.0, peak_rss: quantize::PEAK_RSS })
}

/// The runs of one side's steps.
#[derive(Default)]
struct Costs {
    merge: Vec<Cost>,
    convert: Vec<Cost>,
    /// Empty where the converter makes the result.
    quantize: Vec<Cost>,
    mlpack: Vec<Cost>,
    /// Bytes of the model file that mlpack made.
    result: u64,
}

fn run(bench: &Bench, targets: &Targets) -> Result<Report> {
    let mut costs = Costs::default();
    for run in 0..bench.runs {
        let peers_first = run % 2 == 0;
        for peers in [peers_first, !peers_first] {
            fresh(&bench.dir.join("work"))?;
            match peers {
                true => peers_side(bench, targets, &mut costs)?,
                false => our_side(bench, targets, &mut costs)?,
            }
        }
    }
    fresh(&bench.dir.join("work"))?;
    Ok(costs.report(targets))
}

fn peers_side(bench: &Bench, targets: &Targets, costs: &mut Costs) -> Result<()> {
    let (peers, work, quant) = (&bench.peers, bench.dir.join("work"), targets.quant);
    let merged = match targets.adapted {
        true => work.join("merged"),
        false => bench.base.clone(),
    };
    if targets.adapted {
        let mut merge = peers.script("peer_merge.py");
        costs.merge.push(measure(peers, merge.arg(&bench.base).arg(&bench.lora).arg(&merged), &work)?);
    }
    // A bf16 model keeps its values as BF16 on the way to the quantizer.
    let outtype = if quant == "F16" { "f16" } else { "bf16" };
    let full = work.join("merged.gguf");
    let mut convert = peers.python();
    convert.arg(peers.llama_source().join("convert_hf_to_gguf.py")).arg(&merged);
    costs.convert.push(measure(peers, convert.args(["--outtype", outtype, "--outfile"]).arg(&full), &work)?);
    if quant != "F16" {
        let mut quantize = Command::new(peers.llama_bin().join("llama-quantize"));
        quantize.arg(&full).arg(work.join("merged-quantized.gguf")).args([quant, quantize::THREADS]);
        costs.quantize.push(measure(peers, &mut quantize, &work)?);
    }
    Ok(())
}

fn our_side(bench: &Bench, targets: &Targets, costs: &mut Costs) -> Result<()> {
    let (work, quant) = (bench.dir.join("work"), targets.quant);
    let mut convert = Command::new(&bench.mlpack);
    convert.arg("convert").arg(&bench.base).args(["--to", "gguf", "--quant", quant, "--name", "out"]);
    if targets.adapted {
        convert.arg("-a").arg(&bench.lora);
    }
    convert.args(["--threads", quantize::THREADS, "-o"]).arg(work.join("out"));
    costs.mlpack.push(measure(&bench.peers, &mut convert, &work)?);
    let file = work.join(format!("out/out-{quant}.gguf"));
    let metadata = file.metadata().with_context(|| format!("no result `{}`", file.display()))?;
    costs.result = metadata.blocks() * 512;
    Ok(())
}

impl Costs {
    fn report(&self, targets: &Targets) -> Report {
        let quant = targets.quant;
        let mut steps = Vec::new();
        if targets.adapted {
            steps.push(("PEFT merge and save".to_owned(), &self.merge));
        }
        let outtype = if self.quantize.is_empty() { "f16" } else { "bf16" };
        steps.push((format!("convert_hf_to_gguf.py --outtype {outtype}"), &self.convert));
        if !self.quantize.is_empty() {
            steps.push((format!("llama-quantize {quant}, {} threads", quantize::THREADS), &self.quantize));
        }
        let chain: Vec<Cost> = (0..self.mlpack.len())
            .filter_map(|run| steps.iter().map(|(_, costs)| costs[run]).reduce(|before, step| before.then(&step)))
            .collect();
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
        let mut text = format!(
            "Synthetic 1.07 B checkpoint{}, to {quant}.\n\n\
             | what | wall | CPU | peak RSS | peak size of output folder |\n| --- | --- | --- | --- | --- |\n",
            if targets.adapted { " and r = 16 LoRA" } else { "" }
        );
        for (name, costs) in &steps {
            text.push_str(&row(name, Cost::medians(costs)));
        }
        if steps.len() > 1 {
            text.push_str(&row("these, one after the other", chain));
        }
        let adapter = if targets.adapted { " -a LORA" } else { "" };
        text.push_str(&row(&format!("mlpack convert{adapter} --quant {quant}"), mlpack));
        let wall = chain.wall_s / mlpack.wall_s;
        text.push_str(&format!(
            "| **chain : mlpack** | **{wall:.1}** (at least {}) | **{:.1}** | **{:.1}** | **{:.1}** |\n",
            targets.faster,
            chain.cpu_s / mlpack.cpu_s,
            chain.peak_rss as f64 / mlpack.peak_rss as f64,
            chain.peak_files as f64 / mlpack.peak_files as f64,
        ));
        let mut missed = Vec::new();
        if wall < targets.faster {
            missed.push(format!("{quant}: expected at least {} times faster, found {wall:.1}", targets.faster));
        }
        if mlpack.peak_rss > targets.peak_rss {
            let (limit, found) = (megabytes(targets.peak_rss), megabytes(mlpack.peak_rss));
            missed.push(format!("{quant}: expected a peak RSS of at most {limit} MB, found {found} MB"));
        }
        if mlpack.peak_files > self.result + BESIDE_THE_RESULT {
            let (limit, found) = (megabytes(self.result), megabytes(mlpack.peak_files));
            missed
                .push(format!("{quant}: expected no intermediate file beside {limit} MB of results, found {found} MB"));
        }
        Report { text, missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(wall_s: f64, peak_rss: u64, peak_files: u64) -> Cost {
        Cost { wall_s, cpu_s: wall_s, peak_rss, peak_files }
    }

    fn missed(mlpack: Cost, quantize: Vec<Cost>) -> Vec<String> {
        let costs = Costs {
            merge: vec![cost(20.0, 3_000_000_000, 2_000_000_000); 3],
            convert: vec![cost(10.0, 1_000_000_000, 4_000_000_000); 3],
            quantize,
            mlpack: vec![mlpack; 3],
            result: 2_000_000_000,
        };
        costs.report(&Targets { quant: "F16", adapted: true, faster: 5.0, peak_rss: 700_000_000 }).missed
    }

    #[test]
    fn each_target_is_judged_by_itself() {
        assert_eq!(missed(cost(6.0, 700_000_000, 2_000_000_000), vec![]), [""; 0]);
        assert!(missed(cost(6.1, 700_000_000, 2_000_000_000), vec![])[0].contains("times faster"));
        assert!(missed(cost(6.0, 700_000_001, 2_000_000_000), vec![])[0].contains("peak RSS"));
        assert!(missed(cost(6.0, 700_000_000, 4_000_000_000), vec![])[0].contains("no intermediate file"));
    }

    #[test]
    fn a_third_step_counts_where_there_is_one() {
        let third = vec![cost(30.0, 1, 1); 3];
        assert_eq!(missed(cost(12.0, 1, 1), third), [""; 0]);
    }
}
