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

/// A BERT of one layer with numbers that are easy to make again, as a sentence embedder.
fn small_bert(dir: &TestDir, class: &str) {
    let model = dir.path("bert");
    std::fs::create_dir_all(model.join("1_Pooling")).unwrap();
    let config = serde_json::json!({
        "architectures": [class], "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 40, "max_position_embeddings": 16,
    });
    let kind = |name: &str| format!("sentence_transformers.models.{name}");
    let modules = serde_json::json!([
        {"idx": 0, "path": "", "type": kind("Transformer")},
        {"idx": 1, "path": "1_Pooling", "type": kind("Pooling")},
        {"idx": 2, "path": "2_Normalize", "type": kind("Normalize")},
    ]);
    let pooling = serde_json::json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false});
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    std::fs::write(model.join("modules.json"), modules.to_string()).unwrap();
    std::fs::write(model.join("1_Pooling/config.json"), pooling.to_string()).unwrap();
    let layer = "encoder.layer.0";
    let linear = |name: String, rows: u64, columns: u64| {
        vec![(format!("{name}.weight"), vec![rows, columns]), (format!("{name}.bias"), vec![rows])]
    };
    let norm = |name: String| vec![(format!("{name}.gamma"), vec![32]), (format!("{name}.beta"), vec![32])];
    let mut tensors = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![40, 32]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![16, 32]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, 32]),
    ];
    tensors.extend(norm("embeddings.LayerNorm".to_owned()));
    for part in ["query", "key", "value"] {
        tensors.extend(linear(format!("{layer}.attention.self.{part}"), 32, 32));
    }
    tensors.extend(linear(format!("{layer}.attention.output.dense"), 32, 32));
    tensors.extend(norm(format!("{layer}.attention.output.LayerNorm")));
    tensors.extend(linear(format!("{layer}.intermediate.dense"), 48, 32));
    tensors.extend(linear(format!("{layer}.output.dense"), 32, 48));
    tensors.extend(norm(format!("{layer}.output.LayerNorm")));
    tensors.extend(linear("pooler.dense".to_owned(), 32, 32));
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        let count: u64 = shape.iter().product();
        data.extend((0..count).flat_map(|i| (((i * 37 + start as u64) % 101) as f32 / 101.0 - 0.5).to_le_bytes()));
        header.insert(name, serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(model.join("model.safetensors"), bytes).unwrap();
}

#[test]
fn a_sentence_embedder_gives_the_recorded_bytes_and_says_what_is_left_out() {
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    let done = mlpack(&dir).args(["convert", "bert", "--to", "onnx", "--precision", "fp32,int8", "-o", "out"]).json();
    assert_eq!(done["task"], "feature-extraction");
    let left: Vec<&str> = done["dropped"].as_array().unwrap().iter().map(|d| d["tensor"].as_str().unwrap()).collect();
    assert_eq!(left, ["pooler.dense.bias", "pooler.dense.weight"]);
    let graph = std::fs::read(dir.path("out/onnx/model.onnx")).unwrap();
    let has = |name: &str| graph.windows(name.len()).any(|part| part == name.as_bytes());
    assert!(has("sentence_embedding") && has("last_hidden_state") && has("token_type_ids"));
    insta::assert_snapshot!(files(&done).join("\n"));
}

#[test]
fn encoders_that_are_not_described_are_refused() {
    let dir = TestDir::new();
    small_bert(&dir, "BertForMultipleChoice");
    let args = ["convert", "bert", "--to", "onnx", "--precision", "fp32", "-o", "out"];
    insta::assert_snapshot!("onnx-encoder-class", refused(&dir, &args, 3));
    small_bert(&dir, "BertForQuestionAnswering");
    insta::assert_snapshot!("onnx-encoder-weights", refused(&dir, &args, 3));
    small_bert(&dir, "BertModel");
    let dense = r#"[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#;
    std::fs::write(dir.path("bert/modules.json"), dense).unwrap();
    insta::assert_snapshot!("onnx-encoder-dense", refused(&dir, &args, 3));
}
