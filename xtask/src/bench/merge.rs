//! Merging an adapter: mlpack against PEFT, how much memory it takes, what laying it over a conversion costs, and what one pass for
//! both the merged checkpoint and a conversion saves.

use super::cost::{Cost, measure, megabytes};
use super::{Bench, Report, fresh, model, quantize};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

const FASTER: f64 = 5.0;

/// With mapped pages, whatever the rank.
const PEAK_RSS: u64 = 500_000_000;

/// The time of a conversion through an adapter, for one without, to each type. To F16, a copy with other bits, there is hardly
/// anything that an adapter could be small beside, so no limit is set.
const CONVERSIONS: [(&str, Option<f64>); 2] = [("Q4_K_M", Some(1.3)), ("F16", None)];

/// The runs of each command.
#[derive(Default)]
struct Costs {
    peft: Vec<Cost>,
    merge: Vec<Cost>,
    high_rank: Vec<Cost>,
    // By conversion.
    plain: [Vec<Cost>; 2],
    adapted: [Vec<Cost>; 2],
    // The merged checkpoint and the first conversion.
    release: Vec<Cost>,
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
        for (i, (quant, _)) in CONVERSIONS.iter().enumerate() {
            let convert = ["convert", "--to", "gguf", "--quant", quant];
            for adapted in [run % 2 == 0, run % 2 == 1] {
                fresh(&work)?;
                let cost = measure(peers, &mut mlpack(&convert, adapted.then_some(bench.lora.as_path())), &work)?;
                if adapted { costs.adapted[i].push(cost) } else { costs.plain[i].push(cost) }
            }
        }
        fresh(&work)?;
        let mut release = bench.release(&work, "[merge]\noutput = \"merged\"\n", &[CONVERSIONS[0].0])?;
        release.arg("-o").arg(work.join("out"));
        costs.release.push(measure(peers, &mut release, &work)?);
    }
    fresh(&work)?;
    Ok(costs.report())
}

impl Costs {
    fn report(&self) -> Report {
        let [peft, merge, high_rank] = [&self.peft, &self.merge, &self.high_rank].map(|costs| Cost::medians(costs));
        let mut text = "Synthetic 1.07 B checkpoint and its LoRA.\n\n\
                        | what | wall | CPU | peak RSS |\n| --- | --- | --- | --- |\n"
            .to_owned();
        let mut row = |what: &str, cost: Cost| {
            let (wall, cpu, rss) = (cost.wall_s, cost.cpu_s, megabytes(cost.peak_rss));
            text.push_str(&format!("| {what} | {wall:.2} s | {cpu:.2} s | {rss} MB |\n"));
        };
        row("PEFT merge and save, r = 16", peft);
        row("mlpack merge -a LORA, r = 16", merge);
        row(&format!("mlpack merge -a LORA, r = {}", model::HIGH_RANK), high_rank);
        let mut overheads = Vec::new();
        for (i, (quant, limit)) in CONVERSIONS.into_iter().enumerate() {
            let (plain, adapted) = (Cost::medians(&self.plain[i]), Cost::medians(&self.adapted[i]));
            row(&format!("mlpack convert --quant {quant}"), plain);
            row(&format!("mlpack convert -a LORA --quant {quant}, r = 16"), adapted);
            overheads.push((quant, limit, adapted.wall_s / plain.wall_s));
        }
        let (release, quant) = (Cost::medians(&self.release), CONVERSIONS[0].0);
        row(&format!("mlpack release, the merged checkpoint and {quant}"), release);
        let apart = merge.wall_s + Cost::medians(&self.adapted[0]).wall_s;
        let faster = peft.wall_s / merge.wall_s;
        text.push_str(&format!("| **PEFT : mlpack** | **{faster:.1}** (at least {FASTER}) | | |\n"));
        let saved = release.wall_s / apart;
        text.push_str(&format!(
            "| **both in one release : one after the other** | **{saved:.2}** (less than 1) | | |\n"
        ));
        let mut missed = Vec::new();
        if saved >= 1.0 {
            missed.push(format!("release: expected less than merge and convert -a take, found {saved:.2} times that"));
        }
        for (quant, limit, overhead) in overheads {
            let limit_shown = limit.map(|limit| format!(" (at most {limit})")).unwrap_or_default();
            text.push_str(&format!(
                "| **{quant}, with the adapter : without** | **{overhead:.2}**{limit_shown} | | |\n"
            ));
            if let Some(limit) = limit.filter(|limit| overhead > *limit) {
                missed.push(format!(
                    "convert -a to {quant}: expected at most {limit} times the time, found {overhead:.2}"
                ));
            }
        }
        if faster < FASTER {
            missed.push(format!("merge: expected at least {FASTER} times faster, found {faster:.1}"));
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
            plain: [cost(2.0, 1), cost(1.0, 1)],
            adapted: [cost(2.6, 1), cost(2.0, 1)],
            release: cost(6.5, 1),
        };
        change(&mut costs);
        costs.report().missed
    }

    #[test]
    fn each_target_is_judged_by_itself() {
        assert_eq!(missed(|_| ()), [""; 0]);
        assert!(missed(|costs| costs.merge[0].wall_s = 4.1)[0].contains("times faster"));
        assert!(missed(|costs| costs.adapted[0][0].wall_s = 2.7)[0].contains("convert -a"));
        assert!(missed(|costs| costs.release[0].wall_s = 6.6)[0].contains("release"));
        assert!(missed(|costs| costs.high_rank[0].peak_rss += 1)[0].contains("high rank"));
    }
}
