//! Signatures and bills of materials in the hands of other people's verifiers, and theirs in ours; a run read from a real
//! MLflow server. The tools come from `cargo xtask peers provenance`.

use crate::cli_sign::{FILE, RUN, Release};
use crate::support::{TestDir, fixture, mlpack};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where peers are.
fn peers() -> PathBuf {
    match std::env::var_os("MLPACK_PEERS_DIR") {
        Some(dir) => dir.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers"),
    }
}

/// A program under the peers' folder; none, with a line that says so, where it is not installed and not required.
fn peer(path: &str) -> Option<Command> {
    let program = peers().join(path);
    if program.is_file() {
        return Some(Command::new(program));
    }
    assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none(), "`{path}` is required: cargo xtask peers provenance");
    println!("skipped: needs {path} (cargo xtask peers provenance)");
    None
}

#[track_caller]
fn run(command: &mut Command, succeeds: bool) -> String {
    let output = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.success(), succeeds, "{command:?}\n{said}");
    said
}

#[test]
fn model_signing_verifies_our_signatures_and_we_verify_its() {
    let Some(_) = peer("provenance/bin/model_signing") else { return };
    let model_signing = || peer("provenance/bin/model_signing").unwrap();
    for algorithm in ["ecdsa-p256", "ecdsa-p384"] {
        let dir = TestDir::new();
        dir.copy("provenance/model", "model");
        dir.copy("provenance/model/sub", "model/sub");
        std::os::unix::fs::symlink("sub.bin", dir.path("model/link.bin")).unwrap();
        mlpack(&dir).args(["keygen", "--out", "key", "--algorithm", algorithm]).succeed();
        mlpack(&dir).args(["sign", "model", "--key", "key.pem"]).succeed();
        let verify = |succeeds: bool| {
            let mut verify = model_signing();
            verify.args(["verify", "key", "model", "--public_key", "key.pub", "--signature", "model/model.sig"]);
            // There is a link among the files; the tool wants to hear that it is meant.
            verify.arg("--allow_symlinks");
            run(verify.current_dir(dir.path("")), succeeds)
        };
        verify(true);
        std::fs::write(dir.path("model/sub/z.bin"), "Z").unwrap();
        let said = verify(false);
        assert!(said.contains("z.bin"), "{said}");

        // The other way round, with our key. (Its `--password` fails in 1.1.1 with every encrypted key.)
        let other = TestDir::new();
        other.copy("provenance/model", "model");
        other.copy("provenance/model/sub", "model/sub");
        mlpack(&other).args(["keygen", "--out", "key", "--algorithm", algorithm]).succeed();
        let mut sign = model_signing();
        sign.args(["sign", "key", "model", "--private_key", "key.pem", "--signature", "model/model.sig"]);
        run(sign.current_dir(other.path("")), true);
        mlpack(&other).args(["verify", "model", "--key", "key.pub"]).succeed();
        std::fs::write(other.path("model/sub.bin"), "X").unwrap();
        let (stdout, _) = mlpack(&other).args(["verify", "model", "--key", "key.pub"]).expect(1);
        assert!(stdout.contains("`sub.bin` has other bytes than the signed ones"), "{stdout}");
    }
}

#[test]
fn openssl_reads_our_encrypted_keys() {
    if !crate::support::registry::present("openssl", "version") {
        return;
    }
    let dir = TestDir::new();
    std::fs::write(dir.path("pass"), "correct horse\n").unwrap();
    for algorithm in ["ecdsa-p256", "ecdsa-p384", "ed25519"] {
        mlpack(&dir)
            .args(["keygen", "--out", algorithm, "--algorithm", algorithm, "--passphrase-file", "pass"])
            .succeed();
        let read = |password: &str, succeeds: bool| {
            let mut openssl = Command::new("openssl");
            openssl.args(["pkey", "-in", &format!("{algorithm}.pem"), "-passin", password, "-pubout"]);
            run(openssl.current_dir(dir.path("")), succeeds)
        };
        let public = std::fs::read_to_string(dir.path(&format!("{algorithm}.pub"))).unwrap();
        assert_eq!(read("file:pass", true), public);
        read("pass:wrong", false);
    }
}

#[test]
fn sigstores_own_verifiers_accept_our_bundles_and_refuse_a_flipped_bit() {
    let modules = peers().join("provenance/node_modules/@sigstore/verify");
    if !modules.is_dir() {
        assert!(std::env::var_os("MLPACK_REQUIRE_PEERS").is_none(), "@sigstore/verify is required");
        println!("skipped: needs @sigstore/verify (cargo xtask peers provenance)");
        return;
    }
    let release = Release::signed();
    // @sigstore/verify takes SHA-256 for every ECDSA key; P-384, which goes with SHA-384, is cosign's to check
    // (`cargo xtask parity lineage`).
    for (i, kind) in ["ecdsa-p256", "ed25519"].into_iter().enumerate() {
        let key = format!("key{i}");
        release.run(&["keygen", "--out", &key, "--algorithm", kind]).succeed();
        release.run(&["sign", FILE, "--key", &format!("{key}.pem")]).succeed();
        let bundle = release.dir.path(&format!("{FILE}.sigstore.json"));
        let verify = |succeeds: bool| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/scripts/sigstore_verify.js");
            let mut node = Command::new("node");
            node.arg(script).arg(peers().join("provenance/node_modules"));
            node.arg(release.dir.path(&format!("{key}.pub"))).arg(&bundle);
            run(&mut node, succeeds)
        };
        verify(true);
        let text = std::fs::read_to_string(&bundle).unwrap();
        // Somewhere in the payload: another letter of base64.
        let at = text.find("\"payload\":\"").unwrap() + 200;
        let mut bytes = text.into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        std::fs::write(&bundle, bytes).unwrap();
        let said = verify(false);
        assert!(said.contains("SIGNATURE_ERROR"), "{said}");
        std::fs::remove_file(&bundle).unwrap();
    }
}

#[test]
fn the_bill_of_materials_keeps_the_official_schema() {
    let Some(mut python) = peer("provenance/bin/python") else { return };
    let release = Release::signed();
    release.run(&["trace", FILE, "--key", "release.pub", "--cyclonedx", "bom.json"]).succeed();
    let bom: serde_json::Value = serde_json::from_slice(&std::fs::read(release.dir.path("bom.json")).unwrap()).unwrap();
    let artifact = &bom["metadata"]["component"];
    assert_eq!(artifact["type"], "machine-learning-model");
    assert_eq!(artifact["pedigree"]["ancestors"].as_array().unwrap().len(), 2, "base and adapter");
    let dataset = artifact["modelCard"]["modelParameters"]["datasets"][0]["ref"].as_str().unwrap();
    assert!(bom["components"].as_array().unwrap().iter().any(|c| c["bom-ref"] == dataset && c["type"] == "data"));
    const VALIDATE: &str = "import sys\n\
        from cyclonedx.schema import SchemaVersion\n\
        from cyclonedx.validation.json import JsonStrictValidator\n\
        fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())\n\
        sys.exit(str(fault) if fault else 0)";
    run(python.args(["-c", VALIDATE]).arg(release.dir.path("bom.json")), true);
}

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It has workers of its own: the whole group ends.
        let _ = Command::new("kill").args(["-TERM", "--", &format!("-{}", self.0.id())]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn a_run_is_imported_from_a_real_mlflow_server() {
    let Some(mut mlflow) = peer("provenance/bin/mlflow") else { return };
    use std::os::unix::process::CommandExt as _;
    let dir = TestDir::new();
    dir.copy("legal-qa/mlflow", "mlflow");
    dir.copy("legal-qa/legal-qa-lora", "lora/adapter");
    std::fs::copy(fixture("legal-qa/dataset.jsonl"), dir.path("lora/dataset.jsonl")).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    mlflow
        .args(["server", "--backend-store-uri", "sqlite:///mlflow/mlflow.db", "--default-artifact-root", "artifacts"])
        .args(["--host", "127.0.0.1", "--port", &port.to_string(), "--workers", "1"])
        .env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
        .current_dir(dir.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::from(std::fs::File::create(dir.path("server.log")).unwrap()))
        .process_group(0);
    let mut server = Server(mlflow.spawn().unwrap());
    let url = format!("http://127.0.0.1:{port}");
    let import = |run: &str| {
        mlpack(&dir).args(["run", "import", &format!("{url}#{run}"), "--adapter", "lora/adapter", "--json"])
    };
    // The server listens once it has imported its own code. A refused connection is the answer of a server that does not
    // listen yet; a try takes as long as the program takes to start.
    let mut answer = (String::new(), String::new(), 4);
    for _ in 0..20_000 {
        answer = import(RUN).outcome();
        if answer.2 != 4 || server.0.try_wait().unwrap().is_some() {
            break;
        }
    }
    let log = std::fs::read_to_string(dir.path("server.log")).unwrap_or_default();
    assert_eq!(answer.2, 0, "{}\n{log}", answer.1);
    let imported: serde_json::Value = serde_json::from_str(&answer.0).unwrap();
    let record = &imported["record"];
    assert_eq!(record["source"]["kind"], "mlflow-server");
    assert_eq!(record["params"]["learning_rate"], "0.003");
    assert_eq!(record["curves"]["loss"].as_array().unwrap().len(), 36);
    assert_eq!(record["agreement"]["equal"], "37");
    let dataset = crate::support::sha256(&fixture("legal-qa/dataset.jsonl"));
    assert_eq!(record["datasets"][0]["sha256"], dataset);
    // What the server says is what its database says.
    let own = TestDir::new();
    own.copy("legal-qa/mlflow", "mlflow");
    own.copy("legal-qa/legal-qa-lora", "lora");
    let from_file =
        mlpack(&own).args(["run", "import", &format!("mlflow/mlflow.db#{RUN}"), "--adapter", "lora"]).json();
    for field in
        ["params", "metrics", "curves", "code", "experiment", "status", "started_ms", "models", "run_id", "trainer"]
    {
        assert_eq!(record[field], from_file["record"][field], "{field}");
    }
    let (_, stderr) = import("4c421e9ce91a40368c786c2f89e8fc83").expect(2);
    assert!(stderr.contains("no run `4c421e9ce91a40368c786c2f89e8fc83`") && stderr.contains(RUN), "{stderr}");
}
