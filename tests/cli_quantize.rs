//! `mlpack quantize` against the goldens of llama-quantize b11434, and `mlpack convert` with the quantizer's options.

use crate::support::{TestDir, fixture, golden, mlpack, sha256};
use mlpack_fs::Sha256;
use mlpack_gguf::{GgufFile, Layout, TensorSpec};
use mlpack_tensor::{MetaValue, Metadata};
use serde_json::Value;

/// The goldens' input, as [`model_dir`] makes it.
const MODEL: &str = "kjv-llama-BF16.gguf";
/// How the `qi-*` goldens were made.
const IMPORTANCE: [&str; 2] = ["--imatrix", "imatrix.gguf"];
/// How `qo-Q4_K_M` was made.
const BY_HAND: [&str; 6] =
    ["--output-tensor-type", "Q8_0", "--token-embedding-type", "Q5_K", "--tensor-type", "ffn_down=Q6_K"];

/// A directory with the base's BF16 GGUF and both importance matrices.
fn model_dir() -> TestDir {
    let dir = TestDir::new();
    let base = fixture("legal-qa/kjv-llama");
    mlpack(&dir).args(["convert", base.to_str().unwrap(), "--quant", "BF16", "-o", "."]).succeed();
    assert_eq!(sha256(&dir.path(MODEL)), golden("hf-bf16")["file_sha256"]);
    for file in ["imatrix.gguf", "imatrix.dat"] {
        std::fs::copy(fixture("legal-qa/golden/llama.cpp-b11434").join(file), dir.path(file)).unwrap();
    }
    dir
}

/// The file types of the goldens whose name begins with `prefix`.
fn goldens(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(fixture("legal-qa/golden/llama.cpp-b11434")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let mut types: Vec<String> =
        names.filter_map(|name| Some(name.strip_prefix(prefix)?.strip_suffix(".json")?.to_owned())).collect();
    types.sort();
    types
}

/// Quantizes to every type in one run and compares each file with its golden.
#[track_caller]
fn equal_goldens(dir: &TestDir, args: &[&str], prefix: &str, types: &[String]) {
    mlpack(dir).args(args).args(["--quant", &types.join(","), "--name", "kjv-llama", "-o", prefix]).succeed();
    let differs = |ty: &&String| {
        let path = dir.path(&format!("{prefix}/kjv-llama-{ty}.gguf"));
        sha256(&path) != golden(&format!("{prefix}{ty}"))["file_sha256"]
    };
    let differing: Vec<_> = types.iter().filter(differs).collect();
    assert!(differing.is_empty(), "{} of {} differ from {prefix}*: {differing:?}", differing.len(), types.len());
}

#[test]
fn every_file_type_equals_llama_quantize_to_the_byte_from_one_read() {
    let dir = model_dir();
    let types = goldens("q-");
    assert!(types.len() >= 23 && types.contains(&"COPY".to_owned()), "{types:?}");
    equal_goldens(&dir, &["quantize", MODEL], "q-", &types);
}

#[test]
fn every_file_type_with_an_importance_matrix_equals_llama_quantize_to_the_byte() {
    let dir = model_dir();
    let types = goldens("qi-");
    assert!(types.len() >= 21, "{types:?}");
    equal_goldens(&dir, &["quantize", MODEL, IMPORTANCE[0], IMPORTANCE[1]], "qi-", &types);
}

#[test]
fn convert_with_an_importance_matrix_equals_converting_then_quantizing() {
    let dir = model_dir();
    let base = fixture("legal-qa/kjv-llama");
    equal_goldens(&dir, &["convert", base.to_str().unwrap(), IMPORTANCE[0], IMPORTANCE[1]], "qi-", &goldens("qi-"));
}

#[test]
fn types_chosen_by_hand_equal_llama_quantize_whether_converted_or_quantized() {
    let dir = model_dir();
    let base = fixture("legal-qa/kjv-llama");
    for command in [["quantize", MODEL], ["convert", base.to_str().unwrap()]] {
        for (quant, options, name) in [("Q4_K", &["--pure"][..], "qp-Q4_K"), ("Q4_K_M", &BY_HAND[..], "qo-Q4_K_M")] {
            let out = format!("{}-{name}", command[0]);
            mlpack(&dir)
                .args(command)
                .args(["--quant", quant, "--name", "kjv-llama", "-o", &out])
                .args(options)
                .succeed();
            let made = dir.path(&format!("{out}/kjv-llama-Q4_K_M.gguf"));
            assert_eq!(sha256(&made), golden(name)["file_sha256"], "{out}");
        }
    }
}

#[test]
fn both_importance_matrix_formats_give_the_same_tensors() {
    let dir = model_dir();
    let types = goldens("qi-");
    let args = ["quantize", MODEL, "--imatrix", "imatrix.dat", "--quant", &types.join(","), "-o", "dat"];
    mlpack(&dir).args(args).args(["--name", "m"]).succeed();
    for ty in types {
        let file = GgufFile::open(&dir.path(&format!("dat/m-{ty}.gguf"))).unwrap();
        assert_eq!(tensors(&file), golden_tensors(&format!("qi-{ty}")), "{ty}");
        let stated = file.metadata().find("quantize.imatrix.file");
        assert_eq!(stated, Some(&MetaValue::String("imatrix.dat".to_owned())), "{ty}");
    }
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    let dir = model_dir();
    for (i, resources) in
        [["--threads", "1", "--memory", "256MiB"], ["--threads", "7", "--memory", "4MiB"]].into_iter().enumerate()
    {
        let out = format!("{i}.gguf");
        mlpack(&dir)
            .args(["quantize", MODEL, "--quant", "IQ3_M", "-o", &out])
            .args(IMPORTANCE)
            .args(resources)
            .succeed();
        assert_eq!(sha256(&dir.path(&out)), golden("qi-IQ3_M")["file_sha256"], "{resources:?}");
    }
}

/// Name, type and digest of every tensor, in order.
fn tensors(file: &GgufFile) -> Vec<[String; 3]> {
    let digest = |tensor| Sha256::of_parts([file.bytes(tensor)]).to_string();
    file.tensors().iter().map(|tensor| [tensor.name.clone(), tensor.ty.to_string(), digest(tensor)]).collect()
}

/// The same of a golden.
fn golden_tensors(name: &str) -> Vec<[String; 3]> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let golden = golden(name);
    let tensors = golden["tensors"].as_array().unwrap();
    tensors.iter().map(|tensor| ["name", "type", "sha256"].map(|key| text(&tensor[key]))).collect()
}

/// Writes the tensors of `MODEL` into three files, as llama-gguf-split does: metadata in the first, in each its number.
/// Returns the tensor names of each.
fn split(dir: &TestDir) -> Vec<Vec<String>> {
    let file = GgufFile::open(&dir.path(MODEL)).unwrap();
    let parts: Vec<_> = file.tensors().chunks(file.tensors().len().div_ceil(3)).collect();
    for (i, part) in parts.iter().enumerate() {
        let mut metadata = if i == 0 { file.metadata().clone() } else { Metadata::new() };
        metadata.set("split.no", MetaValue::U16(i as u16));
        metadata.set("split.tensors.count", MetaValue::I32(file.tensors().len() as i32));
        metadata.set("split.count", MetaValue::U16(parts.len() as u16));
        let spec = |t: &mlpack_gguf::Tensor| TensorSpec { name: t.name.clone(), ty: t.ty, shape: t.shape.clone() };
        let layout = Layout::new(&metadata, part.iter().map(spec).collect()).unwrap();
        let mut bytes = layout.header().to_vec();
        for (tensor, slot) in part.iter().zip(layout.tensors()) {
            bytes.extend_from_slice(file.bytes(tensor));
            bytes.resize(slot.padded_end as usize, 0);
        }
        std::fs::write(dir.path(&format!("split-{:05}-of-{:05}.gguf", i + 1, parts.len())), bytes).unwrap();
    }
    parts.iter().map(|part| part.iter().map(|tensor| tensor.name.clone()).collect()).collect()
}

#[test]
fn a_split_input_gives_the_same_file_as_a_whole_one() {
    let dir = model_dir();
    split(&dir);
    let args = ["quantize", "split-00001-of-00003.gguf", "--quant", "Q4_K_M,COPY", "--name", "m", "-o", "out"];
    mlpack(&dir).args(args).succeed();
    for ty in ["Q4_K_M", "COPY"] {
        let made = dir.path(&format!("out/m-{ty}.gguf"));
        assert_eq!(sha256(&made), golden(&format!("q-{ty}"))["file_sha256"], "{ty}");
    }
}

#[test]
fn keep_split_gives_a_file_for_each_file_with_the_same_tensors_in_it() {
    let dir = model_dir();
    let names = split(&dir);
    let args =
        ["quantize", "split-00001-of-00003.gguf", "--quant", "Q4_K_M", "--keep-split", "--name", "m", "-o", "out"];
    mlpack(&dir).args(args).succeed();
    let whole = golden("q-Q4_K_M");
    let expected = golden_tensors("q-Q4_K_M");
    let keys = |file: &GgufFile| file.metadata().iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
    let own = ["split.no", "split.count", "split.tensors.count"];
    for (i, names) in names.iter().enumerate() {
        let file = GgufFile::open(&dir.path(&format!("out/m-Q4_K_M-{:05}-of-00003.gguf", i + 1))).unwrap();
        let of_whole = names.iter().map(|name| expected.iter().find(|tensor| tensor[0] == *name).unwrap().clone());
        assert_eq!(tensors(&file), of_whole.collect::<Vec<_>>(), "file {i}");
        // llama-quantize writes the model's keys into the first file, and its own three at the end of each.
        let first = whole["kv"].as_array().unwrap().iter().map(|kv| kv["key"].as_str().unwrap());
        let expected: Vec<&str> = first.filter(|_| i == 0).chain(own).collect();
        assert_eq!(keys(&file), expected, "file {i}");
        assert_eq!(file.metadata().find("split.no"), Some(&MetaValue::U16(i as u16)));
        assert_eq!(file.metadata().find("split.count"), Some(&MetaValue::U16(3)));
        assert_eq!(file.metadata().find("split.tensors.count"), Some(&MetaValue::I32(expected_count(&whole))));
    }
}

fn expected_count(golden: &Value) -> i32 {
    golden["tensors"].as_array().unwrap().len() as i32
}
