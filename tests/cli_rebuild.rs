//! rebuild: every kind of step again from its recorded inputs, byte for byte.

use crate::support::{TestDir, mlpack};
use serde_json::Value;

/// Rebuilds an artifact, which has to come out the same; the steps that it took.
#[track_caller]
fn rebuilt(dir: &TestDir, artifact: &str) -> Vec<String> {
    let rebuilt = mlpack(dir).args(["rebuild", artifact]).json();
    assert_eq!(rebuilt["same"], true, "{artifact}: {rebuilt}");
    let step = |output: &Value| output["step"].as_str().unwrap().to_owned();
    rebuilt["outputs"].as_array().unwrap().iter().map(step).collect()
}

/// The legal-qa base and adapter.
fn sources() -> TestDir {
    let dir = TestDir::new();
    dir.copy("legal-qa/kjv-llama", "kjv-llama");
    dir.copy("legal-qa/legal-qa-lora", "lora");
    dir
}

#[test]
fn what_was_recorded_is_made_again_byte_for_byte() {
    let dir = TestDir::new();
    dir.copy("legal-qa/kjv-llama", "kjv-llama");
    dir.copy("legal-qa/legal-qa-lora", "lora");
    mlpack(&dir).args(["merge", "kjv-llama", "-a", "lora=0.5", "-o", "out/merged"]).succeed();
    mlpack(&dir).args(["convert", "out/merged", "--quant", "F16", "--name", "m", "-o", "out"]).succeed();
    let options =
        ["--quant", "Q4_K_M", "--tensor-type", "ffn_down=Q6_K", "--min-cosine", "0.5", "-o", "out/m-Q4_K_M.gguf"];
    mlpack(&dir).args(["quantize", "out/m-F16.gguf"].iter().chain(&options)).succeed();
    let before = dir.listing();
    for artifact in ["out/merged", "out/m-F16.gguf", "out/m-Q4_K_M.gguf"] {
        let rebuilt = mlpack(&dir).args(["rebuild", artifact]).json();
        assert_eq!(rebuilt["same"], true, "{artifact}: {rebuilt}");
    }
    assert_eq!(dir.listing(), before, "nothing is kept");
    // What is between is made again when it is not there.
    std::fs::remove_file(dir.path("out/m-F16.gguf")).unwrap();
    std::fs::remove_dir_all(dir.path("out/merged")).unwrap();
    let rebuilt = mlpack(&dir).args(["rebuild", "out/m-Q4_K_M.gguf"]).json();
    let steps: Vec<&str> = rebuilt["outputs"].as_array().unwrap().iter().map(|o| o["step"].as_str().unwrap()).collect();
    assert_eq!((steps.first(), steps.last()), (Some(&"merge"), Some(&"quantize")), "{rebuilt}");
    assert_eq!(rebuilt["same"], true, "{rebuilt}");
    // Another adapter under the same name: its digest is not the recorded one.
    let path = dir.path("lora/adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (_, stderr) = mlpack(&dir).args(["rebuild", "out/m-Q4_K_M.gguf"]).expect(2);
    assert!(stderr.contains("lora/adapter_model.safetensors"), "{stderr}");
}

#[test]
fn several_adapters_are_laid_on_in_the_order_in_which_they_were_given() {
    let dir = sources();
    // Both folders have one name, and the first adapter's path comes last in every list.
    dir.copy("legal-qa/legal-qa-lora", "z/lora");
    dir.copy("legal-qa/legal-qa-lora", "a/lora");
    let path = dir.path("a/lora/adapter_model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(dir.path("a/lora/chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    let adapters = ["-a", "z/lora=0.75", "-a", "a/lora=-0.5"];
    let combine = ["--combine", "ties", "--density", "0.25", "--seed", "7"];
    let run = |args: &[&str]| mlpack(&dir).args(args.iter().chain(&adapters).chain(&combine)).succeed();
    run(&["merge", "kjv-llama", "-o", "out/merged", "--max-shard-size", "1MB"]);
    run(&["convert", "kjv-llama", "--quant", "F16", "--name", "m", "-o", "out", "--split-max-tensors", "20"]);
    assert!(dir.path("out/merged/model.safetensors.index.json").is_file());
    assert_eq!(rebuilt(&dir, "out/merged")[0], "merge");
    let parts = rebuilt(&dir, "out/m-F16-00002-of-00002.gguf");
    assert_eq!(parts, ["convert", "convert"]);
}

#[test]
fn a_file_that_says_what_it_is_made_from_is_made_again() {
    let dir = sources();
    dir.copy("legal-qa/mlflow", "mlflow");
    let embed = "--embed-provenance";
    mlpack(&dir).args(["convert", "kjv-llama", "-a", "lora", "--quant", "F16", embed, "-o", "out"]).succeed();
    mlpack(&dir).args(["quantize", "out/lora-F16.gguf", "--quant", "Q8_0", embed, "-o", "out/q.gguf"]).succeed();
    // The record of the run is in the store; the run's own store may be gone.
    std::fs::remove_dir_all(dir.path("mlflow")).unwrap();
    assert_eq!(rebuilt(&dir, "out/lora-F16.gguf"), ["convert"]);
    assert_eq!(rebuilt(&dir, "out/q.gguf"), ["quantize"]);
    // Also where its source is made again first, in another place.
    std::fs::remove_file(dir.path("out/lora-F16.gguf")).unwrap();
    assert_eq!(rebuilt(&dir, "out/q.gguf"), ["convert", "quantize"]);
}

#[test]
fn an_architecture_of_ones_own_and_an_adapter_for_itself_are_made_again() {
    let dir = sources();
    let config = dir.path("kjv-llama/config.json");
    let text = std::fs::read_to_string(&config).unwrap().replace("LlamaForCausalLM", "OwnForCausalLM");
    std::fs::write(&config, text).unwrap();
    let family = include_str!("../crates/mlpack-arch/archs/llama.toml").replace("LlamaForCausalLM", "OwnForCausalLM");
    std::fs::create_dir(dir.path("archs")).unwrap();
    std::fs::write(dir.path("archs/own.toml"), family).unwrap();
    let arch = ["--arch-file", "archs/own.toml"];
    mlpack(&dir).args(["convert", "kjv-llama", "--quant", "Q8_0", "-o", "out"].iter().chain(&arch)).succeed();
    assert_eq!(rebuilt(&dir, "out/kjv-llama-Q8_0.gguf"), ["convert"]);
    let lora = ["convert", "lora", "--to", "gguf-lora", "--base", "kjv-llama", "--quant", "F16", "-o", "out"];
    mlpack(&dir).args(lora.iter().chain(&arch)).succeed();
    assert_eq!(rebuilt(&dir, "out/lora-F16.gguf"), ["convert"]);
    // Another description is another input.
    std::fs::write(dir.path("archs/own.toml"), "arch = \"llama\"\n").unwrap();
    let (_, stderr) = mlpack(&dir).args(["rebuild", "out/kjv-llama-Q8_0.gguf"]).expect(2);
    assert!(stderr.contains("cannot make `archs/own.toml` again"), "{stderr}");
}

#[test]
fn a_statement_of_somebody_else_writes_nowhere_else() {
    let dir = sources();
    mlpack(&dir).args(["convert", "kjv-llama", "--quant", "Q8_0", "--name", "m", "-o", "out"]).succeed();
    std::fs::remove_dir_all(dir.path("out/.mlpack")).unwrap();
    let sidecar = dir.path("out/m-Q8_0.gguf.claims.jsonl");
    let text = std::fs::read_to_string(&sidecar).unwrap();
    for (from, to, named) in [
        ("\"name\":\"m\"", "\"name\":\"../../m\"", "../../m"),
        (
            "\"name\":\"kjv-llama/config.json\"",
            "\"name\":\"kjv-llama/../../config.json\"",
            "kjv-llama/../../config.json",
        ),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&sidecar, text.replace(from, to)).unwrap();
        let before = dir.listing();
        let (_, stderr) = mlpack(&dir).args(["rebuild", "out/m-Q8_0.gguf"]).expect(2);
        assert!(stderr.contains(named), "{stderr}");
        assert_eq!(dir.listing(), before);
    }
}
