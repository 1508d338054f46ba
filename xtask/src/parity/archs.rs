//! Architectures: a small checkpoint of each, converted by both sides, and a table of what is identical.
//!
//! With `--record`, what the converter made becomes the goldens of `crates/mlpack-convert/golden/archs/`; the tests make
//! the same checkpoints again without Python.

use super::convert::generate;
use crate::compare;
use crate::peers::Peers;
use crate::process::output;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const TYPES: &[&str] = &["F16", "BF16", "Q8_0"];
/// What models with the tokenizer of a real one are asked. Their weights are random, and so is the answer.
const PROMPT: &str = "def f(x): # Ünïcode, 中文, 1234567 🎉";

/// Converts the checkpoints with `only` in their name on both sides; returns how many files differ.
pub fn run(only: &str, record: bool, peers: &Peers, mlpack: &Path) -> Result<usize> {
    let work = workspace::root().join("target/parity/archs");
    workspace::fresh(&work)?;
    let goldens = workspace::root().join("crates/mlpack-convert/golden");
    peers.tokenizers()?;
    let mut script = peers.script("arch_models.py");
    script.arg(peers.llama_source()).arg(peers.llama_bin().join("llama-quantize"));
    script.arg(workspace::root().join("fixtures/legal-qa/kjv-llama")).arg(goldens.join("bpe"));
    output(script.arg(peers.tokenizers_dir()).arg(&work))?;
    let mut differing = 0;
    for (name, kinds) in references(&work.join("reference"))? {
        if !name.to_lowercase().contains(only) {
            continue;
        }
        let mut convert = Command::new(mlpack);
        convert.arg("convert").arg(work.join(&name)).args(["--to", "gguf", "--quant", &kinds.join(",")]);
        // As the script does it; without it, both refuse to encode MXFP4 anew.
        convert.arg("--allow-requantize");
        let ours = work.join("mlpack").join(&name);
        if let Err(error) = output(convert.arg("-o").arg(&ours)) {
            differing += kinds.len();
            println!("{name:24} fails: {error:#}");
            continue;
        }
        for kind in &kinds {
            let file = format!("{name}-{kind}.gguf");
            match compare::gguf(&ours.join(&file), &work.join("reference").join(&file))? {
                None => println!("{name:24} {kind:5} identical"),
                Some(differences) => {
                    differing += 1;
                    println!("{name:24} {kind:5} different\n    {}", differences.join("\n    "));
                }
            }
        }
        let golden = work.join("golden").join(format!("{name}.json"));
        if !golden.is_file() {
            differing += usize::from(!say_the_same(peers, &name, &ours, &work.join("reference"))?);
        } else if record {
            let to = goldens.join("archs").join(format!("{name}.json"));
            std::fs::copy(&golden, &to).with_context(|| format!("cannot write `{}`", to.display()))?;
        }
    }
    Ok(differing + adapter(peers, mlpack, &work)?)
}

/// The checkpoints that the converter made files of, sorted, each with their types.
fn references(folder: &Path) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).context("the script writes references")? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        // The files of a split model are in folders of their own.
        if let Some((name, kind)) = file.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once('-')) {
            found.entry(name.to_owned()).or_default().push(kind.to_owned());
        }
    }
    found.values_mut().for_each(|kinds| kinds.sort());
    Ok(found)
}

/// Whether llama-completion goes on with the same tokens from both sides' F16 files.
fn say_the_same(peers: &Peers, name: &str, ours: &Path, reference: &Path) -> Result<bool> {
    let file = format!("{name}-F16.gguf");
    let (ours, reference) =
        (generate(peers, &ours.join(&file), PROMPT)?, generate(peers, &reference.join(&file), PROMPT)?);
    match ours == reference {
        true => println!("{name:24} generates the same: {ours:?}"),
        false => println!("{name:24} generates {ours:?}, from the reference's file {reference:?}"),
    }
    Ok(ours == reference)
}

/// The legal-qa adapter as a GGUF adapter.
fn adapter(peers: &Peers, mlpack: &Path, work: &Path) -> Result<usize> {
    let legal_qa = workspace::root().join("fixtures/legal-qa");
    let (base, adapter) = (legal_qa.join("kjv-llama"), legal_qa.join("legal-qa-lora"));
    let kinds = [&["F32"], TYPES].concat();
    let ours = work.join("mlpack/adapter");
    let mut convert = Command::new(mlpack);
    convert.arg("convert").arg(&adapter).args(["--to", "gguf-lora", "--quant", &kinds.join(","), "--base"]).arg(&base);
    output(convert.arg("-o").arg(&ours))?;
    let mut differing = 0;
    for kind in kinds {
        let file = format!("legal-qa-lora-{kind}.gguf");
        let reference = work.join("reference").join(&file);
        let mut converter = peers.python();
        converter.arg(peers.llama_source().join("convert_lora_to_gguf.py")).arg(&adapter).arg("--base").arg(&base);
        output(converter.args(["--outtype", &kind.to_lowercase(), "--outfile"]).arg(&reference))?;
        match compare::gguf(&ours.join(&file), &reference)? {
            None => println!("{:24} {kind:5} identical", "legal-qa-lora"),
            Some(differences) => {
                differing += 1;
                println!("{:24} {kind:5} different\n    {}", "legal-qa-lora", differences.join("\n    "));
            }
        }
    }
    Ok(differing)
}
