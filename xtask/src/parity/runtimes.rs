//! A real model in the runtimes that people use: SmolLM2-135M has to generate the same 64 tokens in transformers, in ONNX
//! Runtime, in onnxruntime-genai and in transformers.js, from the directory that is laid out for each.

use crate::peers::Peers;
use crate::process::output;
use crate::workspace;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns how many runtimes generate something else.
pub fn run(peers: &Peers, mlpack: &Path) -> Result<usize> {
    peers.smollm2()?;
    peers.onnx()?;
    peers.onnx_runtimes()?;
    let work = workspace::root().join("target/parity/runtimes");
    if work.exists() {
        std::fs::remove_dir_all(&work).with_context(|| format!("cannot remove `{}`", work.display()))?;
    }
    std::fs::create_dir_all(&work).with_context(|| format!("cannot create `{}`", work.display()))?;
    let convert = |name: &str, options: &[&str]| -> Result<PathBuf> {
        let dir = work.join(name);
        let mut convert = Command::new(mlpack);
        convert.arg("convert").arg(peers.smollm2_dir()).args(["--to", "onnx"]).args(options).arg("-o").arg(&dir);
        output(&mut convert)?;
        Ok(dir)
    };
    let known = work.join("known.json");
    output(peers.script("onnx_runtimes.py").arg("reference").arg(peers.smollm2_dir()).arg("64").arg(&known))?;
    let mut differing = 0;
    let mut say = |what: String, command: &mut Command| {
        let said = output(command);
        differing += usize::from(said.is_err());
        println!("  {what}: {}", said.map_or_else(|e| format!("{e:#}"), |text| text.trim().to_owned()));
    };
    let genai = |dir: &Path, known: &Path| {
        let mut script = peers.script("onnx_runtimes.py");
        script.arg("genai").arg(dir).arg(known);
        script
    };
    for profile in ["std", "portable", "ort"] {
        let dir =
            convert(&format!("genai-{profile}"), &["--precision", "fp32", "--layout", "genai", "--profile", profile])?;
        let mut plain = peers.script("onnx_greedy.py");
        say(format!("onnxruntime, {profile}"), plain.arg(dir.join("model.onnx")).arg(&known));
        say(format!("onnxruntime-genai, {profile}"), &mut genai(&dir, &known));
    }
    let dir = convert("transformers.js", &["--precision", "fp32,int4"])?;
    say("transformers.js, fp32".to_owned(), peers.transformers_js(&dir, "fp32").arg(&known));
    // Four bits are another model: the runtimes have to agree about it.
    let four = work.join("known-q4.json");
    let genai_four = convert("genai-q4", &["--precision", "int4", "--layout", "genai"])?;
    output(peers.script("onnx_runtimes.py").arg("genai-own").arg(&genai_four).arg(&known).arg(&four))?;
    say("transformers.js and onnxruntime-genai, q4".to_owned(), peers.transformers_js(&dir, "q4").arg(&four));
    let alone = convert("q4-alone", &["--precision", "int4"])?;
    say("transformers.js, q4 where there is nothing else".to_owned(), peers.transformers_js(&alone, "auto").arg(&four));
    Ok(differing)
}
