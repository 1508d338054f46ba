//! Quantization: every file type and every option of llama-quantize, from the same GGUF with the same importance matrix.

mod cases;

use super::subjects::{self, Subject, tool};
use crate::compare;
use crate::peers::Peers;
use crate::process::{attempt, output};
use anyhow::{Context as _, Result, bail};
use cases::Case;
use std::path::Path;
use std::process::Command;

/// Threads of both tools. No byte depends on them.
const THREADS: &str = "2";
/// Exit codes with which mlpack refuses what it was asked: usage, bad input, environment.
const REFUSALS: [i32; 3] = [2, 3, 4];

/// Runs the named groups of cases and returns how many files differ.
pub fn run(names: &[&str], only: &str, peers: &Peers, mlpack: &Path) -> Result<usize> {
    let pair = Pair { peers, mlpack, only };
    let mut differing = 0;
    if names.contains(&"ftypes") || names.contains(&"options") {
        let subject = subjects::smollm2(peers)?;
        let mut cases = Vec::new();
        if names.contains(&"ftypes") {
            cases.extend(cases::file_types(&file_types(peers)?));
        }
        if names.contains(&"options") {
            cases.extend(cases::OPTIONS.iter().map(Case::of));
        }
        differing += pair.compare_all(&subject, &cases, false)?;
    }
    if names.contains(&"mixtures") {
        let every = cases::file_types(&file_types(peers)?);
        for subject in subjects::small(peers)? {
            let mut cases = every.clone();
            if subject.dir.ends_with("layers80") {
                // Its one rule is about values and asks for more bits than these types give.
                cases.retain(|case| ["Q2_K", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ3_M"].contains(&case.quant.as_str()));
            }
            if subject.dir.ends_with("mixtral") {
                cases.extend(cases::EXPERT_OPTIONS.iter().map(Case::of));
            }
            differing += pair.compare_all(&subject, &cases, true)?;
        }
    }
    Ok(differing)
}

/// Every name that llama-quantize lists, but for aliases.
fn file_types(peers: &Peers) -> Result<Vec<String>> {
    let help = Command::new(peers.llama_bin().join("llama-quantize")).arg("--help").output();
    let help = help.context("cannot start llama-quantize")?.stdout;
    let names = names_in(&String::from_utf8_lossy(&help));
    if names.is_empty() {
        bail!("llama-quantize --help lists no types");
    }
    Ok(names)
}

/// The names in llama-quantize's list of types, of which a line is `NUMBER or NAME : description`.
fn names_in(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| !line.contains("allowed quantization types"));
    let rows = list.filter_map(|line| line.split_once(" : ").or(line.split_once(": ")));
    let rows = rows.filter(|(_, description)| !description.trim_start().starts_with("alias for"));
    rows.map(|(name, _)| name.rsplit(' ').find(|word| !word.is_empty()).unwrap_or_default().to_owned()).collect()
}

/// The two tools, and what to compare of them.
struct Pair<'a> {
    peers: &'a Peers,
    mlpack: &'a Path,
    only: &'a str,
}

impl Pair<'_> {
    /// Compares every case; with `read_back`, llama.cpp's Python reader then opens all that mlpack wrote.
    fn compare_all(&self, subject: &Subject, cases: &[Case], read_back: bool) -> Result<usize> {
        let wanted = |case: &&Case| case.title().to_lowercase().contains(self.only);
        let cases: Vec<&Case> = cases.iter().filter(wanted).collect();
        if cases.is_empty() {
            return Ok(0);
        }
        println!("{}", subject.title);
        let mut differing = 0;
        let kept = subject.dir.join("kept");
        std::fs::create_dir_all(&kept).with_context(|| format!("cannot create `{}`", kept.display()))?;
        for (i, case) in cases.iter().enumerate() {
            match self.compare(subject, case)? {
                Outcome::Identical => println!("  {}: identical", case.title()),
                Outcome::Refused => println!("  {}: refused by both", case.title()),
                Outcome::Different(lines) => {
                    differing += 1;
                    println!("  {}: different\n    {}", case.title(), lines.join("\n    "));
                }
            }
            if read_back {
                for name in ggufs(&subject.dir.join("mlpack"))? {
                    let (from, to) = (subject.dir.join("mlpack").join(&name), kept.join(format!("{i}-{name}")));
                    std::fs::rename(from, to).with_context(|| format!("cannot keep `{name}`"))?;
                }
            }
        }
        let files: Vec<_> = ggufs(&kept)?.iter().map(|name| kept.join(name)).collect();
        if !files.is_empty() {
            let mut read = self.peers.script("gguf_read.py");
            output(read.arg(self.peers.llama_source().join("gguf-py")).args(&files))?;
            println!("  read by llama.cpp's gguf-py: {} files", files.len());
        }
        for folder in ["kept", "mlpack", "llama.cpp"] {
            let folder = subject.dir.join(folder);
            std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
        }
        Ok(differing)
    }

    /// Quantizes with both tools into the folders `mlpack` and `llama.cpp`.
    fn compare(&self, subject: &Subject, case: &Case) -> Result<Outcome> {
        for folder in ["mlpack", "llama.cpp"] {
            let folder = subject.dir.join(folder);
            if folder.exists() {
                std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
            }
            std::fs::create_dir(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
        }
        let name = format!("out-{}.gguf", case.quant);
        let mut quantize = tool(self.peers, "llama-quantize", &subject.dir);
        quantize.args(case.reference_options()).arg(case.input).arg(format!("llama.cpp/{name}"));
        let reference = attempt(quantize.args([&case.quant, THREADS]))?;
        let mut quantize = Command::new(self.mlpack);
        quantize.current_dir(&subject.dir).args(["quantize", case.input, "--quant", &case.quant]);
        quantize.args(case.options.split_whitespace()).args(["--threads", THREADS]);
        match case.splits() {
            true => quantize.args(["--name", "out", "-o", "mlpack"]),
            false => quantize.args(["-o", &format!("mlpack/{name}")]),
        };
        let ours = attempt(&mut quantize)?;
        if case.refused.is_some_and(|refused| refused != reference.is_err()) {
            let found = reference.err().map_or("it made a file".to_owned(), |(_, text)| text);
            bail!("`{}` is not the case that it was written for: {found}", case.title());
        }
        let different = |line: String| Ok(Outcome::Different(vec![line]));
        match (ours, reference) {
            (Ok(()), Ok(())) => same_files(&subject.dir),
            (Ok(()), Err((code, text))) => {
                different(format!("made by mlpack, but the reference stopped with code {code:?}: {text}"))
            }
            (Err((_, text)), Ok(())) => different(format!("refused by mlpack: {text}")),
            (Err((code, text)), Err(_)) => {
                let left = ggufs(&subject.dir.join("mlpack"))?;
                match code {
                    Some(code) if REFUSALS.contains(&code) && left.is_empty() => Ok(Outcome::Refused),
                    _ => different(format!("mlpack stopped with code {code:?} and left {left:?}: {text}")),
                }
            }
        }
    }
}

enum Outcome {
    Identical,
    Refused,
    Different(Vec<String>),
}

/// Compares the files of the folders `mlpack` and `llama.cpp`, and removes the reference's.
fn same_files(dir: &Path) -> Result<Outcome> {
    let (ours, reference) = (ggufs(&dir.join("mlpack"))?, ggufs(&dir.join("llama.cpp"))?);
    let mut lines = Vec::new();
    if ours != reference {
        lines.push(format!("files of mlpack: {ours:?}, of the reference: {reference:?}"));
    }
    for name in ours.iter().filter(|name| reference.contains(name)) {
        let differences = compare::gguf(&dir.join("mlpack").join(name), &dir.join("llama.cpp").join(name))?;
        lines.extend(differences.into_iter().flatten());
    }
    Ok(if lines.is_empty() { Outcome::Identical } else { Outcome::Different(lines) })
}

/// Names of the GGUF files in a folder, sorted.
fn ggufs(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot list `{}`", dir.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<String>>>()?;
    names.retain(|name| name.ends_with(".gguf"));
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_from_the_list_of_types_and_aliases_left_out() {
        let help = "usage: x\n  --a : not a type\n allowed quantization types\n-----\n\n   2  or  Q4_0    :  4.34G\n  \
                    38  or  MXFP4_MOE :  MXFP4 MoE\n  12  or  Q3_K    : alias for Q3_K_M\n          COPY    : only copy\n";
        assert_eq!(names_in(help), ["Q4_0", "MXFP4_MOE", "COPY"]);
    }
}
