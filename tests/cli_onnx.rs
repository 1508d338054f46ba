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
    let kinds: [(&str, &str, &[&str]); 5] = [
        ("std", "fp32,fp16,bf16,int8,int4", &[]),
        ("portable", "fp32,fp16,int8", &[]),
        ("ort", "fp32,int4", &[]),
        ("std", "int8,int4", &["--scheme", "qdq", "--asymmetric"]),
        ("std", "int4", &["--scheme", "qdq", "--block-size", "64"]),
    ];
    for (profile, precisions, options) in kinds {
        let dir = TestDir::new();
        let args = ["convert", &base(), "-a", &adapter(), "--to", "onnx", "--precision", precisions];
        let done = mlpack(&dir).args(args).args(options).args(["--profile", profile, "-o", "out"]).json();
        lines.push(format!("{profile} {}:", options.join(" ")).replace(" :", ":"));
        lines.extend(files(&done));
    }
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    for (precision, scheme) in [("fp32,int4", "blocks"), ("int4,int8", "qdq"), ("int8", "dynamic")] {
        let convert = |threads: &str, memory: &str| {
            let dir = TestDir::new();
            let args = ["convert", &base(), "-a", &adapter(), "--to", "onnx", "--precision", precision, "-o", "out"];
            files(&mlpack(&dir).args(args).args(["--scheme", scheme, "--threads", threads, "--memory", memory]).json())
        };
        assert_eq!(convert("1", "256MiB"), convert("3", "12MiB"), "{scheme}");
    }
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
fn limits_of_the_error_hold_for_columns_and_tables() {
    let dir = TestDir::new();
    let args = |scheme: &'static str, precision: &'static str, limit: &'static str| {
        let base = base();
        let args = ["convert", &base, "--to", "onnx", "--precision", precision, "--scheme", scheme];
        [&args[..], &["--max-rmse", limit, "-o", scheme]].concat().iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()
    };
    let refused_as = |args: Vec<String>| refused(&dir, &args.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    let text = refused_as(args("dynamic", "int8", "0.000001"));
    assert!(text.contains("model.embed_tokens.weight_quantized"), "{text}");
    assert!(text.contains("q_proj.MatMul.weight_quantized"), "{text}");
    let text = refused_as(args("qdq", "int4", "0.0001"));
    assert!(text.contains("q_proj.MatMul.weight_Q4"), "{text}");
    mlpack(&dir).args(args("dynamic", "int8", "0.01")).succeed();
    mlpack(&dir).args(args("qdq", "int4", "0.5")).succeed();
}

#[test]
fn what_float16_cannot_hold_is_named_and_can_stay_float32() {
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    let file = dir.path("bert/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let mut change = |name: &str, element: usize, value: f32| {
        let at = 8 + header_len + header[name]["data_offsets"][0].as_u64().unwrap() as usize + 4 * element;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    };
    change("encoder.layer.0.output.dense.weight", 50, -70000.0);
    change("encoder.layer.0.attention.output.LayerNorm.gamma", 3, 65520.0);
    change("encoder.layer.0.attention.self.query.weight", 3, 65519.0);
    std::fs::write(&file, bytes).unwrap();
    let args = ["convert", "bert", "--to", "onnx", "--precision", "fp32,fp16", "-o", "out"];
    insta::assert_snapshot!("onnx-overflow", refused(&dir, &args, 3));
    let done = mlpack(&dir).args(args).args(["--keep-fp32", "overflow"]).json();
    let kept = ["encoder.layer.0.attention.output.LayerNorm.gamma", "encoder.layer.0.output.dense.weight"];
    assert_eq!(done["kept_fp32"], serde_json::json!(kept));
    let length = |file: &str| std::fs::metadata(dir.path(file)).unwrap().len();
    let (wide, narrow) = (length("out/onnx/model.onnx_data"), length("out/onnx/model_fp16.onnx_data"));
    assert!(narrow > wide / 2 && narrow < wide * 6 / 10, "{narrow} of {wide}");
    let args = ["convert", "bert", "--to", "onnx", "--precision", "fp16", "--keep-fp32", "no-such-tensor", "-o", "no"];
    insta::assert_snapshot!("onnx-keep-unknown", refused(&dir, &args, 2));
}

#[test]
fn graphs_say_what_they_are_made_from_and_are_rebuilt() {
    let dir = TestDir::new();
    let args = ["convert", &base(), "-a", &adapter(), "--to", "onnx", "--precision", "fp32,int4", "--embed-provenance"];
    mlpack(&dir).args(args).args(["--fix-dims", "batch=1", "--profile", "ort", "-o", "out"]).succeed();
    let graph = std::fs::read(dir.path("out/onnx/model_q4.onnx")).unwrap();
    let says = mlpack_onnx_metadata(&graph);
    assert!(says.contains("mlpack.build") && says.contains("mlpack.adapter.0.sha256"), "{says}");
    let traced = mlpack(&dir).args(["trace", "out/onnx/model_q4.onnx"]).succeed();
    assert!(traced.contains("legal-qa-lora"), "{traced}");
    let again = mlpack(&dir).args(["rebuild", "out"]).json();
    assert_eq!(again["same"], true, "{again}");
    small_bert(&dir, "BertForTokenClassification");
    let args = ["convert", "bert", "--to", "onnx", "--precision", "fp16,int8", "--task", "feature-extraction"];
    mlpack(&dir).args(args).args(["--scheme", "dynamic", "--keep-fp32", "LayerNorm", "-o", "vectors"]).succeed();
    let again = mlpack(&dir).args(["rebuild", "vectors"]).json();
    assert_eq!(again["same"], true, "{again}");
}

/// The printable part of a graph's end.
fn mlpack_onnx_metadata(graph: &[u8]) -> String {
    graph[graph.len().saturating_sub(8192)..]
        .iter()
        .map(|b| if b.is_ascii_graphic() { *b as char } else { ' ' })
        .collect()
}

#[test]
fn another_task_leaves_the_head_out() {
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    let refused_as = |task: &str, code| {
        let args = ["convert", "bert", "--to", "onnx", "--precision", "fp32", "--task", task, "-o", "out"];
        refused(&dir, &args, code)
    };
    insta::assert_snapshot!("onnx-task-unknown", refused_as("text-generation", 2));
    let text = refused_as("question-answering", 3);
    assert!(text.contains("qa_outputs.weight"), "{text}");
    let config = dir.path("bert/config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("BertModel", "BertForSequenceClassification");
    std::fs::write(&config, text).unwrap();
    let args = ["convert", "bert", "--to", "onnx", "--precision", "fp32", "--task", "feature-extraction", "-o", "out"];
    let done = mlpack(&dir).args(args).json();
    assert_eq!(done["task"], "feature-extraction");
    let args = ["convert", &base(), "--to", "onnx", "--precision", "fp32", "--task", "fill-mask", "-o", "no"];
    insta::assert_snapshot!("onnx-task-of-decoder", refused(&dir, &args, 2));
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
        ("onnx-layout", &["--precision", "fp32", "--layout", "genia"], 2),
        ("onnx-genai-two", &["--precision", "fp32,int4", "--layout", "genai"], 2),
        ("onnx-fix-name", &["--precision", "fp32", "--fix-dims", "batches=1"], 2),
        ("onnx-fix-size", &["--precision", "fp32", "--fix-dims", "batch=1,sequence=0"], 2),
        ("onnx-fix-twice", &["--precision", "fp32", "--fix-dims", "batch=1,batch=2"], 2),
        ("onnx-dynamic-int4", &["--precision", "int4", "--scheme", "dynamic"], 2),
        ("onnx-portable-int4-qdq", &["--precision", "int4", "--scheme", "qdq", "--profile", "portable"], 3),
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
fn an_option_of_onnx_is_not_ignored_where_a_gguf_file_is_asked_for() {
    let dir = TestDir::new();
    let args = ["convert", &base(), "--to", "gguf", "--quant", "Q8_0", "--asymmetric", "-o", "out"];
    let text = refused(&dir, &args, 2);
    assert!(text.contains("'--quant <NAMES>' cannot be used with '--asymmetric'"), "{text}");
}

#[test]
fn each_runtime_finds_what_it_looks_for() {
    let dir = TestDir::new();
    let convert = |layout: &str, precision: &str| {
        let args = ["convert", &base(), "--to", "onnx", "--precision", precision, "--layout", layout, "-o", layout];
        mlpack(&dir).args(args).succeed();
        let mut names: Vec<String> = walkdir(&dir.path(layout));
        names.retain(|name| name.contains("onnx") || name.contains("config"));
        names.join(" ")
    };
    let read = |file: &str| String::from_utf8(std::fs::read(dir.path(file)).unwrap()).unwrap();
    let files = convert("genai", "int4");
    assert_eq!(
        files,
        "config.json genai_config.json generation_config.json model.onnx model.onnx_data tokenizer_config.json"
    );
    insta::assert_snapshot!("genai-config", read("genai/genai_config.json"));
    let files = convert("plain", "fp32,int4");
    let expected = "config.json generation_config.json model.onnx model.onnx_data model_q4.onnx model_q4.onnx_data tokenizer_config.json";
    assert_eq!(files, expected);
    let files = convert("transformers.js", "int8,int4");
    let expected = "config.json generation_config.json onnx/model_int8.onnx onnx/model_int8.onnx_data onnx/model_q4.onnx onnx/model_q4.onnx_data tokenizer_config.json";
    assert_eq!(files, expected);
    let config: Value = serde_json::from_str(&read("transformers.js/config.json")).unwrap();
    let own = serde_json::json!({"use_external_data_format": {"model_int8.onnx": 1, "model_q4.onnx": 1}});
    assert_eq!(config["transformers.js_config"], own);
    assert_eq!(config["hidden_size"], 256, "the rest of the config is still there");
    assert!(read("plain/config.json") == read_text(&fixture("legal-qa/kjv-llama/config.json")));
}

fn read_text(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The files of a directory and of the folders in it, sorted.
fn walkdir(dir: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                names.push(path.strip_prefix(dir).unwrap().display().to_string());
            }
        }
    }
    names.sort();
    names
}

#[test]
fn sizes_that_are_known_are_in_the_graph() {
    let dir = TestDir::new();
    let has = |dims: &str| {
        let args = ["convert", &base(), "--to", "onnx", "--precision", "fp32", "--fix-dims", dims, "-o", dims];
        mlpack(&dir).args(args).succeed();
        let graph = std::fs::read(dir.path(&format!("{dims}/onnx/model.onnx"))).unwrap();
        let names = ["batch_size", "sequence_length", "past_sequence_length", "total_sequence_length"];
        names.map(|name| graph.windows(name.len()).any(|part| part == name.as_bytes()))
    };
    assert_eq!(has("batch=1,sequence=128"), [false, true, true, true], "how long the cache is is open");
    assert_eq!(has("batch=1,sequence=1,past=127"), [false; 4]);
    small_bert(&dir, "BertModel");
    let args = |dims: &'static str| {
        ["convert", "bert", "--to", "onnx", "--precision", "fp32", "--fix-dims", dims, "-o", "out"]
    };
    insta::assert_snapshot!("onnx-fix-long", refused(&dir, &args("sequence=17"), 2));
    insta::assert_snapshot!("onnx-fix-past", refused(&dir, &args("past=17"), 2));
    mlpack(&dir).args(args("batch=1,sequence=16")).succeed();
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
pub fn small_bert(dir: &TestDir, class: &str) {
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
    write_tensors(&model.join("model.safetensors"), tensors);
}

/// A file of tensors whose numbers are easy to make again.
fn write_tensors(path: &std::path::Path, tensors: Vec<(String, Vec<u64>)>) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        let count: u64 = shape.iter().product();
        data.extend((0..count).flat_map(|i| (((i * 37 + start as u64) % 101) as f32 / 101.0 - 0.5).to_le_bytes()));
        header.insert(name, serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::write(path, bytes).unwrap();
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
    let modules = |kind: &str| {
        let text = r#"[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}, {"type": "sentence_transformers.models.KIND", "path": "2_KIND"}]"#;
        std::fs::write(dir.path("bert/modules.json"), text.replace("KIND", kind)).unwrap();
    };
    modules("LSTM");
    insta::assert_snapshot!("onnx-encoder-module", refused(&dir, &args, 3));
    modules("Dense");
    insta::assert_snapshot!("onnx-dense-missing", refused(&dir, &args, 4));
    add_dense(&dir, "torch.nn.modules.activation.Softsign");
    insta::assert_snapshot!("onnx-dense-activation", refused(&dir, &args, 3));
}

/// Puts a matrix of 32 by 8 after the pooling of [`small_bert`], before its Normalize.
pub fn add_dense(dir: &TestDir, activation: &str) {
    let folder = dir.path("bert/2_Dense");
    std::fs::create_dir_all(&folder).unwrap();
    let kind = |name: &str| format!("sentence_transformers.models.{name}");
    let modules = serde_json::json!([
        {"idx": 0, "path": "", "type": kind("Transformer")},
        {"idx": 1, "path": "1_Pooling", "type": kind("Pooling")},
        {"idx": 2, "path": "2_Dense", "type": kind("Dense")},
        {"idx": 3, "path": "3_Normalize", "type": kind("Normalize")},
    ]);
    std::fs::write(dir.path("bert/modules.json"), modules.to_string()).unwrap();
    let config =
        serde_json::json!({"in_features": 32, "out_features": 8, "bias": true, "activation_function": activation});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let tensors = vec![("linear.weight".to_owned(), vec![8, 32]), ("linear.bias".to_owned(), vec![8])];
    write_tensors(&folder.join("model.safetensors"), tensors);
}

#[test]
fn a_matrix_after_pooling_is_in_the_graph_and_all_of_it_is_rebuilt() {
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    add_dense(&dir, "torch.nn.modules.activation.Tanh");
    let args = ["convert", "bert", "--to", "onnx", "--precision", "fp32,int8", "-o", "out"];
    let done = mlpack(&dir).args(args).json();
    let graph = std::fs::read(dir.path("out/onnx/model.onnx")).unwrap();
    let has = |name: &str| graph.windows(name.len()).any(|part| part == name.as_bytes());
    assert!(has("model.dense_0.MatMul.weight") && has("model.dense_0.bias"));
    insta::assert_snapshot!(files(&done).join("\n"));
    let again = mlpack(&dir).args(["rebuild", "out"]).json();
    assert_eq!(again["same"], true, "{again}");
    // For another task nothing is pooled.
    let config = dir.path("bert/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("BertModel", "BertForTokenClassification")).unwrap();
    let args = ["convert", "bert", "--to", "onnx", "--precision", "fp32", "-o", "no"];
    let text = refused(&dir, &args, 3);
    assert!(text.contains("classifier.weight") && !text.contains("2_Dense"), "{text}");
}
