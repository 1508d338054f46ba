//! `mlpack merge`.

use crate::support::{TestDir, fixture, mlpack, sha256};
use mlpack_fs::Sha256;
use mlpack_safetensors::Checkpoint;

const QUANTS: [&str; 6] = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M"];

#[test]
fn tensors_without_adapter_stay_and_the_others_are_peft_to_a_few_last_bits() {
    let dir = TestDir::new();
    merge(&dir, "merged");
    let merged = Checkpoint::open(&dir.path("merged")).unwrap();
    let peft: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("legal-qa/golden/peft-merged.json")).unwrap()).unwrap();
    let peft = peft["tensors"].as_object().unwrap();
    assert_eq!(merged.tensors().len(), peft.len());
    let mut changed = 0;
    for tensor in merged.tensors() {
        let theirs = &peft[&tensor.name];
        let same = theirs["sha256"] == Sha256::of(merged.bytes(tensor)).to_string();
        match theirs["changed"].as_bool().unwrap() {
            // PEFT is off in 55 of 1 081 344 elements, spread over these tensors; mlpack-lora's tests count ours: none.
            true => changed += 1,
            false => assert!(same, "{}", tensor.name),
        }
    }
    assert_eq!(changed, 12);
}

#[test]
fn the_directory_holds_config_tokenizer_and_weights_and_is_traced() {
    let dir = TestDir::new();
    merge(&dir, "merged");
    let files: Vec<String> = dir.listing().into_iter().filter(|f| !f.starts_with(".mlpack/")).collect();
    assert_eq!(
        files,
        [
            "merged.claims.jsonl",
            "merged/chat_template.jinja",
            "merged/config.json",
            "merged/generation_config.json",
            "merged/model.safetensors",
            "merged/tokenizer.json",
            "merged/tokenizer.model",
            "merged/tokenizer_config.json",
        ]
    );
    let trace = mlpack(&dir).args(["trace", "merged"]).json();
    assert_eq!((&trace["holds"], &trace["root"]["state"]), (&true.into(), &"unsigned".into()));
}

#[test]
fn converting_through_the_adapter_equals_converting_the_merged_directory() {
    let dir = TestDir::new();
    merge(&dir, "legal-qa-lora");
    let (base, adapter) = (fixture("legal-qa/kjv-llama"), fixture("legal-qa/legal-qa-lora"));
    let quants = QUANTS.join(",");
    mlpack(&dir).args(["convert", "legal-qa-lora", "--quant", &quants, "-o", "two-steps"]).succeed();
    mlpack(&dir)
        .args([
            "convert",
            base.to_str().unwrap(),
            "-a",
            adapter.to_str().unwrap(),
            "--quant",
            &quants,
            "-o",
            "one-step",
        ])
        .succeed();
    for quant in QUANTS {
        let name = format!("legal-qa-lora-{quant}.gguf");
        assert_eq!(sha256(&dir.path("one-step").join(&name)), sha256(&dir.path("two-steps").join(&name)), "{quant}");
    }
}

#[test]
fn a_weight_of_zero_gives_the_base_and_weights_add_up() {
    let dir = TestDir::new();
    let (base, adapter) = (fixture("legal-qa/kjv-llama"), fixture("legal-qa/legal-qa-lora"));
    let adapter = adapter.to_str().unwrap();
    let base_weights = sha256(&base.join("model.safetensors"));
    let run = |name: &str, weights: &[&str]| {
        let adapters = weights.iter().flat_map(|w| ["-a".to_owned(), format!("{adapter}={w}")]);
        let args = ["merge".to_owned(), base.display().to_string(), "-o".to_owned(), name.to_owned()];
        mlpack(&dir).args(args.into_iter().chain(adapters)).succeed();
        sha256(&dir.path(name).join("model.safetensors"))
    };
    assert_eq!(run("none", &["0"]), base_weights);
    assert_eq!(run("cancelled", &["0.5", "-0.5"]), base_weights);
    assert_eq!(run("halves", &["0.5", "0.5"]), run("whole", &["1"]));
}

fn merge(dir: &TestDir, name: &str) {
    let (base, adapter) = (fixture("legal-qa/kjv-llama"), fixture("legal-qa/legal-qa-lora"));
    mlpack(dir).args(["merge", base.to_str().unwrap(), "-a", adapter.to_str().unwrap(), "-o", name]).succeed();
}
