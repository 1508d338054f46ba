//! `cargo xtask fuzz`: libFuzzer over every reader of untrusted bytes, on the stable toolchain.
//!
//! Coverage comes from LLVM's own pass, so no nightly compiler is needed; there is no address sanitizer, and the code has
//! next to no `unsafe` for one to watch. The corpus stays under target/fuzz from run to run.

use crate::process::{output, run};
use crate::workspace::{self, cargo};
use anyhow::{Context as _, Result, bail};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// LLVM's instrumentation, as libFuzzer reads it.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";

/// Bytes of a fixture that a corpus begins with: headers, not weights.
const SEED_LEN: usize = 64 << 10;

/// Each reader of tests/fuzz, with the fixtures that its corpus begins with.
const READERS: &[(&str, &[&str])] = &[
    ("safetensors", &["legal-qa/legal-qa-lora/adapter_model.safetensors"]),
    ("safetensors-index", &["malformed/checkpoint/missing-shard/model.safetensors.index.json"]),
    ("gguf", &["malformed/gguf/base.gguf", "malformed/gguf/nan-scale.gguf"]),
    ("imatrix", &["malformed/imatrix/truncated.dat", "malformed/imatrix/not-finite.gguf"]),
    ("adapter-config", &["legal-qa/legal-qa-lora/adapter_config.json"]),
    ("adapter", &["malformed/adapter/unmatched-keys/adapter_model.safetensors"]),
    ("adapter-torch", &["lora/torch/adapter_model.bin", "lora/torch/adapter_model.pt", "lora/torch/evil.bin"]),
    ("config", &["legal-qa/kjv-llama/config.json"]),
    ("architecture", &["../crates/mlpack-arch/archs/llama.toml", "../crates/mlpack-arch/archs/qwen2.toml"]),
    ("tokenizer-json", &["legal-qa/kjv-llama/tokenizer.json"]),
    ("tokenizer-config", &["legal-qa/kjv-llama/tokenizer_config.json"]),
    ("sentencepiece", &["legal-qa/kjv-llama/tokenizer.model"]),
    ("tekken", &[]),
    ("model-card", &["legal-qa/legal-qa-lora/README.md"]),
    ("options", &[]),
    ("modelfile", &[]),
    ("chat-template", &["legal-qa/kjv-llama/chat_template.jinja"]),
    ("oci-layout", &[]),
    ("statement", &[]),
    ("claims", &[]),
    ("trainer-state", &["legal-qa/legal-qa-lora/trainer_state.json"]),
    ("mlflow", &["legal-qa/mlflow/mlflow.db"]),
];

/// Builds the readers with coverage and runs each of them, or those named, for a while. A finding ends the run, and its
/// input is kept under target/fuzz.
pub fn command(arguments: &[&str]) -> Result<()> {
    let (names, seconds) = parse(arguments)?;
    let root = workspace::root();
    let target = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let target = target.trim();
    let dir = root.join("target/fuzz");
    let mut build = cargo();
    build.args(["build", "--release", "--target", target, "--manifest-path"]).arg(root.join("tests/fuzz/Cargo.toml"));
    // Given for a target, the flags do not reach build scripts and macros, which have no libFuzzer.
    run(build.env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", dir.join("build")))?;
    let program = dir.join("build").join(target).join("release/mlpack-fuzz");
    for (reader, fixtures) in READERS.iter().filter(|(name, _)| names.is_empty() || names.contains(name)) {
        let corpus = seeded(&dir.join("corpus").join(reader), &root.join("fixtures"), fixtures)?;
        let mut fuzz = Command::new(&program);
        fuzz.arg(corpus).arg(format!("-max_total_time={seconds}")).args(["-timeout=10", "-rss_limit_mb=2048"]);
        fuzz.arg(format!("-max_len={SEED_LEN}")).arg(format!("-artifact_prefix={}/{reader}-", dir.display()));
        println!("{reader}");
        run(fuzz.args(["-verbosity=0", "-print_final_stats=1"]).env("MLPACK_FUZZ_TARGET", reader))?;
    }
    Ok(())
}

fn parse<'a>(arguments: &[&'a str]) -> Result<(Vec<&'a str>, u64)> {
    let (mut names, mut seconds) = (Vec::new(), 30);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match *argument {
            "--seconds" => {
                let text = arguments.next().context("--seconds needs a number")?;
                seconds = text.parse().with_context(|| format!("--seconds: `{text}` is not a number"))?;
            }
            name if READERS.iter().any(|(reader, _)| *reader == name) => names.push(name),
            other => {
                let readers: Vec<&str> = READERS.iter().map(|(reader, _)| *reader).collect();
                bail!("no reader is called `{other}`; readers: {}", readers.join(", "))
            }
        }
    }
    Ok((names, seconds))
}

/// The corpus folder of a reader, with its fixtures in it.
fn seeded(corpus: &Path, fixtures: &Path, seeds: &[&str]) -> Result<PathBuf> {
    std::fs::create_dir_all(corpus).with_context(|| format!("cannot create `{}`", corpus.display()))?;
    for (i, seed) in seeds.iter().enumerate() {
        let path = fixtures.join(seed);
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
        file.take(SEED_LEN as u64)
            .read_to_end(&mut bytes)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        let copy = corpus.join(format!("seed-{i}"));
        std::fs::write(&copy, bytes).with_context(|| format!("cannot write `{}`", copy.display()))?;
    }
    Ok(corpus.to_owned())
}
