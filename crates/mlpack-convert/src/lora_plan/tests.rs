//! The legal-qa adapter as convert_lora_to_gguf.py b11434 writes it (`golden/lora.json`), and what its config may say besides.

use super::*;
use crate::{Resources, execute};
use mlpack_arch::Families;
use mlpack_gguf::GgufFile;
use serde_json::{Value, json};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa").join(name)
}

/// Converts a copy of the adapter with its config changed; the files by variant.
fn converted(out: &Path, variants: &[FileType], change: impl FnOnce(&mut Value)) -> Result<Vec<String>, Error> {
    let dir = out.join("legal-qa-lora");
    std::fs::create_dir_all(&dir).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors", "README.md"] {
        let from = fixture("legal-qa-lora").join(file);
        if from.is_file() {
            std::fs::copy(from, dir.join(file)).unwrap();
        }
    }
    let path = dir.join("adapter_config.json");
    let text = mlpack_fs::read_to_string_bounded(&path, 1 << 20).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    let model = Model::open(&fixture("kjv-llama"), &Families::builtin()).unwrap();
    let source = Source::open_adapter(&dir)?;
    let plan = plan_lora(&source, &model, &LoraRequest { dir: &dir, name: "legal-qa-lora", variants })?;
    let done = execute(&source, &plan, out, &Resources::default(), &|_| {})?;
    Ok(done.outputs.iter().map(|file| file.sha256.to_string()).collect())
}

#[test]
fn the_legal_qa_adapter_is_written_as_the_converter_writes_it() {
    let golden: Value = serde_json::from_str(include_str!("../../golden/lora.json")).unwrap();
    let variants = [FileType::F32, FileType::F16, FileType::BF16, FileType::Q8_0];
    let out = tempfile::tempdir().unwrap();
    let digests = converted(out.path(), &variants, |_| {}).unwrap();
    for (variant, digest) in variants.iter().zip(digests) {
        assert_eq!(golden[variant.name], json!(digest), "{}", variant.name);
    }
}

/// `adapter.lora.alpha`, and a row of B for two modules.
fn alpha_and_rows(change: impl FnOnce(&mut Value)) -> (f32, [Vec<f32>; 2]) {
    let out = tempfile::tempdir().unwrap();
    converted(out.path(), &[FileType::F32], change).unwrap();
    let file = GgufFile::open(&out.path().join("legal-qa-lora-F32.gguf")).unwrap();
    let Some(mlpack_tensor::MetaValue::F32(alpha)) = file.metadata().find("adapter.lora.alpha") else { panic!() };
    let rows = ["blk.0.attn_q.weight.lora_b", "blk.0.ffn_up.weight.lora_b"].map(|name| {
        let tensor = file.tensors().iter().find(|t| t.name == name).unwrap();
        file.bytes(tensor).as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    });
    (*alpha, rows)
}

#[test]
fn the_scale_of_rank_stabilized_adapters_is_right() {
    let (alpha, rows) = alpha_and_rows(|_| {});
    assert_eq!(alpha, 16.0);
    let (stabilized, same) = alpha_and_rows(|config| config["use_rslora"] = json!(true));
    // 16 over the root of 8 is what llama.cpp makes of alpha over 8.
    assert_eq!(stabilized, (16.0 / 8f64.sqrt() * 8.0) as f32);
    assert_eq!(same, rows);
}

#[test]
fn modules_with_a_scale_of_their_own_have_it_in_b() {
    let (_, [queries, up]) = alpha_and_rows(|_| {});
    let (alpha, [scaled, same]) = alpha_and_rows(|config| config["alpha_pattern"] = json!({"q_proj": 40}));
    assert_eq!((alpha, same), (16.0, up));
    let expected: Vec<f32> = queries.iter().map(|v| (f64::from(*v) * 2.5) as f32).collect();
    assert_eq!(scaled, expected);
}

#[test]
fn what_is_no_pair_of_factors_and_other_variants_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let error = converted(out.path(), &[FileType::Q4_K_M], |_| {}).unwrap_err();
    assert!(matches!(error, Error::AdapterVariant { name: "Q4_K_M" }), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let header = json!({"base_model.model.lm_head.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}});
    let header = header.to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    std::fs::write(dir.path().join("adapter_model.safetensors"), bytes).unwrap();
    let error = pairs(&Source::open_adapter(dir.path()).unwrap()).err().unwrap();
    assert!(error.to_string().contains("`base_model.model.lm_head.weight`"), "{error}");
    assert!(error.hint().unwrap().starts_with("merge the adapter"));
}
