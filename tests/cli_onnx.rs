//! `mlpack convert --to onnx`: the files, what they are made of, and what is refused.

use crate::support::{TestDir, base, fixture, mlpack, refused, sha256};
use serde_json::Value;

fn adapter() -> String {
    fixture("legal-qa/legal-qa-lora").display().to_string()
}

/// File names and digests of a directory of graphs.
fn files(done: &Value) -> Vec<String> {
    let name = |file: &Value| file["path"].as_str().unwrap().rsplit("out/").next().unwrap().to_owned();
    let line = |file: &Value| format!("{} {}", name(file), file["sha256"].as_str().unwrap());
    done["files"].as_array().unwrap().iter().map(line).collect()
}

#[test]
fn every_precision_and_profile_gives_the_recorded_bytes() {
    let mut lines = Vec::new();
    for (profile, precisions) in [("std", "fp32,fp16,bf16,int8,int4"), ("portable", "fp32,fp16"), ("ort", "fp32,int4")]
    {
        let dir = TestDir::new();
        let args = ["convert", &base(), "-a", &adapter(), "--to", "onnx", "--precision", precisions];
        let done = mlpack(&dir).args(args).args(["--profile", profile, "-o", "out"]).json();
        lines.push(format!("{profile}:"));
        lines.extend(files(&done));
    }
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    let convert = |threads: &str, memory: &str| {
        let dir = TestDir::new();
        let args = ["convert", &base(), "-a", &adapter(), "--to", "onnx", "--precision", "fp32,int4", "-o", "out"];
        files(&mlpack(&dir).args(args).args(["--threads", threads, "--memory", memory]).json())
    };
    let one = convert("1", "256MiB");
    assert_eq!(one, convert("3", "12MiB"));
}

#[test]
fn converting_through_a_merge_equals_converting_the_merged_checkpoint() {
    let dir = TestDir::new();
    mlpack(&dir).args(["merge", &base(), "-a", &adapter(), "-o", "merged"]).succeed();
    mlpack(&dir).args(["convert", "merged", "--to", "onnx", "--precision", "fp32,int8", "-o", "from-merged"]).succeed();
    let args = ["convert", &base(), "-a", &adapter(), "--to", "onnx", "--precision", "fp32,int8", "-o", "through"];
    mlpack(&dir).args(args).succeed();
    for file in ["model.onnx", "model.onnx_data", "model_int8.onnx", "model_int8.onnx_data"] {
        let digest = |folder: &str| sha256(&dir.path(&format!("{folder}/onnx/{file}")));
        assert_eq!(digest("from-merged"), digest("through"), "{file}");
    }
}

#[test]
fn limits_of_the_error_hold_for_blocks() {
    let dir = TestDir::new();
    let args = |limit: &'static str| {
        ["convert", &base(), "--to", "onnx", "--precision", "int4", "--max-rmse", limit, "-o", "out"].map(str::to_owned)
    };
    let text = refused(&dir, &args("0.0001").each_ref().map(String::as_str), 1);
    assert!(text.contains("model.embed_tokens.weight_Q4"), "{text}");
    mlpack(&dir).args(args("0.5")).succeed();
}

#[test]
fn what_has_no_meaning_is_refused() {
    let cases: &[(&str, &[&str], i32)] = &[
        ("onnx-precision", &["--precision", "fp64"], 2),
        ("onnx-twice", &["--precision", "fp32,fp32"], 2),
        ("onnx-quant", &["--quant", "Q8_0"], 2),
        ("onnx-name", &["--precision", "fp32", "--name", "x"], 2),
        ("onnx-imatrix", &["--precision", "int4", "--imatrix", "x.gguf"], 2),
        ("onnx-portable-int4", &["--precision", "int4", "--profile", "portable"], 3),
    ];
    for (name, options, code) in cases {
        let dir = TestDir::new();
        let base = base();
        let args = [&["convert", &base, "--to", "onnx", "-o", "out"], *options].concat();
        let text = refused(&dir, &args, *code);
        insta::assert_snapshot!(*name, text);
    }
}

#[test]
fn a_model_without_a_description_and_weights_that_do_not_fit_are_refused() {
    let change = |field: &str, value: Value| {
        let dir = TestDir::new();
        let model = dir.copy("legal-qa/kjv-llama", "model");
        let path = model.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[field] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        refused(&dir, &["convert", "model", "--to", "onnx", "--precision", "fp32", "-o", "out"], 3)
    };
    insta::assert_snapshot!("onnx-shape", change("num_key_value_heads", 4.into()));
    insta::assert_snapshot!("onnx-activation", change("hidden_act", "swish7".into()));
    insta::assert_snapshot!("onnx-no-description", change("architectures", serde_json::json!(["PhiForCausalLM"])));
}
