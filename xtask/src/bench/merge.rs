//! Merging an adapter: mlpack against PEFT, how much memory it takes, and what laying it over a conversion costs.

use super::cost::{Cost, measure, megabytes};
use super::{Bench, Report, fresh, model, quantize};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

const FASTER: f64 = 5.0;

/// With mapped pages, whatever the rank.
const PEAK_RSS: u64 = 500_000_000;

/// The time of a conversion through an adapter, for one without.
const OVERHEAD: f64 = 1.3;

/// The runs of each command.
#[derive(Default)]
struct Costs {
    peft: Vec<Cost>,
    merge: Vec<Cost>,
    high_rank: Vec<Cost>,
    plain: Vec<Cost>,
    adapted: Vec<Cost>,
}

/// Measures all of them, whoever is first in turn.
pub fn run(bench: &Bench) -> Result<Report> {
    let high_rank = model::write_high_rank(&bench.dir)?;
    let work = bench.dir.join("work");
    let (peers, mut costs) = (&bench.peers, Costs::default());
    let mlpack = |arguments: &[&str], adapter: Option<&Path>| {
        let mut command = Command::new(&bench.mlpack);
        command
            .arg(arguments[0])
            .arg(&bench.base)
            .args(adapter.iter().flat_map(|path| ["-a".as_ref(), path.as_os_str()]));
        command.args(&arguments[1..]).args(["--threads", quantize::THREADS, "-o"]).arg(work.join("out"));
        command
    };
    for run in 0..bench.runs {
        for first in [run % 2 == 0, run % 2 == 1] {
            fresh(&work)?;
            if first {
                let mut peft = peers.script("peer_merge.py");
                costs.peft.push(measure(
                    peers,
                    peft.arg(&bench.base).arg(&bench.lora).arg(work.join("merged")),
                    &work,
                )?);
            } else {
                costs.merge.push(measure(peers, &mut mlpack(&["merge"], Some(&bench.lora)), &work)?);
            }
        }
        fresh(&work)?;
        costs.high_rank.push(measure(peers, &mut mlpack(&["merge"], Some(&high_rank)), &work)?);
        let convert = ["convert", "--to", "gguf", "--quant", "F16"];
        for adapted in [run % 2 == 0, run % 2 == 1] {
            fresh(&work)?;
            let cost = measure(peers, &mut mlpack(&convert, adapted.then_some(bench.lora.as_path())), &work)?;
            if adapted { costs.adapted.push(cost) } else { costs.plain.push(cost) }
        }
    }
    fresh(&work)?;
    Ok(costs.report())
}

impl Costs {
    fn report(&self) -> Report {
        let [peft, merge, high_rank, plain, adapted] =
            [&self.peft, &self.merge, &self.high_rank, &self.plain, &self.adapted].map(|costs| Cost::medians(costs));
        let mut text = "Synthetic 1.07 B checkpoint and its LoRA.\n\n\
                        | what | wall | CPU | peak RSS |\n| --- | --- | --- | --- |\n"
            .to_owned();
        let high_rank_title = format!("mlpack merge -a LORA, r = {}", model::HIGH_RANK);
        for (what, cost) in [
            ("PEFT merge and save, r = 16", peft),
            ("mlpack merge -a LORA, r = 16", merge),
            (high_rank_title.as_str(), high_rank),
            ("mlpack convert --quant F16", plain),
            ("mlpack convert -a LORA --quant F16, r = 16", adapted),
        ] {
            let (wall, cpu, rss) = (cost.wall_s, cost.cpu_s, megabytes(cost.peak_rss));
            text.push_str(&format!("| {what} | {wall:.2} s | {cpu:.2} s | {rss} MB |\n"));
        }
        let (faster, overhead) = (peft.wall_s / merge.wall_s, adapted.wall_s / plain.wall_s);
        text.push_str(&format!("| **PEFT : mlpack** | **{faster:.1}** (at least {FASTER}) | | |\n"));
        text.push_str(&format!("| **with the adapter : without** | **{overhead:.2}** (at most {OVERHEAD}) | | |\n"));
        let mut missed = Vec::new();
        if faster < FASTER {
            missed.push(format!("merge: expected at least {FASTER} times faster, found {faster:.1}"));
        }
        if overhead > OVERHEAD {
            missed.push(format!("convert -a: expected at most {OVERHEAD} times the time, found {overhead:.2}"));
        }
        for (what, cost) in [("merge", merge), ("merge, high rank", high_rank)] {
            if cost.peak_rss > PEAK_RSS {
                let (limit, found) = (megabytes(PEAK_RSS), megabytes(cost.peak_rss));
                missed.push(format!("{what}: expected a peak RSS of at most {limit} MB, found {found} MB"));
            }
        }
        Report { text, missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(change: impl FnOnce(&mut Costs)) -> Vec<String> {
        let cost = |wall_s, peak_rss| vec![Cost { wall_s, cpu_s: wall_s, peak_rss, peak_files: 0 }];
        let mut costs = Costs {
            peft: cost(20.0, 3_000_000_000),
            merge: cost(4.0, PEAK_RSS),
            high_rank: cost(9.0, PEAK_RSS),
            plain: cost(2.0, 1),
            adapted: cost(2.6, 1),
        };
        change(&mut costs);
        costs.report().missed
    }

    #[test]
    fn each_target_is_judged_by_itself() {
        assert_eq!(missed(|_| ()), [""; 0]);
        assert!(missed(|costs| costs.merge[0].wall_s = 4.1)[0].contains("times faster"));
        assert!(missed(|costs| costs.adapted[0].wall_s = 2.7)[0].contains("convert -a"));
        assert!(missed(|costs| costs.high_rank[0].peak_rss += 1)[0].contains("high rank"));
    }
}
