//! ONNX: what our graphs compute in ONNX Runtime, against transformers; matrices in blocks, against the bytes of ONNX Runtime's
//! own quantizer.

use crate::peers::Peers;
use crate::process::{output, run as run_command};
use crate::workspace;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

const PROFILES: [&str; 3] = ["std", "portable", "ort"];

/// Small models that are also written in other precisions: an output matrix of its own, a tied one, rows and columns of odd
/// length, biases of queries, keys and values, fused matrices, norms of heads, norms around and windows.
const PRECISIONS_OF: &[&str] = &["llama", "llama-tied", "llama-odd", "qwen2", "phi3", "qwen3", "gemma3"];

/// The largest difference of a logit, where the same numbers are computed.
const FLOAT32: &str = "1e-4";
/// The same for float16, as a part of the largest logit.
const FLOAT16: &str = "2%";

/// What is asked of blocks.
struct Blocks {
    size: u32,
    kind: &'static str,
    profile: &'static str,
}

const BLOCKS: &[Blocks] = &[
    Blocks { size: 32, kind: "symmetric", profile: "std" },
    Blocks { size: 16, kind: "asymmetric", profile: "std" },
    Blocks { size: 64, kind: "symmetric", profile: "ort" },
];

/// Compares the small models with `only` in their name; returns how many graphs differ.
pub fn run(only: &str, peers: &Peers, mlpack: &Path) -> Result<usize> {
    peers.onnx()?;
    let dir = workspace::root().join("target/parity/onnx");
    let work = Work { dir, peers, mlpack, onnxruntime: peers.onnxruntime()? };
    workspace::fresh(&work.dir)?;
    Ok(decoders(only, &work)? + encoders(only, &work)?)
}

/// Shows what a script says of a comparison; returns how many differ: one, or none.
fn compared(what: &str, script: &mut Command) -> usize {
    let said = output(script);
    let differs = usize::from(said.is_err());
    println!("{what}: {}", said.map_or_else(|e| format!("{e:#}"), |said| said.trim().to_owned()));
    differs
}

/// The names of the models in a folder that a script made.
fn names(dir: &Path, only: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).context("the script writes models")? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    names.retain(|name| name.contains(only));
    Ok(names)
}

/// Encoders and their heads, in the profiles and precisions.
fn encoders(only: &str, work: &Work<'_>) -> Result<usize> {
    let models = work.dir.join("encoders");
    output(work.peers.script("onnx_encoders.py").arg("models").arg(&models))?;
    let (mut jobs, mut differing) = (Vec::new(), 0);
    for name in names(&models, only)? {
        let model = models.join(&name);
        for profile in PROFILES {
            let dir = work.dir.join(format!("encoders-{profile}")).join(&name);
            work.convert_into(&model, &dir, "fp32", &["--profile", profile])?;
            jobs.push(format!("{}={}={FLOAT32}", model.display(), dir.join("onnx/model.onnx").display()));
        }
        differing += work.dynamic(&model, &name, "portable")?;
        let dir = work.dir.join("encoders-fp16").join(&name);
        work.convert_into(&model, &dir, "fp16", &[])?;
        jobs.push(format!("{}={}={FLOAT16}", model.display(), dir.join("onnx/model_fp16.onnx").display()));
        let dir = work.dir.join("encoders-blocks").join(&name);
        work.convert_into(&model, &dir, "int8,int4", &["--accuracy-level", "0"])?;
        let plain = work.dir.join("encoders-std").join(&name).join("onnx/model.onnx");
        for (bits, file) in [(4, "onnx/model_q4.onnx"), (8, "onnx/model_int8.onnx")] {
            let quantized = dir.join(file);
            jobs.push(format!("{}={}={FLOAT32}={bits}:32:symmetric", model.display(), quantized.display()));
            differing += work.blocks(&name, &plain, &quantized, (bits, "32", "symmetric"));
        }
        // Nearly everything in float32, so that every kind of island occurs.
        let dir = work.dir.join("encoders-islands").join(&name);
        work.convert_into(&model, &dir, "fp16", &["--keep-fp32", "e"])?;
        jobs.push(format!("{}={}={FLOAT16}", model.display(), dir.join("onnx/model_fp16.onnx").display()));
    }
    if jobs.is_empty() {
        return Ok(0);
    }
    Ok(differing + usize::from(run_command(work.peers.script("onnx_encoders.py").arg("compare").args(&jobs)).is_err()))
}

/// Decoders, in all profiles and precisions.
fn decoders(only: &str, work: &Work<'_>) -> Result<usize> {
    let peers = work.peers;
    output(peers.script("onnx_models.py").arg(work.dir.join("models")))?;
    let names = names(&work.dir.join("models"), only)?;
    if names.is_empty() {
        return Ok(0);
    }
    let mut jobs = Vec::new();
    for name in &names {
        for profile in PROFILES {
            let dir = work.convert(name, profile, "fp32", &["--profile", profile])?;
            jobs.push(work.job(name, &dir.join("onnx/model.onnx"), FLOAT32));
        }
    }
    let mut differing = 0;
    for name in names.iter().filter(|name| PRECISIONS_OF.contains(&name.as_str())) {
        for profile in PROFILES {
            let dir = work.convert(name, &format!("{profile}-fp16"), "fp16", &["--profile", profile])?;
            jobs.push(work.job(name, &dir.join("onnx/model_fp16.onnx"), FLOAT16));
            let options = ["--profile", profile, "--keep-fp32", "down_proj,norm,embed_tokens"];
            let dir = work.convert(name, &format!("{profile}-islands"), "fp16", &options)?;
            jobs.push(work.job(name, &dir.join("onnx/model_fp16.onnx"), FLOAT16));
        }
        for Blocks { size, kind, profile } in BLOCKS {
            let mut options = vec!["--profile", profile];
            options.extend((*kind == "asymmetric").then_some("--asymmetric"));
            let text = size.to_string();
            // transformers computes in floats, too.
            options.extend(["--block-size", &text, "--accuracy-level", "0"]);
            let dir = work.convert(name, &format!("{profile}-{kind}-{size}"), "int4,int8", &options)?;
            for (bits, file) in [(4, "onnx/model_q4.onnx"), (8, "onnx/model_int8.onnx")] {
                let quantized = dir.join(file);
                jobs.push(format!("{}={bits}:{size}:{kind}", work.job(name, &quantized, FLOAT32)));
                let plain = work.dir.join("std").join(name).join("onnx/model.onnx");
                differing += work.blocks(name, &plain, &quantized, (bits, &text, kind));
            }
        }
    }
    for name in names.iter().filter(|name| PRECISIONS_OF.contains(&name.as_str())) {
        for (kind, options) in [("symmetric", &[][..]), ("asymmetric", &["--asymmetric"])] {
            let options = [&["--scheme", "qdq", "--block-size", "32"], options].concat();
            let dir = work.convert(name, &format!("qdq-{kind}"), "int4", &options)?;
            let quantized = dir.join("onnx/model_q4.onnx");
            let plain = work.dir.join("portable").join(name).join("onnx/model.onnx");
            let what = format!("{name} int4 qdq {kind}");
            differing += work.integers(&what, &["qdq"], &plain, &quantized, &["32", kind]);
        }
        for profile in ["portable", "std"] {
            differing += work.dynamic(&work.model(name), name, profile)?;
            let options = ["--profile", profile, "--scheme", "qdq"];
            let dir = work.convert(name, &format!("qdq-8-{profile}"), "int8", &options)?;
            let quantized = dir.join("onnx/model_int8.onnx");
            let plain = work.dir.join("portable").join(name).join("onnx/model.onnx");
            let what = format!("{name} int8 qdq {profile}");
            differing += work.integers(&what, &["columns"], &plain, &quantized, &[]);
        }
        for profile in PROFILES {
            differing += work.fixed(name, profile)?;
        }
    }
    let mut script = peers.script("onnx_logits.py");
    differing += usize::from(run_command(script.args(&jobs)).is_err());
    Ok(differing)
}

struct Work<'a> {
    dir: PathBuf,
    peers: &'a Peers,
    mlpack: &'a Path,
    onnxruntime: PathBuf,
}

impl Work<'_> {
    fn model(&self, name: &str) -> PathBuf {
        self.dir.join("models").join(name)
    }

    /// Converts a small model into a folder of its own.
    fn convert(&self, name: &str, folder: &str, precisions: &str, options: &[&str]) -> Result<PathBuf> {
        let dir = self.dir.join(folder).join(name);
        self.convert_into(&self.model(name), &dir, precisions, options)?;
        Ok(dir)
    }

    /// The same of any model; what ONNX Runtime's CPU runs as it is written is validated, too.
    fn convert_into(&self, model: &Path, dir: &Path, precisions: &str, options: &[&str]) -> Result<()> {
        let mut convert = Command::new(self.mlpack);
        convert.arg("convert").arg(model).args(["--to", "onnx", "--precision", precisions]);
        // Dynamic bytes are compared with those of ONNX Runtime's tool. On a CPU without VNNI their products saturate.
        if precisions != "bf16" && !options.contains(&"dynamic") {
            convert.arg("--validate").arg("--onnxruntime").arg(&self.onnxruntime);
        }
        output(convert.args(options).arg("-o").arg(dir)).map(drop)
    }

    /// Compares matrices in blocks with those of ONNX Runtime's quantizer.
    fn blocks(&self, name: &str, plain: &Path, quantized: &Path, (bits, size, kind): (u32, &str, &str)) -> usize {
        let mut script = self.peers.script("onnx_blocks.py");
        script.arg(plain).arg(quantized).args([bits.to_string().as_str(), size, kind]);
        compared(&format!("{name} int{bits} {kind} {size}"), &mut script)
    }

    /// Compares matrices of integers with those of ONNX Runtime's tools.
    fn integers(&self, what: &str, mode: &[&str], plain: &Path, quantized: &Path, options: &[&str]) -> usize {
        let mut script = self.peers.script("onnx_integers.py");
        compared(what, script.args(mode).arg(plain).arg(quantized).args(options))
    }

    /// The same of a model in bytes that are multiplied in integers. The reference starts from the portable graph.
    fn dynamic(&self, model: &Path, name: &str, profile: &str) -> Result<usize> {
        let dir = self.dir.join(format!("dynamic-{profile}")).join(name);
        self.convert_into(model, &dir, "fp32,int8", &["--profile", "portable", "--scheme", "dynamic"])?;
        let (plain, mut quantized) = (dir.join("onnx/model.onnx"), dir.join("onnx/model_quantized.onnx"));
        if profile != "portable" {
            let other = self.dir.join(format!("dynamic-{profile}-8")).join(name);
            self.convert_into(model, &other, "int8", &["--profile", profile, "--scheme", "dynamic"])?;
            quantized = other.join("onnx/model_quantized.onnx");
        }
        Ok(self.integers(&format!("{name} int8 dynamic {profile}"), &["dynamic"], &plain, &quantized, &[]))
    }

    /// A graph of sizes that are known, beside the one whose sizes are open.
    fn fixed(&self, name: &str, profile: &str) -> Result<usize> {
        let open = self.dir.join(profile).join(name).join("onnx/model.onnx");
        let mut differing = 0;
        for dims in ["batch=2,sequence=12,past=0", "batch=1,sequence=1,past=11"] {
            let options = ["--profile", profile, "--fix-dims", dims];
            let dir = self.convert(name, &format!("{profile}-{dims}"), "fp32", &options)?;
            let mut script = self.peers.script("onnx_static.py");
            script.arg(dir.join("onnx/model.onnx")).arg(&open);
            differing += compared(&format!("{name} {profile} {dims}"), &mut script);
        }
        Ok(differing)
    }

    /// What the script is told of a file.
    fn job(&self, name: &str, file: &Path, tolerance: &str) -> String {
        format!("{}={}={tolerance}", self.model(name).display(), file.display())
    }
}
