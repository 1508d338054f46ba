//! A chain of real files, base and adapter to merged checkpoint to GGUF, traced whole, travelling, and tampered with.

use super::*;
use crate::{Artifact, Dependency, Role, RunSource, Step, StepKind, Store, find_run, sidecar_path};
use serde_json::{Map, Value, json};
use std::fs;

const RUN_ID: &str = "4c421e9ce91a40368c786c2f89e8fc82";

/// A project folder with everything recorded.
struct Chain {
    dir: tempfile::TempDir,
}

impl Chain {
    fn new() -> Chain {
        let chain = Chain { dir: tempfile::tempdir().unwrap() };
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa");
        for dir in ["base", "lora", "mlflow", "out/merged"] {
            fs::create_dir_all(chain.path(dir)).unwrap();
        }
        for (file, content) in [
            ("base/model.safetensors", "base weights"),
            ("base/config.json", "{}"),
            ("base/tokenizer.json", "[]"),
            ("lora/adapter_model.safetensors", "adapter weights"),
            ("out/merged/model.safetensors", "merged weights"),
            ("out/merged/config.json", "{}"),
            ("out/merged/tokenizer.json", "[]"),
            ("out/m-Q8_0.gguf", "gguf"),
        ] {
            fs::write(chain.path(file), content).unwrap();
        }
        for (from, to) in [
            ("legal-qa-lora/trainer_state.json", "lora/trainer_state.json"),
            ("legal-qa-lora/adapter_config.json", "lora/adapter_config.json"),
            ("mlflow/mlflow.db", "mlflow/mlflow.db"),
            ("dataset.jsonl", "dataset.jsonl"),
        ] {
            fs::copy(fixture.join(from), chain.path(to)).unwrap();
        }
        chain.record();
        chain
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn digest(&self, name: &str) -> Sha256 {
        mlpack_fs::hash_file(&self.path(name)).unwrap().0
    }

    fn input(&self, role: Role, name: &str) -> Dependency {
        Dependency::file(role, &self.path(name), self.digest(name))
    }

    fn record(&self) {
        let store = Store::beside(&self.path("out"));
        let source = RunSource::Mlflow { db: self.path("mlflow/mlflow.db"), run_id: Some(RUN_ID.to_owned()) };
        let run = find_run(&self.path("lora"), Some(&source), None).unwrap();
        let weights = "lora/adapter_model.safetensors";
        let run = store.record_run(&run, &[Artifact::file(&self.path(weights), self.digest(weights))], &[]).unwrap();

        let mut merge = Step::new(
            StepKind::Merge,
            parameters(json!({"dtype": "BF16"})),
            vec![
                self.input(Role::Base, "base/model.safetensors"),
                self.input(Role::Adapter, weights).annotate("weight", "1"),
                self.input(Role::Config, "base/config.json"),
                self.input(Role::Tokenizer, "base/tokenizer.json"),
                run,
            ],
        );
        let files = ["model.safetensors", "config.json", "tokenizer.json"];
        let files = files.map(|name| (name.to_owned(), self.digest(&format!("out/merged/{name}"))));
        merge.outputs = Artifact::directory(&self.path("out/merged"), &files);
        store.record(&merge).unwrap();
        store.write_sidecar(&merge.outputs[0]).unwrap();

        let mut convert = Step::new(
            StepKind::Convert,
            parameters(json!({"to": "gguf", "quant": "Q8_0"})),
            vec![
                self.input(Role::Model, "out/merged/model.safetensors"),
                self.input(Role::Config, "out/merged/config.json"),
                self.input(Role::Tokenizer, "out/merged/tokenizer.json"),
            ],
        );
        convert.outputs = vec![Artifact::file(&self.path("out/m-Q8_0.gguf"), self.digest("out/m-Q8_0.gguf"))];
        convert.byproducts.insert("tensor-types".to_owned(), json!({"w": "Q8_0"}));
        store.record(&convert).unwrap();
        store.write_sidecar(&convert.outputs[0]).unwrap();
    }

    fn trace(&self, name: &str) -> Trace {
        trace(&self.path(name), &TraceOptions::default()).unwrap()
    }

    /// The rendered trace with digests of known files by name, and without this test's folder.
    fn text(&self, trace: &Trace) -> String {
        let mut text = trace.to_text().replace(&self.dir.path().display().to_string(), "DIR");
        for name in [
            "base/model.safetensors",
            "base/config.json",
            "base/tokenizer.json",
            "lora/adapter_model.safetensors",
            "lora/trainer_state.json",
            "lora/adapter_config.json",
            "out/merged/model.safetensors",
            "out/m-Q8_0.gguf",
            "dataset.jsonl",
        ] {
            text = text.replace(&self.digest(name).to_string(), &format!("<{name}>"));
        }
        // What depends on mlpack's version: digests of statements and of what they name.
        let mut plain = String::new();
        for line in text.lines() {
            let line = line.split("statement ").enumerate().map(|(i, part)| if i == 0 { part } else { &part[12..] });
            plain.push_str(&line.collect::<Vec<_>>().join("statement <id>"));
            plain.push('\n');
        }
        plain.replace(env!("CARGO_PKG_VERSION"), "VERSION")
    }

    /// The one node of that name and kind.
    fn node(trace: &Trace, kind: NodeKind, name: &str) -> Node {
        fn find(node: &Node, kind: NodeKind, name: &str, found: &mut Vec<Node>) {
            if node.kind == kind && node.name == name && !node.repeated {
                found.push(node.clone());
            }
            node.children.iter().for_each(|child| find(child, kind, name, found));
        }
        let mut found = Vec::new();
        find(&trace.root, kind, name, &mut found);
        assert_eq!(found.len(), 1, "{kind:?} {name}\n{}", trace.to_text());
        found.remove(0)
    }

    fn overwrite(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = mlpack_fs::read_bounded(&self.path(name), 1 << 24).unwrap();
        change(&mut bytes);
        fs::write(self.path(name), bytes).unwrap();
    }
}

fn parameters(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn flip_last(bytes: &mut [u8]) {
    *bytes.last_mut().unwrap() ^= 1;
}

#[test]
fn a_chain_is_traced_from_the_gguf_to_the_dataset() {
    let chain = Chain::new();
    let trace = chain.trace("out/m-Q8_0.gguf");
    assert!(trace.holds() && !trace.cut);
    let text = chain.text(&trace);
    assert_eq!(text, CHAIN, "\n{text}");
}

const CHAIN: &str = "\
`m-Q8_0.gguf`  sha256:<out/m-Q8_0.gguf>  [unsigned]
└─ convert  statement <id>  (unsigned)  [unsigned]
   │  quant=Q8_0  to=gguf  mlpack=VERSION  by-products=tensor-types
   ├─ model `merged/model.safetensors`  sha256:<out/merged/model.safetensors>  [unsigned]
   │  └─ merge  statement <id>  (unsigned)  [unsigned]
   │     │  dtype=BF16  mlpack=VERSION
   │     ├─ base `base/model.safetensors`  sha256:<base/model.safetensors>  [unsigned]
   │     ├─ adapter `lora/adapter_model.safetensors`  sha256:<lora/adapter_model.safetensors>  [unsigned]
   │     │  │  weight=1
   │     │  └─ train  statement <id>  (unsigned; imported: mlpack did not train)  [unsigned]
   │     │     │  run-named-by=caller  mlpack=VERSION
   │     │     └─ training-run record mlflow:legal-qa/4c421e9ce91a40368c786c2f89e8fc82  sha256:bcb610b4943679b02fe75773cfbf4d22eeb1ecad00efc11c56f8e717fda2cefa  [unsigned]
   │     │        └─ training run 4c421e9ce91a40368c786c2f89e8fc82  [unsigned]
   │     │           │  experiment=legal-qa  name=legal-qa-r8  status=FINISHED  train_loss=2.8095127211676703
   │     │           │  loss=2.2692888259887694  epoch=18.0  learning_rate=0.003  num_train_epochs=18
   │     │           │  per_device_train_batch_size=8  optim=adamw_torch_fused  seed=11  lr_scheduler_type=cosine
   │     │           │  weight_decay=0.0  max_steps=-1  steps=360  recorded=147 parameters, 9 metrics
   │     │           │  script=ft.py  started as=LOCAL  trained with=peft 0.21.2, transformers 5.23.0  agreement=37 of 37 loss values equal lora/trainer_state.json
   │     │           │  as `mlflow.db` said when the record was made
   │     │           ├─ base model `kjv-llama`  (named by adapter_config.json)  [claimed]
   │     │           ├─ dataset `us-constitution-qa`  sha256:<dataset.jsonl>  [unsigned]
   │     │           │     file=dataset.jsonl  used for=training  mlflow-md5-8 claimed by mlflow.db=f40d6cc6
   │     │           ├─ evidence `lora/adapter_config.json`  sha256:<lora/adapter_config.json>  [unsigned]
   │     │           └─ evidence `lora/trainer_state.json`  sha256:<lora/trainer_state.json>  [unsigned]
   │     ├─ config `base/config.json`  sha256:<base/config.json>  [unsigned]
   │     ├─ tokenizer `base/tokenizer.json`  sha256:<base/tokenizer.json>  [unsigned]
   │     └─ training-run record mlflow:legal-qa/4c421e9ce91a40368c786c2f89e8fc82  sha256:bcb610b4943679b02fe75773cfbf4d22eeb1ecad00efc11c56f8e717fda2cefa  (shown above)  [unsigned]
   ├─ config `merged/config.json`  sha256:<base/config.json>  [unsigned]
   └─ tokenizer `merged/tokenizer.json`  sha256:<base/tokenizer.json>  [unsigned]
";

#[test]
fn the_sidecar_alone_is_enough_for_what_is_claimed() {
    let chain = Chain::new();
    let away = tempfile::tempdir().unwrap();
    for name in ["m-Q8_0.gguf", "m-Q8_0.gguf.claims.jsonl"] {
        fs::copy(chain.path("out").join(name), away.path().join(name)).unwrap();
    }
    let trace = trace(&away.path().join("m-Q8_0.gguf"), &TraceOptions::default()).unwrap();
    assert!(trace.holds());
    assert_eq!(trace.root.state, State::Unsigned);
    let base = Chain::node(&trace, NodeKind::Artifact, "base/model.safetensors");
    assert_eq!((base.state, base.note.as_deref()), (State::Claimed, Some("its bytes are not here")));
    let run = Chain::node(&trace, NodeKind::Run, RUN_ID);
    assert_eq!(run.state, State::Unsigned);
    assert_eq!(run.record.unwrap().params["learning_rate"], "0.003");
    let record = Chain::node(&trace, NodeKind::Record, &format!("mlflow:legal-qa/{RUN_ID}"));
    assert_eq!(record.state, State::Unsigned);

    // Bytes that come along under the stated name are checked.
    fs::create_dir(away.path().join("base")).unwrap();
    fs::copy(chain.path("base/model.safetensors"), away.path().join("base/model.safetensors")).unwrap();
    let trace = super::trace(&away.path().join("m-Q8_0.gguf"), &TraceOptions::default()).unwrap();
    assert_eq!(Chain::node(&trace, NodeKind::Artifact, "base/model.safetensors").state, State::Unsigned);
}

#[test]
fn the_store_alone_is_enough_and_a_moved_project_keeps_its_paths() {
    let chain = Chain::new();
    fs::remove_file(chain.path("out/m-Q8_0.gguf.claims.jsonl")).unwrap();
    fs::remove_file(chain.path("out/merged.claims.jsonl")).unwrap();
    let parent = tempfile::tempdir().unwrap();
    let moved = parent.path().join("elsewhere");
    fs::rename(chain.dir.path(), &moved).unwrap();
    let trace = trace(&moved.join("out/m-Q8_0.gguf"), &TraceOptions::default()).unwrap();
    for name in ["base/model.safetensors", "lora/adapter_model.safetensors", "merged/model.safetensors"] {
        assert_eq!(Chain::node(&trace, NodeKind::Artifact, name).state, State::Unsigned, "{name}");
    }
    fs::create_dir(chain.dir.path()).unwrap();
}

#[test]
fn a_step_in_another_folder_takes_over_what_is_known_about_its_inputs() {
    let chain = Chain::new();
    fs::create_dir(chain.path("gguf")).unwrap();
    fs::write(chain.path("gguf/m.gguf"), "f16").unwrap();
    let store = Store::beside(&chain.path("gguf"));
    let model = chain.input(Role::Model, "out/merged/model.safetensors");
    let mut step = Step::new(StepKind::Convert, Map::new(), vec![model]);
    step.outputs = vec![Artifact::file(&chain.path("gguf/m.gguf"), chain.digest("gguf/m.gguf"))];
    store.record(&step).unwrap();
    let sidecar = store.write_sidecar(&step.outputs[0]).unwrap();
    let away = tempfile::tempdir().unwrap();
    fs::copy(chain.path("gguf/m.gguf"), away.path().join("m.gguf")).unwrap();
    fs::copy(sidecar, away.path().join("m.gguf.claims.jsonl")).unwrap();
    let travelled = trace(&away.path().join("m.gguf"), &TraceOptions::default()).unwrap();
    assert_eq!(Chain::node(&travelled, NodeKind::Run, RUN_ID).state, State::Unsigned);
    // The other store and the sidecars beside the inputs are no longer needed to find the bytes again.
    fs::remove_dir_all(chain.path("out/.mlpack")).unwrap();
    fs::remove_file(chain.path("out/merged.claims.jsonl")).unwrap();
    let trace = chain.trace("gguf/m.gguf");
    assert_eq!(Chain::node(&trace, NodeKind::Artifact, "base/model.safetensors").state, State::Unsigned);
    assert_eq!(Chain::node(&trace, NodeKind::Dataset, "us-constitution-qa").state, State::Unsigned);
}

#[test]
fn a_directory_is_traced_by_its_tree() {
    let chain = Chain::new();
    let trace = chain.trace("out/merged");
    assert_eq!(trace.root.state, State::Unsigned);
    assert_eq!(trace.root.children[0].name, "merge");
    Chain::node(&trace, NodeKind::Run, RUN_ID);
    fs::write(chain.path("out/merged/extra.txt"), "x").unwrap();
    let trace = chain.trace("out/merged");
    assert_eq!(trace.root.state, State::Mismatch, "a file more is another tree");
}

#[test]
fn a_file_that_a_step_only_copied_is_not_said_to_be_made_by_it() {
    let chain = Chain::new();
    let trace = chain.trace("out/merged/tokenizer.json");
    assert_eq!(trace.root.note.as_deref(), Some("not made by a step: passed on unchanged"));
    assert_eq!(trace.root.children.len(), 1);
    assert!(trace.root.children[0].children.is_empty());
}

#[test]
fn an_adapter_alone_leads_to_its_run() {
    let chain = Chain::new();
    fs::copy(chain.path("lora/adapter_model.safetensors"), chain.path("out/renamed.bin")).unwrap();
    let trace = chain.trace("out/renamed.bin");
    assert_eq!(trace.root.children[0].name, "train");
    Chain::node(&trace, NodeKind::Run, RUN_ID);
}

#[test]
fn an_edited_artifact_has_no_statement_and_the_sidecar_says_what_it_was() {
    let chain = Chain::new();
    let before = chain.digest("out/m-Q8_0.gguf");
    chain.overwrite("out/m-Q8_0.gguf", |bytes| flip_last(bytes));
    let trace = chain.trace("out/m-Q8_0.gguf");
    assert!(!trace.holds());
    assert_eq!(
        trace.to_text(),
        format!(
            "`m-Q8_0.gguf`  sha256:{}  [mismatch]\n   no statement about these bytes; a sidecar is there but describes sha256 {before}\n",
            chain.digest("out/m-Q8_0.gguf")
        )
    );
    fs::remove_file(sidecar_path(&chain.path("out/m-Q8_0.gguf"))).unwrap();
    let trace = chain.trace("out/m-Q8_0.gguf");
    assert_eq!(
        trace.root.note.unwrap(),
        format!("no statement about these bytes; this path had sha256 {before} when it was recorded")
    );
    fs::remove_dir_all(chain.path("out/.mlpack")).unwrap();
    let trace = chain.trace("out/m-Q8_0.gguf");
    assert_eq!((trace.root.state, trace.holds()), (State::Missing, true));
}

#[test]
fn one_flipped_byte_anywhere_in_the_chain_is_found_and_named() {
    for (file, kind, name) in [
        ("base/model.safetensors", NodeKind::Artifact, "base/model.safetensors"),
        ("lora/adapter_model.safetensors", NodeKind::Artifact, "lora/adapter_model.safetensors"),
        ("out/merged/model.safetensors", NodeKind::Artifact, "merged/model.safetensors"),
        ("lora/trainer_state.json", NodeKind::Evidence, "lora/trainer_state.json"),
        ("dataset.jsonl", NodeKind::Dataset, "us-constitution-qa"),
    ] {
        let chain = Chain::new();
        chain.overwrite(file, |bytes| flip_last(bytes));
        let trace = chain.trace("out/m-Q8_0.gguf");
        assert!(!trace.holds(), "{file}");
        let node = Chain::node(&trace, kind, name);
        assert_eq!(node.state, State::Mismatch, "{file}");
        let short = file.rsplit('/').next().unwrap();
        assert_eq!(node.note.unwrap(), format!("`{short}` has sha256 {} now", chain.digest(file)));
    }
}

#[test]
fn what_is_gone_is_missing_and_not_a_mismatch() {
    let chain = Chain::new();
    fs::remove_dir_all(chain.path("base")).unwrap();
    let trace = chain.trace("out/m-Q8_0.gguf");
    let base = Chain::node(&trace, NodeKind::Artifact, "base/model.safetensors");
    assert_eq!((base.state, base.note.as_deref()), (State::Missing, Some("no longer where it was")));
    assert!(trace.holds());
}

#[test]
fn an_edited_statement_or_record_is_found() {
    // In the store: the object is not the one that its name says.
    let chain = Chain::new();
    fs::remove_file(chain.path("out/m-Q8_0.gguf.claims.jsonl")).unwrap();
    let statements = Store::beside(&chain.path("out")).statements(100);
    let convert = statements.iter().find(|s| s.subjects().any(|(name, _)| name == "m-Q8_0.gguf")).unwrap();
    let hex = convert.digest().to_string();
    chain.overwrite(&format!("out/.mlpack/objects/sha256/{}/{hex}", &hex[..2]), |bytes| flip_last(bytes));
    let trace = chain.trace("out/m-Q8_0.gguf");
    assert!(!trace.holds());
    assert!(trace.to_text().contains("object of the store is damaged"), "{}", trace.to_text());

    // In the sidecar alone: the build id does not fit, or the record is another one, or the line is no JSON.
    for (from, to, expected) in [
        ("\"quant\":\"Q8_0\"", "\"quant\":\"Q4_0\"", "its build id does not fit what it says"),
        ("\"learning_rate\":\"0.003\"", "\"learning_rate\":\"0.004\"", "the sidecar's record of this run has sha256"),
        ("{\"_type\"", "{_type\"", "m-Q8_0.gguf.claims.jsonl line 1"),
    ] {
        let chain = Chain::new();
        fs::remove_dir_all(chain.path("out/.mlpack")).unwrap();
        chain.overwrite("out/m-Q8_0.gguf.claims.jsonl", |bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            assert!(text.contains(from));
            *bytes = text.replacen(from, to, 1).into_bytes();
        });
        let trace = chain.trace("out/m-Q8_0.gguf");
        assert!(!trace.holds(), "{to}");
        assert!(trace.to_text().contains(expected), "{expected}:\n{}", trace.to_text());
    }
}

#[test]
fn the_run_store_is_read_again_when_asked() {
    let chain = Chain::new();
    let trace = |check_store| {
        let trace =
            trace(&chain.path("out/m-Q8_0.gguf"), &TraceOptions { check_store, ..TraceOptions::default() }).unwrap();
        let run = Chain::node(&trace, NodeKind::Run, RUN_ID);
        (run.state, run.note.unwrap())
    };
    assert_eq!(trace(CheckStore::No).0, State::Unsigned);
    assert_eq!(trace(CheckStore::Remembered), (State::Unsigned, "`mlflow.db` says the same today".to_owned()));
    let db = rusqlite::Connection::open(chain.path("mlflow/mlflow.db")).unwrap();
    db.execute("UPDATE params SET value = '0.1' WHERE key = 'learning_rate'", []).unwrap();
    drop(db);
    assert_eq!(
        trace(CheckStore::At(chain.path("mlflow/mlflow.db"))),
        (State::Mismatch, "`mlflow.db` says something else today: params.learning_rate".to_owned())
    );
    fs::remove_file(chain.path("mlflow/mlflow.db")).unwrap();
    assert_eq!(trace(CheckStore::At(chain.path("mlflow/mlflow.db"))).0, State::Missing);
}

#[test]
fn an_unknown_run_is_said_to_be_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.safetensors"), "a").unwrap();
    fs::write(path("o.gguf"), "o").unwrap();
    let run = find_run(dir.path(), None, None).unwrap();
    let store = Store::beside(dir.path());
    let run = store.record_run(&run, &[], &[]).unwrap();
    let adapter = Dependency::file(Role::Adapter, &path("a.safetensors"), Sha256::of(b"a"));
    let mut step = Step::new(StepKind::Convert, Map::new(), vec![adapter, run]);
    step.outputs = vec![Artifact::file(&path("o.gguf"), Sha256::of(b"o"))];
    store.record(&step).unwrap();
    let trace = trace(&path("o.gguf"), &TraceOptions::default()).unwrap();
    let unknown = Chain::node(&trace, NodeKind::Run, "unknown");
    assert_eq!(unknown.state, State::Missing);
    assert_eq!(unknown.note.unwrap(), "no run was given and no trainer_state.json is beside the adapter");
}

#[test]
fn recording_twice_changes_nothing() {
    let chain = Chain::new();
    let sidecar = || mlpack_fs::read_bounded(&chain.path("out/m-Q8_0.gguf.claims.jsonl"), 1 << 20).unwrap();
    let listing = || {
        let mut files: Vec<String> = crate::tree::hash_tree(&chain.path("out/.mlpack"))
            .unwrap()
            .into_iter()
            .map(|(name, digest)| format!("{name} {digest}"))
            .collect();
        files.sort();
        files
    };
    let before = (sidecar(), listing());
    chain.record();
    assert_eq!((sidecar(), listing()), before);
    let other = Chain::new();
    assert_eq!(
        mlpack_fs::read_bounded(&other.path("out/m-Q8_0.gguf.claims.jsonl"), 1 << 20).unwrap(),
        before.0,
        "another folder gives the same sidecar"
    );
}

/// A statement by someone else: subject, dependencies.
fn foreign(subject: &str, of: Sha256, dependencies: &[(&str, Sha256)]) -> Vec<u8> {
    let dependencies: Vec<Value> = dependencies
        .iter()
        .map(|(name, digest)| json!({"name": name, "digest": {"sha256": digest.to_string()}}))
        .collect();
    crate::json::canonical(&json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": subject, "digest": {"sha256": of.to_string()}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {"buildType": "urn:x\u{1b}[31m", "externalParameters": {}, "resolvedDependencies": dependencies},
            "runDetails": {"builder": {"id": "urn:someone"}},
        },
    }))
}

fn with_sidecar(lines: &[Vec<u8>]) -> Trace {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    fs::write(dir.path().join("a.claims.jsonl"), lines.join(&b'\n')).unwrap();
    trace(&dir.path().join("a"), &TraceOptions::default()).unwrap()
}

#[test]
fn cycles_and_shared_inputs_end() {
    let (a, b) = (Sha256::of(b"a"), Sha256::of(b"b"));
    let trace = with_sidecar(&[foreign("a", a, &[("b", b)]), foreign("b", b, &[("a", a), ("../../etc/passwd", a)])]);
    assert_eq!(
        trace
            .to_text()
            .replace(&a.to_string(), "<a>")
            .replace(&b.to_string(), "<b>")
            .lines()
            .map(|l| { l.split("statement ").next().unwrap().to_owned() })
            .collect::<Vec<_>>()
            .join("\n"),
        "`a`  sha256:<a>  [unsigned]
└─ urn:x\\u{1b}[31m  
   └─ `b`  sha256:<b>  [claimed]
      │  its bytes are not here
      └─ urn:x\\u{1b}[31m  
         ├─ `a`  sha256:<a>  (shown above)  [unsigned]
         └─ `../../etc/passwd`  sha256:<a>  (shown above)  [claimed]
               its bytes are not here"
    );
}

#[test]
fn a_graph_without_end_is_cut() {
    let of = |i: usize| if i == 0 { Sha256::of(b"a") } else { Sha256::of(format!("step {i}").as_bytes()) };
    let lines: Vec<Vec<u8>> = (0..1000).map(|i| foreign("x", of(i), &[("y", of(i + 1))])).collect();
    let trace = with_sidecar(&lines);
    assert!(trace.cut);
    assert!(trace.to_text().ends_with("the graph is larger than this: a part of it is not shown\n"));
    let wide: Vec<(String, Sha256)> = (0..20_000).map(|i| (format!("f{i}"), of(i + 1))).collect();
    let wide: Vec<(&str, Sha256)> = wide.iter().map(|(name, digest)| (name.as_str(), *digest)).collect();
    assert!(with_sidecar(&[foreign("a", of(0), &wide)]).cut);
}

#[test]
fn hostile_sidecars_are_bounded_and_their_faults_are_named() {
    let good = foreign("a", Sha256::of(b"a"), &[]);
    let duplicate = br#"{"_type":"x","_type":"y"}"#.to_vec();
    let deep = "[".repeat(100_000).into_bytes();
    let unknown = br#"{"payload":"e30=","signatures":[]}"#.to_vec();
    let trace = with_sidecar(&[good, duplicate, deep, unknown, b"\x1b]0;title".to_vec()]);
    assert_eq!(trace.root.state, State::Unsigned, "the good line still counts");
    let faults: Vec<String> =
        trace.root.children.iter().filter(|n| n.kind == NodeKind::Fault).map(|n| n.note.clone().unwrap()).collect();
    assert_eq!(faults.len(), 3, "a line that others know is not a fault: {faults:?}");
    for (fault, expected) in faults.iter().zip(["line 2: ", "line 3: ", "line 5: "]) {
        assert!(fault.contains(expected), "{fault}");
    }
    assert!(!trace.holds());
    assert!(!trace.to_text().contains('\u{1b}'));

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "a").unwrap();
    fs::File::create(dir.path().join("a.claims.jsonl")).unwrap().set_len((32 << 20) + 1).unwrap();
    let trace = super::trace(&dir.path().join("a"), &TraceOptions::default()).unwrap();
    assert!(trace.to_text().contains("33554432"), "{}", trace.to_text());
}

#[test]
fn the_json_form_has_its_schema_and_the_whole_record() {
    let chain = Chain::new();
    let json = chain.trace("out/m-Q8_0.gguf").to_json();
    assert_eq!(json["schema"], "mlpack.trace/v1");
    assert_eq!(json["holds"], true);
    assert_eq!(json["root"]["state"], "unsigned");
    assert_eq!(json["root"]["sha256"], chain.digest("out/m-Q8_0.gguf").to_string());
    let run =
        json["root"].pointer("/children/0/children/0/children/0/children/1/children/0/children/0/children/0").unwrap();
    assert_eq!(run["kind"], "run");
    assert_eq!(run["record"]["run_id"], RUN_ID);
    assert_eq!(run["record"]["metrics"]["train_loss"], "2.8095127211676703");
}
