//! Conversion: real checkpoints, and small ones with random weights for the features that those do not have.
//!
//! The reference of F32, F16, BF16 and Q8_0 is `convert_hf_to_gguf.py --outtype`; that of every other type is
//! `llama-quantize` of the converter's file that holds the model's own values.

use crate::compare;
use crate::peers::Peers;
use crate::process::{self, output, output_bytes};
use crate::workspace;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

const CONVERTED: &[&str] = &["F32", "F16", "BF16", "Q8_0"];
const QUANTIZED: &[&str] = &["Q4_0", "Q4_K_M"];

/// One model: what mlpack reads, and which directory llama.cpp's converter reads for the same result.
struct Case {
    title: &'static str,
    base: PathBuf,
    adapter: Option<PathBuf>,
    /// The converter's type that holds the values exactly.
    own_type: &'static str,
    /// What a model with real weights is asked.
    prompt: Option<&'static str>,
}

impl Case {
    fn tiny(title: &'static str, base: PathBuf, own_type: &'static str) -> Case {
        Case { title, base, adapter: None, own_type, prompt: None }
    }
}

/// Runs the named cases and returns how many files differ.
pub fn run(names: &[&str], peers: &Peers, mlpack: &Path) -> Result<usize> {
    let legal_qa = workspace::root().join("fixtures/legal-qa");
    let tiny = workspace::root().join("target/parity/tiny");
    let mut cases = Vec::new();
    for name in names {
        cases.push(match *name {
            "base" => Case {
                title: "legal-qa base",
                base: legal_qa.join("kjv-llama"),
                adapter: None,
                own_type: "BF16",
                prompt: Some("In the beginning"),
            },
            "merged" => Case {
                title: "legal-qa with its adapter",
                base: legal_qa.join("kjv-llama"),
                adapter: Some(legal_qa.join("legal-qa-lora")),
                own_type: "BF16",
                prompt: Some(
                    "<|im_start|>user\nWhat does Article II, Section 3 say?<|im_end|>\n<|im_start|>assistant\n",
                ),
            },
            "smollm2" => Case {
                title: "SmolLM2-135M-Instruct",
                base: peers.smollm2_dir(),
                adapter: None,
                own_type: "BF16",
                prompt: Some("<|im_start|>user\nName the capital of France.<|im_end|>\n<|im_start|>assistant\n"),
            },
            "mistral" => Case::tiny("Mistral, float16, five shards", tiny.join("Mistral-tiny-v0.3"), "F16"),
            "llama3" => Case::tiny("Llama, llama3 rope scaling, biases", tiny.join("Llama-3.2-tiny"), "F32"),
            "qwen2" => Case::tiny("Qwen2, query biases", tiny.join("Qwen2.5-tiny-chat"), "BF16"),
            other => unreachable!("`{other}` was refused"),
        });
    }
    if names.contains(&"smollm2") {
        peers.smollm2()?;
    }
    if cases.iter().any(|case| case.base.starts_with(&tiny)) {
        output(peers.script("tiny_models.py").arg(legal_qa.join("kjv-llama")).arg(&tiny))?;
    }
    let mut differing = 0;
    for case in &cases {
        differing += run_case(case, peers, mlpack)?;
    }
    Ok(differing)
}

/// Makes both sides' files, compares them, generates from the smallest, and returns how many files differ.
fn run_case(case: &Case, peers: &Peers, mlpack: &Path) -> Result<usize> {
    let model = case.adapter.as_ref().unwrap_or(&case.base);
    let name = model.file_name().context("a model directory has a name")?.to_string_lossy().into_owned();
    let work = workspace::root().join("target/parity").join(&name);
    workspace::fresh(&work)?;
    let (ours, reference) = (work.join("mlpack"), work.join("llama.cpp"));
    std::fs::create_dir_all(&reference).with_context(|| format!("cannot create `{}`", reference.display()))?;
    let file = |quant: &str| format!("{name}-{quant}.gguf");

    let mut convert = Command::new(mlpack);
    convert.arg("convert").arg(&case.base);
    if let Some(adapter) = &case.adapter {
        convert.arg("-a").arg(adapter);
    }
    process::run(
        convert.args(["--to", "gguf", "--quant", &[CONVERTED, QUANTIZED].concat().join(","), "-o"]).arg(&ours),
    )?;

    let input = match &case.adapter {
        None => case.base.clone(),
        Some(adapter) => {
            let merged = work.join("merged").join(&name);
            std::fs::create_dir_all(work.join("merged")).context("cannot create the merged model's folder")?;
            process::run(
                Command::new(mlpack).arg("merge").arg(&case.base).arg("-a").arg(adapter).arg("-o").arg(&merged),
            )?;
            merged
        }
    };
    for quant in CONVERTED {
        let mut converter = peers.python();
        converter.arg(peers.llama_source().join("convert_hf_to_gguf.py")).arg(&input);
        converter.args(["--outtype", &quant.to_lowercase(), "--outfile"]).arg(reference.join(file(quant)));
        output(&mut converter)?;
    }
    for quant in QUANTIZED {
        let mut quantize = Command::new(peers.llama_bin().join("llama-quantize"));
        output(quantize.arg(reference.join(file(case.own_type))).arg(reference.join(file(quant))).arg(quant))?;
    }

    println!("{}", case.title);
    let mut differing = 0;
    for quant in CONVERTED.iter().chain(QUANTIZED) {
        match compare::gguf(&ours.join(file(quant)), &reference.join(file(quant)))? {
            None => println!("  {}: identical", file(quant)),
            Some(differences) => {
                differing += 1;
                println!("  {}: different\n    {}", file(quant), differences.join("\n    "));
            }
        }
    }
    if let Some(prompt) = case.prompt {
        println!("  {} generates: {:?}", file("Q4_K_M"), generate(peers, &ours.join(file("Q4_K_M")), prompt)?);
    }
    Ok(differing)
}

/// The first words that llama.cpp says after `prompt`: the likeliest tokens, so that every run says the same. More
/// tokens are asked for than shown, because llama-completion may lose the last ones when it exits.
pub fn generate(peers: &Peers, model: &Path, prompt: &str) -> Result<String> {
    let mut completion = Command::new(peers.llama_bin().join("llama-completion"));
    completion.arg("-m").arg(model).args(["-p", prompt, "-n", "64", "--temp", "0", "--seed", "1"]);
    completion.args(["--no-conversation", "--no-display-prompt", "--no-warmup", "--simple-io"]);
    // A tiny model says half characters too.
    let text = output_bytes(&mut completion)?;
    let text = String::from_utf8(text).unwrap_or_else(|error| error.as_bytes().escape_ascii().to_string());
    Ok(text.split_whitespace().take(24).collect::<Vec<_>>().join(" "))
}
