//! `mlpack release` on the legal-qa fine-tune: the main job.

use crate::support::{TestDir, fixture, kill_at, mlpack, sha256};
use mlpack_oci::{Instruction, Layout, Modelfile};
use serde_json::Value;

const RUN: &str = "4c421e9ce91a40368c786c2f89e8fc82";

fn release(dir: &TestDir) -> Value {
    let file = fixture("legal-qa/mlpack.toml");
    mlpack(dir).args(["release", file.to_str().unwrap(), "-o", "dist"]).json()
}

/// Every node of a trace.
fn nodes(node: &Value) -> Vec<&Value> {
    let children = node["children"].as_array().map(Vec::as_slice).unwrap_or_default();
    std::iter::once(node).chain(children.iter().flat_map(nodes)).collect()
}

#[test]
fn makes_every_declared_output_and_traces_each_back_to_the_run() {
    let dir = TestDir::new();
    let done = release(&dir);
    let outputs = done["outputs"].as_array().unwrap();
    for (output, quant) in outputs.iter().zip(["F16", "Q8_0", "Q4_K_M"]) {
        let path = dir.path(&format!("dist/legal-qa-{quant}.gguf"));
        assert_eq!(output["sha256"], sha256(&path));
        assert!(path.with_extension("Modelfile").is_file());
    }
    assert_eq!(outputs.len(), 3);
    for trace in done["traces"].as_array().unwrap() {
        assert_eq!(trace["holds"], true);
        let nodes = nodes(&trace["root"]);
        assert!(nodes.iter().all(|n| n["state"] != "mismatch" && n["kind"] != "fault"), "{trace:#}");
        let run = nodes.iter().find(|n| n["kind"] == "run").expect("the trace reaches a run");
        assert!(run["name"].as_str().unwrap().contains(RUN), "{run:#}");
        for role in ["base", "adapter"] {
            // The bytes fit; nobody signed.
            let found = nodes.iter().any(|n| n["role"] == role && n["state"] == "unsigned");
            assert!(found, "the bytes of the {role} are found");
        }
        let dataset = nodes.iter().find(|n| n["kind"] == "dataset").expect("the run names its data");
        assert_eq!(dataset["state"], "unsigned");
    }
}

#[test]
fn trace_shows_people_the_way_back() {
    let dir = TestDir::new();
    release(&dir);
    let (text, _) = mlpack(&dir).args(["trace", "dist/legal-qa-Q4_K_M.gguf", "--check-store"]).expect(0);
    assert!(text.contains(RUN), "{text}");
    insta::assert_snapshot!(text);
}

#[test]
fn one_changed_byte_is_a_mismatch_and_the_answer_is_no() {
    let dir = TestDir::new();
    release(&dir);
    let path = dir.path("dist/legal-qa-Q8_0.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (text, _) = mlpack(&dir).args(["trace", "dist/legal-qa-Q8_0.gguf"]).expect(1);
    assert!(text.contains("mismatch"), "{text}");
}

#[test]
fn the_layout_verifies_and_the_modelfile_says_what_was_declared() {
    let dir = TestDir::new();
    let done = release(&dir);
    let layout = Layout::open(&dir.path("dist/layout")).unwrap();
    layout.verify().unwrap();
    let tags: Vec<String> = layout.tags().unwrap().into_iter().filter_map(|(tag, _)| tag).collect();
    assert_eq!(tags, ["v1", "v1-f16", "v1-q4_k_m", "v1-q8_0"]);
    assert_eq!(done["published"][0]["manifests"].as_array().unwrap().len(), 4);
    // The blob in the layout is the file: the digest that the statements name.
    let gguf = dir.path("dist/legal-qa-Q4_K_M.gguf");
    assert!(layout.blob_path(&sha256(&gguf).parse().unwrap()).is_file());

    let modelfile = Modelfile::open(&gguf.with_extension("Modelfile")).unwrap();
    let parameter = |name: &str| {
        let values = modelfile.instructions().iter().filter_map(|i| match i {
            Instruction::Parameter(p) if p.name() == name => Some(p.value().to_owned()),
            _ => None,
        });
        values.collect::<Vec<_>>()
    };
    assert_eq!((parameter("temperature"), parameter("num_ctx")), (vec!["0.2".to_owned()], vec!["512".to_owned()]));
    assert_eq!(parameter("stop"), ["<|im_end|>", "<|im_start|>"]);
    let from = |i: &Instruction| matches!(i, Instruction::From(path) if path == "./legal-qa-Q4_K_M.gguf");
    assert!(modelfile.instructions().iter().any(from));
    let template = |i: &Instruction| matches!(i, Instruction::Template(text) if text.contains("<|im_start|>assistant"));
    assert!(modelfile.instructions().iter().any(template), "{modelfile:?}");
}

#[test]
fn a_second_run_gives_the_same_files() {
    let dir = TestDir::new();
    release(&dir);
    let digests = |dir: &TestDir| -> Vec<(String, String)> {
        // Where files were last seen is about this machine, not about the release.
        let files = dir.listing().into_iter().filter(|f| !f.contains("/.mlpack/"));
        files.map(|f| (sha256(&dir.path(&f)), f)).collect()
    };
    let first = digests(&dir);
    release(&dir);
    assert_eq!(digests(&dir), first);
}

#[test]
fn the_merged_checkpoint_is_there_as_well() {
    let dir = TestDir::new();
    release(&dir);
    mlpack(&dir).args(["convert", "dist/legal-qa", "--quant", "Q4_K_M", "-o", "again"]).succeed();
    assert_eq!(sha256(&dir.path("again/legal-qa-Q4_K_M.gguf")), sha256(&dir.path("dist/legal-qa-Q4_K_M.gguf")));
}

#[test]
fn a_killed_release_ends_in_the_same_bytes() {
    let dir = TestDir::new();
    let file = fixture("legal-qa/mlpack.toml").display().to_string();
    let to = |folder: &'static str| {
        ["release", &*file, "-o", folder, "--threads", "1", "--memory", "2MB"].map(str::to_owned)
    };
    let whole = to("whole");
    mlpack(&dir).args(&whole).succeed();
    for lines in [1, 10, 30] {
        let args = to("dist");
        kill_at(&dir, &args.each_ref().map(String::as_str), "dist/legal-qa", lines);
        let names = dir.listing().into_iter().filter(|name| name.starts_with("dist/") && name.ends_with(".gguf"));
        assert_eq!(names.count(), 0, "nothing has its name before all of it is there");
        mlpack(&dir).args(&args).succeed();
        for file in ["legal-qa/model.safetensors", "legal-qa-F16.gguf", "legal-qa-Q8_0.gguf", "legal-qa-Q4_K_M.gguf"] {
            let digest = |folder: &str| sha256(&dir.path(folder).join(file));
            assert_eq!(digest("dist"), digest("whole"), "{lines}: {file}");
        }
        std::fs::remove_dir_all(dir.path("dist")).unwrap();
    }
}

#[test]
fn adapters_are_merged_as_the_file_says_and_every_statement_records_it() {
    let dir = TestDir::new();
    let (base, adapter) = (fixture("legal-qa/kjv-llama"), fixture("legal-qa/legal-qa-lora"));
    let (base, adapter) = (base.to_str().unwrap(), adapter.to_str().unwrap());
    let file = format!(
        "name = \"m\"\nbase = {base:?}\n[[adapter]]\npath = {adapter:?}\nweight = 0.7\n[[adapter]]\npath = {adapter:?}\n\
         weight = 0.2\n[merge]\noutput = \"merged\"\ncombine = \"ties\"\ndensity = 0.25\nmax_shard_size = \"1MB\"\n\
         [gguf]\nquant = [\"F16\"]\n"
    );
    std::fs::write(dir.path("mlpack.toml"), &file).unwrap();
    mlpack(&dir).args(["release", "-o", "dist"]).succeed();
    let adapters = [format!("{adapter}=0.7"), format!("{adapter}=0.2")];
    let how = ["-a", &adapters[0], "-a", &adapters[1], "--combine", "ties", "--density", "0.25"];
    let merge = [&["merge", base, "--max-shard-size", "1MB", "-o", "merged"][..], &how].concat();
    mlpack(&dir).args(merge).succeed();
    let convert = [&["convert", base, "--quant", "F16", "--name", "m", "-o", "."][..], &how].concat();
    mlpack(&dir).args(convert).succeed();
    let files: Vec<String> = dir.listing().into_iter().filter(|f| f.starts_with("merged/")).collect();
    assert!(files.len() > 8, "{files:?}");
    for file in files.iter().chain([&"m-F16.gguf".to_owned()]) {
        assert_eq!(sha256(&dir.path("dist").join(file)), sha256(&dir.path(file)), "{file}");
    }
    for claims in ["dist/merged.claims.jsonl", "dist/m-F16.gguf.claims.jsonl", "m-F16.gguf.claims.jsonl"] {
        let text = std::fs::read_to_string(dir.path(claims)).unwrap();
        let statement: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let asked = &statement["predicate"]["buildDefinition"]["externalParameters"];
        assert_eq!((&asked["combine"], &asked["density"]), (&"ties".into(), &"0.25".into()), "{claims}: {asked}");
    }
    // Wrong options are found before anything is written.
    std::fs::write(dir.path("mlpack.toml"), file.replace("\"ties\"", "\"slerp\"")).unwrap();
    let (_, stderr) = mlpack(&dir).args(["release", "-o", "nothing"]).expect(2);
    assert!(stderr.contains("`slerp`") && !dir.path("nothing").exists(), "{stderr}");
}
