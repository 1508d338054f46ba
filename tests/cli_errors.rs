//! Bad input: the message names file, tensor or key, expected, found and what to do; the exit code says whose fault it
//! is; nothing is left behind.

use crate::support::{TestDir, base, fixture, mlpack, refused};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Exit codes (docs/ARCHITECTURE.md).
const THE_ANSWER_IS_NO: i32 = 1;
const USAGE: i32 = 2;
const BAD_INPUT: i32 = 3;
const ENVIRONMENT: i32 = 4;

#[track_caller]
fn refuses(name: &str, dir: &TestDir, args: &[&str], code: i32) {
    let stderr = refused(dir, args, code);
    insta::assert_snapshot!(name, stderr);
}

fn malformed(path: &str) -> String {
    fixture("malformed").join(path).display().to_string()
}

#[test]
fn malformed_checkpoints() {
    for (fault, code) in [
        ("truncated", BAD_INPUT),
        ("overlapping-offsets", BAD_INPUT),
        ("out-of-range-offsets", BAD_INPUT),
        ("header-past-end", BAD_INPUT),
        ("length-not-shape", BAD_INPUT),
        ("missing-shard", ENVIRONMENT),
        ("index-names-absent-tensor", BAD_INPUT),
        ("unknown-architecture", BAD_INPUT),
    ] {
        let dir = TestDir::new();
        let model = malformed(&format!("checkpoint/{fault}"));
        refuses(fault, &dir, &["convert", &model, "--quant", "F16", "-o", "out"], code);
    }
}

#[test]
fn malformed_adapters() {
    for fault in ["other-base", "key-without-pair", "unmatched-keys", "unknown-peft-type", "dora"] {
        let dir = TestDir::new();
        let model = malformed("checkpoint/base-for-adapters");
        let adapter = malformed(&format!("adapter/{fault}"));
        refuses(fault, &dir, &["merge", &model, "-a", &adapter, "-o", "out"], BAD_INPUT);
    }
}

/// The legal-qa base with the bfloat16 element `[3, 5]` of one tensor replaced.
fn base_with(dir: &TestDir, tensor: &str, bits: u16) -> String {
    let model = dir.copy("legal-qa/kjv-llama", "model");
    let path = model.join("model.safetensors");
    let at = {
        let file = mlpack_safetensors::SafetensorsFile::open(&path).unwrap();
        let entry = file.entries().iter().find(|e| e.name == tensor).unwrap();
        entry.range.start + (3 * entry.shape.row_len() + 5) * 2
    };
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[at as usize..at as usize + 2].copy_from_slice(&bits.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    model.display().to_string()
}

#[test]
fn weights_that_are_not_finite() {
    let dir = TestDir::new();
    let model = base_with(&dir, "model.layers.1.self_attn.q_proj.weight", 0x7fc0);
    refuses("nan", &dir, &["convert", &model, "--quant", "Q4_K_M,BF16", "-o", "out"], BAD_INPUT);
    let dir = TestDir::new();
    let model = base_with(&dir, "model.layers.2.mlp.down_proj.weight", 0xff80);
    let adapter = fixture("legal-qa/legal-qa-lora").display().to_string();
    refuses("infinity", &dir, &["merge", &model, "-a", &adapter, "-o", "out"], BAD_INPUT);
}

#[test]
fn values_that_overflow_float16_are_refused_there_and_only_there() {
    let dir = TestDir::new();
    // 1e30 in bfloat16
    let model = base_with(&dir, "model.layers.0.mlp.gate_proj.weight", 0x714a);
    refuses("f16-overflow", &dir, &["convert", &model, "--quant", "BF16,F16", "-o", "out"], BAD_INPUT);
    mlpack(&dir).args(["convert", &model, "--quant", "BF16", "-o", "out"]).succeed();
}

/// The legal-qa base with a JSON file changed; the folder is called `model`.
fn base_changed(dir: &TestDir, file: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let model = dir.copy("legal-qa/kjv-llama", "model");
    let path = model.join(file);
    let mut content: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut content);
    std::fs::write(&path, content.to_string()).unwrap();
    model
}

#[test]
fn configs_and_tokenizers_that_do_not_fit_the_weights() {
    let refuses = |name: &str, file: &str, change: &dyn Fn(&mut Value)| {
        let dir = TestDir::new();
        base_changed(&dir, file, change);
        refuses(name, &dir, &["convert", "model", "--quant", "F16", "-o", "out"], BAD_INPUT);
    };
    refuses("config-without-fields", "config.json", &|config| {
        *config = json!({"architectures": config["architectures"]})
    });
    refuses("config-wrong-type", "config.json", &|config| config["num_attention_heads"] = json!("eight"));
    refuses("vocab-size-too-small", "config.json", &|config| config["vocab_size"] = json!(2000));
    refuses("vocab-size-too-large", "config.json", &|config| config["vocab_size"] = json!(2112));
    refuses("quantized-otherwise", "config.json", &|config| {
        config["quantization_config"] = json!({"quant_method": "awq"})
    });
}

#[test]
fn tokens_that_share_an_id() {
    let dir = TestDir::new();
    let model = base_changed(&dir, "tokenizer.json", |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let id = added[0]["id"].clone();
        added[1]["id"] = id;
    });
    std::fs::remove_file(model.join("tokenizer.model")).unwrap();
    refuses("tokens-share-an-id", &dir, &["convert", "model", "--quant", "F16", "-o", "out"], BAD_INPUT);
}

#[test]
fn every_tensor_that_the_architecture_does_not_know_is_named() {
    let dir = TestDir::new();
    let path = dir.copy("legal-qa/kjv-llama", "model").join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    for (from, to) in [("model.norm.weight", "model.nrom.weight"), ("layers.1.mlp.up_proj", "layers.1.mlp.up_porj")] {
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
    refuses("unknown-tensors", &dir, &["convert", "model", "--quant", "F16", "-o", "out"], BAD_INPUT);
}

#[test]
fn a_chat_template_that_does_not_parse_and_an_id_beyond_the_vocabulary_are_warned_about() {
    let dir = TestDir::new();
    let model = base_changed(&dir, "config.json", |config| config["pad_token_id"] = json!(99_999));
    std::fs::write(model.join("chat_template.jinja"), "{% for message in %}").unwrap();
    let (_, stderr) = mlpack(&dir).args(["convert", "model", "--quant", "F16", "-o", "out"]).expect(0);
    insta::assert_snapshot!("warned-about", stderr);
    let file = mlpack_gguf::GgufFile::open(&dir.path("out/model-F16.gguf")).unwrap();
    let template = file.metadata().find("tokenizer.chat_template");
    assert_eq!(template, Some(&"{% for message in %}".into()), "it is kept as it is");
}

#[test]
fn malformed_gguf_files() {
    for (fault, code) in [
        ("nan-scale", BAD_INPUT),
        ("overlapping", BAD_INPUT),
        ("alignment-zero", BAD_INPUT),
        ("huge-counts", BAD_INPUT),
        ("huge-dimension", BAD_INPUT),
        ("missing-part-00001-of-00002", ENVIRONMENT),
    ] {
        let dir = TestDir::new();
        let file = malformed(&format!("gguf/{fault}.gguf"));
        refuses(
            &format!("gguf-{fault}"),
            &dir,
            &["quantize", &file, "--quant", "Q4_0", "--allow-requantize", "-o", "out"],
            code,
        );
    }
}

#[test]
fn importance_matrices_that_cannot_be_used() {
    for fault in ["not-finite.gguf", "wrong-size.gguf", "no-metadata.gguf", "truncated.dat"] {
        let dir = TestDir::new();
        let imatrix = malformed(&format!("imatrix/{fault}"));
        let args = ["convert", &base(), "--quant", "IQ3_XXS", "--imatrix", &imatrix, "-o", "out"];
        refuses(&format!("imatrix-{fault}"), &dir, &args, BAD_INPUT);
    }
    let dir = TestDir::new();
    refuses("imatrix-missing", &dir, &["convert", &base(), "--quant", "IQ2_XXS,Q4_K_M", "-o", "out"], BAD_INPUT);
    let imatrix = fixture("legal-qa/golden/llama.cpp-b11434/imatrix.gguf").display().to_string();
    let base = base();
    let some = ["--imatrix", &imatrix, "--exclude-weights", "attn_q"];
    let args = [&["convert", &base, "--quant", "IQ2_XXS", "-o", "out"][..], &some].concat();
    refuses("imatrix-without-a-tensor", &dir, &args, BAD_INPUT);
    let args = ["convert", &base, "--quant", "Q4_K_M", "--imatrix", "absent.gguf", "-o", "out"];
    refuses("imatrix-absent", &dir, &args, ENVIRONMENT);
    let args = ["convert", &base, "--quant", "Q4_K_M", "--include-weights", "attn", "-o", "out"];
    refuses("weights-without-imatrix", &dir, &args, USAGE);
}

#[test]
fn options_of_the_quantizer_that_make_no_sense() {
    let dir = TestDir::new();
    for (name, option, value) in [
        ("tensor-type-without-type", "--tensor-type", "attn_v"),
        ("tensor-type-not-a-pattern", "--tensor-type", "(=Q6_K"),
        ("tensor-type-unknown", "--tensor-type", "attn_v=Q6_X"),
        ("output-tensor-type-unknown", "--output-tensor-type", "Q8"),
        ("override-without-type", "--override-kv", "llama.rope.freq_base=10000"),
        ("override-not-a-number", "--override-kv", "llama.block_count=int:three"),
        ("prune-no-such-layer", "--prune-layers", "1,7"),
        ("prune-everything", "--prune-layers", "0,1,2"),
    ] {
        refuses(name, &dir, &["convert", &base(), "--quant", "Q4_K_M", option, value, "-o", "out"], USAGE);
    }
    let pattern = ["convert", &base(), "--quant", "Q4_0", "--tensor-type", "attn_v=Q1_0", "-o", "out"];
    mlpack(&dir).args(pattern).succeed();
}

#[test]
fn quantizing_what_is_quantized_or_no_gguf() {
    let dir = TestDir::new();
    mlpack(&dir).args(["convert", &base(), "--quant", "Q8_0", "--name", "m", "-o", "."]).succeed();
    refuses("requantize", &dir, &["quantize", "m-Q8_0.gguf", "--quant", "Q4_K_M", "-o", "out"], BAD_INPUT);
    refuses("quantize-in-place", &dir, &["quantize", "m-Q8_0.gguf", "--quant", "COPY", "-o", "m-Q8_0.gguf"], USAGE);
    let two = ["quantize", "m-Q8_0.gguf", "--quant", "COPY,Q8_0", "-o", "x.gguf"];
    refuses("two-variants-one-file", &dir, &two, USAGE);
    refuses("quantize-checkpoint", &dir, &["quantize", &base(), "--quant", "Q8_0", "-o", "out"], USAGE);
    refuses("quantize-absent", &dir, &["quantize", "absent.gguf", "--quant", "Q8_0", "-o", "out"], ENVIRONMENT);
}

#[test]
fn an_error_over_the_limit_is_the_answer_no_and_nothing_is_written() {
    let dir = TestDir::new();
    let args = ["convert", &base(), "--quant", "Q8_0,Q4_0", "--min-cosine", "0.999", "-o", "out"];
    refuses("too-far", &dir, &args, THE_ANSWER_IS_NO);
    mlpack(&dir).args(["convert", &base(), "--quant", "Q8_0", "--min-cosine", "0.999", "-o", "out"]).succeed();
}

#[test]
fn unknown_names() {
    let dir = TestDir::new();
    refuses("unknown-quantization", &dir, &["convert", &base(), "--quant", "Q4_K_X", "-o", "out"], USAGE);
    refuses("quantization-twice", &dir, &["convert", &base(), "--quant", "Q4_K,Q4_K_M", "-o", "out"], USAGE);
    refuses("name-with-slash", &dir, &["convert", &base(), "--quant", "F16", "--name", "../x", "-o", "out"], USAGE);
    refuses("adapter-weight", &dir, &["merge", &base(), "-a", "lora=heavy", "-o", "out"], USAGE);
    refuses("memory", &dir, &["convert", &base(), "--quant", "F16", "--memory", "lots", "-o", "out"], USAGE);
}

#[test]
fn things_that_are_not_there() {
    let dir = TestDir::new();
    let adapter = fixture("legal-qa/legal-qa-lora").display().to_string();
    refuses("no-model", &dir, &["convert", "absent", "--quant", "F16", "-o", "out"], ENVIRONMENT);
    refuses("adapter-as-model", &dir, &["convert", &adapter, "--quant", "F16", "-o", "out"], ENVIRONMENT);
    refuses("model-as-adapter", &dir, &["merge", &base(), "-a", &base(), "-o", "out"], BAD_INPUT);
    refuses("merge-without-adapter", &dir, &["merge", &base(), "-o", "out"], USAGE);
    let run = format!("{}#4c421e9ce91a40368c786c2f89e8fc83", fixture("legal-qa/mlflow/mlflow.db").display());
    refuses("run-without-adapter", &dir, &["convert", &base(), "--quant", "F16", "--run", &run, "-o", "out"], USAGE);
    let args = ["merge", &base(), "-a", &adapter, "--run", &run, "-o", "out"];
    let (_, stderr) = mlpack(&dir).args(args).expect(USAGE);
    assert!(stderr.contains("4c421e9ce91a40368c786c2f89e8fc82"), "{stderr}");
}

#[test]
fn an_output_directory_that_holds_something() {
    let dir = TestDir::new();
    std::fs::create_dir(dir.path("out")).unwrap();
    std::fs::write(dir.path("out/precious"), "x").unwrap();
    let adapter = fixture("legal-qa/legal-qa-lora").display().to_string();
    refuses("output-not-empty", &dir, &["merge", &base(), "-a", &adapter, "-o", "out"], USAGE);
}

#[test]
fn release_files() {
    let dir = TestDir::new();
    let write = |text: &str| std::fs::write(dir.path("mlpack.toml"), text).unwrap();
    write("name = \"m\"\nbase = \"b\"\n\n[gguf]\nquants = [\"F16\"]\n");
    refuses("release-unknown-key", &dir, &["release"], USAGE);
    write("name = \"m\"\nbase = \n");
    refuses("release-not-toml", &dir, &["release"], USAGE);
    write("name = \"m\"\nbase = \"b\"\n[gguf]\nquant = [\"F16\"]\n[modelfile.parameters]\ntemprature = 1\n");
    refuses("release-unknown-parameter", &dir, &["release"], USAGE);
    std::fs::remove_file(dir.path("mlpack.toml")).unwrap();
    refuses("release-no-file", &dir, &["release"], ENVIRONMENT);
}

#[test]
fn a_budget_that_holds_no_row() {
    let dir = TestDir::new();
    refuses("budget", &dir, &["convert", &base(), "--quant", "F16", "--memory", "1KiB", "-o", "out"], BAD_INPUT);
}

#[test]
fn publishing_what_is_no_artifact() {
    let dir = TestDir::new();
    refuses("publish-nothing", &dir, &["publish", "absent.gguf", "oci:layout:v1"], ENVIRONMENT);
    let model = fixture("legal-qa/dataset.jsonl").display().to_string();
    refuses("publish-dataset", &dir, &["publish", &model, "oci:layout:v1"], USAGE);
    refuses("publish-registry", &dir, &["publish", &base(), "registry.example/models/m"], USAGE);
}

/// A file system of two megabytes in a mount namespace of its own; the largest output needs nine.
#[test]
fn a_full_disk_is_found_before_the_work_and_nothing_is_left() {
    let dir = TestDir::new();
    std::fs::create_dir(dir.path("small")).unwrap();
    let script = "mount -t tmpfs -o size=2m tmpfs small && { \"$0\" convert \"$1\" --quant Q4_K_M,F32 -o small; \
                  code=$?; ls -A small; exit $code; }";
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", script, env!("CARGO_BIN_EXE_mlpack"), &base()])
        .current_dir(dir.path(""))
        .env("NO_COLOR", "1")
        .output();
    let Ok(output) = output else { return no_namespace("unshare is not installed") };
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if stderr.contains("unshare failed") || stderr.contains("mount:") {
        return no_namespace(&stderr);
    }
    assert_eq!(output.status.code(), Some(ENVIRONMENT), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "nothing is left in the full directory");
    // How much is free depends on the system's page size and bookkeeping.
    let stderr = stderr.lines().filter(|line| !line.contains("found:")).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!("full-disk", stderr.replace(&*Path::new(&base()).to_string_lossy(), "[BASE]"));
}

fn no_namespace(reason: &str) {
    assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none(), "a mount namespace is required: {reason}");
    println!("skipped: no mount namespace for a small file system: {reason}");
}
