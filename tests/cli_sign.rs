//! keygen, sign, verify: keys and passphrases, what is written, exit codes, and what one flipped byte does.

use crate::support::{Mlpack, TestDir, fixture, mlpack, sha256};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// The release of the legal-qa fixture, copied so that its inputs can be changed, with a signed Q8_0 file.
pub struct Release {
    pub dir: TestDir,
}

impl Release {
    pub fn new() -> Release {
        let dir = TestDir::new();
        for part in ["kjv-llama", "legal-qa-lora", "mlflow"] {
            dir.copy(&format!("legal-qa/{part}"), part);
        }
        for file in ["mlpack.toml", "dataset.jsonl"] {
            std::fs::copy(fixture("legal-qa").join(file), dir.path(file)).unwrap();
        }
        let release = Release { dir };
        release.run(&["release", "mlpack.toml", "-o", "dist"]).succeed();
        release.run(&["keygen", "--out", "release"]).succeed();
        release
    }

    pub fn signed() -> Release {
        let release = Release::new();
        release.run(&["sign", FILE, "--key", "release.pem"]).succeed();
        release
    }

    pub fn run(&self, args: &[&str]) -> Mlpack {
        mlpack(&self.dir).args(args)
    }

    pub fn verify(&self, path: &str, code: i32) -> String {
        self.run(&["verify", path, "--key", "release.pub"]).expect(code).0
    }

    pub fn flip(&self, path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
}

pub const FILE: &str = "dist/legal-qa-Q8_0.gguf";
pub const RUN: &str = "4c421e9ce91a40368c786c2f89e8fc82";

fn states(trace: &Value, found: &mut Vec<(String, String, String)>) {
    let text = |key: &str| trace[key].as_str().unwrap_or_default().to_owned();
    found.push((text("kind"), text("name"), text("state")));
    trace["children"].as_array().into_iter().flatten().for_each(|child| states(child, found));
}

#[test]
fn a_key_pair_is_written_once_and_the_private_half_for_its_owner_alone() {
    let dir = TestDir::new();
    for algorithm in ["ecdsa-p256", "ecdsa-p384", "ed25519"] {
        let made = mlpack(&dir).args(["keygen", "--out", algorithm, "--algorithm", algorithm]).json();
        assert_eq!(made["encrypted"], false);
        let mode = std::fs::metadata(dir.path(&format!("{algorithm}.pem"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (_, stderr) = mlpack(&dir).args(["keygen", "--out", algorithm]).expect(2);
        assert!(stderr.contains("is there already"), "{stderr}");
    }
    std::fs::write(dir.path("pass"), "correct horse\n").unwrap();
    mlpack(&dir).args(["keygen", "--out", "locked", "--passphrase-file", "pass"]).succeed();
    std::fs::write(dir.path("model"), "weights").unwrap();
    let sign = || mlpack(&dir).args(["sign", "model", "--key", "locked.pem"]);
    let (_, stderr) = sign().env("MLPACK_PASSPHRASE", "wrong").expect(2);
    assert!(stderr.contains("the passphrase is wrong"), "{stderr}");
    sign().env("MLPACK_PASSPHRASE", "correct horse").succeed();
    let pem = std::fs::read_to_string(dir.path("ecdsa-p384.pem")).unwrap();
    mlpack(&dir).args(["sign", "model", "--key", "env:SIGNING_KEY"]).env("SIGNING_KEY", &pem).succeed();
    mlpack(&dir).args(["verify", "model", "--key", "ecdsa-p384.pub"]).succeed();
    mlpack(&dir).args(["verify", "model", "--key", "locked.pub"]).expect(1);
}

#[test]
fn a_signed_release_is_verified_from_the_file_alone() {
    let release = Release::signed();
    release.verify(FILE, 0);
    // The file and its claims, without the store, the inputs and the run's database.
    let away = TestDir::new();
    for name in [FILE.to_owned(), format!("{FILE}.claims.jsonl"), "release.pub".to_owned()] {
        let to = away.path(Path::new(&name).file_name().unwrap().to_str().unwrap());
        std::fs::copy(release.dir.path(&name), to).unwrap();
    }
    std::fs::write(
        away.path("policy.toml"),
        "[[key]]\nfile = 'release.pub'\n[require]\nlinks = ['base', 'adapter', 'run', 'dataset']\n",
    )
    .unwrap();
    let verified = mlpack(&away).args(["verify", "legal-qa-Q8_0.gguf", "--policy", "policy.toml"]).json();
    assert_eq!(verified["verified"], true);
    let mut found = Vec::new();
    states(&verified["trace"]["root"], &mut found);
    let state =
        |kind: &str| found.iter().find(|(k, ..)| k == kind).map(|(_, name, state)| (name.as_str(), state.as_str()));
    assert_eq!(state("run"), Some((RUN, "verified")));
    assert_eq!(state("step"), Some(("convert", "verified")));
    assert_eq!(state("dataset"), Some(("us-constitution-qa", "claimed")), "its bytes are not here");
    // The demand for the bytes is another one.
    std::fs::write(away.path("policy.toml"), "[[key]]\nfile = 'release.pub'\n[require]\nbytes = ['dataset']\n")
        .unwrap();
    let (stdout, _) = mlpack(&away).args(["verify", "legal-qa-Q8_0.gguf", "--policy", "policy.toml"]).expect(1);
    assert!(
        stdout.contains("no  the bytes of the dataset are here\n    found: us-constitution-qa: its bytes are not here"),
        "{stdout}"
    );
}

#[test]
fn signing_again_gives_the_same_bytes() {
    let release = Release::signed();
    let written = || {
        [".claims.jsonl", ".sigstore.json"]
            .map(|ending| std::fs::read(release.dir.path(&format!("{FILE}{ending}"))).unwrap())
    };
    let before = (written(), release.dir.listing());
    release.run(&["sign", FILE, "--key", "release.pem"]).succeed();
    assert_eq!((written(), release.dir.listing()), before);
}

#[test]
fn steps_are_signed_by_the_keys_that_a_policy_gives_them() {
    let release = Release::new();
    release.run(&["keygen", "--out", "trainer", "--algorithm", "ed25519"]).succeed();
    release.run(&["sign", FILE, "--key", "trainer.pem", "--step", "train"]).succeed();
    release.run(&["sign", FILE, "--key", "release.pem", "--step", "convert"]).succeed();
    let policy = |trainer: &str, release: &str| {
        format!(
            "[[key]]\nname = 'trainer'\nfile = 'trainer.pub'\nsteps = ['{trainer}']\n\
             [[key]]\nname = 'release'\nfile = 'release.pub'\nsteps = ['{release}']\n\
             [require]\nlinks = ['base', 'adapter', 'run', 'dataset']\nbytes = ['base', 'dataset']\n"
        )
    };
    std::fs::write(release.dir.path("policy.toml"), policy("train", "convert")).unwrap();
    release.run(&["verify", FILE, "--policy", "policy.toml"]).succeed();
    std::fs::write(release.dir.path("policy.toml"), policy("convert", "train")).unwrap();
    let (stdout, _) = release.run(&["verify", FILE, "--policy", "policy.toml"]).expect(1);
    assert!(stdout.contains("signed by `trainer`, which is not trusted for train statements"), "{stdout}");
}

#[test]
fn a_directory_gets_a_model_signature_and_its_statements_signed() {
    let release = Release::new();
    let signed = release.run(&["sign", "dist/legal-qa", "--key", "release.pem"]).json();
    assert_eq!(signed["model_signature"], "dist/legal-qa/model.sig");
    assert!(signed["signed"].as_array().unwrap().iter().any(|s| s["step"] == "merge"));
    release.verify("dist/legal-qa", 0);
    release.flip(&release.dir.path("dist/legal-qa/model.safetensors"));
    let stdout = release.verify("dist/legal-qa", 1);
    assert!(stdout.contains("`model.safetensors` has other bytes than the signed ones"), "{stdout}");
}

/// The whole text of a trace that does not hold.
fn broken(release: &Release, path: &str) -> String {
    release.run(&["trace", path, "--key", "release.pub"]).expect(1).0
}

#[test]
fn one_flipped_byte_is_found_and_named() {
    let check = |change: &dyn Fn(&Release), expected: &[&str]| {
        let release = Release::signed();
        assert!(release.run(&["trace", FILE, "--key", "release.pub"]).succeed().contains("[verified]"));
        change(&release);
        let text = broken(&release, FILE);
        for part in expected {
            assert!(text.contains(part), "{part}\n{text}");
        }
        release.verify(FILE, 1);
    };
    let flip = |name: &'static str| move |release: &Release| release.flip(&release.dir.path(name));
    // Artifact, base, adapter, dataset.
    check(&flip(FILE), &["no statement about these bytes"]);
    check(&flip("kjv-llama/model.safetensors"), &["`kjv-llama/model.safetensors`", "`model.safetensors` has sha256"]);
    check(&flip("legal-qa-lora/adapter_model.safetensors"), &["`adapter_model.safetensors` has sha256"]);
    check(&flip("dataset.jsonl"), &["dataset `us-constitution-qa`", "`dataset.jsonl` has sha256"]);
    // Statement, bundle, run record: each in the store.
    let object = |test: fn(&Value) -> bool| {
        move |release: &Release| {
            let objects = release.dir.path("dist/.mlpack/objects/sha256");
            let mut found = Vec::new();
            for prefix in std::fs::read_dir(objects).unwrap().map(Result::unwrap) {
                for entry in std::fs::read_dir(prefix.path()).unwrap().map(Result::unwrap) {
                    let value: Value = serde_json::from_slice(&std::fs::read(entry.path()).unwrap()).unwrap();
                    if test(&value) {
                        found.push(entry.path());
                    }
                }
            }
            assert!(!found.is_empty());
            found.iter().for_each(|path| release.flip(path));
        }
    };
    let damaged = ["object of the store is damaged"];
    check(&object(|v| v["predicate"]["buildDefinition"]["buildType"] == "urn:mlpack:convert:v1"), &damaged);
    check(&object(|v| v.get("dsseEnvelope").is_some()), &damaged);
    check(
        &|release| {
            object(|v| v["run_id"] == RUN)(release);
            // The sidecar has the record too.
            std::fs::remove_file(release.dir.path(&format!("{FILE}.claims.jsonl"))).unwrap();
        },
        &damaged,
    );
}

#[test]
fn one_flipped_byte_of_any_shard_of_a_base_is_found_and_named() {
    let dir = TestDir::new();
    dir.copy("legal-qa/kjv-llama", "whole");
    dir.copy("legal-qa/legal-qa-lora", "lora");
    mlpack(&dir).args(["merge", "whole", "-a", "lora", "--max-shard-size", "2MB", "-o", "base"]).succeed();
    mlpack(&dir).args(["convert", "base", "--quant", "Q8_0", "-o", "out"]).succeed();
    let shards: Vec<String> =
        dir.listing().into_iter().filter(|name| name.starts_with("base/") && name.ends_with(".safetensors")).collect();
    assert!(shards.len() > 1, "{shards:?}");
    mlpack(&dir).args(["trace", "out/base-Q8_0.gguf"]).succeed();
    for shard in shards.iter().chain([&"base/model.safetensors.index.json".to_owned()]) {
        let path = dir.path(shard);
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        bytes[whole.len() / 2] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (text, _) = mlpack(&dir).args(["trace", "out/base-Q8_0.gguf"]).expect(1);
        let (_, name) = shard.split_once('/').unwrap();
        assert!(text.contains(&format!("`{name}` has sha256")), "{shard}:\n{text}");
        std::fs::write(&path, whole).unwrap();
    }
    mlpack(&dir).args(["trace", "out/base-Q8_0.gguf"]).succeed();
}

#[test]
fn every_flipped_byte_of_a_bundle_or_record_in_the_claims_is_found() {
    let release = Release::signed();
    // Without the store, the sidecar is all there is.
    std::fs::remove_dir_all(release.dir.path("dist/.mlpack")).unwrap();
    std::fs::remove_file(release.dir.path(&format!("{FILE}.sigstore.json"))).unwrap();
    let sidecar = release.dir.path(&format!("{FILE}.claims.jsonl"));
    let whole = std::fs::read(&sidecar).unwrap();
    release.verify(FILE, 0);
    let ends: Vec<usize> = whole.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i).collect();
    assert_eq!(ends.len(), 3, "convert, train, and the run record");
    let mut start = 0;
    for end in ends {
        for part in 1..8 {
            let mut bytes = whole.clone();
            bytes[start + (end - start) * part / 8] ^= 1;
            std::fs::write(&sidecar, &bytes).unwrap();
            release.run(&["verify", FILE, "--key", "release.pub"]).fails();
            release.run(&["trace", FILE, "--key", "release.pub"]).fails();
        }
        start = end + 1;
    }
}

#[test]
fn a_release_file_may_name_who_signs() {
    let release = Release::new();
    let file = release.dir.path("mlpack.toml");
    let declared = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, declared + "\n[sign]\nkey = 'env:RELEASE_KEY'\n").unwrap();
    let run = || release.run(&["release", "mlpack.toml", "-o", "signed"]);
    let (_, stderr) = run().expect(2);
    assert!(stderr.contains("the variable `RELEASE_KEY`"), "{stderr}");
    assert!(!release.dir.path("signed").exists(), "a missing key is found before anything is written");
    let pem = std::fs::read_to_string(release.dir.path("release.pem")).unwrap();
    let text = run().env("RELEASE_KEY", &pem).succeed();
    assert!(text.contains("[verified]") && !text.contains("[unsigned]"), "{text}");
    for path in ["signed/legal-qa-Q8_0.gguf", "signed/legal-qa", "oci:signed/layout:v1-q8_0"] {
        release.verify(path, 0);
    }
    // The same bytes each time: keys sign deterministically.
    let bundle = release.dir.path("signed/legal-qa-Q8_0.gguf.sigstore.json");
    let before = std::fs::read(&bundle).unwrap();
    run().env("RELEASE_KEY", &pem).succeed();
    assert_eq!(std::fs::read(&bundle).unwrap(), before);
}

#[test]
fn what_cannot_be_signed_or_verified_is_said() {
    let release = Release::new();
    let refused = |args: &[&str], code: i32, expected: &str| {
        let (_, stderr) = release.run(args).expect(code);
        assert!(stderr.contains(expected), "{stderr}");
    };
    refused(&["sign", FILE, "--key", "release.pub"], 3, "found:    PUBLIC KEY");
    refused(&["sign", FILE, "--key", "env:NO_SUCH_VARIABLE"], 2, "the variable `NO_SUCH_VARIABLE`");
    refused(&["verify", FILE], 2, "nobody to trust is named");
    refused(&["verify", FILE, "--key", "release.pem"], 3, "found:    PRIVATE KEY");
    refused(&["verify", "absent.gguf", "--key", "release.pub"], 4, "absent.gguf");
    release.flip(&release.dir.path("dataset.jsonl"));
    refused(&["sign", FILE, "--key", "release.pem"], 3, "what is stated about it does not hold");
}

#[test]
fn a_later_import_completes_what_was_made_before() {
    let dir = TestDir::new();
    dir.copy("legal-qa/kjv-llama", "base");
    dir.copy("legal-qa/legal-qa-lora", "adapters/lora");
    std::fs::remove_file(dir.path("adapters/lora/trainer_state.json")).unwrap();
    mlpack(&dir).args(["convert", "base", "-a", "adapters/lora", "--quant", "Q8_0", "-o", "out"]).succeed();
    let file = "out/lora-Q8_0.gguf";
    let text = mlpack(&dir).args(["trace", file]).succeed();
    assert!(text.contains("training run unknown  [missing]"), "{text}");
    let before: Vec<_> = ["", ".claims.jsonl"].map(|e| std::fs::read(dir.path(&format!("{file}{e}"))).unwrap()).into();
    dir.copy("legal-qa/mlflow", "mlflow");
    let run = format!("mlflow/mlflow.db#{RUN}");
    mlpack(&dir).args(["run", "import", &run, "--adapter", "adapters/lora"]).succeed();
    let text = mlpack(&dir).args(["trace", file]).succeed();
    assert!(text.contains(&format!("training run {RUN}")) && !text.contains("unknown"), "{text}");
    let after: Vec<_> = ["", ".claims.jsonl"].map(|e| std::fs::read(dir.path(&format!("{file}{e}"))).unwrap()).into();
    assert_eq!(before, after, "nothing is touched");
}

#[test]
fn an_adapter_of_other_bytes_than_the_base_is_named_by_digest() {
    let dir = TestDir::new();
    dir.copy("legal-qa/kjv-llama", "base");
    dir.copy("legal-qa/legal-qa-lora", "lora");
    dir.copy("legal-qa/mlflow", "mlflow");
    let imported = mlpack(&dir).args(["run", "import", "--adapter", "lora", "--base", "base"]).json();
    let sha256 = imported["base"][0]["sha256"].as_str().unwrap().to_owned();
    assert_eq!(imported["base"][0]["name"], "base/model.safetensors");
    let convert = ["convert", "base", "-a", "lora", "--quant", "Q8_0"];
    let warning = "was trained on `base/model.safetensors` with sha256";
    let (_, stderr) = mlpack(&dir).args(convert).args(["-o", "same"]).expect(0);
    assert!(!stderr.contains(warning), "{stderr}");
    // One statement says what trained the adapter, and on which base.
    let text = mlpack(&dir).args(["trace", "same/lora-Q8_0.gguf"]).succeed();
    assert_eq!(text.matches("─ train  statement").count(), 1, "{text}");
    let train = text.split("─ train  statement").nth(1).unwrap();
    assert!(train.contains(&format!("base `base/model.safetensors`  sha256:{}", &sha256[..8])), "{text}");
    // Another weight, of the same shape and name.
    let path = dir.path("base/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let onnx = ["convert", "base", "-a", "lora", "--to", "onnx", "--precision", "fp32"];
    for (command, out) in [(&convert[..], "other"), (&["merge", "base", "-a", "lora"], "merged"), (&onnx, "graphs")] {
        let (_, stderr) = mlpack(&dir).args(command).args(["-o", out]).expect(0);
        assert!(stderr.contains(warning) && stderr.contains(&sha256), "{stderr}");
    }
}

#[test]
fn a_run_near_the_adapter_is_found_by_what_it_shares_with_it() {
    let dir = TestDir::new();
    dir.copy("legal-qa/legal-qa-lora", "project/lora");
    dir.copy("legal-qa/mlflow", "project/mlflow");
    let imported = mlpack(&dir).args(["run", "import", "--adapter", "project/lora"]).json();
    assert_eq!(imported["record"]["run_id"], RUN);
    assert!(imported["record"]["inferred"].as_array().unwrap().iter().any(|field| field == "run_id"));
    // Without the trainer state there is nothing that links them: the store does not have the artifact's files.
    std::fs::remove_file(dir.path("project/lora/trainer_state.json")).unwrap();
    let (_, stderr) = mlpack(&dir).args(["run", "import", "--adapter", "project/lora"]).expect(2);
    assert!(stderr.contains("no training run was found"), "{stderr}");
}

#[test]
fn a_release_traces_to_its_run_from_the_layout_and_by_digest() {
    let release = Release::signed();
    let from = |artifact: &str| {
        let trace = release.run(&["trace", artifact]).json();
        let mut found = Vec::new();
        states(&trace["root"], &mut found);
        assert!(found.iter().any(|(kind, name, _)| kind == "run" && name == RUN), "{artifact}: {found:?}");
        trace
    };
    for tag in ["v1", "v1-q8_0"] {
        let trace = from(&format!("oci:dist/layout:{tag}"));
        assert_eq!(trace["root"]["children"][0]["name"], "package");
    }
    from(&format!("sha256:{}", sha256(&release.dir.path(FILE))));
    // From the layout alone, by the claims that it holds.
    let away = TestDir::new();
    let copied =
        std::process::Command::new("cp").args(["-r"]).arg(release.dir.path("dist/layout")).arg(away.path("")).status();
    assert!(copied.unwrap().success());
    let text = mlpack(&away).args(["trace", "oci:layout:v1-q8_0"]).succeed();
    assert!(text.contains(&format!("training run {RUN}")), "{text}");
    // One flipped byte of a blob.
    let digest = sha256(&release.dir.path(FILE));
    release.flip(&away.path(&format!("layout/blobs/sha256/{digest}")));
    let (text, _) = mlpack(&away).args(["trace", "oci:layout:v1-q8_0"]).expect(1);
    assert!(text.contains("the layer's bytes have sha256"), "{text}");
}

#[test]
fn what_was_made_from_a_dataset_or_a_base_is_listed() {
    let release = Release::signed();
    for of in ["dataset.jsonl", "kjv-llama/model.safetensors", "legal-qa-lora/adapter_model.safetensors"] {
        let listed = release.run(&["trace", "--dependents", of, "dist", "--key", "release.pub"]).json();
        let made: Vec<&str> =
            listed["dependents"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap()).collect();
        for name in ["legal-qa-Q8_0.gguf", "legal-qa", "manifest:v1"] {
            assert!(made.contains(&name), "{of}: {made:?}");
        }
        assert_eq!(made.contains(&"adapter_model.safetensors"), of == "dataset.jsonl");
    }
    // A file with other metadata and the same tensors: they lead to what was packed.
    let identities = release.run(&["trace", FILE, "--identities"]).json();
    let tensors = identities["tensors"].as_str().unwrap();
    let packed = release.run(&["trace", "--dependents", tensors, "dist"]).json();
    assert_eq!(packed["dependents"][0]["step"], "package", "{packed}");
    let none = release.run(&["trace", "--dependents", &"0".repeat(64), "dist"]).succeed();
    assert!(none.starts_with("nothing is stated to be made from"), "{none}");
}

#[test]
fn a_page_a_graph_and_a_bill_of_materials_are_the_same_each_time() {
    let release = Release::signed();
    let write = |name: &str| {
        let (html, bom) = (format!("{name}.html"), format!("{name}.json"));
        release.run(&["trace", FILE, "--key", "release.pub", "--html", &html, "--cyclonedx", &bom]).succeed();
        [html, bom].map(|file| std::fs::read_to_string(release.dir.path(&file)).unwrap())
    };
    let [html, bom] = write("a");
    assert_eq!([&html, &bom], write("b").each_ref());
    for part in
        [RUN, "learning_rate", "us-constitution-qa", "class=\"lineage\"", "class=\"curve\"", "class=\"types\"", "Q8_0"]
    {
        assert!(html.contains(part), "{part}");
    }
    for other in ["<script", "src=", "href=", "url("] {
        assert!(!html.contains(other), "the page needs nothing else: {other}");
    }
    for graph in ["--mermaid", "--dot"] {
        let text = release.run(&["trace", FILE, graph]).succeed();
        assert!(text.contains("us-constitution-qa") && text.contains("legal-qa-Q8_0.gguf"), "{text}");
    }
}

#[test]
fn embedded_pointers_are_shown_as_claims_and_fit_the_statement_that_they_name() {
    let dir = TestDir::new();
    dir.copy("legal-qa/kjv-llama", "kjv-llama");
    dir.copy("legal-qa/legal-qa-lora", "lora");
    dir.copy("legal-qa/mlflow", "mlflow");
    let convert = |out: &str, more: &[&str]| {
        let args = ["convert", "kjv-llama", "-a", "lora", "--quant", "F16", "-o", out];
        mlpack(&dir).args(args.iter().chain(more)).succeed();
        dir.path(&format!("{out}/lora-F16.gguf"))
    };
    let (plain, embedded) = (convert("plain", &[]), convert("out", &["--embed-provenance"]));
    let (plain, made) = (mlpack_gguf::GgufFile::open(&plain).unwrap(), mlpack_gguf::GgufFile::open(&embedded).unwrap());
    // Nothing else changes: every key and the bytes of every tensor.
    let entries = |gguf: &mlpack_gguf::GgufFile| -> Vec<(String, mlpack_tensor::MetaValue)> {
        gguf.metadata().iter().map(|(key, value)| (key.to_owned(), value.clone())).collect()
    };
    assert!(entries(&made).starts_with(&entries(&plain)));
    assert!(plain.metadata().iter().all(|(key, _)| !key.starts_with("mlpack.")), "only where it is asked for");
    for (a, b) in plain.tensors().iter().zip(made.tensors()) {
        assert_eq!((&a.name, plain.bytes(a)), (&b.name, made.bytes(b)));
    }
    let text = mlpack(&dir).args(["trace", "out/lora-F16.gguf"]).succeed();
    assert!(text.contains("embedded build id=fits the statement"), "{text}");
    // The file alone: all of it is a claim, and no policy is met by it.
    let base = sha256(&dir.path("kjv-llama/model.safetensors"));
    let away = TestDir::new();
    std::fs::copy(&embedded, away.path("m.gguf")).unwrap();
    let text = mlpack(&away).args(["trace", "m.gguf"]).succeed();
    let base = format!("base `kjv-llama/model.safetensors`  sha256:{base}");
    for part in [base.as_str(), "[claimed]", RUN, "the file says so itself"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    mlpack(&away).args(["keygen", "--out", "key"]).succeed();
    mlpack(&away).args(["verify", "m.gguf", "--key", "key.pub"]).expect(1);
    // A file that was made from it keeps the keys, and they are not about it.
    mlpack(&dir).args(["quantize", "out/lora-F16.gguf", "--quant", "Q8_0", "-o", "again.gguf"]).succeed();
    let text = mlpack(&dir).args(["trace", "again.gguf"]).succeed();
    assert!(text.contains("its metadata is of another step"), "{text}");
}

#[test]
fn a_merged_checkpoint_and_a_modelfile_say_what_they_are_made_from() {
    let dir = &TestDir::new();
    for part in ["kjv-llama", "legal-qa-lora", "mlflow"] {
        dir.copy(&format!("legal-qa/{part}"), part);
    }
    let release = "name = \"m\"\nbase = \"kjv-llama\"\noutput = \"out\"\nembed_provenance = true\n\
        [[adapter]]\npath = \"legal-qa-lora\"\n[gguf]\nquant = [\"F16\"]\n[publish]\nto = \"oci:layout:v1\"\n\
        [merge]\noutput = \"merged\"\nmax_shard_size = \"1MB\"\n";
    std::fs::write(dir.path("mlpack.toml"), release).unwrap();
    mlpack(dir).args(["release"]).succeed();
    let merge = ["merge", "kjv-llama", "-a", "legal-qa-lora", "--max-shard-size", "1MB", "-o", "plain"];
    mlpack(dir).args(merge).succeed();
    let first = |dir: &TestDir, folder: &str| {
        let shard = |path: &String| path.starts_with(&format!("{folder}/")) && path.ends_with(".safetensors");
        let shards: Vec<String> = dir.listing().into_iter().filter(shard).collect();
        assert!(shards.len() > 1, "{shards:?}");
        shards
    };
    // Nothing else changes: the other shards, and the tensors of the first.
    let (plain, made) = (first(dir, "plain"), first(dir, "out/merged"));
    for (plain, made) in plain.iter().zip(&made).skip(1) {
        assert_eq!(sha256(&dir.path(plain)), sha256(&dir.path(made)));
    }
    let open = |path: &str| mlpack_safetensors::SafetensorsFile::open(&dir.path(path)).unwrap();
    let (plain, said) = (open(&plain[0]), open(&made[0]));
    for (a, b) in plain.entries().iter().zip(said.entries()) {
        assert_eq!((&a.name, plain.bytes(a)), (&b.name, said.bytes(b)));
    }
    let text = mlpack(dir).args(["trace", "out/merged"]).succeed();
    assert!(text.contains("embedded build id=fits the statement"), "{text}");
    assert_eq!(mlpack(dir).args(["rebuild", "out/merged"]).json()["same"], true);
    // The file alone: claims.
    let away = TestDir::new();
    std::fs::copy(dir.path(&made[0]), away.path("m.safetensors")).unwrap();
    let text = mlpack(&away).args(["trace", "m.safetensors"]).succeed();
    for part in ["kjv-llama/model.safetensors", "[claimed]", RUN, "the file says so itself"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    // The Modelfile has what the file of its model says.
    let metadata = mlpack_safetensors::read_metadata(said.preamble()).unwrap();
    assert_eq!(metadata["format"], "pt");
    let modelfile = std::fs::read_to_string(dir.path("out/m-F16.Modelfile")).unwrap();
    let comments: Vec<&str> = modelfile.lines().take_while(|line| line.starts_with("# mlpack.")).collect();
    assert!(comments[0].starts_with("# mlpack.build: "), "{modelfile}");
    for key in ["mlpack.base.0.sha256", "mlpack.adapter.0.sha256", "mlpack.run.0.uri"] {
        assert!(comments.contains(&format!("# {key}: {}", metadata[key]).as_str()), "{key}\n{modelfile}");
    }
}

#[test]
fn a_base_is_hashed_once_as_long_as_nothing_tells_that_it_changed() {
    let dir = TestDir::new();
    dir.copy("legal-qa/kjv-llama", "base");
    let base = dir.path("base/model.safetensors");
    let convert = |more: &[&str]| {
        mlpack(&dir).args(["convert", "base", "--quant", "Q8_0", "-o", "out"].iter().chain(more)).succeed();
        let sidecar = std::fs::read_to_string(dir.path("out/base-Q8_0.gguf.claims.jsonl")).unwrap();
        move |digest: &str| sidecar.contains(digest)
    };
    let truth = sha256(&base);
    assert!(convert(&[])(&truth));
    // The note of the digest. Its stamp is believed when the file was changed last well before it.
    let notes = || dir.listing().into_iter().filter(|path| path.contains(".mlpack/digests/")).collect::<Vec<_>>();
    let note = dir.path(&notes()[0]);
    assert_eq!(notes().len(), 1);
    let later = || {
        let time = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
        std::fs::File::options().write(true).open(&note).unwrap().set_modified(time).unwrap();
    };
    // What is noted is what is stated: nothing else shows that nothing was hashed.
    let noted = std::fs::read_to_string(&note).unwrap();
    let false_digest = "ab".repeat(32);
    std::fs::write(&note, noted.replace(&truth, &false_digest)).unwrap();
    assert!(convert(&[])(&truth), "the base was changed just before");
    std::fs::write(&note, noted.replace(&truth, &false_digest)).unwrap();
    later();
    assert!(convert(&[])(&false_digest));
    assert!(convert(&["--rehash"])(&truth));
    // A trace looks at the stamp too: an edit is found, even where its time was put back.
    std::fs::remove_dir_all(dir.path("out")).unwrap();
    assert!(convert(&[])(&truth));
    later();
    let file = "out/base-Q8_0.gguf";
    assert!(mlpack(&dir).args(["trace", file]).succeed().contains(&truth));
    let mut bytes = std::fs::read(&base).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let modified = std::fs::metadata(&base).unwrap().modified().unwrap();
    std::fs::write(&base, &bytes).unwrap();
    std::fs::File::options().write(true).open(&base).unwrap().set_modified(modified).unwrap();
    let (text, _) = mlpack(&dir).args(["trace", file]).expect(1);
    assert!(text.contains("`model.safetensors` has sha256"), "{text}");
    // What a note says falsely is believed by a trace that is not told otherwise, and by no verdict.
    std::fs::remove_dir_all(dir.path("out")).unwrap();
    assert!(convert(&[])(&sha256(&base)));
    let note = std::fs::read_to_string(dir.path(&notes()[0])).unwrap();
    std::fs::write(dir.path(&notes()[0]), note.replace(&sha256(&base), &false_digest)).unwrap();
    later();
    let (text, _) = mlpack(&dir).args(["trace", file]).expect(1);
    assert!(text.contains(&format!("`model.safetensors` has sha256 {false_digest}")), "{text}");
    mlpack(&dir).args(["trace", file, "--rehash"]).succeed();
    mlpack(&dir).args(["sign", file, "--key", "key.pem"]).expect(4);
    mlpack(&dir).args(["keygen", "--out", "key"]).succeed();
    mlpack(&dir).args(["sign", file, "--key", "key.pem"]).succeed();
    mlpack(&dir).args(["verify", file, "--key", "key.pub"]).succeed();
}

#[test]
fn tensors_keep_their_identity_in_other_files() {
    let dir = TestDir::new();
    dir.copy("legal-qa/kjv-llama", "whole");
    let identities = |path: &str| mlpack(&dir).args(["trace", path, "--identities"]).json();
    let whole = identities("whole");
    // The same tensors in a file whose metadata is another.
    dir.copy("legal-qa/kjv-llama", "edited");
    let path = dir.path("edited/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let other = std::collections::HashMap::from([("other".to_owned(), "metadata".to_owned())]);
    safetensors::serialize_to_file(tensors.iter(), Some(other), &path).unwrap();
    let edited = identities("edited");
    assert_ne!(whole["tree"], edited["tree"]);
    assert!(whole["tensors"].is_string());
    assert_eq!(whole["tensors"], edited["tensors"]);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_ne!(whole["tensors"], identities("edited")["tensors"]);
}
