//! The models that both tools quantize, each with an importance matrix, in a folder of its own.

use crate::peers::Peers;
use crate::process::output;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with `model.gguf`, `imatrix.gguf` and what a case needs beside them. Both tools run in it, because they
/// store the path of the importance matrix as it was given.
pub struct Subject {
    pub title: &'static str,
    pub dir: PathBuf,
}

/// What `--tensor-type-file` names: patterns and types, with blanks and line ends between them.
const TYPES: &str = "attn_v=q8_0  attn_output=Q6_K\nblk\\.(0|29)\\.ffn_up=F16\n\nffn_down=iq4_xs\n";

/// SmolLM2-135M-Instruct as BF16, F16, Q8_0 and Q4_K_M, in one file and in three, with an importance matrix in both formats.
pub fn smollm2(peers: &Peers) -> Result<Subject> {
    peers.smollm2()?;
    let dir = fresh("smollm2")?;
    convert(peers, &peers.smollm2_dir(), "bf16", &dir.join("model.gguf"))?;
    convert(peers, &peers.smollm2_dir(), "f16", &dir.join("F16.gguf"))?;
    for quant in ["Q8_0", "Q4_K_M"] {
        let mut quantize = tool(peers, "llama-quantize", &dir);
        output(quantize.args(["model.gguf", &format!("{quant}.gguf"), quant]))?;
    }
    let mut split = tool(peers, "llama-gguf-split", &dir);
    output(split.args(["--split-max-tensors", "100", "model.gguf", "split"]))?;
    importance(peers, &dir, "imatrix.gguf", "gguf")?;
    importance(peers, &dir, "imatrix.dat", "dat")?;
    let types = dir.join("types.txt");
    std::fs::write(&types, TYPES).with_context(|| format!("cannot write `{}`", types.display()))?;
    Ok(Subject { title: "SmolLM2-135M-Instruct", dir })
}

/// The small models, each for rules of its own.
pub fn small(peers: &Peers) -> Result<Vec<Subject>> {
    let made = fresh("small")?;
    let tokenizer = workspace::root().join("fixtures/legal-qa/kjv-llama");
    output(peers.script("quantize_models.py").arg(tokenizer).arg(&made))?;
    let mut subjects = Vec::new();
    for (name, title) in [
        ("gqa8", "Llama, 8 query heads for each key-value head"),
        ("layers80", "Llama, 80 layers"),
        ("falcon", "Falcon, fused projections, rows of odd lengths"),
        ("qwen2moe", "Qwen2MoE, 4 experts and a shared one"),
    ] {
        let dir = fresh(name)?;
        take(&made.join(format!("{name}.gguf")), &dir.join("model.gguf"))?;
        take(&made.join(format!("{name}.imatrix.gguf")), &dir.join("imatrix.gguf"))?;
        subjects.push(Subject { title, dir });
    }
    let dir = fresh("mixtral")?;
    convert(peers, &made.join("mixtral"), "bf16", &dir.join("model.gguf"))?;
    importance(peers, &dir, "imatrix.gguf", "gguf")?;
    take(&made.join("unvisited.imatrix.gguf"), &dir.join("unvisited.gguf"))?;
    subjects.push(Subject { title: "Mixtral, 8 experts", dir });
    Ok(subjects)
}

fn fresh(name: &str) -> Result<PathBuf> {
    let dir = workspace::root().join("target/parity/quantize").join(name);
    workspace::fresh(&dir)?;
    Ok(dir)
}

fn take(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| format!("cannot move `{}` to `{}`", from.display(), to.display()))
}

/// One of llama.cpp's programs, to run in `dir`.
pub fn tool(peers: &Peers, name: &str, dir: &Path) -> Command {
    let mut command = Command::new(peers.llama_bin().join(name));
    command.current_dir(dir);
    command
}

fn convert(peers: &Peers, checkpoint: &Path, outtype: &str, to: &Path) -> Result<()> {
    let mut converter = peers.python();
    converter.arg(peers.llama_source().join("convert_hf_to_gguf.py")).arg(checkpoint);
    output(converter.args(["--outtype", outtype, "--outfile"]).arg(to))?;
    Ok(())
}

/// An importance matrix from 16 chunks of the legal-qa data set.
fn importance(peers: &Peers, dir: &Path, name: &str, format: &str) -> Result<()> {
    let text = workspace::root().join("fixtures/legal-qa/dataset.jsonl");
    std::fs::copy(&text, dir.join("text.jsonl")).with_context(|| format!("cannot copy `{}`", text.display()))?;
    let mut imatrix = tool(peers, "llama-imatrix", dir);
    imatrix.args(["-m", "model.gguf", "-f", "text.jsonl", "-o", name, "--output-format", format]);
    output(imatrix.args(["--no-ppl", "-c", "128", "--chunks", "16"]))?;
    Ok(())
}
