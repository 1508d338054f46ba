//! Runs read from the legal-qa fixture (a real MLflow 3.17 store and a real trainer state) and from hostile databases.

use super::*;
use mlpack_fs::ErrorKind;
use rusqlite::Connection;
use std::fs;

const RUN_ID: &str = "4c421e9ce91a40368c786c2f89e8fc82";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/legal-qa").join(name)
}

fn known(found: FoundRun) -> Run {
    match found {
        FoundRun::Known(run) => *run,
        FoundRun::Unknown { reason } => panic!("unknown: {reason}"),
    }
}

fn mlflow(db: PathBuf, run_id: &str) -> RunSource {
    RunSource::Mlflow { db, run_id: Some(run_id.to_owned()) }
}

#[test]
fn the_fixture_run_is_read_with_its_values() {
    let source = mlflow(fixture("mlflow/mlflow.db"), RUN_ID);
    let run = known(find_run(&fixture("legal-qa-lora"), Some(&source), None).unwrap());
    let record = &run.record;
    assert_eq!(record.source.uri, format!("mlflow:legal-qa/{RUN_ID}"));
    assert_eq!(record.source.file, "mlflow.db");
    assert_eq!(record.run_id.as_deref(), Some(RUN_ID));
    assert_eq!(record.experiment.as_deref(), Some("legal-qa"));
    assert_eq!(record.name.as_deref(), Some("legal-qa-r8"));
    assert_eq!(record.status.as_deref(), Some("FINISHED"));
    assert_eq!(record.lifecycle, None);
    assert_eq!(record.started_ms.as_deref(), Some("1795309153504"));
    assert_eq!(record.ended_ms.as_deref(), Some("1795309206156"));
    for (key, value) in [
        ("learning_rate", "0.003"),
        ("num_train_epochs", "18"),
        ("seed", "11"),
        ("_name_or_path", "base"),
        ("optim", "adamw_torch_fused"),
    ] {
        assert_eq!(record.params.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(record.metrics.len(), 9);
    assert_eq!(record.metrics["train_loss"], "2.8095127211676703");
    assert_eq!(record.metrics["loss"], "2.2692888259887694");
    assert_eq!(record.metrics["learning_rate"], "5.711540374303548e-8");
    assert_eq!(
        record.code.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(),
        [("mlflow.source.name", "ft.py"), ("mlflow.source.type", "LOCAL")]
    );
    let [dataset] = record.datasets.as_slice() else { panic!("{:?}", record.datasets) };
    assert_eq!(dataset.name, "us-constitution-qa");
    assert_eq!(dataset.context.as_deref(), Some("training"));
    assert_eq!(dataset.source.as_deref(), Some("dataset.jsonl"));
    assert_eq!(dataset.claimed_digest.as_deref(), Some("f40d6cc6"));
    assert_eq!(dataset.claimed_algorithm.as_deref(), Some("mlflow-md5-8"));
    assert_eq!(
        dataset.sha256.as_deref(),
        Some("676274585ebec6a93b30d264e809d023b9735fd3f96d39dcd6008695a056253e"),
        "found in the folder above the store's"
    );
    let base = record.base_model.as_ref().unwrap();
    assert_eq!((base.name.as_str(), base.stated_by.as_str()), ("kjv-llama", "adapter_config.json"));
    assert_eq!(record.trainer["global_step"], "360");
    assert_eq!(record.trainer["epoch"], "18.0");
    assert_eq!(record.trainer["train_batch_size"], "8");
    let agreement = record.agreement.as_ref().unwrap();
    assert_eq!((agreement.compared.as_str(), agreement.equal.as_str()), ("37", "37"));
    let evidence: Vec<_> = record.evidence.iter().map(|e| (e.file.as_str(), e.sha256.as_str())).collect();
    assert_eq!(
        evidence,
        [
            ("legal-qa-lora/adapter_config.json", "c26e9d178b9b8a0e4bfe0b896f2481ce86ab6b0cea40c456c65966df6eb38d61"),
            ("legal-qa-lora/trainer_state.json", "5244e69f5699acfe0cd508d862cfd942dd32478be8265d5e5e7b6224f8b7cb7a"),
        ]
    );
    assert_eq!(record.inferred, ["base_model", "environment", "trainer"]);
    assert_eq!(record.environment["peft"], "0.21.2");
}

#[test]
fn a_record_has_the_same_bytes_each_time_and_no_user_or_folder() {
    let source = mlflow(fixture("mlflow/mlflow.db"), RUN_ID);
    let first = known(find_run(&fixture("legal-qa-lora"), Some(&source), None).unwrap());
    let second = known(find_run(&fixture("legal-qa-lora"), Some(&source), None).unwrap());
    let bytes = first.record.to_bytes();
    assert_eq!(bytes, second.record.to_bytes());
    let text = String::from_utf8(bytes).unwrap();
    assert!(!text.contains("root") && !text.contains("mlflow.user"), "{text}");
    assert!(!text.contains(env!("CARGO_MANIFEST_DIR")), "{text}");
    let value = crate::json::parse(text.as_bytes()).unwrap();
    assert_eq!(crate::json::first_inexact_number(&value), None);
    assert_eq!(RunRecord::from_value(value), Some(first.record));
}

#[test]
fn a_trainer_state_alone_is_a_run_without_an_id() {
    // Away from the store that has the run.
    let dir = tempfile::tempdir().unwrap();
    let lora = dir.path().join("legal-qa-lora");
    fs::create_dir(&lora).unwrap();
    for entry in fs::read_dir(fixture("legal-qa-lora")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), lora.join(entry.file_name())).unwrap();
    }
    let run = known(find_run(&lora, None, Some(&fixture("dataset.jsonl"))).unwrap());
    assert_eq!(run.record.run_id, None);
    assert_eq!(
        run.record.source.uri,
        "trainer-state:sha256:5244e69f5699acfe0cd508d862cfd942dd32478be8265d5e5e7b6224f8b7cb7a"
    );
    assert_eq!(run.record.metrics["train_loss"], "2.8095127211676703");
    assert_eq!(run.record.metrics["loss"], "2.2692888259887694");
    assert_eq!(run.record.trainer["total_flos"], "5531939922432.0");
    assert_eq!(run.record.datasets[0].stated_by, "caller");
    assert!(!run.named_by_caller);
    let named = RunSource::TrainerState(fixture("legal-qa-lora/trainer_state.json"));
    let named = known(find_run(&fixture("legal-qa-lora"), Some(&named), None).unwrap());
    assert_eq!(named.record.metrics, run.record.metrics);
}

#[test]
fn an_adapter_without_a_run_is_unknown_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let found = find_run(dir.path(), None, None).unwrap();
    let reason = "no run was given and no trainer_state.json is beside the adapter";
    assert_eq!(found, FoundRun::Unknown { reason: reason.to_owned() });
}

#[test]
fn a_wrong_or_missing_run_id_lists_the_runs() {
    let adapter = fixture("legal-qa-lora");
    let error = |source| {
        let error = find_run(&adapter, Some(&source), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misuse);
        error.to_string().replace(&fixture("").display().to_string(), "")
    };
    let listed = format!("found:    `{RUN_ID}` (legal-qa / legal-qa-r8, FINISHED)");
    for id in ["4c421e9ce91a40368c786c2f89e8fc83", "4c42", "legal-qa-r8", "nothing like it"] {
        let text = error(mlflow(fixture("mlflow/mlflow.db"), id));
        assert_eq!(text, format!("no run `{id}` in `mlflow/mlflow.db`\n  {listed}"));
    }
    let text = error(RunSource::Mlflow { db: fixture("mlflow/mlflow.db"), run_id: None });
    assert_eq!(
        text,
        format!("`mlflow/mlflow.db` has 1 runs, and none is named\n  expected: `mlflow/mlflow.db#RUN_ID`\n  {listed}")
    );
}

#[test]
fn sources_are_told_apart_by_their_text() {
    let parse = |text| RunSource::parse(text, Path::new("/r"));
    assert_eq!(parse("a#b/mlflow.db#ab").unwrap(), mlflow("/r/a#b/mlflow.db".into(), "ab"));
    for text in ["mlflow.db", "mlflow.db#", "runs.sqlite"] {
        assert!(matches!(parse(text), Ok(RunSource::Mlflow { run_id: None, .. })), "{text}");
    }
    assert_eq!(parse("/x/trainer_state.json").unwrap(), RunSource::TrainerState("/x/trainer_state.json".into()));
    for text in ["", "#ab", "4c421e9c", "ftp://example.org/runs/1"] {
        assert!(matches!(parse(text), Err(Error::UnknownRunSource { .. })), "{text}");
    }
}

/// A small store with MLflow's columns; `extra` goes in last.
fn database(dir: &Path, extra: &str) -> PathBuf {
    let path = dir.join("mlflow.db");
    let db = Connection::open(&path).unwrap();
    db.execute_batch(
        "CREATE TABLE experiments (experiment_id INTEGER, name TEXT);
         CREATE TABLE runs (run_uuid TEXT, name TEXT, status TEXT, start_time INT, end_time INT, lifecycle_stage TEXT,
             experiment_id INTEGER);
         CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT);
         CREATE TABLE latest_metrics (key TEXT, value FLOAT, is_nan BOOLEAN, run_uuid TEXT);
         CREATE TABLE tags (key TEXT, value TEXT, run_uuid TEXT);
         CREATE TABLE metrics (key TEXT, value FLOAT, step INT, run_uuid TEXT);
         CREATE TABLE datasets (dataset_uuid TEXT, name TEXT, digest TEXT, dataset_source TEXT);
         CREATE TABLE inputs (input_uuid TEXT, source_type TEXT, source_id TEXT, destination_type TEXT, destination_id TEXT);
         INSERT INTO experiments VALUES (1, 'exp/eriment');
         INSERT INTO runs VALUES ('r1', 'one', 'FINISHED', 1, NULL, 'active', 1);",
    )
    .unwrap();
    db.execute_batch(extra).unwrap();
    path
}

fn read(extra: &str) -> Result<RunRecord, Error> {
    let dir = tempfile::tempdir().unwrap();
    RunStore::open(&database(dir.path(), extra))?.record("r1")
}

#[test]
fn an_old_or_small_schema_is_enough() {
    let record = read(
        "DROP TABLE datasets; DROP TABLE metrics;
         INSERT INTO latest_metrics VALUES ('loss', 0, 1, 'r1'), ('acc', 1, 0, 'r1');
         INSERT INTO tags VALUES ('mlflow.source.git.commit', 'abc', 'r1'), ('mlflow.user', 'joe', 'r1'), ('mine', 'x', 'r1');
         INSERT INTO params VALUES ('data', '/srv/joe/d.jsonl', 'r1'), ('hub_token', 'hf_x', 'r1'), ('other', '1', 'r2');",
    )
    .unwrap();
    assert_eq!(record.source.uri, "mlflow:exp%2Feriment/r1");
    assert_eq!(record.metrics["loss"], "NaN");
    assert_eq!(record.metrics["acc"], "1.0");
    assert_eq!(record.code.len(), 1);
    assert_eq!(record.params.len(), 2, "the other run's are not in it");
    assert_eq!(record.params["data"], "d.jsonl");
    assert_eq!(record.redacted, ["data", "hub_token"]);
    assert!(!String::from_utf8(record.to_bytes()).unwrap().contains("joe"));
}

#[test]
fn hostile_databases_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let not_a_database = dir.path().join("x.db");
    fs::write(&not_a_database, b"{\"hello\": \"\x1b[31m\"}".repeat(100)).unwrap();
    let error = RunStore::open(&not_a_database).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.to_string().contains("sqlite: file is not a database"), "{error}");

    fs::write(&not_a_database, b"").unwrap();
    let error = RunStore::open(&not_a_database).err().unwrap();
    assert!(error.to_string().contains("no such table"), "an empty file is an empty database: {error}");
    assert_eq!(error.kind(), ErrorKind::Unsupported);

    let error = RunStore::open(&dir.path().join("absent.db")).err().unwrap();
    assert!(matches!(&error, Error::Fs(e) if e.is_not_found()), "{error}");

    let view =
        "DROP TABLE params; CREATE VIEW params AS WITH RECURSIVE n(key) AS (SELECT 1 UNION ALL SELECT key + 1 FROM n)
        SELECT key, key AS value, 'r1' AS run_uuid FROM n;";
    for (extra, expected) in [
        (
            "DROP TABLE params",
            "a table `params` with the columns `key`, `value`, `run_uuid`\n  found:    no such table",
        ),
        (view, "found:    no such table"),
        ("ALTER TABLE runs RENAME COLUMN status TO state", "found:    no column `status`"),
        ("INSERT INTO params VALUES ('a', hex(zeroblob(600000)), 'r1')", "string or blob too big"),
        ("INSERT INTO params VALUES ('a', x'ff00', 'r1')", "Invalid column type Blob"),
        ("INSERT INTO params VALUES ('a', CAST(x'ff00' AS TEXT), 'r1')", "invalid utf-8"),
        (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO params SELECT i, i, 'r1' FROM n",
            "has too many parameters\n  expected: at most 4096",
        ),
    ] {
        let error = read(extra).unwrap_err().to_string();
        assert!(error.contains(expected), "{extra}: {error}");
    }
}

#[test]
fn long_values_are_cut_and_text_is_escaped_in_messages() {
    let record = read("INSERT INTO params VALUES ('a', hex(zeroblob(40000)), 'r1')").unwrap();
    assert!(record.params["a"].ends_with("0… (14464 more bytes)"));
    let dir = tempfile::tempdir().unwrap();
    let db = database(dir.path(), "UPDATE runs SET name = 'x' || char(27) || '[2J'");
    let error = RunStore::open(&db).unwrap().record("r\u{1b}").unwrap_err().to_string();
    assert!(error.contains("\\u{1b}[2J") && !error.contains('\u{1b}'), "{error}");
}

#[test]
fn a_store_with_changes_in_a_journal_is_not_read_as_if_it_were_whole() {
    let dir = tempfile::tempdir().unwrap();
    let db = database(dir.path(), "");
    fs::write(dir.path().join("mlflow.db-wal"), b"something").unwrap();
    let error = RunStore::open(&db).err().unwrap();
    assert!(matches!(error, Error::UnfinishedStore { .. }), "{error}");
    fs::write(dir.path().join("mlflow.db-wal"), b"").unwrap();
    assert!(RunStore::open(&db).is_ok());
}

#[test]
fn a_run_that_did_not_make_the_adapter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state = r#"{"global_step": 20, "log_history": [{"loss": 2.5, "step": 10}, {"loss": 1.5, "step": 20}]}"#;
    fs::write(dir.path().join("trainer_state.json"), state).unwrap();
    let find = |values: &str| {
        let store = tempfile::tempdir().unwrap();
        let db = database(store.path(), &format!("INSERT INTO metrics VALUES {values}"));
        find_run(dir.path(), Some(&mlflow(db, "r1")), None)
    };
    let error = find("('loss', 9.0, 10, 'r1'), ('loss', 1.5, 20, 'other')").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    let text = error.to_string();
    assert!(text.starts_with("run `r1` did not make this adapter: none of 1 logged values agree with"), "{text}");
    assert!(text.ends_with("loss, step 10\n  expected: 2.5 (trainer state)\n  found:    9.0 (run)"), "{text}");
    let agreement = known(find("('loss', 9.0, 10, 'r1'), ('loss', 1.5, 20, 'r1')").unwrap()).record.agreement.unwrap();
    assert_eq!((agreement.compared.as_str(), agreement.equal.as_str()), ("2", "1"));
    assert_eq!(known(find("('other', 9.0, 10, 'r1')").unwrap()).record.agreement, None);
}

#[test]
fn a_dataset_that_is_not_there_or_not_alone_is_only_claimed() {
    let insert = "INSERT INTO datasets VALUES ('d', 'data', '12345678', '{\"uri\": \"d.jsonl\"}');
        INSERT INTO inputs VALUES ('i', 'DATASET', 'd', 'RUN', 'r1');";
    let (store, adapter) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = mlflow(database(store.path(), insert), "r1");
    let dataset =
        |given: Option<&Path>| known(find_run(adapter.path(), Some(&source), given).unwrap()).record.datasets.remove(0);
    assert_eq!(dataset(None).not_hashed.as_deref(), Some("the file was not found"));
    fs::write(store.path().join("d.jsonl"), "1").unwrap();
    assert_eq!(dataset(None).sha256, Some(Sha256::of(b"1").to_string()));
    fs::write(adapter.path().join("d.jsonl"), "2").unwrap();
    assert_eq!(dataset(None).not_hashed.as_deref(), Some("2 different files have its name"));
    assert_eq!(dataset(Some(&adapter.path().join("d.jsonl"))).sha256, Some(Sha256::of(b"2").to_string()));
}

fn file_store() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/provenance/mlruns")
}

const FILE_RUN: &str = "ec1cfb20186b4095b35dfe27eb34c0bd";

#[test]
fn a_run_of_a_real_file_store_is_read_with_its_values() {
    let store = RunStore::open(&file_store()).unwrap();
    let record = store.record(FILE_RUN).unwrap();
    assert_eq!(record.source.uri, format!("mlflow:lora-sft/{FILE_RUN}"));
    assert_eq!((record.source.kind.as_str(), record.source.file.as_str()), ("mlflow-files", "mlruns"));
    assert_eq!(record.name.as_deref(), Some("qwen-lora-r16"));
    assert_eq!(record.status.as_deref(), Some("FINISHED"));
    assert_eq!(record.started_ms.as_deref(), Some("1795307835037"));
    let params: Vec<(&str, &str)> = record.params.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(params, [("learning_rate", "0.0002"), ("lora_alpha", "32"), ("lora_r", "16")]);
    assert_eq!(record.metrics["train_loss"], "1.2");
    let curve: Vec<(&str, &str)> = record.curves["train_loss"].iter().map(|(s, v)| (s.as_str(), v.as_str())).collect();
    assert_eq!(curve, [("0", "2.1"), ("1", "1.5"), ("2", "1.2")]);
    let dataset = &record.datasets[0];
    assert_eq!((dataset.name.as_str(), dataset.context.as_deref()), ("train.jsonl", Some("training")));
    assert_eq!(dataset.source.as_deref(), Some("data/train.jsonl"));
    let models: Vec<(&str, &str, &str)> =
        record.models.iter().map(|m| (m.kind.as_str(), m.name.as_str(), m.version.as_str())).collect();
    assert_eq!(models, [("logged", "qwen-adapter", "m-cb4309f856b84bef920510308b829aaf"), ("registered", "qwen", "1")]);
    let text = String::from_utf8(record.to_bytes()).unwrap();
    assert!(!text.contains("someone"), "user names are left out: {text}");
}

#[test]
fn a_run_is_found_by_the_weights_among_its_artifacts() {
    let dir = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(file_store()).arg(dir.path().join("mlruns")).status();
    assert!(copied.unwrap().success());
    fs::create_dir(dir.path().join("lora")).unwrap();
    let weights = dir.path().join("lora/adapter_model.safetensors");
    let artifact = format!("mlruns/805627150609680605/{FILE_RUN}/artifacts/adapter/adapter_model.safetensors");
    fs::copy(dir.path().join(artifact), &weights).unwrap();
    let run = known(find_run(&dir.path().join("lora"), None, None).unwrap());
    assert_eq!(run.record.run_id.as_deref(), Some(FILE_RUN));
    assert!(!run.named_by_caller && run.record.inferred.contains(&"run_id".to_owned()));
    fs::write(&weights, "other").unwrap();
    assert!(matches!(find_run(&dir.path().join("lora"), None, None).unwrap(), FoundRun::Unknown { .. }));
}

#[test]
fn a_file_store_with_a_mistake_says_where() {
    let store = RunStore::open(&file_store()).unwrap();
    let error = store.record("ec1cfb20").err().unwrap().to_string();
    assert!(error.contains("no run `ec1cfb20`") && error.contains(FILE_RUN), "{error}");
    for hostile in ["../../../etc", "", "models", "a/b"] {
        assert!(matches!(store.record(hostile), Err(Error::RunNotFound { .. })), "{hostile}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(RunStore::open(empty.path()), Err(Error::NotAFileStore { .. })));
    let run = empty.path().join("1/r1");
    fs::create_dir_all(run.join("metrics")).unwrap();
    fs::write(empty.path().join("1/meta.yaml"), "experiment_id: '1'\nname: e\n").unwrap();
    fs::write(run.join("meta.yaml"), "run_id: r1\nstatus: 9\n").unwrap();
    fs::write(run.join("metrics/loss"), "1 2.5 0\n2 x 1\n").unwrap();
    let error = RunStore::open(empty.path()).unwrap().record("r1").err().unwrap().to_string();
    assert!(error.contains("loss` line 2\n  expected: milliseconds, value, step"), "{error}");
    fs::write(run.join("metrics/loss"), "1 NaN 0\n2 -inf 1\n").unwrap();
    let record = RunStore::open(empty.path()).unwrap().record("r1").unwrap();
    assert_eq!((record.metrics["loss"].as_str(), record.status.as_deref()), ("-inf", Some("9")));
    fs::write(run.join("meta.yaml"), "run_id: [").unwrap();
    let error = RunStore::open(empty.path()).unwrap().record("r1").err().unwrap().to_string();
    assert!(error.contains("must be YAML"), "{error}");
}

#[test]
fn a_server_that_answers_nonsense_is_named_and_nothing_is_asked_without_leave() {
    let source = RunSource::parse("http://host:5000/#/experiments/1/runs/abc", Path::new("")).unwrap();
    assert_eq!(source, RunSource::MlflowServer { url: "http://host:5000".to_owned(), run_id: Some("abc".to_owned()) });
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(find_run(dir.path(), Some(&source), None), Err(Error::NoNetwork { .. })));
    let ask = |status: u16, body: &str| {
        let fetch = |request: &Request| {
            assert!(request.url.starts_with("http://host:5000/api/2.0/mlflow/"), "{}", request.url);
            Ok(Answer { status, body: body.as_bytes().to_vec() })
        };
        find_run_with(dir.path(), Some(&source), None, Some(&fetch)).err().unwrap().to_string()
    };
    for (status, body, expected) in [
        (200, "<html>", "an answer that is not JSON"),
        (200, "{}", "no `run` in the answer"),
        (401, "", "HTTP status 401"),
        (500, "{\"message\": \"\\u001b[31mboom\"}", "HTTP status 500 \\u{1b}[31mboom"),
        (404, "{\"error_code\": \"RESOURCE_DOES_NOT_EXIST\"}", "no run `abc`"),
    ] {
        let error = ask(status, body);
        assert!(error.contains(expected), "{error}");
    }
    let refused = |_: &Request| Err("connection refused".to_owned());
    let error = find_run_with(dir.path(), Some(&source), None, Some(&refused)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Io);
}
