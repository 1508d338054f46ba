//! Real models beside a forward pass of their weights: SmolLM2-135M in every profile and precision, with what validation takes;
//! all-MiniLM-L6-v2 on sentences; and small models that onnxruntime-genai's builder does not write.

use crate::peers::Peers;
use crate::process::{attempt, output, shown};
use crate::workspace;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The precisions of each profile that ONNX Runtime's CPU runs, and those that have to be refused.
const PROFILES: [(&str, &[&str], &[&str]); 3] = [
    ("std", &["fp32", "fp16", "int8", "int4"], &["bf16"]),
    ("portable", &["fp32", "fp16", "int8"], &["bf16", "int4"]),
    ("ort", &["fp32", "fp16", "int8", "int4"], &["bf16"]),
];

/// What sentence embeddings have to be: a precision, options, the least cosine to transformers.
const SENTENCES: [(&str, &[&str], &str, &str); 4] = [
    ("fp32", &[], "model.onnx", "0.99999"),
    ("fp16", &[], "model_fp16.onnx", "0.999"),
    ("int8", &[], "model_int8.onnx", "0.98"),
    ("int8", &["--profile", "portable"], "model_quantized.onnx", "0.98"),
];

/// Validates SmolLM2; returns how many graphs are too far from it, or are not refused.
pub fn validate(peers: &Peers, mlpack: &Path) -> Result<usize> {
    peers.smollm2()?;
    let library = peers.onnxruntime()?;
    let work = work("validate")?;
    let convert = |profile: &str, precision: &str| {
        let mut convert = peers.script("measure.py");
        convert.arg(mlpack).arg("--quiet").arg("convert").arg(peers.smollm2_dir()).args(["--to", "onnx", "--validate"]);
        convert.arg("--onnxruntime").arg(&library).args(["--profile", profile, "--precision", precision, "-o"]);
        convert.arg(work.join(format!("{profile}-{precision}")));
        convert
    };
    let mut differing = 0;
    for (profile, precisions, refused) in PROFILES {
        for precision in precisions {
            let said = measured(&mut convert(profile, precision));
            differing += usize::from(said.is_err());
            println!("  SmolLM2 {profile} {precision}: {}", said.unwrap_or_else(|e| format!("{e:#}")));
        }
        for precision in refused {
            let said = attempt(&mut convert(profile, precision))?;
            differing += usize::from(said.is_ok());
            let refused = if said.is_err() { "refused" } else { "NOT REFUSED" };
            println!("  SmolLM2 {profile} {precision}: {refused}");
        }
    }
    differing += narrow(peers, mlpack, &work)?;
    Ok(differing)
}

/// The graphs of bfloat16, which onnx alone can judge here.
fn narrow(peers: &Peers, mlpack: &Path, work: &Path) -> Result<usize> {
    const CHECK: &str = "import onnx, sys; onnx.checker.check_model(sys.argv[1], full_check=True)";
    let mut differing = 0;
    for (profile, ..) in PROFILES {
        let dir = work.join(format!("{profile}-bf16-alone"));
        let mut convert = Command::new(mlpack);
        convert.args(["--quiet", "convert"]).arg(peers.smollm2_dir()).args(["--to", "onnx", "--precision", "bf16"]);
        output(convert.args(["--profile", profile, "-o"]).arg(&dir))?;
        let said = output(peers.python().args(["-c", CHECK]).arg(dir.join("onnx/model_bf16.onnx")));
        differing += usize::from(said.is_err());
        println!(
            "  SmolLM2 {profile} bf16, onnx.checker: {}",
            said.map_or_else(|e| format!("{e:#}"), |_| "good".to_owned())
        );
    }
    Ok(differing)
}

/// What a conversion says of its outputs, and what it took.
fn measured(command: &mut Command) -> Result<String> {
    let line = shown(command);
    let done = command.output().with_context(|| format!("cannot start `{line}`"))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    if !done.status.success() {
        bail!("{}", said.trim_end());
    }
    #[derive(serde::Deserialize)]
    struct Took {
        wall_s: f64,
        peak_rss: u64,
    }
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    let took: Took = serde_json::from_str(printed.lines().last().unwrap_or_default()).context("a measurement")?;
    let outputs: Vec<&str> = said.lines().filter_map(|line| line.trim_start().strip_prefix("output ")).collect();
    Ok(format!("{}; {:.1} s, {} MB resident", outputs.join("; "), took.wall_s, took.peak_rss / 1_000_000))
}

/// 200 sentences through all-MiniLM-L6-v2; returns how many graphs are too far from transformers.
pub fn sentences(peers: &Peers, mlpack: &Path) -> Result<usize> {
    peers.onnx()?;
    let (model, library, work) = (peers.minilm()?, peers.onnxruntime()?, work("sentences")?);
    let mut differing = 0;
    for (i, (precision, options, file, least)) in SENTENCES.iter().enumerate() {
        let dir = work.join(i.to_string());
        let mut convert = Command::new(mlpack);
        convert.arg("convert").arg(&model).args(["--to", "onnx", "--validate", "--onnxruntime"]).arg(&library);
        output(convert.args(["--precision", precision]).args(*options).arg("-o").arg(&dir))?;
        let mut script = peers.script("onnx_encoders.py");
        let said = output(script.arg("sentences").arg(&model).arg(dir.join("onnx").join(file)).arg(least));
        differing += usize::from(said.is_err());
        let what = options.last().map(|option| format!(" {option}")).unwrap_or_default();
        println!(
            "  MiniLM {precision}{what}: {}",
            said.map_or_else(|e| format!("{e:#}"), |said| said.trim().to_owned())
        );
    }
    Ok(differing)
}

/// Models that the builder has no graph for, or not with these versions; returns how many of ours are too far from them.
pub fn beyond_builder(peers: &Peers, mlpack: &Path) -> Result<usize> {
    peers.onnx_runtimes()?;
    let (library, work) = (peers.onnxruntime()?, work("builder")?);
    let models = work.join("models");
    output(peers.script("onnx_models.py").arg(&models).args(["gemma3", "smollm3"]))?;
    let mut differing = 0;
    for name in ["gemma3", "smollm3"] {
        // Any tokenizer: without one the builder fails of that.
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            let from = peers.smollm2_dir().join(file);
            std::fs::copy(&from, models.join(name).join(file))
                .with_context(|| format!("cannot copy `{}`", from.display()))?;
        }
        let mut build = peers.python();
        build.args(["-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", "fp32", "-m"]).arg(models.join(name));
        build.arg("-o").arg(work.join("theirs").join(name)).arg("-c").arg(work.join("cache"));
        let theirs = match attempt(&mut build)? {
            Ok(()) => "writes a graph".to_owned(),
            Err((_, said)) => format!("fails: {}", said.lines().last().unwrap_or_default()),
        };
        let mut convert = Command::new(mlpack);
        convert.arg("convert").arg(models.join(name)).args(["--to", "onnx", "--precision", "fp32", "--validate"]);
        let said = output(convert.arg("--onnxruntime").arg(&library).arg("-o").arg(work.join("ours").join(name)));
        differing += usize::from(said.is_err());
        let ours = said.map_or_else(|e| format!("{e:#}"), |_| "writes a graph that is near its source".to_owned());
        println!("  {name}: onnxruntime-genai's builder {theirs}; mlpack {ours}");
    }
    Ok(differing)
}

/// An empty folder.
fn work(name: &str) -> Result<PathBuf> {
    let dir = workspace::root().join("target/parity").join(name);
    workspace::fresh(&dir)?;
    Ok(dir)
}
