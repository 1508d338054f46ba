//! `mlpack merge`.

use crate::support::{TestDir, fixture, kill_at, mlpack, sha256};
use mlpack_fs::Sha256;
use mlpack_safetensors::Checkpoint;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

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

/// Inode and time of the last change of every file of weights, whole or in work.
fn weights(dir: &Path) -> BTreeMap<String, (u64, i64, i64)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let weights = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().unwrap();
        let name = name.trim_start_matches('.').trim_end_matches(".mlpack-partial").to_owned();
        let metadata = entry.metadata().unwrap();
        name.ends_with(".safetensors").then(|| (name, (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())))
    });
    weights.collect()
}

#[test]
fn killed_at_any_moment_a_merge_goes_on_and_ends_in_the_same_bytes() {
    let dir = TestDir::new();
    let (base, adapter) = (fixture("legal-qa/kjv-llama"), fixture("legal-qa/legal-qa-lora"));
    let (base, adapter) = (base.to_str().unwrap(), adapter.to_str().unwrap());
    let to = |name: &'static str| {
        // Slabs so small that the journal has many lines.
        let slabs = ["--threads", "1", "--memory", "1MB"];
        [&["merge", base, "-a", adapter, "--max-shard-size", "1MB", "-o", name][..], &slabs].concat()
    };
    mlpack(&dir).args(to("whole")).succeed();
    let whole = Checkpoint::open(&dir.path("whole")).unwrap();
    let names: Vec<String> =
        whole.shards().iter().map(|s| s.map().path().file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(names.len() >= 4, "{names:?}");
    let mut killed = 0;
    for lines in [1, 2, 8, 20, 40] {
        kill_at(&dir, &to("out"), "out", lines);
        let partial = dir.path(".out.mlpack-partial");
        assert!(!dir.path("out").exists(), "nothing has its name before all of it is there");
        let journal = std::fs::read_to_string(partial.join(".mlpack-journal")).unwrap();
        let complete = |i: usize| {
            let len = dir.path("whole").join(&names[i]).metadata().unwrap().len();
            journal.lines().any(|line| line.starts_with(&format!("{i} {len} ")))
        };
        let before = weights(&partial);
        let done = mlpack(&dir).args(to("out")).json();
        let after = weights(&dir.path("out"));
        for (i, name) in names.iter().enumerate() {
            assert_eq!(sha256(&dir.path("out").join(name)), sha256(&dir.path("whole").join(name)), "{lines}: {name}");
            if complete(i) {
                assert_eq!(before.get(name), after.get(name), "{lines}: {name} is as the killed run left it");
                killed += 1;
            }
        }
        let noted = journal.lines().skip(1).count();
        assert!(noted == 0 || done["bytes_kept"].as_u64().unwrap() > 0, "{done}");
        std::fs::remove_dir_all(dir.path("out")).unwrap();
    }
    assert!(killed > 0, "no run was killed with a shard complete");
    assert!(dir.listing().iter().all(|name| !name.contains("mlpack-partial")), "{:?}", dir.listing());
}

#[test]
fn what_an_interrupted_merge_left_is_not_believed() {
    let dir = TestDir::new();
    let base = dir.copy("legal-qa/kjv-llama", "base").display().to_string();
    let adapter = dir.copy("legal-qa/legal-qa-lora", "adapter").display().to_string();
    let args = |weight: &str| -> Vec<String> {
        let adapter = format!("{adapter}={weight}");
        let slabs = ["--threads", "1", "--memory", "1MB"].map(str::to_owned);
        [&["merge", &base, "-a", &adapter, "-o", "out"].map(str::to_owned)[..], &slabs].concat()
    };
    let partial = dir.path(".out.mlpack-partial");
    let interrupted = || {
        let args = args("1");
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        kill_at(&dir, &args, "out", 30);
    };
    let finish = |weight: &str| {
        let done = mlpack(&dir).args(args(weight)).json();
        let found = (sha256(&dir.path("out/model.safetensors")), done["bytes_kept"].as_u64().unwrap());
        std::fs::remove_dir_all(dir.path("out")).unwrap();
        found
    };
    let (whole, _) = finish("1");
    let (other, _) = finish("0.5");
    // The same work: most of it is kept.
    interrupted();
    let (found, kept) = finish("1");
    assert_eq!(found, whole);
    assert!(kept > 1_000_000, "{kept}");
    // Another weight.
    interrupted();
    assert_eq!(finish("0.5"), (other, 0));
    // A base that was written again meanwhile.
    interrupted();
    let path = dir.path("base/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(finish("1"), (whole.clone(), 0));
    // Bytes that are not what the journal says, as after a failure of power.
    interrupted();
    let left = partial.join(".model.safetensors.mlpack-partial");
    let mut bytes = std::fs::read(&left).unwrap();
    bytes[600_000] ^= 1;
    std::fs::write(&left, &bytes).unwrap();
    let (found, kept) = finish("1");
    assert_eq!(found, whole);
    assert!(kept <= 600_000, "{kept}");
    // How much each tensor changes is told of all of it.
    interrupted();
    mlpack(&dir).args(args("1")).args(["--report", "resumed.json"]).succeed();
    std::fs::remove_dir_all(dir.path("out")).unwrap();
    mlpack(&dir).args(args("1")).args(["--report", "whole.json"]).succeed();
    let report = |name: &str| std::fs::read_to_string(dir.path(name)).unwrap();
    assert_eq!(report("resumed.json"), report("whole.json"));
}
