//! `mlpack convert --to onnx --validate`.

use crate::cli_onnx::small_bert;
use crate::support::{TestDir, base, fixture, mlpack, onnxruntime, refused};
use serde_json::Value;
use std::path::Path;

const CONVERT: [&str; 4] = ["--to", "onnx", "--validate", "--precision"];

#[test]
fn a_library_that_is_not_there_is_named_before_anything_is_written() {
    let dir = TestDir::new();
    let base = base();
    let args =
        |more: &[&'static str]| [&["convert", &base, "-o", "out"], &CONVERT[..], &["fp32"], more].concat().join("\n");
    let refused = |args: String| refused(&dir, &args.split('\n').collect::<Vec<_>>(), 4);
    insta::assert_snapshot!("validate-library", refused(args(&["--onnxruntime", "no/libonnxruntime.so"])));
    std::fs::create_dir(dir.path("empty")).unwrap();
    insta::assert_snapshot!("validate-folder", refused(args(&["--onnxruntime", "empty"])));
    std::fs::write(dir.path("empty/libonnxruntime.so.1.0"), "no library").unwrap();
    let text = refused(args(&["--onnxruntime", "empty"]));
    assert!(text.contains("`empty/libonnxruntime.so.1.0`"), "{text}");
    let said = mlpack(&dir).args(args(&[]).split('\n')).env("ORT_DYLIB_PATH", "no/such/one.so").expect(4).1;
    assert!(said.contains("`no/such/one.so`"), "{said}");
}

#[test]
fn what_cannot_be_validated_is_refused() {
    let dir = TestDir::new();
    let base = base();
    let args = [&["convert", &base, "-o", "out"], &CONVERT[..], &["fp32,bf16"]].concat();
    insta::assert_snapshot!("validate-bf16", refused(&dir, &args, 2));
    let args = ["convert", &base, "-o", "out", "--quant", "Q8_0", "--validate"];
    insta::assert_snapshot!("validate-gguf", refused(&dir, &args, 2));
}

/// The validation of each graph of a conversion that has to be near its source.
fn validated(dir: &TestDir, model: &str, options: &[&str]) -> Vec<Value> {
    let library = onnxruntime().unwrap();
    let library = ["--onnxruntime", library.to_str().unwrap()];
    let done = mlpack(dir).args(["convert", model, "--to", "onnx", "--validate"]).args(library).args(options).json();
    done["validation"].as_array().unwrap().clone()
}

#[test]
fn a_decoder_with_an_adapter_is_near_its_source_in_every_profile() {
    if onnxruntime().is_none() {
        return;
    }
    let adapter = fixture("legal-qa/legal-qa-lora").display().to_string();
    let cases: &[(&str, &[&str])] = &[
        ("fp32,fp16,int8,int4", &["--profile", "std"]),
        ("fp32,int8", &["--profile", "portable"]),
        ("fp32,int4", &["--profile", "ort"]),
        ("int8,int4", &["--scheme", "qdq", "--asymmetric"]),
        ("fp32", &["--fix-dims", "batch=1,sequence=16,past=0"]),
        ("fp32", &["--fix-dims", "batch=1,sequence=1,past=15"]),
    ];
    for (precisions, options) in cases {
        let dir = TestDir::new();
        let options = [&["-a", &adapter, "-o", "out", "--precision", *precisions], *options].concat();
        let graphs = validated(&dir, &base(), &options);
        assert_eq!(graphs.len(), precisions.split(',').count(), "{precisions}");
        for graph in &graphs {
            let (output, file) = (&graph["outputs"][0], graph["file"].as_str().unwrap());
            assert_eq!(output["output"], "logits");
            if file == "onnx/model.onnx" {
                let agreement = &output["argmax-agreement"];
                assert_eq!(agreement["same"], agreement["of"], "{graph}");
                assert!(output["max-error"].as_str().unwrap().parse::<f64>().unwrap() < 1e-4, "{graph}");
            }
        }
    }
}

#[test]
fn the_statement_says_how_near_graphs_are() {
    if onnxruntime().is_none() {
        return;
    }
    let dir = TestDir::new();
    let graphs = validated(&dir, &base(), &["--precision", "fp32", "-o", "out"]);
    let sidecar = std::fs::read_dir(dir.path("")).unwrap().flatten().map(|entry| entry.path());
    let texts: Vec<String> =
        sidecar.filter(|path| path.is_file()).map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let said = texts.iter().find_map(|text| {
        let statement: Value = serde_json::from_str(text).ok()?;
        let all = statement.pointer("/predicate/runDetails/byproducts")?.as_array()?.clone();
        all.into_iter().find(|one| one["name"] == "validation")
    });
    assert!(said.is_some(), "{texts:?}");
    assert_eq!(graphs.len(), 1);
    assert_eq!(mlpack(&dir).args(["rebuild", "out"]).json()["same"], true);
}

#[test]
fn a_sentence_embedder_is_near_its_source() {
    if onnxruntime().is_none() {
        return;
    }
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    let graphs = validated(&dir, "bert", &["--precision", "fp32,fp16,int8", "-o", "out"]);
    for graph in &graphs {
        let names: Vec<&str> =
            graph["outputs"].as_array().unwrap().iter().map(|output| output["output"].as_str().unwrap()).collect();
        assert_eq!(names, ["last_hidden_state", "sentence_embedding"]);
    }
    let cosine = |graph: &Value| graph["outputs"][1]["min-cosine"].as_str().unwrap().parse::<f64>().unwrap();
    assert!(cosine(&graphs[0]) >= 0.999_999, "{}", graphs[0]);
    assert!(cosine(&graphs[2]) >= 0.97, "{}", graphs[2]);
}

/// Changes the values of a matrix of the small BERT.
fn change(dir: &TestDir, tensor: &str, of: impl Fn(usize, f32) -> f32) {
    let file = dir.path("bert/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let [start, end] = [0, 1].map(|i| 8 + header_len + header[tensor]["data_offsets"][i].as_u64().unwrap() as usize);
    for (i, value) in bytes[start..end].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *value = of(i, f32::from_le_bytes(*value)).to_le_bytes();
    }
    std::fs::write(&file, bytes).unwrap();
}

/// What is said to convert the small BERT and validate it.
fn validating<'a>(library: &'a Path, precision: &'a str) -> Vec<&'a str> {
    let library = ["--onnxruntime", library.to_str().unwrap()];
    [&["convert", "bert", "-o", "out"], &CONVERT[..], &[precision], &library].concat()
}

#[test]
fn what_float16_cannot_hold_of_activations_is_found() {
    let Some(library) = onnxruntime() else { return };
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    // Every weight fits; what they make of each other does not.
    change(&dir, "encoder.layer.0.intermediate.dense.weight", |_, v| v * 60_000.0);
    change(&dir, "encoder.layer.0.output.dense.weight", |_, v| v * 60_000.0);
    insta::assert_snapshot!("validate-overflow", refused(&dir, &validating(&library, "fp16"), 1));
    mlpack(&dir).args(validating(&library, "fp32")).succeed();
}

#[test]
fn a_graph_that_is_far_from_its_source_is_not_written() {
    let Some(library) = onnxruntime() else { return };
    let dir = TestDir::new();
    small_bert(&dir, "BertModel");
    // One large value in each block, the same in all rows, which the norm takes out again: four bits keep nothing else.
    change(&dir, "encoder.layer.0.output.dense.weight", |i, v| if matches!(i % 48, 0 | 32) { 1000.0 } else { v * 8.0 });
    let text = refused(&dir, &validating(&library, "int4"), 1);
    assert!(
        text.contains("error: `onnx/model_q4.onnx` is too far from its source\n  output `last_hidden_state`: within"),
        "{text}"
    );
    assert!(text.contains("\n  expected: a cosine of at least 0.7\n"), "{text}");
    mlpack(&dir).args(validating(&library, "fp32")).succeed();
}
