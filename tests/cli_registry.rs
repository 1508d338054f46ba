//! Publish, pull, serve, export, import and deploy, with Debian's docker-registry and skopeo as the other side.

use crate::support::registry::{self, Act, Proxy, Seen, noise};
use crate::support::{Mlpack, TestDir, fixture, mlpack, sha256};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// Two variants of the legal-qa base, with credentials of nobody.
fn variants(dir: &TestDir) {
    let base = fixture("legal-qa/kjv-llama").display().to_string();
    mlpack(dir).args(["convert", &base, "--quant", "Q8_0,F16", "--name", "m", "-o", "."]).succeed();
}

/// The command without the user's own credentials.
fn alone(dir: &TestDir) -> Mlpack {
    mlpack(dir).env("HOME", dir.path("home")).env("XDG_RUNTIME_DIR", dir.path("home"))
}

fn skopeo(args: &[&str]) -> String {
    let output = Command::new("skopeo").args(args).output().unwrap();
    assert!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn raw(reference: &str) -> Value {
    let text = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
    serde_json::from_str(&text).unwrap()
}

fn layer<'a>(manifest: &'a Value, media_type: &str) -> &'a Value {
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().find(|l| l["mediaType"] == media_type).unwrap_or_else(|| panic!("{media_type} in {manifest}"))
}

#[test]
fn one_upload_serves_four_ecosystems_and_every_manifest_is_pulled_back() {
    let Some(registry) = registry::start() else { return };
    let dir = TestDir::new();
    variants(&dir);
    let reference = format!("{}/team/m:v1", registry.host);
    let ecosystems = "ollama,modelpack,docker,image";
    let publish = |reference: &str| {
        alone(&dir)
            .args(["publish", "m-Q8_0.gguf", "m-F16.gguf", reference, "--as", ecosystems, "--plain-http"])
            .args(["--system", "Be brief.", "--parameter", "temperature=0.2"])
            .json()
    };
    let published = publish(&reference);
    let tags: Vec<&str> =
        published["manifests"].as_array().unwrap().iter().map(|m| m["tag"].as_str().unwrap()).collect();
    assert_eq!(
        tags,
        [
            "v1-f16",
            "v1-q8_0",
            "v1-f16-ollama",
            "v1-q8_0-ollama",
            "v1-f16-docker",
            "v1-q8_0-docker",
            "v1-f16-image",
            "v1-q8_0-image",
            "v1"
        ]
    );
    // Nothing is sent twice.
    assert_eq!(publish(&reference)["bytes_written"], 0);
    let weights = format!("sha256:{}", sha256(&dir.path("m-Q8_0.gguf")));
    for (tag, media_type) in [
        ("v1-q8_0", "application/vnd.cncf.model.weight.v1.raw"),
        ("v1-q8_0-ollama", "application/vnd.ollama.image.model"),
        ("v1-q8_0-docker", "application/vnd.docker.ai.gguf.v3"),
    ] {
        let manifest = raw(&format!("{}/team/m:{tag}", registry.host));
        assert_eq!(layer(&manifest, media_type)["digest"], weights, "{tag}");
    }
    let index = raw(&reference);
    let variants: Vec<&Value> =
        index["manifests"].as_array().unwrap().iter().map(|m| &m["annotations"]["vnd.mlpack.variant"]).collect();
    assert_eq!(variants, ["F16", "Q8_0"]);
    // Statements refer to each manifest; this registry has no list of referrers, so there is a tag for it.
    for manifest in &published["manifests"].as_array().unwrap()[..8] {
        let tag = manifest["digest"].as_str().unwrap().replace(':', "-");
        let referrers = raw(&format!("{}/team/m:{tag}", registry.host));
        assert_eq!(referrers["manifests"][0]["artifactType"], "application/vnd.mlpack.claims.v1+jsonl");
    }
    // Every ecosystem's manifest gives the model back.
    for (at, (tag, file)) in [
        ("v1-q8_0", "m-Q8_0.gguf"),
        ("v1-q8_0-ollama", "model.gguf"),
        ("v1-q8_0-docker", "m-Q8_0.gguf"),
        ("v1-q8_0-image", "m-Q8_0.gguf"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("out{at}");
        let reference = format!("{}/team/m:{tag}", registry.host);
        alone(&dir).args(["pull", &reference, "--plain-http", "-o", &out]).succeed();
        assert_eq!(format!("sha256:{}", sha256(&dir.path(&out).join(file))), weights, "{tag}");
    }
    // One variant, one file of the index; a second run fetches nothing.
    let select = ["pull", &reference, "--plain-http", "--select", "quant=q8_0", "--select", "file=*.gguf", "-o", "one"];
    assert_eq!(alone(&dir).args(select).json()["files"], serde_json::json!(["m-Q8_0.gguf"]));
    assert_eq!(alone(&dir).args(select).json()["bytes_fetched"], 0);
    assert!(dir.listing().iter().all(|name| !name.contains("mlpack-part")), "{:?}", dir.listing());
}

#[test]
fn an_image_is_what_other_tools_take_for_one() {
    let Some(registry) = registry::start() else { return };
    if !registry::present("umoci", "--version") {
        return;
    }
    let dir = TestDir::new();
    variants(&dir);
    // A base of one layer and two platforms, made by hand.
    let base = registry::base_image(&dir.path("base"));
    let reference = format!("{}/team/app:v1", registry.host);
    let publish = ["publish", "m-Q8_0.gguf", &reference, "--as", "image", "--plain-http", "--base", &base];
    let run = [
        "--entrypoint",
        "/bin/serve",
        "--command=--model",
        "--command=/models/m-Q8_0.gguf",
        "--env",
        "A=2",
        "--label",
        "x=y",
    ];
    alone(&dir).args(publish).args(run).succeed();
    let index = raw(&reference);
    let platforms: Vec<&Value> =
        index["manifests"].as_array().unwrap().iter().map(|m| &m["platform"]["architecture"]).collect();
    assert_eq!(platforms, ["amd64", "arm64"]);
    let copied = format!("oci:{}:v1", dir.path("copy").display());
    skopeo(&["--insecure-policy", "copy", "--src-tls-verify=false", &format!("docker://{reference}"), &copied]);
    let image = format!("{}:v1", dir.path("copy").display());
    let bundle = dir.path("bundle");
    let unpacked =
        Command::new("umoci").args(["unpack", "--rootless", "--image", &image]).arg(&bundle).output().unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    let root = bundle.join("rootfs");
    assert_eq!(sha256(&root.join("models/m-Q8_0.gguf")), sha256(&dir.path("m-Q8_0.gguf")));
    assert_eq!(sha256(&root.join("models/model.file")), sha256(&dir.path("m-Q8_0.gguf")));
    assert!(root.join("base.txt").is_file());
    let config = skopeo(&["inspect", "--config", &copied]);
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/bin/serve"]));
    assert_eq!(config["config"]["Cmd"], serde_json::json!(["--model", "/models/m-Q8_0.gguf"]));
    assert_eq!(config["config"]["Env"], serde_json::json!(["PATH=/bin", "A=2"]));
    assert_eq!(config["config"]["Labels"]["x"], "y");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
}

#[test]
fn a_later_version_fetches_only_the_tensors_that_changed() {
    let Some(registry) = registry::start() else { return };
    let dir = TestDir::new();
    variants(&dir);
    let reference = format!("{}/team/m:v1", registry.host);
    let publish = || alone(&dir).args(["publish", "m-F16.gguf", &reference, "--plain-http"]).succeed();
    let pull = || alone(&dir).args(["pull", &reference, "--plain-http", "--select", "file=*.gguf", "-o", "out"]).json();
    publish();
    pull();
    // One tensor of the next version is another one.
    let path = dir.path("m-F16.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let changed = {
        let gguf = mlpack_gguf::GgufFile::open(&path).unwrap();
        gguf.tensors().iter().find(|tensor| tensor.name == "blk.1.attn_q.weight").unwrap().range.clone()
    };
    bytes[changed.start as usize] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    publish();
    let pulled = pull();
    assert_eq!(sha256(&dir.path("out/m-F16.gguf")), sha256(&path));
    let (len, tensor) = (bytes.len() as u64, changed.end - changed.start);
    let header = mlpack_gguf::GgufFile::open(&path).unwrap().data_start();
    let fetched = pulled["bytes_fetched"].as_u64().unwrap();
    assert!(fetched >= tensor && fetched < tensor + header + 4096, "{fetched} of {len}: {pulled}");
    assert_eq!(pulled["bytes_kept"].as_u64().unwrap(), len - fetched);
}

/// `mlpack serve` on a free port.
pub struct Served {
    child: Child,
    pub host: String,
}

pub fn serve(dir: &TestDir, layout: &str) -> Served {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mlpack"))
        .args(["serve", layout, "--listen", "127.0.0.1:0"])
        .current_dir(dir.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let host = line.trim().strip_prefix("http://").unwrap().to_owned();
    Served { child, host }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_layout_travels_as_one_archive_and_is_served_on_the_other_side() {
    if !registry::present("skopeo", "--version") {
        return;
    }
    let dir = TestDir::new();
    variants(&dir);
    let to = ["publish", "m-Q8_0.gguf", "m-F16.gguf", "oci:layout:v1", "--as", "modelpack,ollama"];
    mlpack(&dir).args(to).succeed();
    mlpack(&dir).args(["export", "oci:layout:v1", "-o", "a.tar"]).succeed();
    mlpack(&dir).args(["export", "oci:layout:v1", "-o", "b.tar"]).succeed();
    assert_eq!(sha256(&dir.path("a.tar")), sha256(&dir.path("b.tar")));
    mlpack(&dir).args(["import", "a.tar", "-o", "far"]).succeed();
    let served = serve(&dir, "far");
    // skopeo reads it as an archive, and over the network.
    let archive = format!("oci-archive:{}:v1", dir.path("a.tar").display());
    let direct = format!("docker://{}/any/name:v1", served.host);
    let inspect = |from: &str| skopeo(&["inspect", "--raw", "--tls-verify=false", from]);
    assert_eq!(inspect(&archive), inspect(&direct));
    let copied = format!("oci:{}:v1", dir.path("copied").display());
    skopeo(&["--insecure-policy", "copy", "--all", "--src-tls-verify=false", &direct, &copied]);
    // So does our own client, from the archive's variants.
    let reference = format!("{}/any/name:v1", served.host);
    alone(&dir).args(["pull", &reference, "--plain-http", "--select", "quant=F16", "-o", "out"]).succeed();
    assert_eq!(sha256(&dir.path("out/m-F16.gguf")), sha256(&dir.path("m-F16.gguf")));
    alone(&dir).args(["export", &reference, "--plain-http", "-o", "c.tar"]).succeed();
    mlpack(&dir).args(["import", "c.tar", "-o", "far2"]).succeed();
    assert!(!dir.path("c.tar.blobs").exists() && !dir.path("far2.import").exists());
}

#[test]
fn a_model_goes_into_ollamas_store_with_its_digest() {
    let dir = TestDir::new();
    variants(&dir);
    let deploy = ["deploy", "ollama", "m-Q8_0.gguf", "legal-qa:q8", "--store", "store", "--system", "Be brief."];
    let done = mlpack(&dir).args(deploy).json();
    let manifest = dir.path("store/manifests/registry.ollama.ai/library/legal-qa/q8");
    let text = std::fs::read_to_string(&manifest).unwrap();
    assert_eq!(format!("sha256:{}", sha256(&manifest)), done["digest"]);
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let model = layer(&manifest, "application/vnd.ollama.image.model");
    assert_eq!(model["digest"], format!("sha256:{}", sha256(&dir.path("m-Q8_0.gguf"))));
    for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let hex = blob["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let path = dir.path(&format!("store/blobs/sha256-{hex}"));
        assert_eq!((sha256(&path), path.metadata().unwrap().len()), (hex, blob["size"].as_u64().unwrap()));
    }
    let system = layer(&manifest, "application/vnd.ollama.image.system")["digest"].as_str().unwrap();
    let system = dir.path(&format!("store/blobs/{}", system.replace(':', "-")));
    assert_eq!(std::fs::read_to_string(system).unwrap(), "Be brief.");
    // What the Modelfile beside the GGUF says stays until an option says something else.
    let layers = |name: &str, option: &[&str]| {
        let done = mlpack(&dir).args(["deploy", "ollama", "m-Q8_0.gguf", name, "--store", "store"]).args(option).json();
        let manifest = dir.path(done["manifest"].as_str().unwrap());
        serde_json::from_str::<Value>(&std::fs::read_to_string(manifest).unwrap()).unwrap()["layers"].clone()
    };
    assert_eq!(layers("again", &[]), manifest["layers"]);
    assert!(!layers("other", &["--parameter", "seed=1"]).to_string().contains("image.system"));
}

#[test]
fn references_and_selections_that_lead_nowhere() {
    let dir = TestDir::new();
    variants(&dir);
    mlpack(&dir).args(["publish", "m-Q8_0.gguf", "m-F16.gguf", "oci:layout:v1"]).succeed();
    let before = dir.listing();
    let mut said = String::new();
    for (args, code) in [
        (&["pull", "nowhere", "-o", "out"][..], 2),
        (&["pull", "oci:layout:v2", "-o", "out"], 2),
        (&["pull", "oci:layout:v1", "--select", "quant=Q4_K_M", "-o", "out"], 2),
        (&["pull", "oci:layout:v1", "--select", "size=small", "-o", "out"], 2),
        (&["pull", "oci:layout:v1", "--select", "file=*.onnx", "-o", "out"], 2),
        (&["pull", "127.0.0.1:1/x:v1", "--plain-http", "--retries", "0", "-o", "out"], 4),
        (&["publish", "m-Q8_0.gguf", "127.0.0.1:1/x", "--plain-http"], 2),
        (&["publish", "m-Q8_0.gguf", "oci:layout:v1", "--as", "image", "--base", "oci:layout:v1"], 3),
        (&["deploy", "ollama", "m-Q8_0.gguf", "a/b/c/d", "--store", "store"], 2),
        (&["export", "oci:layout:v9", "-o", "x.tar"], 2),
        (&["import", "m-Q8_0.gguf", "-o", "far"], 3),
        (&["serve", "m-Q8_0.gguf"], 4),
        (&["serve", "layout", "--listen", "nowhere:x"], 4),
    ] {
        let (stdout, stderr) = alone(&dir).args(args).expect(code);
        assert_eq!(stdout, "", "standard output is data");
        said.push_str(&format!("$ mlpack {}\n{stderr}\n", args.join(" ")));
    }
    assert_eq!(dir.listing(), before, "nothing is left behind");
    insta::assert_snapshot!(said);
}

#[test]
fn a_layout_with_a_missing_blob_is_refused_with_the_blob() {
    let dir = TestDir::new();
    variants(&dir);
    mlpack(&dir).args(["publish", "m-Q8_0.gguf", "oci:layout:v1"]).succeed();
    let hex = sha256(&dir.path("m-Q8_0.gguf"));
    let blob = dir.path("layout/blobs/sha256").join(&hex);
    std::fs::remove_file(&blob).unwrap();
    for args in [&["export", "oci:layout:v1", "-o", "x.tar"][..], &["pull", "oci:layout:v1", "-o", "out"]] {
        let (_, stderr) = mlpack(&dir).args(args).expect(3);
        assert!(stderr.contains(&format!("sha256:{hex}")) && stderr.contains("the blob is missing"), "{stderr}");
    }
    std::fs::write(&blob, vec![0; dir.path("m-Q8_0.gguf").metadata().unwrap().len() as usize]).unwrap();
    let (_, stderr) = mlpack(&dir).args(["pull", "oci:layout:v1", "-o", "out"]).expect(3);
    assert!(stderr.contains("content of digest sha256:"), "{stderr}");
    assert!(!dir.path("out").exists() && !Path::new(&dir.path("x.tar")).exists());
}

/// What a killed run is told by: the process, and the request that ends it.
#[derive(Default)]
struct Trap {
    pid: Option<u32>,
    left: usize,
    seen: usize,
}

/// Runs a command over and over, each run killed at its turn, until one ends by itself.
fn run_until_done(dir: &TestDir, args: &[&str], trap: &Mutex<Trap>, moments: &[usize]) {
    for moment in moments.iter().copied().chain([usize::MAX]) {
        // The lock is held until the process is known: no request passes before.
        let mut set = trap.lock().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_mlpack"))
            .args(args)
            .current_dir(dir.path(""))
            .env("HOME", dir.path("home"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        (set.pid, set.left) = (Some(child.id()), moment);
        drop(set);
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let status = child.wait().unwrap();
        trap.lock().unwrap().pid = None;
        assert!(status.success() || status.signal() == Some(9), "{status}: {said}");
        if status.success() {
            return;
        }
    }
    panic!("the last run is not killed");
}

/// Kills the process at the request whose turn it is: in the middle of a body, or when all went through and before, in or
/// after the answer.
fn springs(trap: &Arc<Mutex<Trap>>) -> impl FnMut(&Seen) -> Act + Send + 'static {
    let trap = Arc::clone(trap);
    let mut random = 1u64;
    move |seen| {
        let mut trap = trap.lock().unwrap();
        trap.seen += 1;
        trap.left = trap.left.saturating_sub(1);
        let Some(pid) = trap.pid.filter(|_| trap.left == 0) else { return Act::Pass };
        trap.pid = None;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len: u64 = seen.header("content-length").map_or(0, |len| len.parse().unwrap());
        // Parts of answers have 16 MiB, chunks of bodies 32.
        let reach = if len > 0 { len + len / 8 } else { 18 << 20 };
        let after = if random >> 60 == 0 { len } else { (random >> 20) % (reach + 1) };
        Act::Kill { pid, after }
    }
}

/// Kills of each kind: a few in every run of the tests, `MLPACK_KILLS` of them when asked.
fn kills() -> usize {
    std::env::var("MLPACK_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8)
}

#[test]
fn killed_at_any_moment_a_push_and_a_pull_end_in_the_right_bytes() {
    let Some(registry) = registry::start() else { return };
    let dir = TestDir::new();
    let model = dir.path("model");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("model.safetensors"), noise(80_000_000, 1)).unwrap();
    std::fs::write(model.join("config.json"), "{}").unwrap();
    let trap: Arc<Mutex<Trap>> = Arc::default();
    let proxy = Proxy::start(&registry.host, springs(&trap));
    let push = |no: usize, moments: &[usize]| {
        // What an earlier push noted would let the registry take the blobs over.
        let notes = dir.path(".mlpack/push");
        if notes.exists() {
            std::fs::remove_dir_all(notes).unwrap();
        }
        let reference = format!("{}/kill/push{no}:v1", proxy.host);
        run_until_done(&dir, &["publish", "model", &reference, "--plain-http"], &trap, moments);
    };
    let pull = |no: usize, moments: &[usize]| {
        let reference = format!("{}/kill/push0:v1", proxy.host);
        let out = format!("out{no}");
        run_until_done(&dir, &["pull", &reference, "--plain-http", "-o", &out], &trap, moments);
        assert_eq!(sha256(&dir.path(&out).join("model.safetensors")), sha256(&model.join("model.safetensors")));
        assert!(dir.listing().iter().all(|name| !name.contains("mlpack-part")), "{:?}", dir.listing());
        std::fs::remove_dir_all(dir.path(&out)).unwrap();
    };
    // How many requests a run makes that nobody disturbs.
    let count = |run: &dyn Fn()| {
        let before = trap.lock().unwrap().seen;
        run();
        trap.lock().unwrap().seen - before
    };
    let (pushes, pulls) = (count(&|| push(0, &[])), count(&|| pull(0, &[])));
    // Two kills a push: in the first run, and in the one after it.
    for no in 1..=kills() {
        let moment = |salt: usize, of: usize| 1 + (no * 7919 + salt * 104_729) % of;
        push(no, &[moment(1, pushes), moment(2, pushes)]);
        pull(no, &[moment(3, pulls), moment(4, pulls)]);
    }
    // A PUT that reached the registry finished its blob: there is one of each in a repository.
    let mut finished: BTreeMap<(String, String), usize> = BTreeMap::new();
    for seen in proxy.of("PUT") {
        let (path, query) = seen.target.split_once('?').unwrap_or((&seen.target, ""));
        if let Some((_, digest)) = query.split_once("digest=") {
            let repository = path.split("/blobs/").next().unwrap().to_owned();
            *finished.entry((repository, digest.to_owned())).or_default() += usize::from(seen.passed);
        }
    }
    assert!(finished.values().all(|times| *times == 1), "{finished:?}");
}
